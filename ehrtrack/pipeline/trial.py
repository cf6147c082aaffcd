"""What a run says of itself as a sweep's trial."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ehrtrack.errors import EhrtrackError
from ehrtrack.pipeline.run import Recorder
from ehrtrack.tracking.names import TRIAL_STATE
from ehrtrack.training.stopping import TrainingStopped


@contextmanager
def as_trial(run: Recorder) -> Iterator[None]:
    """Around what a sweep's trial fits: its state is a tag, by which the UI lists trials."""
    try:
        yield
    except TrainingStopped:
        run.logger.set_tags({TRIAL_STATE: "pruned"})
        raise
    except EhrtrackError:
        run.logger.set_tags({TRIAL_STATE: "failed"})
        raise
    run.logger.set_tags({TRIAL_STATE: "complete"})
