"""Memory of an import: it holds batches and shards, so that it does not grow with the table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOML = """
[[table]]
files = "events.csv"
subject = "who"
time = "at"
codes = [{ measured = ["m*"] }]
"""
N_MEASURED = 8
# Batches, runs and shards are small, so that each table has many of them.
IMPORT = """
import resource, sys
from pathlib import Path
from ehrtrack.data.importing import candidates
from ehrtrack.data.importing import import_dataset

candidates._EVENTS_PER_BATCH = candidates._EVENTS_PER_RUN = 10_000
folder = Path(sys.argv[1])
report = import_dataset(
    "events-csv", folder / "raw", folder / "out", config=folder / "source.toml", threads=1, events_per_shard=10_000
)
print(report.n_events, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
MOST_MORE_MIB = 60
"""Of the larger table the columns of its events alone take some 30 MiB, each time they are held."""


def peak_mib(folder: Path, n_rows: int) -> int:
    """The most memory that an import of so many rows held, in MiB."""
    (folder / "raw").mkdir(parents=True)
    (folder / "source.toml").write_text(TOML)
    with (folder / "raw" / "events.csv").open("w") as file:
        file.write(",".join(["who", "at", *(f"m{column}" for column in range(N_MEASURED))]) + "\n")
        for row in range(n_rows):
            at = f"20{row % 20:02}-01-02T{row % 24:02}:{row % 60:02}:00"
            file.write(f"{row // 20},{at}" + f",{row % 7}.5" * N_MEASURED + "\n")
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, str(folder)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    n_events, peak = map(int, done.stdout.split())
    assert n_events == n_rows * N_MEASURED
    return peak


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
def test_ten_times_the_rows_take_hardly_more_memory(tmp_path: Path) -> None:
    small, large = peak_mib(tmp_path / "small", 20_000), peak_mib(tmp_path / "large", 200_000)
    print(f"{small} MiB for 20,000 rows, {large} MiB for 200,000")
    assert large < small + MOST_MORE_MIB
