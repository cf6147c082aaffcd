"""Scores by the number of labels, and how many labels a model needs to equal a baseline that has all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from ehrtrack.evaluation.benchmark import metric_of_choice
from ehrtrack.evaluation.labels import N_LABELS, Settings, labels_of
from ehrtrack.evaluation.metric_table import METRICS
from ehrtrack.evaluation.repeats import Configuration, best_configurations_first
from ehrtrack.runlog import TEST

SEQUENCE_MODELS = ("gru", "lstm", "mean-pool")
"""Baselines that read histories, and no counts of codes."""
N_EVENTS = "cohort/n_train_events"
"""The name under which runs log how many of their training rows have the outcome, where they are not of a few."""
CURVE_SCHEMA = {
    "model": pl.String,
    "is_transformer": pl.Boolean,
    "n_labels": pl.Float64,
    "n_events": pl.Float64,
    "metric": pl.String,
    "score": pl.Float64,
    "sd": pl.Float64,
    "n_repeats": pl.Int64,
}
NEED_SCHEMA = {
    "model": pl.String,
    "reference": pl.String,
    "target": pl.Float64,
    "all_labels": pl.Float64,
    "n_labels": pl.Float64,
    "n_events": pl.Float64,
    "is_reached": pl.Boolean,
    "is_upper_bound": pl.Boolean,
    "text": pl.String,
}


def label_curves(found: Sequence[Configuration]) -> pl.DataFrame:
    """The test score of each model by the number of labelled training subjects; one line a model and number.

    A model is a configuration without its number of labels.

    Returns
    -------
    model, is_transformer, n_labels (mean over the repeats), n_events (among them, where runs logged it), metric (its
    key), score (mean over the repeats), sd (of two repeats or more), n_repeats

    Examples
    --------
    >>> from ehrtrack.evaluation.benchmark import RunRow
    >>> from ehrtrack.evaluation.repeats import Repeat, configurations
    >>> repeats = [
    ...     Repeat(RunRow(str(n), "baseline", "cox", str(n), metrics={"test/c_index": c}),
    ...            {"baseline.name": "cox", "cohort.n_labels": n}, 0, n, 200)
    ...     for n, c in ((512, 0.70), (64, 0.62))
    ... ]
    >>> label_curves(configurations(repeats)).select("model", "n_labels", "score").rows()
    [('cox', 64.0, 0.62), ('cox', 512.0, 0.7)]
    """
    if not found:
        return pl.DataFrame(schema=CURVE_SCHEMA)
    metric = metric_of_choice([row for of in found for row in of.rows])
    models = _models(found)
    lines = []
    for of, model in zip(found, models, strict=True):
        scores = [row.metrics.get(metric.named(TEST), np.nan) for row in of.rows]
        known = [score for score in scores if not np.isnan(score)]
        events = [row.metrics[N_EVENTS] for row in of.rows if N_EVENTS in row.metrics]
        if known:
            lines.append(
                {
                    "model": model,
                    "is_transformer": of.is_transformer,
                    "n_labels": float(np.mean([repeat.n_train for repeat in of.repeats])),
                    "n_events": float(np.mean(events)) if events else None,
                    "metric": metric.key,
                    "score": float(np.mean(known)),
                    "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
                    "n_repeats": len(known),
                }
            )
    order = {model: place for place, model in enumerate(dict.fromkeys(models))}
    return pl.DataFrame(lines, schema=CURVE_SCHEMA).sort(
        pl.col("model").replace_strict(order, return_dtype=pl.Int64), "n_labels"
    )


def label_efficiency(found: Sequence[Configuration]) -> pl.DataFrame:
    """How many labels each transformer needs to equal the best count baseline that has all labels.

    The baseline is chosen by validation. Between the numbers of labels that were tried, scores are interpolated on the
    logarithm of the number (as the data efficiency of MOTOR is told; Steinberg et al. 2024, ICLR).

    Returns
    -------
    model, reference (label of the baseline), target (its test score), all_labels (that it has), n_labels and n_events
    (needed; null where no number that was tried reaches the target), is_reached, is_upper_bound (the fewest labels that
    were tried are enough), text. Empty where there is one number of labels, no count baseline or no transformer.

    Examples
    --------
    A Cox model has .70 with 800 labels. A transformer has .68 with 100 labels and .72 with 400; in the middle, on the
    logarithmic scale, it equals it with 200:

    >>> from ehrtrack.evaluation.benchmark import RunRow
    >>> from ehrtrack.evaluation.repeats import Repeat, configurations
    >>> runs = [("cox", 800, 0.70), ("cox", 100, 0.60), ("lora", 100, 0.68), ("lora", 400, 0.72)]
    >>> repeats = [
    ...     Repeat(
    ...         RunRow(f"{name} {n}", "baseline" if name == "cox" else "finetune", name, str(n),
    ...                strategy="" if name == "cox" else name, metrics={"kept/c_index": c, "test/c_index": c}),
    ...         {"cohort.n_labels": n}, 0, n, 200)
    ...     for name, n, c in runs
    ... ]
    >>> needed = label_efficiency(configurations(repeats))
    >>> needed["text"].item()
    'lora equals cox · 800 labels (C-index .700) with 200 labels, 25 % of them'
    """
    curves = label_curves(found)
    empty = pl.DataFrame(schema=NEED_SCHEMA)
    if curves["n_labels"].n_unique() < 2:
        return empty
    reference = _best_count_baseline(found)
    if reference is None:
        return empty
    metric = METRICS[curves["metric"][0]]
    target = float(np.nanmean([row.metrics.get(metric.named(TEST), np.nan) for row in reference.rows]))
    n_all = float(np.mean([repeat.n_train for repeat in reference.repeats]))
    sign = 1.0 if metric.better == "higher" else -1.0
    lines = []
    for (model,), curve in curves.filter("is_transformer").group_by("model", maintain_order=True):
        n_labels, is_bound = _reached(
            curve["n_labels"].to_list(), [sign * one for one in curve["score"]], sign * target
        )
        line: dict[str, Any] = {"model": model, "reference": reference.label, "target": target, "all_labels": n_all}
        line |= {"n_labels": n_labels, "n_events": _events_at(curve, n_labels)}
        line |= {"is_reached": n_labels is not None, "is_upper_bound": is_bound}
        lines.append(line | {"text": _text(line, metric.title, most=max(curve["n_labels"].to_list()))})
    return pl.DataFrame(lines, schema=NEED_SCHEMA)


def _models(found: Sequence[Configuration]) -> list[str]:
    """What each configuration is called without its number of labels."""
    without: list[Settings] = [{path: value for path, value in of.settings.items() if path != N_LABELS} for of in found]
    return labels_of(without)


def _best_count_baseline(found: Sequence[Configuration]) -> Configuration | None:
    """Of the count baselines with the most labels the best by validation."""
    counting = [of for of in found if not of.is_transformer and of.rows[0].model not in SEQUENCE_MODELS]
    if not counting:
        return None
    most = max(max(repeat.n_train for repeat in of.repeats) for of in counting)
    with_all = [of for of in counting if max(repeat.n_train for repeat in of.repeats) == most]
    return best_configurations_first(with_all)[0]


def _reached(numbers: Sequence[float], scores: Sequence[float], target: float) -> tuple[float | None, bool]:
    """The first number of labels at which a curve reaches a target, and whether it is the first that was tried.

    >>> [_reached([100, 400], [0.6, 0.8], target) for target in (0.7, 0.5, 0.9)]
    [(200.0, False), (100, True), (None, False)]
    """
    if scores[0] >= target:
        return numbers[0], True
    for place in range(1, len(numbers)):
        before, after = scores[place - 1], scores[place]
        if after >= target:
            share = (target - before) / (after - before)
            low, high = math.log(numbers[place - 1]), math.log(numbers[place])
            return round(math.exp(low + share * (high - low)), 6), False
    return None, False


def _events_at(curve: pl.DataFrame, n_labels: float | None) -> float | None:
    """Events among so many labels, by the share that the curve's own labels have."""
    known = curve.drop_nulls("n_events")
    if n_labels is None or known.is_empty():
        return None
    events, labels = (float(np.sum(known[name].to_numpy())) for name in ("n_events", "n_labels"))
    return n_labels * events / labels


def _text(line: dict[str, Any], quantity: str, *, most: float) -> str:
    target = f"{line['target']:.3f}".removeprefix("0")
    whom = f"{line['reference']} ({quantity} {target})"
    if line["n_labels"] is None:
        return f"{line['model']} does not equal {whom} with {most:,.0f} labels, the most that were tried"
    with_events = "" if line["n_events"] is None else f" ({line['n_events']:,.0f} events)"
    needed = f"{line['n_labels']:,.0f} labels{with_events}"
    if line["is_upper_bound"]:
        return f"{line['model']} equals {whom} with {needed} already, the fewest that were tried"
    return f"{line['model']} equals {whom} with {needed}, {100 * line['n_labels'] / line['all_labels']:.0f} % of them"
