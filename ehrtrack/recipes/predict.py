"""Scoring new subjects with a logged model."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import polars as pl
import torch

from ehrtrack.arrays import Ints
from ehrtrack.baselines.base import TokenHistories, baseline_class
from ehrtrack.data.batch import Batches
from ehrtrack.data.cutoffs import latest
from ehrtrack.data.drift import Drift, events_by_token, silent_days_limit
from ehrtrack.data.eligibility import NOT_IN_DATASET, REASON, silence_reason, with_reasons
from ehrtrack.data.engines import Engine, open_engine
from ehrtrack.data.events import MedsDataset, open_dataset
from ehrtrack.data.fitting import count_names
from ehrtrack.data.histories import damage_named, holding_shards, read_shard
from ehrtrack.data.labels import of_any_cause, read_labels
from ehrtrack.data.store import TokenStore, build_store
from ehrtrack.errors import CheckpointError, DataError
from ehrtrack.evaluation.predictions import with_predictions
from ehrtrack.files import written_aside
from ehrtrack.models.device import place
from ehrtrack.objectives.base import Predictions
from ehrtrack.pipeline.model_folder import ModelFolder, read_model_folder
from ehrtrack.survival.time_grid import TimeGrid
from ehrtrack.tracking.client.queries import fetch_model
from ehrtrack.training.threads import use_threads

BATCH_TOKENS = 4096
MOST_UNKNOWN = 0.5
"""Share of events that a model may not know of the subjects that it is asked to score."""

DRIFT_METADATA = "ehrtrack.drift"
"""The entry of the parquet file's metadata with the counts of `Drift`, as JSON."""


@dataclass(frozen=True)
class Scored:
    """Subjects that were asked for at prediction times, and how their records compare with those of training.

    Attributes
    ----------
    table : as of `Predictor.predict_dataset`
    drift : of the records that were scored
    """

    table: pl.DataFrame
    drift: Drift

    def to_lines(self) -> list[str]:
        """How many were scored, why others were not, and what is new in their records."""
        asked = of_any_cause(self.table)
        left_out = asked.filter(pl.col("risk").is_null())
        n_subjects = asked["subject_id"].n_unique()
        what = "subjects" if n_subjects == asked.height else f"prediction times of {n_subjects:,} subjects"
        lines = [f"{asked.height - left_out.height:,} of {asked.height:,} {what} scored"]
        if not left_out.is_empty():
            counts = left_out[REASON].value_counts(sort=True).sort("count", REASON, descending=[True, False])
            reasons = "; ".join(f"{reason}: {count:,}" for reason, count in counts.iter_rows())
            lines.append(f"no risk for {left_out.height:,}, outside what the model was trained for: {reasons}")
        return lines + self.drift.to_lines()


