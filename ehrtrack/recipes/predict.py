"""Scoring new subjects with a logged model."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from ehrtrack.baselines._protocol import TokenHistories
from ehrtrack.data.batch import Batches
from ehrtrack.data.engines import Engine, open_engine
from ehrtrack.data.events import MedsDataset, open_dataset
from ehrtrack.data.labels import read_labels
from ehrtrack.data.store import TokenStore, build_store
from ehrtrack.data.vocabulary import UNK
from ehrtrack.errors import CheckpointError, DataError
from ehrtrack.objectives.survival import predict as predict_survival
from ehrtrack.plugins import load
from ehrtrack.recipes._model_folder import ModelFolder, read_model_folder
from ehrtrack.survival.time_grid import TimeGrid
from ehrtrack.tracking.queries import download, resolve_run
from ehrtrack.training.threads import use_threads

BATCH_TOKENS = 4096
MOST_UNKNOWN = 0.5
"""Share of tokens that a model may not know of the subjects that it is asked to score."""


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

    def predict_events(self, events: pl.DataFrame, prediction_times: pl.DataFrame) -> pl.DataFrame:
        """Risk and survival of subjects from a frame of MEDS events.

        Parameters
        ----------
        events : subject_id, time, code and, if there are any, numeric_value, visit_id
        prediction_times : subject_id, prediction_time, a subject once; later events are not used
        """
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "data").mkdir()
            events.write_parquet(Path(folder) / "data" / "0.parquet")
            return self.predict_dataset(open_dataset(Path(folder)), prediction_times)

    def predict_dataset(self, dataset: MedsDataset, prediction_times: pl.DataFrame) -> pl.DataFrame:
        """Risk and survival of subjects of a dataset.

        Returns
        -------
        subject_id, prediction_time, risk (1 - S at the horizon), survival (list of K + 1), survival_days (the same
        for every row: the edges of the time grid), in the order of `prediction_times`.
        """
        scored, tokens = self.score(dataset, prediction_times)
        _check_unknown(int(np.count_nonzero(tokens == UNK)), len(tokens))
        return scored

    def score(self, dataset: MedsDataset, prediction_times: pl.DataFrame) -> tuple[pl.DataFrame, npt.NDArray[np.int32]]:
        """As `predict_dataset`, with the tokens that were scored, and no check of how many the model knows."""
        cutoffs = prediction_times.select("subject_id", cutoff="prediction_time")
        data = self.folder.config.data
        with tempfile.TemporaryDirectory() as cache:
            store = build_store(dataset, cutoffs, self.folder.vocabulary, data.visits, Path(cache))
            tokens = np.array(store.token)
            survival = self._survival(store)
        return prediction_times.select("subject_id", "prediction_time").with_columns(
            risk=pl.Series(1 - survival[:, -1], dtype=pl.Float64),
            survival=pl.Series(survival.tolist(), dtype=pl.List(pl.Float64)),
            survival_days=pl.lit(list(self.grid.edges_days)),
        ), tokens

    def _survival(self, store: TokenStore) -> npt.NDArray[np.float64]:
        """(N, K + 1) survival at the edges of the grid."""
        config = self.folder.config
        if not len(store):
            return np.zeros((0, len(self.grid.edges_days)))
        if self.folder.baseline is not None:
            module = load("baselines", config.baseline.name)
            histories = TokenHistories(store, self.folder.vocabulary, np.arange(len(store)), config.data.max_tokens)
            survival: npt.NDArray[np.float64] = module.from_json(self.folder.baseline).survival(
                module.read(histories), self.grid.edges_days
            )
            return survival
        batches = Batches(
            store, np.arange(len(store)), max(BATCH_TOKENS, config.data.max_tokens), config.data.max_tokens
        )
        return predict_survival(self.folder.survival_model(), batches, torch.device("cpu")).survival


def load_predictor(folder: Path) -> Predictor:
    """The predictor in a model folder.

    Raises
    ------
    CheckpointError
        If a file is missing or damaged, or the model predicts no survival.
    """
    model = read_model_folder(Path(folder))
    if model.grid is None:
        raise CheckpointError(f"the model in {folder} was pretrained only: it has no outcome; name a finetune run")
    return Predictor(model, model.grid)


def predict(
    model: str, data: Path, labels: Path, out: Path, *, engine: str = "local", n_workers: int = 1
) -> pl.DataFrame:
    """Score the subjects of a file of prediction times, and write the table.

    Subjects are scored shard by shard, so that any engine and any number of workers write the same bytes.

    Parameters
    ----------
    model : run id, ``models:/NAME@champion`` or ``models:/NAME/VERSION``
    data : MEDS dataset
    labels : parquet or CSV with subject_id and prediction_time; other columns are not read
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
        reference = resolve_run(model)
        model_folder = download(reference.run_id, reference.artifact_path, Path(folder)).resolve()
        scored = predict_shards(model_folder, dataset, times, opened)
    aside = out.with_suffix(".part")
    scored.write_parquet(aside)
    aside.replace(out)
    return scored


