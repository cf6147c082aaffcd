"""A model that was read back, ready to score: subjects at prediction times in, risks out."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import nn

from ehrtrack.arrays import Ints
from ehrtrack.baselines.base import Baseline, FittedBaseline, TokenHistories, baseline_class
from ehrtrack.data.batch import Batches
from ehrtrack.data.cutoffs import latest
from ehrtrack.data.drift import Drift, events_by_token, silent_days_limit
from ehrtrack.data.eligibility import REASON, silence_reason, with_reasons
from ehrtrack.data.events import MedsDataset
from ehrtrack.data.fitting import count_names
from ehrtrack.data.held import HeldEvents, held_events, shards_of
from ehrtrack.data.histories import Histories, holding_shards
from ehrtrack.data.labels import of_any_cause
from ehrtrack.data.shards import ShardWork
from ehrtrack.data.store import TokenStore, build_store, tokens_of
from ehrtrack.data.value_features import summaries_of, value_summaries
from ehrtrack.errors import CheckpointError, DataError
from ehrtrack.evaluation.groups import subject_groups
from ehrtrack.evaluation.predictions import with_predictions
from ehrtrack.models.device import place
from ehrtrack.objectives.base import Predictions, Rebuilt
from ehrtrack.pipeline.adapted import Bases
from ehrtrack.pipeline.model_folder import ModelFolder, read_model_folder
from ehrtrack.survival.time_grid import TimeGrid

BATCH_TOKENS = 4096
CPU = torch.device("cpu")
MOST_UNKNOWN = 0.5
"""Share of events that a model may not know of the subjects that it is asked to score."""


@dataclass(frozen=True)
class Scored:
    """Subjects that were asked for at prediction times, and how their records compare with those of training.

    Attributes
    ----------
    table : as of `Predictor.predict_dataset`
    drift : of the records that were scored
    groups : attribute -> the group of each row that was scored, in order, where they were asked for
    """

    table: pl.DataFrame
    drift: Drift
    groups: Mapping[str, pl.Series] = field(default_factory=dict)

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
class Judged:
    """N rows of subjects at prediction times, and the predictions of those that can be scored.

    Attributes
    ----------
    asked : as they were asked for, with the column `reason`: why a row has no prediction, else null
    rows : which of them have one, rising
    predictions : of `rows`, in their order; None where there is none
    groups : attribute -> the group of each of `rows`, where they were asked for
    """

    asked: pl.DataFrame
    rows: Ints
    predictions: Predictions | None
    groups: Mapping[str, pl.Series] = field(default_factory=dict)


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
        """Risk and survival of subjects from a frame of MEDS events; no file is written.

        Parameters
        ----------
        events : subject_id, time, code and, if there are any, numeric_value, visit_id
        prediction_times : subject_id, prediction_time, each pair once; later events are not used
        tells_causes : False for one row a pair, of any cause, which is what code that was registered with a model
            before there were several relies on
        """
        table, n_events, _ = self._score(held_events(events), prediction_times, needs_groups=False)
        table = self.scored(table, n_events).table
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

    def score_dataset(
        self, dataset: MedsDataset, prediction_times: pl.DataFrame, *, needs_groups: bool = False
    ) -> Scored:
        """As `predict_dataset`, with the drift of the records, and the groups of subjects if they are asked for."""
        table, n_events, groups = self._score(dataset, prediction_times, needs_groups=needs_groups)
        return replace(self.scored(table, n_events), groups=groups)

    def scored(self, table: pl.DataFrame, n_events: Ints) -> Scored:
        """The table with its drift, if the model knows most of the events (`drift_of`)."""
        return Scored(table, self.drift_of(n_events))

    def drift_of(self, n_events: Ints) -> Drift:
        """How events (V,) by token differ from those of training.

        Raises
        ------
        DataError
            If the model does not know most of them.
        """
        drift = Drift.between(n_events, self.folder.vocabulary, self.folder.seen)
        if drift.share_unknown > MOST_UNKNOWN:
            raise DataError(
                f"the model does not know {drift.share_unknown:.0%} of these subjects' events: they were coded "
                "otherwise than the data it was trained on; map the codes first, or train on this data"
            )
        return drift

    def score(self, dataset: MedsDataset, times: pl.DataFrame) -> tuple[pl.DataFrame, Ints]:
        """As `predict_dataset`, with the events (V,) by token that were read, and no check of how many it knows.

        Further columns of `times` are kept.
        """
        table, n_events, _ = self._score(dataset, times, needs_groups=False)
        return table, n_events

    def predictions_at(self, dataset: MedsDataset, cutoffs: pl.DataFrame) -> Predictions:
        """Predictions at `cutoffs` (subject_id, cutoff), in their order, of whoever is there: no rule is asked.

        For records that never were, such as one without its visits to a clinic.
        """
        with _cache_for(dataset) as cache, holding_shards():
            store = self.tokens(dataset, cutoffs, cache)
            return self._predict(store, np.arange(len(store)), self._values(dataset, cutoffs, cache))

    @cached_property
    def network(self) -> nn.Module | None:
        """The model as a function of batches that torch differentiates; None of a baseline that is none."""
        if self.folder.baseline is None:
            return place(self.folder.survival_model(), CPU)
        found = getattr(self._fitted, "network", None)
        return found if isinstance(found, nn.Module) else None

    def _score(
        self, events: MedsDataset | HeldEvents, times: pl.DataFrame, *, needs_groups: bool
    ) -> tuple[pl.DataFrame, Ints, Mapping[str, pl.Series]]:
        with holding_shards():
            judged = self.judge(events, times, needs_groups=needs_groups)
            n_events = self._count_events(events, _cutoffs(judged.asked[judged.rows]))
        return self.table(judged.asked, judged.rows, judged.predictions), n_events, judged.groups

    def judge(self, events: MedsDataset | HeldEvents, times: pl.DataFrame, *, needs_groups: bool = False) -> Judged:
        """Who can be scored at which of some times, and the curves of those who can; no drift is looked at.

        Parameters
        ----------
        times : subject_id, prediction_time, each pair once
        """
        cohort, data = self.folder.config.cohort, self.folder.config.data
        assert cohort is not None  # looked at when the folder was read
        asked = with_reasons(events, times, cohort, data.births)
        rows = np.flatnonzero(asked[REASON].is_null().to_numpy())
        if not len(rows):
            return Judged(asked, rows, None)
        cutoffs = _cutoffs(asked[rows])
        limit_days = silent_days_limit(self.folder.seen)
        with _cache_for(events) as cache:
            store = self.tokens(events, cutoffs, cache)
            is_silent = store.end_gap_days > limit_days
            kept = np.flatnonzero(~is_silent)
            values = self._values(events, cutoffs, cache) if len(kept) else None
            predictions = self._predict(store, kept, values) if len(kept) else None
            groups = subject_groups(store, self.folder.vocabulary, kept) if needs_groups and len(kept) else {}
        asked = with_reason(asked, rows[is_silent], silence_reason(limit_days))
        return Judged(asked, rows[kept], predictions, groups)

    def table(self, asked: pl.DataFrame, rows: Ints, predictions: Predictions | None) -> pl.DataFrame:
        """The N rows asked for with the predictions of some of them, which lie at `rows`; null for the others."""
        n_edges, n_causes = len(self.grid.edges_days), self.n_causes
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

    @cached_property
    def _baseline(self) -> Baseline | None:
        """The baseline that the model is, if it is one."""
        if self.folder.baseline is None:
            return None
        settings = self.folder.config.baseline
        return baseline_class(settings.name, has_classes=self.folder.has_classes)(settings)

    @cached_property
    def _fitted(self) -> FittedBaseline[Any]:
        """The baseline as it was fitted."""
        assert self._baseline is not None
        assert self.folder.baseline is not None
        return self._baseline.from_json(self.folder.baseline)

    @cached_property
    def _rebuilt(self) -> Rebuilt:
        """How the network predicts: built once, as the network is, for building takes longer than a prediction."""
        return self.folder.rebuilt()

    def make_ready(self) -> None:
        """Build what the first prediction would wait for."""
        _ = (self.network, self._rebuilt) if self.folder.baseline is None else self._fitted

    @cached_property
    def n_causes(self) -> int:
        """Causes whose incidence the model predicts; 1 if it has one outcome, or any of several together."""
        return self.folder.n_causes

    def tokens(self, events: MedsDataset | HeldEvents, cutoffs: pl.DataFrame, cache: Path | None) -> TokenStore:
        """The tokens that the model reads at `cutoffs` (subject_id, cutoff), in order; in memory without a cache."""
        data, vocabulary = self.folder.config.data, self.folder.vocabulary
        how: Any = {"delay_hours": data.delay_hours, "births": data.births}
        if cache is None:
            return tokens_of(self._shards(events), cutoffs, vocabulary, data.visits, **how)
        assert isinstance(events, MedsDataset)
        return build_store(events, cutoffs, vocabulary, data.visits, cache, **how)

    def _shards(self, events: MedsDataset | HeldEvents) -> Iterator[tuple[Path, Histories]]:
        return shards_of(events, has_visit_ids=self.folder.config.data.visits.unit == "encounter")

    def _values(
        self, events: MedsDataset | HeldEvents, cutoffs: pl.DataFrame, cache: Path | None
    ) -> pl.DataFrame | None:
        """Recorded values up to the cutoffs, where the model reads them."""
        if self._baseline is None or not self._baseline.reads_values:
            return None
        vocabulary, delays = self.folder.vocabulary, self.folder.config.data.delay_hours
        if cache is None:
            return summaries_of((one for _, one in self._shards(events)), cutoffs, vocabulary, delay_hours=delays)
        assert isinstance(events, MedsDataset)
        return value_summaries(events, cutoffs, vocabulary, ShardWork(cache), delay_hours=delays)

    def _predict(self, store: TokenStore, rows: Ints, values: pl.DataFrame | None) -> Predictions:
        """Of some rows of a store, in their order."""
        config, longest = self.folder.config, self.folder.max_tokens
        if self._baseline is not None:
            histories = TokenHistories(
                store,
                self.folder.vocabulary,
                rows,
                longest,
                may_lack_age=config.data.may_lack_age,
                values=values,
            )
            features = self._baseline.read(histories)
            return _checked(Predictions(rows, np.asarray(self._fitted.survival(features, self.grid.edges_days))))
        assert self.network is not None
        return _checked(self._rebuilt.predict(self.network, Batches(store, rows, BATCH_TOKENS, longest), CPU))

    def _count_events(self, events: MedsDataset | HeldEvents, cutoffs: pl.DataFrame) -> Ints:
        """(V,) events of each token that are known of the subjects at their cutoffs, each event once."""
        vocabulary, delay_hours = self.folder.vocabulary, self.folder.config.data.delay_hours
        n_events = np.zeros(len(vocabulary), dtype=np.int64)
        one_split = latest(cutoffs).with_columns(split=pl.lit("test"))
        for _, shard in self._shards(events) if cutoffs.height else ():
            by_name = vocabulary.value_edges, vocabulary.exclude, vocabulary.groups
            names = count_names(shard, one_split, *by_name, delay_hours=delay_hours)
            n_events += events_by_token(names, vocabulary)
        return n_events


def _cutoffs(asked: pl.DataFrame) -> pl.DataFrame:
    return asked.select("subject_id", cutoff="prediction_time")


@contextmanager
def _cache_for(events: MedsDataset | HeldEvents) -> Iterator[Path | None]:
    """A folder for what is found in each of several shards, one after another; None where all fit into memory.

    A shard is what is read at once in any case, and so are its tokens. Files would cost more than a few subjects do.
    """
    if len(events.shards) < 2:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


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


def with_reason(asked: pl.DataFrame, rows: Ints, reason: str) -> pl.DataFrame:
    """The asked subjects with a reason put at some rows."""
    reasons = asked[REASON].to_list()
    for row in rows:
        reasons[row] = reason
    return asked.with_columns(pl.Series(REASON, reasons, dtype=pl.String))


def load_predictor(folder: Path, *, shared: Bases | None = None) -> Predictor:
    """The predictor in a model folder.

    Parameters
    ----------
    shared : as of `read_model_folder`: several adapters of one base, in memory at the same time

    Raises
    ------
    CheckpointError
        If a file is missing or damaged, or the model predicts no survival.
    TrackingError
        If it is an adapter, and its base is nowhere to be had.
    """
    model = read_model_folder(Path(folder), shared=shared)
    if model.grid is None or model.config.cohort is None:
        raise CheckpointError(f"the model in {folder} was pretrained only: it has no outcome; name a finetune run")
    return Predictor(model, model.grid)
