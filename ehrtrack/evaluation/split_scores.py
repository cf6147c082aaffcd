"""Scores of runs by the split that they were tested on, and their values in resamples of its test subjects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import polars as pl

from ehrtrack.arrays import Floats
from ehrtrack.data.labels import NUMBER, of_any_cause
from ehrtrack.evaluation.metric_table import AUROC, Metric
from ehrtrack.evaluation.repeats import Configuration, Repeat
from ehrtrack.runlog import TEST
from ehrtrack.survival.classes import Classes, auroc, resampled_auroc
from ehrtrack.survival.metrics import checked_predictions
from ehrtrack.survival.resampling import c_indices_and_resamples

_ROWS = ("subject_id", NUMBER, "follow_up_days", "follow_up_rank", "is_event")

RUNS_AT_ONCE = 32
"""Runs whose ranks are held while they are resampled."""

Scored = tuple[Floats, Floats]
"""Of the S seeds of a configuration the scores (S,), and their values in R resamples (S, R)."""


class SplitScores:
    """The runs of some configurations by the subjects that they were tested on.

    Two runs are of one split where they were tested on the same subjects, under the same names, with the same outcomes;
    of runs without predictions, where they are of one cohort.

    Parameters
    ----------
    found : configurations
    predictions : test predictions by run id; of some runs they may be missing
    n_resamples, seed : of the bootstrap of test subjects

    Examples
    --------
    >>> from ehrtrack.evaluation.benchmark import RunRow
    >>> repeats = [
    ...     Repeat(RunRow(split, "baseline", "cox", split, metrics={"test/c_index": c}), {}, 0, 100, 50)
    ...     for split, c in (("x", 0.7), ("y", 0.6))
    ... ]
    >>> cox = Configuration("cox", {}, tuple(repeats))
    >>> scores = SplitScores([cox], {})
    >>> from ehrtrack.evaluation.metric_table import C_INDEX
    >>> scores.means(cox, C_INDEX)
    {'x': 0.7, 'y': 0.6}
    """

    def __init__(
        self,
        found: Sequence[Configuration],
        predictions: Mapping[str, pl.DataFrame],
        *,
        n_resamples: int = 2000,
        seed: int = 0,
    ) -> None:
        self._repeats = [repeat for of in found for repeat in of.repeats]
        self._predictions = predictions
        self._n_resamples, self._seed = n_resamples, seed
        self._resampled: dict[tuple[str, str], dict[str, Floats]] = {}

    @cached_property
    def _split_of(self) -> dict[str, str]:
        """Run id -> its split."""
        told = {
            repeat.row.run_id: _identity(repeat, self._predictions[repeat.row.run_id])
            for repeat in self._repeats
            if repeat.row.run_id in self._predictions
        }
        of_cohort: dict[str, str] = {}
        for repeat in self._repeats:
            if repeat.row.run_id in told:
                of_cohort.setdefault(repeat.row.cohort_fingerprint, told[repeat.row.run_id])
        return {
            repeat.row.run_id: told.get(
                repeat.row.run_id, of_cohort.get(repeat.row.cohort_fingerprint, repeat.row.cohort_fingerprint)
            )
            for repeat in self._repeats
        }

    @cached_property
    def _test_to_training(self) -> dict[str, float]:
        """Split -> test subjects a subject that could be trained on: as many as the run has that had the most."""
        found: dict[str, float] = {}
        for repeat in self._repeats:
            split, ratio = self._split_of[repeat.row.run_id], repeat.test_to_training
            found[split] = min(found.get(split, np.inf), ratio)
        return found

    def by_split(self, of: Configuration) -> dict[str, list[Repeat]]:
        """Its repeats on each split."""
        found: dict[str, list[Repeat]] = {}
        for repeat in of.repeats:
            found.setdefault(self._split_of[repeat.row.run_id], []).append(repeat)
        return found

    def means(self, of: Configuration, metric: Metric) -> dict[str, float]:
        """A metric of the test subjects of each split, the mean over the seeds that have it."""
        found = {}
        for split, repeats in self.by_split(of).items():
            values = [repeat.row.metrics.get(metric.named(TEST), np.nan) for repeat in repeats]
            if not np.isnan(values).all():
                found[split] = float(np.nanmean(values))
        return found

    def test_to_training(self, splits: Sequence[str]) -> float:
        """Test subjects a subject that could be trained on, the mean over some splits."""
        return float(np.mean([self._test_to_training[split] for split in splits]))

    def resampled(self, of: Configuration, split: str, metric: Metric) -> dict[str, Scored]:
        """Scores of the seeds on a split, and in resamples of its subjects, which are the same ones for all runs.

        Runs that learned from the same labels are together, by their cohort; those without predictions are left out.

        Raises
        ------
        NotMeasurable
            If the test subjects are too few for the metric.
        """
        if (split, metric.key) not in self._resampled:
            self._resampled[split, metric.key] = self._resample(split, metric)
        known = self._resampled[split, metric.key]
        values: dict[str, list[Floats]] = {}
        for repeat in self.by_split(of).get(split, []):
            if repeat.row.run_id in known:
                values.setdefault(repeat.row.cohort_fingerprint, []).append(known[repeat.row.run_id])
        stacked = {cohort: np.stack(of_cohort) for cohort, of_cohort in values.items()}
        return {cohort: (of_cohort[:, 0], of_cohort[:, 1:]) for cohort, of_cohort in stacked.items()}

    def _resample(self, split: str, metric: Metric) -> dict[str, Floats]:
        """Run id -> (1 + R,): the score of the subjects as they are, and that in each resample."""
        runs = [
            repeat.row.run_id
            for repeat in self._repeats
            if self._split_of[repeat.row.run_id] == split and repeat.row.run_id in self._predictions
        ]
        if not runs:
            return {}
        rows = _aligned([self._predictions[run] for run in runs])
        risks = {run: rows[f"risk_{number}"].to_numpy() for number, run in enumerate(runs)}
        return {
            run: values
            for start in range(0, len(runs), RUNS_AT_ONCE)
            for run, values in self._scored(
                rows, {one: risks[one] for one in runs[start : start + RUNS_AT_ONCE]}, metric
            )
        }

    def _scored(self, rows: pl.DataFrame, risks: Mapping[str, Floats], metric: Metric) -> Iterator[tuple[str, Floats]]:
        """Run ids with (1 + R,) values; the resamples are the same ones in each call."""
        subject, event = rows["subject_id"].to_numpy(), rows["is_event"].to_numpy().astype(bool)
        drawing = {"n_resamples": self._n_resamples, "seed": self._seed}
        if metric is AUROC:
            classes = [Classes(risk, event, subject) for risk in risks.values()]
            scored = [(auroc(of_run), resampled_auroc(of_run, **drawing)) for of_run in classes]
        else:
            days = rows[_days(rows)].to_numpy().astype(np.float64)
            checked = [checked_predictions(risk, days, event)[0] for risk in risks.values()]
            scored = c_indices_and_resamples(checked, days, event, subject=subject, **drawing)
        for run, (score, resampled) in zip(risks, scored, strict=True):
            yield run, np.concatenate([[score], resampled])


def _aligned(tables: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Rows of one split with the risks of all runs, in an order that does not depend on what subjects are called."""
    keys = [name for name in ("subject_id", NUMBER) if name in tables[0].columns]
    ordered = [of_any_cause(table).sort(keys) for table in tables]
    risks = {f"risk_{number}": table["risk"] for number, table in enumerate(ordered)}
    rows = ordered[0].select(*keys, _days(ordered[0]), "is_event").with_columns(**risks)
    return rows.sort(_days(rows), "is_event", *risks)


def _days(table: pl.DataFrame) -> str:
    # A study that names a calendar date logs ranks of days, which order subjects alike (`privacy.Privacy`).
    return "follow_up_rank" if "follow_up_rank" in table.columns else "follow_up_days"


def _identity(repeat: Repeat, table: pl.DataFrame) -> str:
    """Equal for runs that have the same subjects under the same names with the same outcomes, in whatever order."""
    outcomes = of_any_cause(table).select(name for name in _ROWS if name in table.columns)
    hashed = outcomes.hash_rows().sum()
    return f"{repeat.row.subject_key} {' '.join(outcomes.columns)} {outcomes.height} {hashed}"
