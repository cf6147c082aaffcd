"""The errors a user can meet. Each message says what was found, what was needed and what to do."""

from __future__ import annotations


class EhrtrackError(Exception):
    """Base of every error that is the input's or the surroundings' fault, not a bug; the CLI exits with code 2."""


class ConfigError(EhrtrackError):
    """A configuration that cannot be run: unknown key or name, a value out of range, choices that contradict."""


class DataError(EhrtrackError):
    """Data that cannot be used: missing file or column, unreadable dates, empty cohort, no events in a split."""


class NotMeasurable(DataError):
    """A measure without a value on these subjects: too few of them, too few events, or risks that do not vary.

    An evaluation leaves the measure out with this reason, and reports the rest; every other error ends it.
    """


class CheckpointError(EhrtrackError):
    """Weights that are missing, damaged, or do not fit the model, vocabulary or time grid at hand."""


class TrainingError(EhrtrackError):
    """Training that had to stop, such as a loss that is not finite."""


class TrackingError(EhrtrackError):
    """The tracking server or registry cannot be reached, refuses the call, or lacks what was asked for."""


class JoinRefused(TrackingError):
    """The run of MLFLOW_RUN_ID is somebody's; nothing was written to it."""
