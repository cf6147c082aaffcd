"""Does the probe of a pretraining foretell what fine-tuning gets from it? Pretrainings good and bad, side by side.

    python -m benchmarks.probe FOLDER                      # 4 objectives, 2 encoders, 1, 3 and 8 epochs
    python -m benchmarks.probe FOLDER --subjects 2000 --only mlm forecast

Each is fine-tuned frozen, with a head that is solved for, on three draws of 256 labels. Everything is kept in FOLDER:
the population, a tracking database, and `probe.json`. What is there already is not made again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks._kept import found_in, made_population, work_in
from benchmarks._machine import describe_machine

WORLD, DIALS = "target-site", ("n_synonyms=1",)
OBJECTIVES, ENCODERS, EPOCHS = (
    ("mlm", "next-visit", "time-to-event", "forecast"),
    ("transformer", "summaries"),
    (1, 3, 8),
)
N_LABELS, DRAWS = 256, (0, 1, 2)
N_RESAMPLES = 2000
CONFIG: dict[str, Any] = {
    "study": "probe",
    "data": {"max_tokens": 512, "split": {"train": 0.5, "validation": 0.15}, "vocabulary": {"min_subjects": 5}},
    "cohort": {"horizon_days": 1095},
}


def main(words: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(words)
    folder = work_in(options.folder)
    made_population(folder, WORLD, options.subjects, options.seed, DIALS)
    kept = folder / "probe.json"
    found = found_in(kept)
    if "counts" not in found:
        found["counts"] = {"test": [baseline_of(folder, draw) for draw in DRAWS]}
    for objective in options.only:
        for encoder in ENCODERS:
            for epochs in EPOCHS:
                key = f"{objective} {encoder} {epochs}"
                if key not in found:
                    found[key] = measure(folder, objective, encoder, epochs)
                    kept.write_text(json.dumps(found, indent=2))
    print("\n".join(table(found)))
    machine = describe_machine()
    print(
        f"\n{options.subjects:,} subjects of {WORLD} with {', '.join(DIALS)}, seed {options.seed}; {machine['cpu']}, "
        f"commit {machine['commit']}"
    )


def measure(folder: Path, objective: str, encoder: str, epochs: int) -> dict[str, Any]:
    """A pretraining with its probe and verdict, and the test C-index of each fine-tuning from it."""
    from ehrtrack.recipes.finetune import finetune
    from ehrtrack.recipes.pretrain import pretrain
    from ehrtrack.tracking.client.queries import get_run

    model = {"encoder": encoder, "size": "tiny"}
    train = {"epochs": epochs, "batch_tokens": 2048, "lr": 2e-3}
    base = pretrain(_config(folder, model=model, objective={"name": objective}, train=train))
    record = get_run(base.run_id)
    scores = []
    for draw in DRAWS:
        cohort = {"n_labels": N_LABELS, "labels_seed": draw}
        frozen = {"name": "frozen", "head": "ridge"}
        settings = {"model": {"encoder": encoder, "size": "tiny"}, "strategy": frozen, "init": {"run": base.run_id}}
        run = finetune(_config(folder, cohort=cohort, train={"batch_tokens": 2048}, **settings))
        scores.append(run.metrics["test/c_index"])
    probe = {name.removeprefix("probe/"): value for name, value in base.metrics.items() if name.startswith("probe/")}
    losses = {name: value for name, value in base.metrics.items() if name.endswith("_loss")}
    verdict = record.tags["sanity.learned"]
    return probe | {
        "losses": losses,
        "learned": verdict,
        "test": scores,
        "train_seconds": record.metrics["cost/train_seconds"],
    }


def baseline_of(folder: Path, draw: int) -> float:
    """Test C-index of the lasso on counts with the same labels."""
    from ehrtrack.recipes.baseline import baseline

    cohort = {"n_labels": N_LABELS, "labels_seed": draw}
    return baseline(_config(folder, cohort=cohort, baseline={"name": "lasso"})).metrics["test/c_index"]


def _config(folder: Path, **sections: Mapping[str, Any]) -> Any:
    from ehrtrack.config import parse_config

    values: dict[str, Any] = {name: dict(value) if isinstance(value, dict) else value for name, value in CONFIG.items()}
    values["data"]["path"] = str(folder / "data")
    values["cohort"]["labels"] = str(folder / "data" / "labels.parquet")
    for name, section in sections.items():
        values[name] = values.get(name, {}) | dict(section)
    return parse_config(values | {"runtime": {"cache": str(folder / "cache"), "device": "cpu", "threads": 1}})


def table(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines of Markdown: the pretrainings by what their states foretell, and how that goes with the C-index."""
    pretrained = {name: row for name, row in found.items() if name != "counts"}
    lines = [
        "| objective, encoder, epochs | states R² | counts R² | error | learned | test C-index | s (training, probe) |",
        "|---|--:|--:|--:|---|--:|--:|",
    ]
    for name, row in sorted(pretrained.items(), key=lambda item: item[1]["states_r2"]):
        lines.append(
            f"| {name} | {row['states_r2']:.3f} | {row['counts_r2']:.3f} | {row['difference_error']:.3f} | "
            f"{row['learned']} | {np.mean(row['test']):.3f} | {row['train_seconds']:.0f}, {row['seconds']:.1f} |"
        )
    lines.append(f"| lasso on counts | | | | | {np.mean(found['counts']['test']):.3f} | |")
    states = np.array([row["states_r2"] for row in pretrained.values()])
    scores = np.array([np.mean(row["test"]) for row in pretrained.values()])
    return [*lines, "", f"Spearman's rank correlation of {len(states)} pretrainings: {_correlation(states, scores)}"]


def _correlation(one: np.ndarray, other: np.ndarray) -> str:
    """With the interval of a bootstrap over pretrainings."""
    rng, drawn = np.random.default_rng(0), []
    for _ in range(N_RESAMPLES):
        rows = rng.integers(len(one), size=len(one))
        if len(set(rows.tolist())) > 2:
            drawn.append(float(spearmanr(one[rows], other[rows]).statistic))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{spearmanr(one, other).statistic:.2f} [{low:.2f}, {high:.2f}]"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probe", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--subjects", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=OBJECTIVES, default=OBJECTIVES)
    return parser


if __name__ == "__main__":
    main()
