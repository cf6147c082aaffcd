"""Differences of configurations over their repeats: which are shown, which are not, in numbers and in words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import polars as pl

from ehrtrack.errors import NotMeasurable
from ehrtrack.evaluation.benchmark import metric_of_choice
from ehrtrack.evaluation.labels import apart
from ehrtrack.evaluation.metric_table import AUROC, BRIER, IBS, METRICS, Metric
from ehrtrack.evaluation.pairs import AskedComparison, AskedOf, Pair, asked_pairs, pairs_to_reference, selection_text
from ehrtrack.evaluation.repeats import Configuration, Difference, Finding, Method
from ehrtrack.evaluation.split_scores import Scored, SplitScores
from ehrtrack.survival.repeats import (
    LEAST_SPLITS,
    Contrast,
    difference_over_draws,
    difference_over_splits,
    difference_within_split,
    holm,
)

LEVEL = 0.05
"""Of a false claim among all differences of a family."""
FEW_SPLITS = 2
"""With so many, one degree of freedom is left, and t at 97.5 % is 12.7 where with 5 splits it is 2.8."""

OVER_SPLITS: Method = "Nadeau and Bengio over splits"
WITHIN: Method = "paired bootstrap within the split"


@dataclass(frozen=True)
class _Tried:
    """A pair with its test, or why it has none."""

    pair: Pair
    tested: Contrast | None
    reason: str
    method: Method
    n_splits: int
    n_seeds: int
    n_draws: int = 1


def differences_over_repeats(
    found: Sequence[Configuration],
    predictions: Mapping[str, pl.DataFrame],
    questions: AskedOf,
    *,
    n_resamples: int = 2000,
    seed: int = 0,
) -> list[Difference]:
    """What is shown of each configuration beside its reference, and of each question that is asked.

    Where two configurations were run on several splits of the same subjects, a difference is the mean over the splits
    of the difference of the means over seeds, by Nadeau and Bengio. Where there is one split, it is that of the means
    over seeds, by a bootstrap of the test subjects and of the seeds; and where labels were drawn several times, of the
    draws, which both learned from. It is in the metric by which runs are chosen, and
    over splits also in the Brier score of these runs. p-values are adjusted by Holm: those of the differences to the
    reference among themselves, those of the questions among themselves, and each metric by itself.

    Parameters
    ----------
    found : from `repeats.configurations`
    predictions : test predictions by run id, which the bootstrap needs
    questions : the reference, further comparisons and the margin of equivalence; a study's settings are such
    n_resamples, seed : of the bootstrap

    Raises
    ------
    DataError
        If no metric judges the models of all configurations.

    Examples
    --------
    Two splits with differences of .01 and .03: the mean is .02, and two splits are hardly enough for an interval.

    >>> from ehrtrack.evaluation.benchmark import RunRow
    >>> from ehrtrack.evaluation.pairs import Questions
    >>> from ehrtrack.evaluation.repeats import Repeat, configurations
    >>> repeats = [
    ...     Repeat(
    ...         RunRow(f"{name}{split}", "baseline", name, split, metrics={"test/c_index": c_index}),
    ...         {"baseline.name": name},
    ...         *(0, 400, 100),
    ...     )
    ...     for name, split, c_index in (("gru", "x", 0.71), ("gru", "y", 0.73), ("cox", "x", 0.7), ("cox", "y", 0.7))
    ... ]
    >>> found = configurations(repeats)
    >>> (difference,) = differences_over_repeats(found, {}, Questions({"baseline.name": "cox"}))
    >>> print(difference.interval)
    0.020 [-0.136, 0.176]
    >>> difference.sentence  # doctest: +ELLIPSIS
    'no difference shown between gru and cox: +.020 [-.136, .176] in C-index (Nadeau and Bengio over 2 splits; ...
    """
    metric = metric_of_choice([row for of in found for row in of.rows])
    scores = SplitScores(found, predictions, n_resamples=n_resamples, seed=seed)
    to_reference = pairs_to_reference(found, questions.reference)
    asked = [pair for one in questions.compare for pair in asked_pairs(found, one)]
    without = [_unmet(one, metric, questions.margin) for one in questions.compare if not asked_pairs(found, one)]
    judged = []
    for family in (to_reference, asked):
        tried = [_tried(pair, scores, metric, seed=seed) for pair in family]
        judged += _judged(tried, metric, margin=questions.margin)
    error = BRIER if metric is AUROC else IBS
    for family in (to_reference, asked):
        tried = [_tried(pair, scores, error, seed=seed) for pair in family if _has_splits(pair, scores, error)]
        judged += _judged(tried, error, margin=0)
    return judged + without


def _has_splits(pair: Pair, scores: SplitScores, metric: Metric) -> bool:
    return len(scores.means(pair.this, metric).keys() & scores.means(pair.to, metric).keys()) >= LEAST_SPLITS


def _tried(pair: Pair, scores: SplitScores, metric: Metric, *, seed: int) -> _Tried:
    """A pair over the splits that both have, or within the one that both have."""
    mine, other = scores.means(pair.this, metric), scores.means(pair.to, metric)
    splits = [split for split in mine if split in other]
    if len(splits) >= LEAST_SPLITS:
        values = [mine[split] - other[split] for split in splits]
        over = difference_over_splits(values, test_to_training=scores.test_to_training(splits))
        return _Tried(pair, over, "", OVER_SPLITS, len(splits), _n_seeds(pair))
    shared = [split for split in scores.by_split(pair.this) if split in scores.by_split(pair.to)]
    if not shared:
        reason = "they share no split: they were tested on different subjects, or name them by hashes of different keys"
        return _Tried(pair, None, reason, WITHIN, 0, _n_seeds(pair))
    tested, reason, n_draws = _within(pair, shared, scores, metric, seed=seed)
    return _Tried(pair, tested, reason, WITHIN, 1, _n_seeds(pair), n_draws)


def _within(
    pair: Pair, shared: Sequence[str], scores: SplitScores, metric: Metric, *, seed: int
) -> tuple[Contrast | None, str, int]:
    """The bootstrap in the first split of which both have predictions, or why there is none, and over how many draws.

    Of configurations that learned from different labels, such as 128 and 512 of them, all draws are one.
    """
    generator = np.random.default_rng(seed)
    try:
        for split in shared:
            this, to = (scores.resampled(of, split, metric) for of in (pair.this, pair.to))
            if draws := [(this[labels], to[labels]) for labels in this if labels in to]:
                return difference_over_draws(draws, generator=generator), "", len(draws)
            if this and to:
                return difference_within_split(_pooled(this), _pooled(to), generator=generator), "", 1
    except NotMeasurable as reason:
        return None, str(reason), 0
    needed = (
        "they share one split, on which the test needs the test predictions of both; or run them on "
        f"{LEAST_SPLITS} splits or more (data.split.seed)"
    )
    return None, needed, 0


def _pooled(draws: Mapping[str, Scored]) -> Scored:
    estimates, resampled = zip(*draws.values(), strict=True)
    return np.concatenate(estimates), np.concatenate(resampled)


def _n_seeds(pair: Pair) -> int:
    return max(pair.this.n_seeds, pair.to.n_seeds)


def _judged(tried: Sequence[_Tried], metric: Metric, *, margin: float) -> list[Difference]:
    """A family of tests in one metric, with what may be said of each."""
    adjusted = iter(holm([one.tested.p for one in tried if one.tested is not None]))
    return [_difference(one, metric, None if one.tested is None else next(adjusted), margin) for one in tried]


def _difference(one: _Tried, metric: Metric, p_holm: float | None, margin: float) -> Difference:
    tested = one.tested
    is_equivalent = tested is not None and margin > 0 and tested.is_within(margin)
    difference = Difference(
        question=one.pair.question,
        this=one.pair.this.label,
        to=one.pair.to.label,
        metric=metric.key,
        interval=None if tested is None else tested.interval,
        p=None if tested is None else tested.p,
        p_holm=p_holm,
        method=one.method,
        n_splits=one.n_splits,
        n_seeds=one.n_seeds,
        n_draws=one.n_draws,
        margin=margin,
        is_equivalent=is_equivalent,
        finding=_finding(tested, p_holm, metric, is_equivalent=is_equivalent),
        sentence="",
    )
    if tested is None:
        return replace(difference, sentence=_untested(difference, metric, one.reason))
    return replace(difference, sentence=_together([difference]))


def _finding(tested: Contrast | None, p_holm: float | None, metric: Metric, *, is_equivalent: bool) -> Finding:
    """What may be said: a difference where its own interval and the family allow it."""
    if tested is None or p_holm is None:
        return "not tested"
    lower, upper = tested.interval.lower, tested.interval.upper
    if p_holm < LEVEL and (lower > 0 or upper < 0):
        return "better" if (lower > 0) == (metric.better == "higher") else "worse"
    return "equivalent" if is_equivalent else "no difference shown"


def sentences(differences: Sequence[Difference]) -> list[str]:
    """What was found in whole sentences; differences of the same two at several numbers of labels are told in one.

    The name of a configuration at the beginning stays as it is.

    Examples
    --------
    >>> from ehrtrack.survival.bootstrap import Interval
    >>> def of(n_labels, estimate):
    ...     interval = Interval(estimate, estimate - 0.02, estimate + 0.02)
    ...     return Difference(
    ...         *("", f"full · {n_labels} labels", f"cox · {n_labels} labels", "c_index", interval, 0.9, 0.9),
    ...         *(OVER_SPLITS, 5, 1, 0.0, False, "no difference shown"),
    ...         sentence="",
    ...     )
    >>> sentences([of(128, 0.004), of(512, 0.001)])  # doctest: +NORMALIZE_WHITESPACE
    ['No difference shown between full and cox: +.004 [-.016, .024] (128 labels), +.001 [-.019, .021] (512 labels) in
    C-index (Nadeau and Bengio over 5 splits).']
    """
    told = (_together(list(group)) for _, group in groupby(differences, key=_frame))
    return [f"{re.sub('^no difference', 'No difference', text)}." for text in told]


def _frame(difference: Difference) -> tuple[str, str, str]:
    """What is said before and after the numbers, and how the two stand to each other."""
    if difference.interval is None:
        return difference.sentence, "", ""
    metric = METRICS[difference.metric]
    this, to, _ = apart(difference.this, difference.to)
    after = f"in {metric.title} ({_method_text(difference)})"
    if difference.finding in ("better", "worse"):
        also = f"; equivalent within {_margin_text(difference)}" if difference.is_equivalent else ""
        return f"{this} is {difference.finding} than {to} by", after + also, difference.finding
    if difference.finding == "equivalent":
        return f"{this} and {to} are equivalent within {_margin_text(difference)}:", after, difference.finding
    if difference.interval.lower > 0 or difference.interval.upper < 0:
        after += f"; p {difference.p:.3f}, and {difference.p_holm:.3f} by Holm among all that were compared"
    return f"no difference shown between {this} and {to}:", after, difference.finding


def _together(differences: Sequence[Difference]) -> str:
    """Differences with the same frame, without a full stop."""
    before, after, _ = _frame(differences[0])
    numbers = ", ".join(map(_numbers, differences))
    return f"{before} {numbers} {after}" if numbers else before


def _numbers(difference: Difference) -> str:
    """The estimate and its interval, and what both sides share; those that are shown are told without their sign."""
    interval, (*_, shared) = difference.interval, apart(difference.this, difference.to)
    if interval is None:
        return ""
    bounds, sign = [interval.estimate, interval.lower, interval.upper], "+"
    if difference.finding in ("better", "worse"):
        bounds, sign = (bounds if bounds[0] > 0 else [-bounds[0], -bounds[2], -bounds[1]]), ""
    numbers = f"{decimal(bounds[0], sign=sign)} [{decimal(bounds[1])}, {decimal(bounds[2])}]"
    return f"{numbers} ({shared})" if shared else numbers


def _method_text(difference: Difference) -> str:
    if difference.method == WITHIN:
        draws = f", {difference.n_draws} draws of labels" if difference.n_draws > 1 else ""
        seeds = f" and {difference.n_seeds} seeds" if difference.n_seeds > 1 else ", of one seed each"
        return f"{WITHIN}, over test subjects{draws}{seeds}"
    text = f"Nadeau and Bengio over {difference.n_splits} splits"
    few = "; from two splits an interval is so wide that it shows next to nothing, 5 are usual"
    return text + (few if difference.n_splits == FEW_SPLITS else "")


def _untested(difference: Difference, metric: Metric, reason: str) -> str:
    return f"{difference.this} and {difference.to} are not compared in {metric.title}: {reason}"


def _margin_text(difference: Difference) -> str:
    return f"{difference.margin:g}".removeprefix("0")


def differences_table(differences: Sequence[Difference]) -> pl.DataFrame:
    """One line a difference: what was compared, the interval, p and the finding.

    Examples
    --------
    >>> untested = Difference(
    ...     *("", "full", "cox", "c_index", None, None, None, "Nadeau and Bengio over splits", 1, 1, 0.01, False),
    ...     *("not tested", "full and cox share one split"),
    ... )
    >>> differences_table([untested]).select("this", "to", "difference", "finding").rows()
    [('full', 'cox', None, 'not tested')]
    """
    lines = []
    for one in differences:
        bounds = {} if one.interval is None else one.interval.to_metrics("difference")
        lines.append(
            {
                "question": one.question,
                "this": one.this,
                "to": one.to,
                "metric": one.metric,
                **{name: bounds.get(name) for name in ("difference", "difference_lower", "difference_upper")},
                "p": one.p,
                "p_holm": one.p_holm,
                "method": one.method,
                "n_splits": one.n_splits,
                "n_seeds": one.n_seeds,
                "margin": one.margin,
                "is_equivalent": one.is_equivalent,
                "finding": one.finding,
                "sentence": one.sentence,
            }
        )
    return pl.DataFrame(lines, infer_schema_length=None)


def decimal(value: float, *, digits: int = 3, sign: str = "") -> str:
    """A number below 1 without its leading zero.

    >>> decimal(0.0123), decimal(-0.004), decimal(0.003, sign="+"), decimal(-0.0001), decimal(1.2)
    ('.012', '-.004', '+.003', '.000', '1.200')
    """
    text = format(round(value, digits) + 0.0, f"{sign}.{digits}f")  # which makes a negative zero a zero
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def _unmet(asked: AskedComparison, metric: Metric, margin: float) -> Difference:
    """A question that no two finished configurations answer."""
    this, to = (selection_text(selection) for selection in (asked.this, asked.to))
    sentence = f"{this} and {to} are not compared: no two finished configurations differ in this alone"
    return Difference(
        *(asked.question, this, to, metric.key, None, None, None, WITHIN, 0, 0, margin),
        is_equivalent=False,
        finding="not tested",
        sentence=sentence,
    )
