"""Scores of a model within groups of subjects, and the gaps between the groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from ehrtrack.arrays import Floats
from ehrtrack.errors import NotMeasurable
from ehrtrack.survival.calibration_curve import observed_to_expected
from ehrtrack.survival.censoring import FollowUp
from ehrtrack.survival.metrics import c_index
from ehrtrack.survival.resampling import percentile_interval, resampled_c_index

MIN_GROUP_EVENTS = 5
"""With fewer events a group's interval is as wide as the scale."""

SUBGROUP_SCHEMA: dict[str, type[pl.DataType]] = {
    "attribute": pl.String,
    "group": pl.String,
    "n_subjects": pl.Int64,
    "n_events": pl.Int64,
    "c_index": pl.Float64,
    "lower": pl.Float64,
    "upper": pl.Float64,
    "observed_to_expected": pl.Float64,
    "left_out": pl.String,
}
GAP_SCHEMA: dict[str, type[pl.DataType]] = {
    "attribute": pl.String,
    "highest": pl.String,
    "lowest": pl.String,
    "gap": pl.Float64,
    "lower": pl.Float64,
    "upper": pl.Float64,
}


@dataclass(frozen=True)
class SubgroupReport:
    """Scores within groups of subjects, and the gaps between groups.

    Attributes
    ----------
    table : a row a group, by `SUBGROUP_SCHEMA`; a number without a value is null, and ``left_out`` says why. Counts are
        of different subjects, and of those with an event
    gaps : a row an attribute, by `GAP_SCHEMA`: the C-index of its best group minus that of its worst. The two are
        chosen on the same subjects, so among many groups some gap is always found: only an interval that excludes 0 by
        much is a finding. Attributes with fewer than two scored groups are not in it

    Examples
    --------
    >>> empty = SubgroupReport(pl.DataFrame(schema=SUBGROUP_SCHEMA), pl.DataFrame(schema=GAP_SCHEMA))
    >>> empty.gaps.columns
    ['attribute', 'highest', 'lowest', 'gap', 'lower', 'upper']
    """

    table: pl.DataFrame
    gaps: pl.DataFrame


def score_subgroups(
    risk: npt.ArrayLike,
    follow_up: FollowUp,
    groups: Mapping[str, pl.Series],
    *,
    horizon_days: float,
    n_resamples: int = 500,
    seed: int = 0,
) -> SubgroupReport:
    """Harrell's C with its bootstrap interval, and observed over expected risk, of all subjects and of each group.

    Parameters
    ----------
    risk : (B,) predicted probability of the event up to the horizon
    follow_up : of the B subjects
    groups : attribute -> (B,) the group of each subject; text, or an Enum whose order is that of the rows
    horizon_days : the horizon of the prediction
    n_resamples, seed : of the bootstrap, as in `bootstrap.c_index_interval`

    Examples
    --------
    The model ranks women rightly and men the wrong way round:

    >>> days, event = np.tile(np.arange(1, 21), 2), np.full(40, True)
    >>> follow_up, sex = FollowUp.of(days, event, days, event), pl.Series(["female"] * 20 + ["male"] * 20)
    >>> risk = np.concatenate([1 / days[:20], days[20:] / 20])
    >>> scored = score_subgroups(risk, follow_up, {"sex": sex}, horizon_days=15, n_resamples=50)
    >>> scored.table.select("attribute", "group", "n_subjects", "n_events", "c_index").rows()[1:]
    [('sex', 'female', 20, 15, 1.0), ('sex', 'male', 20, 15, 0.0)]
    >>> scored.gaps.rows()
    [('sex', 'female', 'male', 1.0, 1.0, 1.0)]
    """
    scores = np.asarray(risk, dtype=np.float64)
    everybody = {"all": pl.Series(["all"]).new_from_index(0, scores.size)}
    rows: list[dict[str, object]] = []
    gaps: list[dict[str, object]] = []
    for attribute, of_subject in (everybody | dict(groups)).items():
        resampled: dict[str, tuple[float, Floats]] = {}
        for name in of_subject.unique().sort():
            members = (of_subject == name).to_numpy()
            # Groups are drawn independently of each other, the same group always alike.
            draw = {"n_resamples": n_resamples, "seed": seed + len(rows)}
            row: dict[str, object] = {"attribute": attribute, "group": name, "n_subjects": follow_up.n_people(members)}
            try:
                row |= _score(scores[members], follow_up.of_members(members), horizon_days, resampled, name, draw)
            except NotMeasurable as error:
                row["left_out"] = str(error)
            has_event = members & follow_up.has_event_by(horizon_days)
            rows.append(row | {"n_events": follow_up.n_people(has_event)})
        if len(resampled) > 1:
            gaps.append({"attribute": attribute} | _gap(resampled))
    return SubgroupReport(pl.DataFrame(rows, schema=SUBGROUP_SCHEMA), pl.DataFrame(gaps, schema=GAP_SCHEMA))


def _score(
    scores: Floats,
    group: FollowUp,
    horizon_days: float,
    resampled: dict[str, tuple[float, Floats]],
    name: str,
    draw: dict[str, int],
) -> dict[str, object]:
    n_events = group.n_people(group.has_event_by(horizon_days))
    if n_events < MIN_GROUP_EVENTS:
        raise NotMeasurable(f"{n_events} events, fewer than {MIN_GROUP_EVENTS}")
    c_indices = resampled_c_index(scores, group.days, group.is_event, subject=group.subject, **draw)
    c_of_group = percentile_interval(c_index(scores, group.days, group.is_event), c_indices)
    resampled[name] = c_of_group.estimate, c_indices
    return {
        "c_index": c_of_group.estimate,
        "lower": c_of_group.lower,
        "upper": c_of_group.upper,
        "observed_to_expected": observed_to_expected(scores, group, horizon_days=horizon_days),
    }


def _gap(resampled: Mapping[str, tuple[float, Floats]]) -> dict[str, object]:
    by_score = sorted(resampled, key=lambda name: resampled[name][0])
    (low, low_draws), (high, high_draws) = resampled[by_score[0]], resampled[by_score[-1]]
    gap = percentile_interval(high - low, high_draws - low_draws)
    names: dict[str, object] = {"highest": by_score[-1], "lowest": by_score[0]}
    return names | {"gap": gap.estimate, "lower": gap.lower, "upper": gap.upper}
