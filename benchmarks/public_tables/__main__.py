"""Fit what is not fitted yet, and write the table: ``python -m benchmarks.public_tables``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks._machine import describe_machine
from benchmarks.public_tables.models import MODELS
from benchmarks.public_tables.report import result_of, to_markdown
from benchmarks.public_tables.study import (
    N_FOLDS,
    N_INNER_FOLDS,
    Scored,
    code_fingerprint,
    is_fitted,
    score_fold,
)
from benchmarks.public_tables.tables import LOADERS, load_table


def main(words: Sequence[str] | None = None) -> int:
    """Exit code 0. Cut off and started again, it goes on with the fold it was at."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.public_tables", description=__doc__)
    parser.add_argument("--tables", nargs="+", choices=LOADERS, default=list(LOADERS), metavar="TABLE")
    parser.add_argument(
        "--settings", type=int, default=8, metavar="N", help="tried for each model; 1 takes its default, without tuning"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the folds and of the forest")
    parser.add_argument("--cache", type=Path, default=Path(".ehrtrack/public_tables"), help="predictions of each fold")
    parser.add_argument("--out", type=Path, help="markdown file to write; printed either way")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    results, chosen = {}, []
    for table in map(load_table, options.tables):
        parts: dict[str, list[Scored]] = {name: [] for name in MODELS if is_fitted(table, name)}
        for name, scored in parts.items():
            for fold in range(N_FOLDS):
                scored.append(
                    score_fold(table, name, fold, options.cache, n_settings=options.settings, seed=options.seed)
                )
                print(f"{table.name} {name}: fold {fold + 1} of {N_FOLDS}, {scored[-1].setting}", flush=True)
            chosen.append(f"- {table.name}, {name}: {'; '.join(_short(part) for part in scored)}")
        results[table.name] = {name: result_of(table, scored) for name, scored in parts.items()}
    machine = describe_machine()
    text = "\n".join(
        [
            to_markdown(results),
            "",
            f"{N_FOLDS} folds, seed {options.seed}; settings tried for each model: {options.settings}"
            + (f", on {N_INNER_FOLDS} inner folds. " if options.settings > 1 else ", its default. ")
            + f"Commit {machine['commit']}, code {code_fingerprint()}; {machine['cpu']}, torch {machine['torch']}, "
            f"scikit-survival {machine['scikit-survival']}, python {machine['python']}.",
            "",
            "Settings chosen, by fold:",
            "",
            *chosen,
            "",
        ]
    )
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text, encoding="utf-8")
    return 0


def _short(scored: Scored) -> str:
    return " ".join(str(value) for value in scored.setting.values())


if __name__ == "__main__":
    raise SystemExit(main())
