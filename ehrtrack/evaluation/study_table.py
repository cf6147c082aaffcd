"""The table of configurations: scores over repeats, differences to the reference, sizes and costs; a line each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from ehrtrack.evaluation.benchmark import aligned, metric_of_choice
from ehrtrack.evaluation.metric_table import Entry, interval_text, number_text, shown, with_bounds
from ehrtrack.evaluation.repeats import Configuration, Difference, best_configurations_first

LEAST_P = 0.001
"""A smaller p is shown as smaller."""
COSTS: dict[str, tuple[str, ...]] = {
    "adapter_mb": ("cost/adapter_mb",),
    "checkpoint_mb": ("cost/checkpoint_mb",),
    "peak_memory_mb": ("cost/peak_memory_mb", "train/memory_mb"),
    "tokens_per_second": ("cost/tokens_per_second", "train/tokens_per_second"),
    "tflops_per_second": ("cost/tflops_per_second",),
    "utilisation": ("cost/utilisation",),
    "gpu_busy": ("cost/gpu_busy",),
    "joules": ("cost/joules",),
    "seconds": ("cost/train_seconds",),
    "total_seconds": ("cost/total_seconds", "cost/train_seconds"),
}
"""Column -> the names under which runs log what stands there; a later one where runs of before lack the first."""

LEFT_OUT_IN_SHORT = (
    *("to", "Holm's p", "parameters", "adapter MB", "full MB", "peak memory MB"),
    *("tokens/s", "TFLOP/s", "of the peak", "GPU busy", "kJ"),
)
"""Columns of Markdown that a terminal does without."""

SCHEMA: dict[str, type[pl.DataType]] = {
    "configuration": pl.String,
    "kind": pl.String,
    "n_repeats": pl.Int64,
    "n_splits": pl.Int64,
    "n_seeds": pl.Int64,
    "n_train": pl.Float64,
    **{
        name: pl.Float64
        for entry in shown("study")
        for column in list(entry.columns)[:1]
        for name in (column, f"{column}_sd")
    },
    "reference": pl.String,
    "difference": pl.Float64,
    "difference_lower": pl.Float64,
    "difference_upper": pl.Float64,
    "p": pl.Float64,
    "p_holm": pl.Float64,
    "is_equivalent": pl.Boolean,
    "finding": pl.String,
    "n_parameters": pl.Int64,
    "n_trainable": pl.Int64,
    **dict.fromkeys(COSTS, pl.Float64),
    "hours": pl.Float64,
    "cost": pl.Float64,
    "run_ids": pl.String,
    "settings": pl.String,
    "pretraining": pl.String,
}
"""Columns of a study's table, in order; costs are those of one repeat, the mean over all; settings are JSON, those by
which a configuration is asked for elsewhere."""


def study_table(
    found: Sequence[Configuration], differences: Sequence[Difference] = (), *, price_per_hour: float | None = None
) -> pl.DataFrame:
    """One line a configuration, the best by mean validation score first.

    Parameters
    ----------
    differences : from `differences.differences_over_repeats`; those to the reference in the metric of choice are shown
    price_per_hour : of the machine

    Returns
    -------
    Table with the columns of `SCHEMA`. Of each metric the mean over the repeats that have it and the standard deviation
    (``_sd``, of two repeats or more); hours are of the whole run and not of training alone. Null where a fact is not
    known.

    Examples
    --------
    >>> from ehrtrack.evaluation.benchmark import RunRow
    >>> from ehrtrack.evaluation.repeats import Repeat, configurations
    >>> runs = [
    ...     RunRow(name, "baseline", "cox", "c", metrics={"test/c_index": c, "cost/total_seconds": 1800})
    ...     for name, c in (("a", 0.70), ("b", 0.72))
    ... ]
    >>> found = configurations([Repeat(run, {}, seed, 400, 100) for seed, run in enumerate(runs)])
    >>> table = study_table(found, price_per_hour=3.0)
    >>> table.select("configuration", "n_repeats", pl.col("test_c_index", "test_c_index_sd").round(3), "cost").rows()
    [('cox', 2, 0.71, 0.014, 1.5)]
    """
    metric = metric_of_choice([row for of in found for row in of.rows]) if found else None
    to_reference = {
        one.this: one for one in differences if not one.question and metric is not None and one.metric == metric.key
    }
    lines = [_line(of, to_reference.get(of.label), price_per_hour) for of in best_configurations_first(found)]
    return pl.DataFrame(lines, schema=SCHEMA).with_columns(pl.col(pl.Float64).fill_nan(None))


def _line(of: Configuration, difference: Difference | None, price_per_hour: float | None) -> dict[str, Any]:
    line: dict[str, Any] = dict.fromkeys(SCHEMA)
    line |= {"configuration": of.label, "kind": of.rows[0].kind, "n_repeats": len(of.repeats)}
    line |= {"n_splits": of.n_splits, "n_seeds": of.n_seeds, "n_train": np.mean([one.n_train for one in of.repeats])}
    for entry in shown("study", {of.rows[0].task}):
        column = next(iter(entry.columns))
        line[column], line[f"{column}_sd"] = _mean_and_sd([row.metrics.get(entry.name) for row in of.rows])
    if difference is not None:
        line |= {"reference": difference.to, "finding": difference.finding, "is_equivalent": difference.is_equivalent}
        line |= {"p": difference.p, "p_holm": difference.p_holm}
        bounds = difference.interval.to_metrics("difference") if difference.interval is not None else {}
        line |= bounds
    line["n_parameters"] = next((row.n_parameters for row in of.rows if row.n_parameters is not None), None)
    line["n_trainable"] = next((row.n_trainable for row in of.rows if row.n_trainable is not None), None)
    line |= {column: _cost(of, names) for column, names in COSTS.items()}
    if line["total_seconds"] is not None:
        line["hours"] = line["total_seconds"] / 3600
        line["cost"] = None if price_per_hour is None else line["hours"] * price_per_hour
    first = of.repeats[0]
    line |= {"settings": json.dumps(dict(first.asked)), "pretraining": first.pretraining or None}
    return line | {"run_ids": " ".join(row.run_id for row in of.rows)}


def _mean_and_sd(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    known = [value for value in values if value is not None and not np.isnan(value)]
    if not known:
        return None, None
    return float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None


def _cost(of: Configuration, names: Sequence[str]) -> float | None:
    """The mean over the runs, of each by the first of the names that it logged."""
    values = [next((row.metrics[name] for name in names if name in row.metrics), None) for row in of.rows]
    return _mean_and_sd(values)[0]


def study_markdown(table: pl.DataFrame, *, currency: str = "", is_short: bool = False) -> str:
    """The table of `study_table` as aligned Markdown; columns in which nobody has a fact are left out.

    Parameters
    ----------
    is_short : whether it is for a terminal: few scores, differences and what it took

    Examples
    --------
    >>> from ehrtrack.evaluation.benchmark import RunRow
    >>> from ehrtrack.evaluation.repeats import Repeat, configurations
    >>> runs = [RunRow(str(c), "baseline", "cox", "c", metrics={"test/c_index": c}) for c in (0.7, 0.72)]
    >>> found = configurations([Repeat(run, {}, seed, 400, 100) for seed, run in enumerate(runs)])
    >>> print(study_markdown(study_table(found)).strip())
    | configuration |   n | test C-index (sd) |
    | ------------- | --: | ----------------- |
    | cox           |   2 | 0.710 (0.014)     |
    """
    columns: list[tuple[str, bool, Callable[[dict[str, Any]], str]]] = [
        ("configuration", False, lambda row: row["configuration"]),
        ("n", True, lambda row: str(row["n_repeats"])),
        *(
            (f"{_title(entry)} (sd)", False, lambda row, entry=entry: _mean_text(row, entry))
            for entry in shown("ui" if is_short else "study")
        ),
        ("difference (95 % interval)", False, lambda row: interval_text(row, *with_bounds("difference"), form="+.3f")),
        ("to", False, lambda row: row["reference"] or ""),
        ("Holm's p", True, lambda row: _p_text(row["p_holm"])),
        ("finding", False, lambda row: row["finding"] or ""),
        ("parameters", True, lambda row: number_text(row["n_parameters"], ",d")),
        ("trainable", True, lambda row: number_text(row["n_trainable"], ",d")),
        ("adapter MB", True, lambda row: number_text(row["adapter_mb"], ",.2f")),
        ("full MB", True, lambda row: number_text(row["checkpoint_mb"], ",.2f")),
        ("peak memory MB", True, lambda row: number_text(row["peak_memory_mb"], ",.0f")),
        ("tokens/s", True, lambda row: number_text(row["tokens_per_second"], ",.0f")),
        ("TFLOP/s", True, lambda row: number_text(row["tflops_per_second"], ".3g")),
        ("of the peak", True, lambda row: number_text(row["utilisation"], ".1%")),
        ("GPU busy", True, lambda row: number_text(row["gpu_busy"], ".0%")),
        ("kJ", True, lambda row: number_text(_kilojoules(row["joules"]), ",.1f")),
        ("seconds", True, lambda row: number_text(row["seconds"], ",.1f")),
        (f"cost {currency}".strip(), True, lambda row: number_text(row["cost"], ",.2f")),
    ]
    rows = list(table.iter_rows(named=True))
    left_out = LEFT_OUT_IN_SHORT if is_short else ()
    cells = [
        (title, is_right, [text(row) for row in rows]) for title, is_right, text in columns if title not in left_out
    ]
    return aligned([(title, is_right, texts) for title, is_right, texts in cells if any(texts)])


def _kilojoules(joules: float | None) -> float | None:
    return None if joules is None else joules / 1000


def _p_text(p: float | None) -> str:
    return "<0.001" if p is not None and p < LEAST_P else number_text(p, ".3f")


def _title(entry: Entry) -> str:
    return entry.title().removesuffix(" (95 % interval)")


def _mean_text(row: Mapping[str, Any], entry: Entry) -> str:
    """``0.710 (0.014)``; without the standard deviation where there is one repeat."""
    column, form = next(iter(entry.columns)), entry.metric.form
    mean, sd = number_text(row[column], form), row[f"{column}_sd"]
    return mean if sd is None else f"{mean} ({format(sd, form.lstrip('+'))})"
