"""Do explanations point at what was planted? Models of a simulated population, explained beside its true hazard.

    python -m benchmarks.explanations FOLDER                       # all models, and their twins on permuted outcomes
    python -m benchmarks.explanations FOLDER --only lasso --explained 50

Everything is kept in FOLDER: the population, a tracking database, and `explanations.json`. What is there already is not
made again. The table is that of docs/explain.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks._kept import found_in, made_population, work_in
from benchmarks._machine import describe_machine

WORLD = "target-site"
N_TOP = 5
CONFIG: dict[str, Any] = {
    "data": {"max_tokens": 512, "split": {"train": 0.6, "validation": 0.15}, "vocabulary": {"min_subjects": 5}},
    "cohort": {"horizon_days": 1095},
    "model": {"size": "tiny"},
    "strategy": {"name": "scratch"},
    "train": {"epochs": 10, "batch_tokens": 2048, "lr": 2e-3, "patience": 3},
}
MODELS: dict[str, dict[str, Any]] = {
    "network from scratch": {},
    "network from a lasso": {"objective": {"name": "survival", "lasso": 0.2}, "train": {"lr": 1e-3}},
    "lasso": {"baseline": {"name": "lasso"}},
    "ridge": {"baseline": {"name": "ridge"}},
}
METHODS = {name: ("occlusion", "integrated-gradients") for name in MODELS} | {"ridge": ("occlusion",)}
TWIN = " (permuted outcomes)"
LABELS = {False: "labels.parquet", True: "permuted.parquet"}


def main(words: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(words)
    folder = work_in(options.folder)
    make_population(folder, options.subjects, options.seed)
    kept = folder / "explanations.json"
    found = found_in(kept)
    for name in options.only or MODELS:
        for is_permuted in (False, True):
            key = f"{name}{TWIN if is_permuted else ''}"
            if key not in found:
                found[key] = {"run": fit(folder, name, is_permuted=is_permuted)}
                kept.write_text(json.dumps(found, indent=2))
            if "methods" not in found[key]:
                found[key] = measure(folder, found[key]["run"], METHODS[name], n_explained=options.explained)
                kept.write_text(json.dumps(found, indent=2))
    print("\n".join(table(found)))
    machine = describe_machine()
    print(
        f"\n{options.subjects:,} subjects of {WORLD}, seed {options.seed}; {machine['cpu']}, commit {machine['commit']}"
    )


def make_population(folder: Path, n_subjects: int, seed: int) -> None:
    """The population, and beside its labels the same outcomes of other subjects."""
    if made_population(folder, WORLD, n_subjects, seed):
        labels = pl.read_parquet(folder / "data" / LABELS[False])
        order = np.random.default_rng(seed).permutation(labels.height)
        outcomes = labels.select("follow_up_days", "is_event")[order]
        labels.select("subject_id", "prediction_time").hstack(outcomes).write_parquet(folder / LABELS[True])


def fit(folder: Path, name: str, *, is_permuted: bool) -> str:
    """The run of a model."""
    from ehrtrack.config import parse_config
    from ehrtrack.recipes.baseline import baseline
    from ehrtrack.recipes.finetune import finetune

    labels = folder / LABELS[True] if is_permuted else folder / "data" / LABELS[False]
    values = _merged(CONFIG, MODELS[name], {"data": {"path": str(folder / "data")}, "cohort": {"labels": str(labels)}})
    values |= {"study": "permuted" if is_permuted else "explanations", "runtime": {"cache": str(folder / "cache")}}
    recipe = baseline if "baseline" in values else finetune
    return recipe(parse_config(values)).run_id


def measure(folder: Path, run_id: str, methods: Sequence[str], *, n_explained: int) -> dict[str, Any]:
    """How often codes that the true hazard reads are among the five with the largest contributions."""
    from ehrtrack.tracking.client.queries import get_run

    metrics = get_run(run_id).metrics
    answers: dict[str, Any] = {"run": run_id, "c_index": metrics["test/c_index"], "methods": {}}
    for method in methods:
        started = time.monotonic()
        rows = pl.DataFrame(list(_explained(folder, run_id, method, n_explained)))
        seconds = (time.monotonic() - started) / n_explained
        answers["methods"][method] = rows.to_dict(as_series=False) | {"seconds": seconds}
    return answers


def _explained(folder: Path, run_id: str, method: str, n_explained: int) -> Iterator[dict[str, float]]:
    """Of each test subject, what was found, and what chance would find. Static facts are no part of it."""
    from ehrtrack.evaluation.contributions import hits
    from ehrtrack.pipeline.explain import explain
    from ehrtrack.recipes.explain import sample_of
    from ehrtrack.simulate.check import read_world
    from ehrtrack.simulate.contributions import concepts_of_codes, true_contributions
    from ehrtrack.simulate.dictionary import FIRST_COMPLICATION, OUTCOME

    world, _ = read_world(folder / "data")
    concepts = concepts_of_codes(folder / "data")
    predictor, records = sample_of(run_id, n_explained)
    for record, explained in zip(records, explain(predictor, records, method=method), strict=True):
        codes = explained.codes.filter(pl.col("n_visits") > 0)
        told, names = codes["contribution"].to_numpy(), codes["code"].to_list()
        true = true_contributions(record.events, record.prediction_time, names, concepts, world)
        if len(told) > N_TOP and true.any():  # of five codes chance would find all
            is_read = np.abs(true) > 1e-12
            follows = np.array([FIRST_COMPLICATION <= concepts.get(name, -1) < OUTCOME for name in names])
            planted, marking = hits(told, is_read, N_TOP), hits(told, is_read | follows, N_TOP)
            yield {
                "found": planted.n_found,
                "found_by_chance": planted.n_by_chance,
                "marking": marking.n_found,
                "marking_by_chance": marking.n_by_chance,
                "codes": len(told),
            }


def table(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines of Markdown, of what is measured: shares with intervals over subjects, which are the same of all models."""
    from ehrtrack.evaluation.contributions import share_interval

    heads = (
        *("model", "test C-index", "method", "read by the hazard, of the five", "over chance", "− twin"),
        *("or following it", "over chance", "− twin", "s a subject"),
    )
    lines = [" | ".join(heads), " | ".join("---" for _ in heads)]
    for name, of in found.items():
        for method, rows in of.get("methods", {}).items():
            twin = found.get(f"{name}{TWIN}", {}).get("methods", {}).get(method)
            cells = []
            for counted in ("found", "marking"):
                n, by_chance = (np.array(rows[key], dtype=np.float64) for key in (counted, f"{counted}_by_chance"))
                of_five = N_TOP * np.ones(len(n))
                cells += [str(share_interval(n, of_five)), f"× {share_interval(n, by_chance)}"]
                cells += ["" if twin is None else str(share_interval(n - np.array(twin[counted]), of_five))]
            lines.append(" | ".join([name, f"{of['c_index']:.3f}", method, *cells, f"{rows['seconds']:.2f}"]))
    return [f"| {line} |" for line in lines]


def _merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for part in parts:
        for name, values in part.items():
            merged[name] = merged.get(name, {}) | values
    return merged


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.explanations", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--subjects", type=int, default=6000, help="of the population")
    parser.add_argument("--explained", type=int, default=300, help="test subjects, drawn")
    parser.add_argument("--seed", type=int, default=1, help="of the population and the permutation")
    parser.add_argument("--only", nargs="*", choices=list(MODELS), help="some of the models")
    return parser


if __name__ == "__main__":
    main()
