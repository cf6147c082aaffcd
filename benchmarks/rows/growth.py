"""Whether training on 100,000 subjects is as fast, a token, and as small as on 1,000."""

from __future__ import annotations

import itertools
import statistics
import tempfile
from pathlib import Path

from benchmarks._process import python
from benchmarks._row import Measured, Row
from benchmarks._timing import Budget, compare, rounds

ORDER = 10
FEW, MANY = 1_000, 100_000
BATCH_SIZE, N_STEPS = 32, 4
N_MEMORY_STEPS = 40

ROWS = (
    Row("growth-speed", "tokens/s with 100,000 subjects against 1,000, batches included", "×", 0.9, 1.0),
    Row(
        "growth-memory", "peak memory of training, 100,000 subjects against 1,000", "×", 1.1, 1.0, is_lower_better=True
    ),
)


def measure(name: str, budget: Budget) -> Measured:
    return _speed(budget) if name == "growth-speed" else _memory(budget)


def _speed(budget: Budget) -> Measured:
    from benchmarks import _ours
    from benchmarks._workload import VOCABULARY_SIZES, mapped, token_store
    from ehrtrack.data.batch import Batch

    training = _ours.mlm_training("small", VOCABULARY_SIZES["small"])
    with tempfile.TemporaryDirectory() as folder:
        streams = []
        for n_subjects in (MANY, FEW):
            place = Path(folder) / str(n_subjects)
            place.mkdir()
            store = mapped(token_store(n_subjects, VOCABULARY_SIZES["small"]), place)
            epochs = (_ours.batches_of(store, BATCH_SIZE, seed=seed) for seed in itertools.count())
            streams.append(itertools.chain.from_iterable(epochs))
        many, few = streams

        def steps(stream: itertools.chain[Batch]) -> float:
            return sum(training.step(batch) for batch in itertools.islice(stream, N_STEPS))

        return compare(lambda: steps(many), lambda: steps(few), budget.times(3))


def _memory(budget: Budget) -> Measured:
    found: dict[int, list[float]] = {FEW: [], MANY: []}
    fewer = Budget(least_rounds=min(2, budget.least_rounds), most_rounds=3, seconds=budget.seconds)
    for _ in rounds(fewer):
        for n_subjects, peaks in found.items():
            words = ["--objective", "mlm", "--batch", str(BATCH_SIZE), "--subjects", str(n_subjects)]
            command = ["-m", "benchmarks.children.steps", *words, "--steps", str(N_MEMORY_STEPS)]
            peaks.append(python(command, n_threads=1).last_json()["peak_anonymous_mb"])
    few, many = (statistics.median(peaks) for peaks in found.values())
    return Measured(many / few, {"few_peak_mb": few, "many_peak_mb": many})
