"""When a pretraining is probed for what transfers, and what is said of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from ehrtrack.errors import DataError
from ehrtrack.models.behrt import EhrModel
from ehrtrack.objectives.base import PretrainingObjective, Selection
from ehrtrack.objectives.settings import PretrainingSettings
from ehrtrack.runlog import PROBE
from ehrtrack.training.loop import FitResult
from ehrtrack.training.probe import Probe
from ehrtrack.training.ranks import Ranks
from ehrtrack.training.sanity import foretold

STATES, COUNTS, SECONDS = f"{PROBE}/states_r2", f"{PROBE}/counts_r2", f"{PROBE}/seconds"
BY_PROBE = Selection(STATES, is_higher_better=True)


@dataclass
class Probing:
    """The probe of a pretraining, which is made when it is first needed and changes nothing of the training.

    Attributes
    ----------
    make : the probe, on rank 0 alone; raises a DataError where records are too short for one
    left_out : why there is no probe, where there was to be one
    """

    settings: PretrainingSettings
    model: EhrModel
    make: Callable[[], Probe]
    ranks: Ranks
    left_out: str = ""

    def select(self, objective: PretrainingObjective) -> None:
        """Have an objective's epochs chosen by the probe, where it is to be so.

        Raises
        ------
        DataError
            If they are to be, and records are too short for a probe.
        """
        if self.settings.select_by == "probe":
            self.ranks.from_main(lambda: self._probe.window_days)
            objective.selection = BY_PROBE

    def after(self, epoch: int) -> dict[str, float]:
        """The metrics of an epoch after which there is a probe; of any other, and where there is none, nothing."""
        every = 1 if self.settings.select_by == "probe" else self.settings.probe_epochs
        return {} if isinstance(every, str) or epoch % every else self._found()

    def of_kept(self, result: FitResult) -> dict[str, float]:
        """The metrics of the kept weights, which the model has; empty where there is no probe."""
        if STATES in result.kept:
            return {name: value for name, value in result.kept.items() if name.startswith(f"{PROBE}/")}
        return {} if self.settings.probe_epochs == "never" else self._found()

    def summary(self, found: dict[str, float]) -> dict[str, str]:
        """The line about the probe in a run's description."""
        if not found:
            return {"probe": f"none: {self.left_out}"} if self.left_out else {}
        said = f"{foretold(found[STATES], found[COUNTS])} ({found[f'{PROBE}/targets']:.0f} targets)"
        return {"probe": f"{said}; it took {found[SECONDS]:.0f} s"}

    @cached_property
    def _probe(self) -> Probe:
        return self.make()

    def _found(self) -> dict[str, float]:
        if self.left_out:
            return {}
        try:
            return self.ranks.from_main(self._measured)
        except DataError as error:
            self.left_out = str(error)
            if self.ranks.is_main:
                print(f"no probe of what the states foretell: {error}", flush=True)
            return {}

    def _measured(self) -> dict[str, float]:
        started = time.monotonic()
        found = self._probe(self.model)
        return found | {SECONDS: time.monotonic() - started}
