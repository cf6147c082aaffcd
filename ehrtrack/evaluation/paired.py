"""Paired differences of finished runs: a difference is claimed only by an interval on the same subjects without 0."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

import numpy as np
import polars as pl

from ehrtrack.arrays import Floats, Ints
from ehrtrack.data.labels import NUMBER, of_any_cause
from ehrtrack.errors import DataError, NotMeasurable
from ehrtrack.evaluation.benchmark import RunRow, best_first, metric_of_choice, reference_model, require_one_cohort
from ehrtrack.evaluation.metric_table import AUROC
from ehrtrack.privacy import KEY_FILE, KEY_VARIABLE
from ehrtrack.survival.bootstrap import paired_differences
from ehrtrack.survival.classes import Classes, auroc_difference
from ehrtrack.survival.resampling import Interval

RUNS_AT_ONCE = 32
"""Runs that are scored on the same resamples at once."""


def reference_run(
    rows: Sequence[RunRow], predictions: Mapping[str, pl.DataFrame], *, reference: str | None = None
) -> RunRow | None:
    """The run that others are compared with, of several the best by validation; None if none has predictions.

    Parameters
    ----------
    reference : name of a model or a strategy; `benchmark.reference_model` of the rows where it is None or empty

    Examples
    --------
    >>> rows = [RunRow("a", "baseline", "cox", "c"), RunRow("b", "baseline", "gru", "c")]
    >>> reference_run(rows, {"a": pl.DataFrame(), "b": pl.DataFrame()}).run_id
    'a'
    """
    wanted = reference or reference_model(rows)
    candidates = [row for row in rows if wanted in _names(row) and row.run_id in predictions]
    return next(iter(best_first(candidates)), None)


def _names(row: RunRow) -> tuple[str, ...]:
    """What a reference may be called: cox; lora, or lora r8."""
    return (row.model, row.strategy, row.strategy.split(" ")[0])


def unpaired(base: RunRow, rows: Sequence[RunRow], predictions: Mapping[str, pl.DataFrame]) -> dict[str, str]:
    """Runs whose predictions cannot be paired with those of the run `base`: run id -> why, and how to mend it.

    Examples
    --------
    >>> rows = [RunRow("a", "baseline", "cox", "c"), RunRow("b", "baseline", "gru", "c")]
    >>> subjects = {"follow_up_days": [10.0, 20.0], "is_event": [True, False], "risk": [0.6, 0.2]}
    >>> predictions = {run: pl.DataFrame({"subject_id": [1, n], **subjects}) for run, n in (("a", 2), ("b", 3))}
    >>> print(unpaired(rows[0], rows, predictions)["b"])  # doctest: +ELLIPSIS
    runs b and a predict for 2 and 2 subjects, 2 of them in one run alone; ...
    """
    found = {}
    to = _Reference(base.run_id, predictions[base.run_id])
    for row in rows:
        if row.run_id == base.run_id or row.run_id not in predictions:
            continue
        try:
            _require_one_key([base, row])
            to.risk_of(row.run_id, predictions[row.run_id])
        except DataError as reason:
            found[row.run_id] = str(reason)
    return found


def differences(
    rows: Sequence[RunRow],
    predictions: Mapping[str, pl.DataFrame],
    *,
    reference: str | None = None,
    n_resamples: int = 500,
    seed: int = 0,
) -> dict[str, Interval]:
    """Test score of each run, C-index or of classes AUROC (`benchmark.metric_of_choice`), minus that of the
    reference, with a paired bootstrap interval.

    Parameters
    ----------
    rows : runs of one cohort
    predictions : by run id, with columns subject_id, prediction_number (where subjects have several), follow_up_days
        (or follow_up_rank), is_event, risk; runs without are left out
    reference : name of a model or a strategy; of several such runs, the best by validation. None or empty for that of
        the task

    Returns
    -------
    By run id, without the reference run itself, and without runs whose subjects have too few events for an interval.
    Empty if there is no reference run with predictions.

    Raises
    ------
    DataError
        If two runs predict for different subjects, call them by hashes of different keys, or disagree on an outcome.

    Examples
    --------
    Run b ranks the same twenty subjects as the reference does, so that it differs by nothing:

    >>> rows = [RunRow("a", "baseline", "cox", "c"), RunRow("b", "baseline", "gru", "c")]
    >>> days = [float(day) for day in range(1, 21)]
    >>> subjects = pl.DataFrame({"subject_id": range(20), "follow_up_days": days, "is_event": [True] * 20})
    >>> ranked, alike = (subjects.with_columns(risk=scale / pl.col("follow_up_days")) for scale in (1, 0.5))
    >>> {run: str(found) for run, found in differences(rows, {"a": ranked, "b": alike}, n_resamples=50).items()}
    {'b': '0.000 [0.000, 0.000]'}
    """
    require_one_cohort(rows)
    base = reference_run(rows, predictions, reference=reference)
    return {} if base is None else differences_to(base.run_id, rows, predictions, n_resamples=n_resamples, seed=seed)


def differences_to(
    base: str,
    rows: Sequence[RunRow],
    predictions: Mapping[str, pl.DataFrame],
    *,
    n_resamples: int = 500,
    seed: int = 0,
) -> dict[str, Interval]:
    """As `differences`, to the run with id `base`, which is one of `rows` and has predictions.

    Examples
    --------
    >>> rows = [RunRow("a", "baseline", "cox", "c"), RunRow("b", "baseline", "gru", "c")]
    >>> days = [float(day) for day in range(1, 21)]
    >>> subjects = pl.DataFrame({"subject_id": range(20), "follow_up_days": days, "is_event": [True] * 20})
    >>> right, wrong = (subjects.with_columns(risk=sign * pl.col("follow_up_days")) for sign in (-1, 1))
    >>> {run: str(found) for run, found in differences_to("b", rows, {"a": right, "b": wrong}, n_resamples=50).items()}
    {'a': '1.000 [1.000, 1.000]'}
    """
    require_one_cohort(rows)
    _require_one_key([row for row in rows if row.run_id in predictions])
    to = _Reference(base, predictions[base])
    others = [row.run_id for row in rows if row.run_id != base and row.run_id in predictions]
    risks = {run_id: to.risk_of(run_id, predictions[run_id]) for run_id in others}
    differences_of = _class_differences if metric_of_choice(rows) is AUROC else _timed_differences
    found = dict(differences_of(risks, to, n_resamples=n_resamples, seed=seed))
    return {run_id: found[run_id] for run_id in others if run_id in found}


def _require_one_key(rows: Sequence[RunRow]) -> None:
    """Two keys give one subject two names: there are no pairs to compare."""
    by_key: dict[str, list[str]] = {}
    for row in rows:
        by_key.setdefault(row.subject_key, []).append(row.run_id)
    if len(by_key) > 1:
        found = "; ".join(f"key {key}: {', '.join(runs)}" for key, runs in by_key.items())
        raise DataError(
            f"the predictions of these runs name subjects by hashes under {len(by_key)} different keys ({found}) and "
            f"cannot be paired. Set the same {KEY_VARIABLE} (or copy the cache's {KEY_FILE}) on every machine that "
            "trains, and make the runs of the other keys again or delete them; raw stands for the subjects' own ids"
        )


class _Reference:
    """The run that others are paired with; its rows are put in order once for all of them."""

    def __init__(self, run_id: str, predictions: pl.DataFrame) -> None:
        self.run_id = run_id
        # A study that names a calendar date logs ranks of days, which order subjects alike (`privacy.Privacy`).
        self._days = "follow_up_rank" if "follow_up_rank" in predictions.columns else "follow_up_days"
        # Of subjects with several prediction times there is a row for each, by its number.
        self._keys = ["subject_id", *(name for name in (NUMBER,) if name in predictions.columns)]
        self._as_logged = self._selected(predictions)
        self._order = self._as_logged.select(pl.arg_sort_by(self._keys)).to_series()
        self._rows = self._as_logged[self._order]
        self.risk, self.days, self.is_event, self.subject = (
            self._rows[name].to_numpy() for name in ("risk", self._days, "is_event", "subject_id")
        )

    def risk_of(self, run_id: str, predictions: pl.DataFrame) -> Floats:
        """(B,) the risks of another run, in the order of those of this one.

        Raises
        ------
        DataError
            If they are not of the same subjects and prediction times, with the same outcomes.
        """
        base, keys, days = self.run_id, self._keys, self._days
        if days not in predictions.columns:
            raise DataError(f"run {run_id} logged no {days}, which run {base} did; make one of them again")
        if (NUMBER in keys) != (NUMBER in predictions.columns):
            raise DataError(
                f"of runs {run_id} and {base} one has several predictions a subject; make one of them again"
            )
        outcome = [days, "is_event"]
        mine = self._selected(predictions)
        if all(mine[name].equals(self._as_logged[name]) for name in (*keys, *outcome)):  # as it is of most
            return mine["risk"].gather(self._order).to_numpy()
        mine = mine.sort(keys)
        if not mine.select(keys).equals(self._rows.select(keys)):
            unshared = set(mine.select(keys).rows()) ^ set(self._rows.select(keys).rows())
            what = "subjects" if len(keys) == 1 else "prediction times"
            raise DataError(
                f"runs {run_id} and {base} predict for {mine.height} and {self._rows.height} {what}, "
                f"{len(unshared)} of them in one run alone; a paired difference needs the same {what} in both"
            )
        if not mine.select(outcome).equals(self._rows.select(outcome)):
            raise DataError(
                f"runs {run_id} and {base} disagree on the outcome of some subjects; they are not of one cohort"
            )
        return mine["risk"].to_numpy()

    def _selected(self, predictions: pl.DataFrame) -> pl.DataFrame:
        return of_any_cause(predictions)[[*self._keys, self._days, "is_event", "risk"]]

    def ordered(self, risk: Floats) -> Ints:
        """(B,) the rows in an order that does not depend on what subjects are called: resamples must not either."""
        return np.lexsort((self.risk, risk, self.is_event, self.days))  # the last is the first to sort by


def _timed_differences(
    runs: Mapping[str, Floats], to: _Reference, *, n_resamples: int, seed: int
) -> Iterator[tuple[str, Interval]]:
    """Runs whose subjects are drawn in one order, as all are where no follow-up is tied, are scored together."""
    together: dict[bytes, list[str]] = {}
    for run_id, risk in runs.items():
        together.setdefault(to.ordered(risk).tobytes(), []).append(run_id)
    for alike in together.values():
        order = to.ordered(runs[alike[0]])
        base, days, event, subject = (column[order] for column in (to.risk, to.days, to.is_event, to.subject))
        for start in range(0, len(alike), RUNS_AT_ONCE):
            some = alike[start : start + RUNS_AT_ONCE]
            risks = [runs[run_id][order] for run_id in some]
            with suppress(NotMeasurable):
                found = paired_differences(
                    risks, base, days, event, n_resamples=n_resamples, seed=seed, subject=subject
                )
                yield from zip(some, found, strict=True)


def _class_differences(
    runs: Mapping[str, Floats], to: _Reference, *, n_resamples: int, seed: int
) -> Iterator[tuple[str, Interval]]:
    for run_id, risk in runs.items():
        order = to.ordered(risk)
        mine = Classes(risk[order], to.is_event[order], to.subject[order])
        with suppress(NotMeasurable):
            yield run_id, auroc_difference(mine, to.risk[order], n_resamples=n_resamples, seed=seed)