def predict_shards(model_folder: Path, dataset: MedsDataset, times: pl.DataFrame, engine: Engine) -> pl.DataFrame:
    """As `Predictor.predict_dataset`, with each shard's subjects scored by a worker that reads the model itself."""
    load_predictor(model_folder)  # a folder that cannot be used is told before any work
    numbered = times.select("subject_id", "prediction_time").with_row_index("row")
    function = partial(_predict_shard, model_folder, dataset.path.resolve(), numbered)
    parts = engine.map(function, [shard.resolve() for shard in dataset.shards], "predictions")
    _check_unknown(sum(part.n_unknown for part in parts), sum(part.n_tokens for part in parts))
    scored = pl.concat([part.scored for part in parts]).sort("row")
    _check_each_once(numbered, scored)
    return scored.drop("row")


@dataclass(frozen=True)
class _ShardPredictions:
    scored: pl.DataFrame  # row, and the columns of `Predictor.predict_dataset`
    n_tokens: int
    n_unknown: int


def _predict_shard(model_folder: Path, data: Path, times: pl.DataFrame, shard: Path) -> _ShardPredictions:
    subjects = pl.scan_parquet(shard).select(pl.col("subject_id").cast(pl.Int64)).unique().collect()
    held = times.join(subjects, on="subject_id", how="semi", maintain_order="left")
    # The order in which threads add up shows in the last digits; one thread has one order.
    n_threads = torch.get_num_threads()
    use_threads(1)
    try:
        scored, store_tokens = _predictor_in(model_folder).score(MedsDataset(data, (shard,)), held)
    finally:
        use_threads(n_threads)
    return _ShardPredictions(
        scored.with_columns(row=held["row"]), len(store_tokens), int(np.count_nonzero(store_tokens == UNK))
    )


@lru_cache(maxsize=1)
def _predictor_in(model_folder: Path) -> Predictor:
    """The predictor of a folder, read once a worker."""
    return load_predictor(model_folder)


def _check_each_once(times: pl.DataFrame, scored: pl.DataFrame) -> None:
    absent = times.join(scored, on="row", how="anti")
    if not absent.is_empty():
        raise DataError(
            f"{absent.height} of {times.height} subjects are not in the dataset (first: subject "
            f"{absent['subject_id'][0]}); leave them out of the prediction times, or look at --data"
        )
    twice = scored.filter(pl.col("row").is_duplicated())
    if not twice.is_empty():
        raise DataError(
            f"subject {twice['subject_id'][0]} is in more than one shard; a MEDS dataset keeps all events of a "
            "subject in one: import the data again"
        )


def _check_unknown(n_unknown: int, n_tokens: int) -> None:
    share = n_unknown / n_tokens if n_tokens else 1.0
    if share > MOST_UNKNOWN:
        raise DataError(
            f"the model does not know {share:.0%} of these subjects' tokens: they were coded otherwise than the "
            "data it was trained on; map the codes first, or train on this data"
        )
