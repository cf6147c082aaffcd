"""Requests to answers: those of several requests are scored together, and each as `ehrtrack predict` would alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import polars as pl

from ehrtrack.arrays import Floats, Ints
from ehrtrack.data.drift import unknown_events
from ehrtrack.data.eligibility import REASON
from ehrtrack.data.events import BIRTH, EVENT_SCHEMA
from ehrtrack.data.held import HeldEvents
from ehrtrack.pipeline.predictor import MOST_UNKNOWN, Predictor
from ehrtrack.serving.messages import Answer, Facts, ModelNamed, OfCause, Prediction, Problem, Request, in_utc
from ehrtrack.serving.reading import Refused
from ehrtrack.survival.interpolation import interpolate_survival


@dataclass(frozen=True)
class Served:
    """A model that answers requests; never changed, but exchanged for another as a whole.

    Attributes
    ----------
    facts : what the registered run says of it
    """

    predictor: Predictor
    facts: Facts

    @property
    def named(self) -> ModelNamed:
        """Which model it is, as each answer says."""
        return self.facts.model


@dataclass(frozen=True)
class _Rows:
    """N rows of subjects at prediction times, and what was found of them.

    Attributes
    ----------
    reason : why a row has no risk, None where it has one
    survival : (N, K + 1) at the edges of the grid, NaN where there is none
    incidence : (N, R, K + 1), or None where there is one outcome
    n_events, n_unknown : (N,) that are known at its time, and of codes that the model does not know
    """

    reason: list[str | None]
    survival: Floats
    incidence: Floats | None
    n_events: Ints
    n_unknown: Ints


def answer(served: Served, requests: Sequence[Request]) -> list[Answer | Refused]:
    """The answer to each of some requests, or why there is none; no subject's has to do with any other's.

    A subject most of whose events are of codes that the model does not know has a reason and no risk, as `predict`
    refuses it where it is alone. If that is so of all, the request is refused with 400.
    """
    rows = _score(served.predictor, requests)
    ends = list(accumulate((request.n_times for request in requests), initial=0))
    return [
        _answer(served, request, rows, slice(*ends_of))
        for request, ends_of in zip(requests, pairwise(ends), strict=True)
    ]


def _score(predictor: Predictor, requests: Sequence[Request]) -> _Rows:
    events, times = _tables(requests)
    judged = predictor.judge(events, times)
    n_rows, n_edges, n_causes = times.height, len(predictor.grid.edges_days), predictor.n_causes
    survival = np.full((n_rows, n_edges), np.nan)
    incidence = np.full((n_rows, n_causes, n_edges), np.nan) if n_causes > 1 else None
    if judged.predictions is not None:
        survival[judged.rows] = judged.predictions.survival
        if incidence is not None:
            incidence[judged.rows] = judged.predictions.incidence
    folder = predictor.folder
    cutoffs = times.rename({"prediction_time": "cutoff"})
    counts = unknown_events(events.histories, cutoffs, folder.vocabulary, folder.config.data.delay_hours)
    return _Rows(judged.asked[REASON].to_list(), survival, incidence, *counts)


def _tables(requests: Sequence[Request]) -> tuple[HeldEvents, pl.DataFrame]:
    """Events and prediction times of all requests. Subjects are numbered: two requests may mean two by one id."""
    subjects = [subject for request in requests for subject in request.subjects]
    events = [event for subject in subjects for event in subject.events]
    n_events = np.array([len(subject.events) for subject in subjects], dtype=np.int64)
    born = [(number, subject.birth) for number, subject in enumerate(subjects) if subject.birth is not None]
    none: list[None] = [None] * len(born)
    times_us = [*(event.time for event in events), *(time for _, time in born)]
    columns: dict[str, Any] = {
        "subject_id": np.concatenate([np.repeat(np.arange(len(subjects)), n_events), [number for number, _ in born]]),
        "time": pl.Series(times_us, dtype=pl.Int64),
        "code": pl.Series([*(event.code for event in events), *([BIRTH] * len(born))], dtype=pl.String),
        "numeric_value": pl.Series([*(event.numeric_value for event in events), *none], dtype=pl.Float64),
        "text_value": pl.Series([None], dtype=pl.String).new_from_index(0, len(times_us)),
        "visit_id": pl.Series([*(event.visit_id for event in events), *none], dtype=pl.String),
    }
    # Casts of columns, and no query, which would take as long as a small batch's tokens.
    table = pl.DataFrame({name: pl.Series(columns[name]).cast(kind) for name, kind in EVENT_SCHEMA.items()})
    n_times = [len(subject.prediction_times) for subject in subjects]
    asked = pl.Series([time for subject in subjects for time in subject.prediction_times], dtype=pl.Int64)
    times = pl.DataFrame({"subject_id": np.repeat(np.arange(len(subjects)), n_times), "prediction_time": asked})
    return HeldEvents(table), times.with_columns(pl.col("prediction_time").cast(pl.Datetime("us")))


def _answer(served: Served, request: Request, rows: _Rows, here: slice) -> Answer | Refused:
    horizon = served.named.horizon_days
    past = [number for number, day in enumerate(request.days) if day > horizon]
    if past:
        needed = f"days within the horizon of {horizon:g} days"
        problems = [Problem(where=f"days[{number}]", found="a day past the horizon", needed=needed) for number in past]
        return Refused(422, f"days[{past[0]}]: found a day past the horizon, needed {needed}", problems)
    reasons = [_reason(rows, number) for number in range(here.start, here.stop)]
    if all(is_unknown for _, is_unknown in reasons):
        n, n_unknown = int(rows.n_events[here].sum()), int(rows.n_unknown[here].sum())
        return Refused(
            400,
            f"the model does not know {n_unknown:,} of the {n:,} events of these subjects: they are coded otherwise "
            "than the data it was trained on; map the codes first",
        )
    grid, days = served.predictor.grid, request.days or [horizon]
    survival = interpolate_survival(rows.survival[here], grid, days)
    incidence = None
    if rows.incidence is not None:
        curves = rows.incidence[here]
        incidence = 1 - interpolate_survival(1 - curves.reshape(-1, curves.shape[-1]), grid, days)
        incidence = incidence.reshape(*curves.shape[:2], -1)
    asked = [(subject.subject_id, time) for subject in request.subjects for time in subject.prediction_times]
    predictions = []
    for place, ((subject_id, time), (reason, _)) in enumerate(zip(asked, reasons, strict=True)):
        number, has_risk = here.start + place, reason is None
        predictions.append(
            Prediction(
                subject_id=subject_id,
                prediction_time=in_utc(time),
                risk=1 - float(rows.survival[number, -1]) if has_risk else None,
                survival=survival[place].tolist() if has_risk else None,
                causes=_of_causes(rows, number, incidence[place]) if has_risk and incidence is not None else None,
                reason=reason,
                n_events=int(rows.n_events[number]),
                n_unknown_events=int(rows.n_unknown[number]),
            )
        )
    return Answer(model=served.named, days=days, predictions=predictions)


def _reason(rows: _Rows, number: int) -> tuple[str | None, bool]:
    """Why a row has no risk, and whether that is for the codes of its events."""
    n, n_unknown = int(rows.n_events[number]), int(rows.n_unknown[number])
    if rows.reason[number] is None and n_unknown > MOST_UNKNOWN * n:
        return f"the model does not know {n_unknown:,} of {n:,} events: they are coded otherwise than its data", True
    return rows.reason[number], False


def _of_causes(rows: _Rows, number: int, incidence: Floats) -> list[OfCause]:
    """Of one row, from incidence (R, days)."""
    assert rows.incidence is not None
    risks = rows.incidence[number, :, -1]
    return [
        OfCause(cause=cause + 1, risk=float(risks[cause]), incidence=incidence[cause].tolist())
        for cause in range(len(risks))
    ]
