"""What the parts of a subject's record contribute to a model's prediction: of codes, of visits, and of the age.

By occlusion (Zeiler & Fergus 2014, "Visualizing and Understanding Convolutional Networks", ECCV) the contribution of a
part is what the prediction loses when the record is written without it,

    contribution(part) = g(risk(record)) - g(risk(record without the part)),      g(r) = log(-log(1 - r)),

the log of the cumulative hazard up to the horizon (of a class, g is the log odds). By integrated gradients
(`integrated_gradients`) contributions add up to the difference to a record with the same visits, in which nothing is
known of any code. Either describes the model, and not what causes the outcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

import numpy as np
import polars as pl

from ehrtrack.arrays import Bools, Floats
from ehrtrack.errors import ConfigError, DataError
from ehrtrack.pipeline.integrated_gradients import TokenContributions, token_contributions
from ehrtrack.pipeline.predictor import Predictor
from ehrtrack.pipeline.records import NO_TOKEN, STATIC, Record, Variant, risks_of

Method = Literal["occlusion", "integrated-gradients"]
METHODS: tuple[Method, ...] = ("occlusion", "integrated-gradients")

CONTRIBUTION, POINTS = "contribution", "risk_points"
"""Columns: on the scale of `on_scale`; and risk minus risk without it, in percentage points."""
LEAST_RISK = 1e-9
READ_ALIKE = 1e-2
"""By which share of it the risk that is predicted may differ from that of the logits, in single precision."""


def on_scale(risk: Floats, *, has_classes: bool) -> Floats:
    """Risks as contributions add up to them: log cumulative hazards, or of classes log odds.

    Examples
    --------
    >>> on_scale(np.array([1 - np.exp(-1.0), 0.5]), has_classes=False).round(3).tolist()
    [0.0, -0.367]
    >>> on_scale(np.array([0.5]), has_classes=True).tolist()
    [0.0]
    """
    r = np.clip(risk, LEAST_RISK, 1 - LEAST_RISK)
    log_hazard: Floats = np.log(r) - np.log1p(-r) if has_classes else np.log(-np.log1p(-r))
    return log_hazard


def _off_scale(value: float, *, has_classes: bool) -> float:
    """The risk, back from `on_scale`."""
    return float(1 / (1 + np.exp(-value)) if has_classes else -np.expm1(-np.exp(value)))


@dataclass(frozen=True)
class Explanation:
    """What the parts of a subject's record contribute to what a model says of it.

    Attributes
    ----------
    risk : at the horizon, of any cause
    codes : a row a code, the largest contribution first: code, contribution, risk_points (null where the method has
        none), n_occurrences, n_visits, first_time, last_time (null of static facts)
    visits : a row a visit, in time order: visit, time, n_codes, contribution, risk_points
    occurrences : a row an event that is read: code, visit, time, value
    age_years, reference_years : the subject's age, and the one that it is compared with; None where it is not explained
    age : contribution and risk points of the age, or None; by integrated gradients of the age that acts on the hazard
        directly, and without points
    base : what is left on the scale without any code: of occlusion with all of them left out at once, of integrated
        gradients of the record in which nothing is known of any code
    total : what the prediction is on that scale
    gap : by how much contributions of integrated gradients fail to add up to total - base; None of occlusion, whose
        contributions need not add up
    """

    subject_id: int
    prediction_time: datetime
    method: Method
    risk: float
    has_classes: bool
    codes: pl.DataFrame
    visits: pl.DataFrame
    occurrences: pl.DataFrame
    base: float
    total: float
    age_years: float | None = None
    reference_years: float | None = None
    age: tuple[float, float | None] | None = None
    gap: float | None = None

    def top(self, n_codes: int) -> pl.DataFrame:
        """The codes with the largest contributions, whatever their sign."""
        return self.codes.head(n_codes)


def explain(
    predictor: Predictor,
    records: Sequence[Record],
    *,
    method: Method = "occlusion",
    reference_years: float | None = None,
) -> list[Explanation]:
    """What the parts of records contribute to what a model predicts of them, record by record.

    Parameters
    ----------
    reference_years : the age at the prediction time that subjects' are compared with, by occlusion; None leaves ages
        unexplained

    Raises
    ------
    DataError
        If the model reads nothing of a record.
    ConfigError
        If the method is integrated gradients, and the model is none that torch differentiates.
    """
    for record in records:
        if not record.codes:
            raise DataError(
                f"subject {record.subject_id} has no event by {record.prediction_time:%Y-%m-%d} that the model reads, "
                "so there is nothing to explain; name a subject with a record, or another --time"
            )
    if method == "integrated-gradients":
        return _by_gradients(predictor, records)
    births = [None if reference_years is None else record.birth_at_age(reference_years) for record in records]
    asked = [(record, _variants(record, birth)) for record, birth in zip(records, births, strict=True)]
    return [
        _by_occlusion(record, risk, None if birth is None else reference_years, predictor.folder.has_classes)
        for record, risk, birth in zip(records, risks_of(predictor, asked), births, strict=True)
    ]


def rest_of(predictor: Predictor, explained: Explanation, record: Record, shown: Sequence[str]) -> tuple[float, float]:
    """What all codes but those shown contribute together, left out at once: contribution and risk points."""
    is_rest = np.array([name not in shown for name in record.codes])
    (risk,) = risks_of(predictor, [(record, [Variant(is_rest[record.code] & (record.code != NO_TOKEN))])])
    lost, points = _lost(np.array([explained.risk]), risk, has_classes=explained.has_classes)
    return float(lost[0]), float(points[0])


def _variants(record: Record, birth: datetime | None) -> list[Variant]:
    """The record as it is, without all codes, without each of them, without each visit, and with another birth."""
    nothing = np.zeros(len(record.code), dtype=bool)
    return [
        Variant(nothing),
        Variant(record.code != NO_TOKEN),
        *(Variant(record.code == number) for number in range(len(record.codes))),
        *(Variant(record.visit == STATIC + 1 + number) for number in range(len(record.visit_times))),
        *([Variant(nothing, birth)] if birth is not None else []),
    ]


def _by_occlusion(record: Record, risk: Floats, reference_years: float | None, has_classes: bool) -> Explanation:
    """From the risks of `_variants`."""
    lost, points = _lost(risk[:1], risk[2:], has_classes=has_classes)
    n_codes, n_visits = len(record.codes), len(record.visit_times)
    total, base = on_scale(risk[:2], has_classes=has_classes)
    return Explanation(
        subject_id=record.subject_id,
        prediction_time=record.prediction_time,
        method="occlusion",
        risk=float(risk[0]),
        has_classes=has_classes,
        codes=_codes(record, lost[:n_codes], points[:n_codes]),
        visits=_visits(record, lost[n_codes : n_codes + n_visits], points[n_codes : n_codes + n_visits]),
        occurrences=_occurrences(record),
        base=float(base),
        total=float(total),
        age_years=None if reference_years is None else record.age_years,
        reference_years=reference_years,
        age=None if reference_years is None else (float(lost[-1]), float(points[-1])),
    )


def _lost(risk: Floats, without: Floats, *, has_classes: bool) -> tuple[Floats, Floats]:
    """What is lost on the scale of contributions, and of the risk in percentage points."""
    scaled, scaled_without = (on_scale(one, has_classes=has_classes) for one in (risk, without))
    return scaled - scaled_without, 100 * (risk - without)


def _by_gradients(predictor: Predictor, records: Sequence[Record]) -> list[Explanation]:
    asked = [(record, [Variant(np.zeros(len(record.code), dtype=bool))]) for record in records]
    contributions = token_contributions(predictor, records)
    explained = []
    for record, (risk,), found in zip(records, risks_of(predictor, asked), contributions, strict=True):
        read = _off_scale(found.total, has_classes=predictor.folder.has_classes)
        if not np.isclose(read, risk, rtol=READ_ALIKE, atol=1e-6):
            raise ConfigError(
                f"integrated gradients read a risk of {read:.4g} where the model predicts {risk:.4g}: the logits of "
                f"its objective {predictor.folder.config.objective.name} are no hazards; take --method occlusion"
            )
        explained.append(_of_tokens(predictor, record, float(risk), found))
    return explained


def _of_tokens(predictor: Predictor, record: Record, risk: float, found: TokenContributions) -> Explanation:
    """By code and by visit, of contributions of tokens."""
    vocabulary = predictor.folder.vocabulary
    number = {name: place for place, name in enumerate(record.codes)}
    code = np.array([number[vocabulary.code_of_token[token]] for token in found.token], dtype=np.int64)
    of_code: Floats = np.bincount(code, found.contribution, minlength=len(record.codes)).astype(np.float64)
    is_dated = found.visit > STATIC
    place = found.visit[is_dated] - STATIC - 1
    by_visit = np.bincount(place, found.contribution[is_dated], minlength=len(record.visit_times))
    of_visit: Floats = by_visit.astype(np.float64)
    none_of_codes, none_of_visits = (np.full(len(of), np.nan) for of in (of_code, of_visit))
    return Explanation(
        subject_id=record.subject_id,
        prediction_time=record.prediction_time,
        method="integrated-gradients",
        risk=risk,
        has_classes=predictor.folder.has_classes,
        codes=_codes(record, of_code, none_of_codes),
        visits=_visits(record, of_visit, none_of_visits),
        occurrences=_occurrences(record),
        base=found.base,
        total=found.total,
        age_years=None if found.age is None else record.age_years,
        reference_years=found.mean_age_years,
        age=None if found.age is None else (found.age, None),
        gap=found.gap,
    )


def _codes(record: Record, contribution: Floats, points: Floats) -> pl.DataFrame:
    found = pl.DataFrame(
        {"number": np.arange(len(record.codes)), "code": record.codes, CONTRIBUTION: contribution, POINTS: points}
    ).with_columns(pl.col(POINTS).fill_nan(None))
    events = pl.DataFrame({"number": record.code, "visit": record.visit, "time": record.events["time"]})
    seen = events.group_by("number").agg(
        n_occurrences=pl.len().cast(pl.Int64),
        n_visits=pl.col("visit").filter(pl.col("visit") > STATIC).n_unique().cast(pl.Int64),
        first_time=pl.col("time").min(),
        last_time=pl.col("time").max(),
    )
    table = found.join(seen, on="number", how="left", maintain_order="left")
    size = pl.col(CONTRIBUTION).abs()
    return table.sort(size, "code", descending=[True, False]).drop("number")


def _visits(record: Record, contribution: Floats, points: Floats) -> pl.DataFrame:
    read = pl.DataFrame({"visit": record.visit, "code": record.code}).filter(pl.col("visit") > STATIC)
    n_codes = read.group_by("visit").agg(n_codes=pl.col("code").n_unique().cast(pl.Int64))
    visits = pl.DataFrame(
        {
            "visit": np.arange(STATIC + 1, STATIC + 1 + len(record.visit_times)),
            "time": pl.Series(record.visit_times, dtype=pl.Datetime("us")),
            CONTRIBUTION: contribution,
            POINTS: points,
        }
    ).with_columns(pl.col(POINTS).fill_nan(None))
    return visits.join(n_codes, on="visit", how="left", maintain_order="left")


def _occurrences(record: Record) -> pl.DataFrame:
    is_read: Bools = record.code != NO_TOKEN
    read = record.events.filter(pl.Series(is_read))
    names = [record.codes[number] for number in record.code[is_read]]
    return pl.DataFrame(
        {"code": names, "visit": record.visit[is_read], "time": read["time"], "value": read["numeric_value"]}
    )


def days_before(time: datetime, moment: datetime) -> float:
    """Days from a moment of a record to the prediction time."""
    return (time - moment) / timedelta(days=1)