@dataclass(frozen=True)
class Predictor:
    """A model that was read back, ready to score.

    Attributes
    ----------
    folder : the model with its vocabulary and configuration
    grid : days at which survival is given
    """

    folder: ModelFolder
    grid: TimeGrid

    def predict_events(
        self, events: pl.DataFrame, prediction_times: pl.DataFrame, *, tells_causes: bool = False
    ) -> pl.DataFrame:
        """Risk and survival of subjects from a frame of MEDS events.

        Parameters
        ----------
        events : subject_id, time, code and, if there are any, numeric_value, visit_id
        prediction_times : subject_id, prediction_time, each pair once; later events are not used
        tells_causes : False for one row a pair, of any cause, which is what code that was registered with a model
            before there were several relies on
        """
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "data").mkdir()
            events.write_parquet(Path(folder) / "data" / "0.parquet")
            table = self.predict_dataset(open_dataset(Path(folder)), prediction_times)
        return table if tells_causes else of_any_cause(table)

    def predict_dataset(self, dataset: MedsDataset, prediction_times: pl.DataFrame) -> pl.DataFrame:
        """Risk and survival of subjects of a dataset.

        Returns
        -------
        subject_id, prediction_time, risk (1 - S at the horizon), survival (list of K + 1), survival_days (the same
        for every row: the edges of the time grid) and reason, in the order of `prediction_times`. A subject that
        training would have left out has no risk, and the reason. A model that tells causes apart gives a row for each
        and a column cause (`with_predictions`).
        """
        return self.score_dataset(dataset, prediction_times).table

    def score_dataset(self, dataset: MedsDataset, prediction_times: pl.DataFrame) -> Scored:
        """As `predict_dataset`, with the drift of the records."""
        table, n_events = self.score(dataset, prediction_times)
        return self.scored(table, n_events)

    def scored(self, table: pl.DataFrame, n_events: Ints) -> Scored:
        """The table with its drift, if the model knows most of the events.

        Raises
        ------
        DataError
            If it does not.
        """
        drift = Drift.between(n_events, self.folder.vocabulary, self.folder.seen)
        if drift.share_unknown > MOST_UNKNOWN:
            raise DataError(
                f"the model does not know {drift.share_unknown:.0%} of these subjects' events: they were coded "
                "otherwise than the data it was trained on; map the codes first, or train on this data"
            )
        return Scored(table, drift)

    def score(self, dataset: MedsDataset, times: pl.DataFrame) -> tuple[pl.DataFrame, Ints]:
        """As `predict_dataset`, with the events (V,) by token that were read, and no check of how many it knows.

        Further columns of `times` are kept.
        """
        cohort = self.folder.config.cohort
        assert cohort is not None  # looked at when the folder was read
        data = self.folder.config.data
        asked = with_reasons(dataset, times, cohort, data.births)
        rows = np.flatnonzero(asked[REASON].is_null().to_numpy())
        if not len(rows):
            return self.table(asked, rows, None), np.zeros(len(self.folder.vocabulary), dtype=np.int64)
        cutoffs = asked[rows].select("subject_id", cutoff="prediction_time")
        limit_days = silent_days_limit(self.folder.seen)
        with tempfile.TemporaryDirectory() as cache, holding_shards():
            vocabulary = self.folder.vocabulary
            store = build_store(
                dataset,
                cutoffs,
                vocabulary,
                data.visits,
                Path(cache),
                delay_hours=data.delay_hours,
                births=data.births,
            )
            is_silent = store.end_gap_days > limit_days
            kept = np.flatnonzero(~is_silent)
            predictions = self._predict(store, kept) if len(kept) else None
            n_events = self._count_events(dataset, cutoffs[kept])
        asked = _with_reason(asked, rows[is_silent], silence_reason(limit_days))
        return self.table(asked, rows[kept], predictions), n_events

    def table(self, asked: pl.DataFrame, rows: Ints, predictions: Predictions | None) -> pl.DataFrame:
        """The N rows asked for with the predictions of some of them, which lie at `rows`; null for the others."""
        n_edges, n_causes = len(self.grid.edges_days), self.folder.n_causes
        survival = np.full((asked.height, n_edges), np.nan)
        incidence = np.full((asked.height, n_causes, n_edges), np.nan) if n_causes > 1 else None
        if predictions is not None:
            survival[rows] = predictions.survival
            if incidence is not None:
                incidence[rows] = predictions.incidence
        table = with_predictions(asked, Predictions(np.arange(asked.height), survival, incidence))
        curves = [name for name in ("risk", "survival", "incidence") if name in table.columns]
        table = table.with_columns(pl.when(pl.col(REASON).is_null()).then(pl.col(name)) for name in curves)
        first = [name for name in table.columns if name != REASON]
        return table.select(*first, pl.lit(list(self.grid.edges_days)).alias("survival_days"), REASON)

    def _predict(self, store: TokenStore, rows: Ints) -> Predictions:
        """Of some rows of a store, in their order."""
        config, longest = self.folder.config, self.folder.max_tokens
        if self.folder.baseline is not None:
            chosen = baseline_class(config.baseline.name, has_classes=self.folder.has_classes)(config.baseline)
            histories = TokenHistories(
                store, self.folder.vocabulary, rows, longest, may_lack_age=config.data.may_lack_age
            )
            model = chosen.from_json(self.folder.baseline)
            return _checked(Predictions(rows, np.asarray(model.survival(chosen.read(histories), self.grid.edges_days))))
        batches, cpu = Batches(store, rows, BATCH_TOKENS, longest), torch.device("cpu")
        network = place(self.folder.survival_model(), cpu)
        return _checked(self.folder.rebuilt().predict(network, batches, cpu))

    def _count_events(self, dataset: MedsDataset, cutoffs: pl.DataFrame) -> Ints:
        """(V,) events of each token that are known of the subjects at their cutoffs, each event once."""
        vocabulary, delay_hours = self.folder.vocabulary, self.folder.config.data.delay_hours
        n_events = np.zeros(len(vocabulary), dtype=np.int64)
        one_split = latest(cutoffs).with_columns(split=pl.lit("test"))
        for shard in dataset.shards if cutoffs.height else ():
            by_name = vocabulary.value_edges, vocabulary.exclude, vocabulary.groups
            names = count_names(read_shard(shard), one_split, *by_name, delay_hours=delay_hours)
            n_events += events_by_token(names, vocabulary)
        return n_events


def _checked(predictions: Predictions) -> Predictions:
    """The predictions themselves, if all are probabilities: weights that are finite one by one may add up to none."""
    for curves in (predictions.survival, predictions.incidence):
        if curves is None:
            continue
        is_probability = (curves >= -1e-6) & (curves <= 1 + 1e-6)
        if not is_probability.all():
            n_subjects = (~is_probability).reshape(len(curves), -1).any(axis=1).sum()
            raise CheckpointError(
                f"the model gives {n_subjects} of {len(curves)} subjects a survival that is none (such as "
                f"{curves[~is_probability][0]}); its weights are damaged: fetch it again, or train it anew"
            )
    return predictions


