"""Harrell's C-index against lifelines and scikit-survival, and the bootstrap of its interval."""

from __future__ import annotations

import time

from benchmarks._row import Measured, Row
from benchmarks._timing import Budget, compare, seconds

ORDER = 8
N_SUBJECTS = 100_000
N_BOOTSTRAP_SUBJECTS, N_RESAMPLES = 5_000, 1_000
EVENT_RATE = 0.2

ROWS = (
    Row("c-index", "C-index at n = 100,000 against lifelines", "×", 1, 10),
    Row("bootstrap", "C-index interval, 1,000 resamples at n = 5,000", "s", 3, 0.3, is_lower_better=True),
)


def measure(name: str, budget: Budget) -> Measured:
    return _c_index(budget) if name == "c-index" else _bootstrap(budget)


def _c_index(budget: Budget) -> Measured:
    import numpy as np
    from lifelines.utils import concordance_index
    from sksurv.metrics import concordance_index_censored

    from benchmarks._workload import outcomes
    from ehrtrack.survival.metrics import c_index

    labels, risk = outcomes(N_SUBJECTS, event_rate=EVENT_RATE), np.random.default_rng(1).random(N_SUBJECTS)
    days, event = labels.follow_up_days, labels.is_event
    ours, peer = c_index(risk, days, event), concordance_index(days, -risk, event)
    started = time.process_time()
    quadratic = concordance_index_censored(event, days, risk)[0]
    sksurv_seconds = time.process_time() - started
    for library, value in (("lifelines", peer), ("scikit-survival", quadratic)):
        if abs(ours - value) > 1e-12:
            raise RuntimeError(f"c_index gives {ours}, {library} {value}: a faster number has to be the same number")

    def one(function: object, *values: object) -> float:
        function(*values)  # type: ignore[operator]
        return 1.0

    found = compare(lambda: one(c_index, risk, days, event), lambda: one(concordance_index, days, -risk, event), budget)
    return Measured(found.value, found.details | {"scikit_survival_cpu_seconds": sksurv_seconds})


def _bootstrap(budget: Budget) -> Measured:
    import numpy as np

    from benchmarks._workload import outcomes
    from ehrtrack.survival.bootstrap import c_index_interval

    labels = outcomes(N_BOOTSTRAP_SUBJECTS, event_rate=EVENT_RATE)
    risk = np.random.default_rng(1).random(N_BOOTSTRAP_SUBJECTS)

    def interval() -> float:
        c_index_interval(risk, labels.follow_up_days, labels.is_event, n_resamples=N_RESAMPLES)
        return 1.0

    return seconds(interval, budget)
