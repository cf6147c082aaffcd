"""Runs of made-up configurations over seeds and splits."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl

from ehrtrack.evaluation.benchmark import RunRow
from ehrtrack.evaluation.repeats import Repeat

N_SUBJECTS = 200


def repeat(
    settings: Mapping[str, str | int | float | bool],
    *,
    split: str = "x",
    seed: int = 0,
    test: float = 0.7,
    kept: float | None = None,
    n_train: int = 800,
    **facts: float,
) -> Repeat:
    """A run of a configuration: a baseline where the settings name one, else a transformer.

    The facts are further metrics, with a double underscore for the slash.
    """
    is_baseline = "baseline.name" in settings
    rank = settings.get("strategy.rank")
    strategy = "" if is_baseline else f"{settings['strategy.name']}{f' r{rank}' if rank else ''}"
    metrics = {"kept/c_index": test if kept is None else kept, "test/c_index": test}
    metrics |= {name.replace("__", "/"): value for name, value in facts.items()}
    row = RunRow(
        run_id=f"{' '.join(str(value) for value in settings.values())} {split} {seed}",
        kind="baseline" if is_baseline else "finetune",
        model=str(settings.get("baseline.name", "behrt")),
        strategy=strategy,
        cohort_fingerprint=f"{split} {settings.get('cohort.n_labels', '')}".strip(),
        n_trainable=41 if is_baseline else 5000,
        metrics=metrics,
    )
    return Repeat(row, settings, seed, n_train, N_SUBJECTS)


def predicted(noise: float, *, seed: int = 0, split: int = 0) -> pl.DataFrame:
    """Test predictions that know the true risk up to noise; all of one split are of the same subjects."""
    rng = np.random.default_rng(split)
    truth = rng.normal(size=N_SUBJECTS)
    days = rng.exponential(np.exp(-truth))
    return pl.DataFrame(
        {
            "subject_id": np.arange(N_SUBJECTS) + 1000 * split,
            "follow_up_days": days,
            "is_event": rng.random(N_SUBJECTS) < 0.7,
            "risk": truth + np.random.default_rng(100 + seed).normal(scale=noise, size=N_SUBJECTS),
        }
    )