def _with_reason(asked: pl.DataFrame, rows: Ints, reason: str) -> pl.DataFrame:
    """The asked subjects with a reason put at some rows."""
    reasons = asked[REASON].to_list()
    for row in rows:
        reasons[row] = reason
    return asked.with_columns(pl.Series(REASON, reasons, dtype=pl.String))


def load_predictor(folder: Path) -> Predictor:
    """The predictor in a model folder.

    Raises
    ------
    CheckpointError
        If a file is missing or damaged, or the model predicts no survival.
    """
    model = read_model_folder(Path(folder))
    if model.grid is None or model.config.cohort is None:
        raise CheckpointError(f"the model in {folder} was pretrained only: it has no outcome; name a finetune run")
    return Predictor(model, model.grid)


def predict(
    model: str, data: Path, labels: Path, out: Path, *, engine: str = "local", n_workers: int = 1
) -> pl.DataFrame:
    """Score the subjects of a file of prediction times, of which a subject may have several, and write the table.

    Subjects are scored shard by shard, so that any engine and any number of workers write the same bytes. The closing
    lines count who has no risk and why, and the drift of codes and values against training, which the file's metadata
    keep too.

    Parameters
    ----------
    model : run id, ``models:/NAME@champion`` or ``models:/NAME/VERSION``
    data : MEDS dataset
    labels : parquet or CSV, or a folder of them, with subject_id and prediction_time; other columns are not read
    out : parquet file to write; on a cluster its folder is shared by all nodes, for the model is put beside it
    engine : ``local`` or ``ray``
    n_workers : shards that are worked on at the same time
    """
    if out.suffix != ".parquet":
        raise DataError(f"--out {out} must end in .parquet: the survival curve is a list")
    dataset = open_dataset(data)
    times = read_labels(labels, dataset, needs_outcome=False).rename({"index_date": "prediction_time"})
    with (
        open_engine(engine, n_workers) as opened,
        tempfile.TemporaryDirectory(dir=out.parent, prefix=".predict-") as folder,
    ):
        model_folder = fetch_model(model, Path(folder)).folder.resolve()
        scored = score_shards(model_folder, dataset, times, opened)
    with written_aside(out) as aside:
        scored.table.write_parquet(aside, metadata={DRIFT_METADATA: scored.drift.to_json()})
    print("\n".join([*scored.to_lines(), f"-> {out}"]), flush=True)
    return scored.table


def score_shards(model_folder: Path, dataset: MedsDataset, times: pl.DataFrame, engine: Engine) -> Scored:
    """As `Predictor.predict_dataset`, with each shard's subjects scored by a worker that reads the model itself."""
    predictor = load_predictor(model_folder)  # a folder that cannot be used is told before any work
    numbered = times.select("subject_id", "prediction_time").with_row_index("row")
    function = partial(_predict_shard, model_folder, dataset.path.resolve(), numbered)
    parts = engine.map(function, [shard.resolve() for shard in dataset.shards], "predictions")
    held = [part.table for part in parts]
    _check_once(held)
    absent = numbered.join(pl.concat(held), on="row", how="anti").with_columns(pl.lit(NOT_IN_DATASET).alias(REASON))
    nowhere = predictor.table(absent, np.zeros(0, dtype=np.int64), None)
    table = pl.concat([*held, nowhere]).sort("row", maintain_order=True).drop("row")
    return predictor.scored(table, np.sum([part.n_events for part in parts], axis=0))


@dataclass(frozen=True)
class _ShardPredictions:
    table: pl.DataFrame  # row, and the columns of `Predictor.predict_dataset`
    n_events: Ints  # (V,) by token


def _predict_shard(model_folder: Path, data: Path, times: pl.DataFrame, shard: Path) -> _ShardPredictions:
    with damage_named((shard,)):
        subjects = pl.scan_parquet(shard).select(pl.col("subject_id").cast(pl.Int64)).unique().collect()
    held = times.join(subjects, on="subject_id", how="semi", maintain_order="left")
    # The order in which threads add up shows in the last digits; one thread has one order.
    n_threads = torch.get_num_threads()
    use_threads(1)
    try:
        return _ShardPredictions(*_predictor_in(model_folder).score(MedsDataset(data, (shard,)), held))
    finally:
        use_threads(n_threads)


@lru_cache(maxsize=1)
def _predictor_in(model_folder: Path) -> Predictor:
    """The predictor of a folder, read once a worker."""
    return load_predictor(model_folder)


def _check_once(parts: Sequence[pl.DataFrame]) -> None:
    """A subject lies in one shard."""
    rows = pl.concat([of_any_cause(part).select("row", "subject_id") for part in parts])
    twice = rows.filter(pl.col("row").is_duplicated())
    if not twice.is_empty():
        raise DataError(
            f"subject {twice['subject_id'][0]} is in more than one shard; a MEDS dataset keeps all events of a "
            "subject in one: import the data again"
        )
