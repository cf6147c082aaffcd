"""The model of a run, as the run logs it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import nn

from ehrtrack.pipeline.model_files import WEIGHTS
from ehrtrack.pipeline.model_folder import write_model_folder
from ehrtrack.pipeline.prepare import CohortRecords, Records
from ehrtrack.pipeline.run import MODEL_FOLDER, Recorder
from ehrtrack.survival.time_grid import TimeGrid


def log_model(
    run: Recorder,
    records: Records,
    fingerprints: dict[str, str],
    *,
    model: nn.Module | None = None,
    grid: TimeGrid | None = None,
    baseline: str | None = None,
) -> None:
    """Log the full checkpoint, a plain model or a fitted baseline, with all that is needed to predict.

    Parameters
    ----------
    grid : of a model with an outcome, which keeps what it saw of codes and values too
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model_folder(
            folder,
            config=run.config,
            vocabulary=records.vocabulary,
            fingerprints=fingerprints,
            model=model,
            grid=grid,
            baseline=baseline,
            seen=None if grid is None else records.seen,
            has_classes=isinstance(records, CohortRecords) and records.cohort.has_classes,
        )
        weights = folder / WEIGHTS
        if weights.is_file():
            run.logger.log_metrics({"cost/checkpoint_mb": weights.stat().st_size / 1e6}, step=0)
        run.logger.log_folder(folder, MODEL_FOLDER)
