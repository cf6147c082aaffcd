"""Copies of test predictions on this machine, which thousands of runs are read from in a moment.

Runs of one cohort predict for the same subjects, so those are kept once and of each run its risks. What one reading has
fetched is a pack: ``runs.arrow`` (run, hash of its file, number of its subjects), ``risks.arrow`` of all of them one
after the other, and ``subjects-N.arrow``.
"""

from __future__ import annotations

import logging
import shutil
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from ehrtrack.files import folder_aside

MOST_PACKS = 16
"""More than these become one, so that many small comparisons do not make many files."""
RISK = "risk"
_RUNS, _RISKS = "runs.arrow", "risks.arrow"

_log = logging.getLogger(__name__)


class SharedSubjects:
    """Tables of several runs that hold the same subjects in one piece of memory; several threads may add some."""

    def __init__(self) -> None:
        self.tables: list[pl.DataFrame] = []
        self._number: dict[object, int] = {}
        self._lock = threading.Lock()

    def number(self, table: pl.DataFrame) -> int:
        """Which of `tables` the subjects of a table are, everything but the risk; a new one if they are none."""
        subjects = table.drop(RISK)
        key = (subjects.height, *subjects.schema.items(), subjects.hash_rows().to_numpy().tobytes())
        with self._lock:
            found = self._number.setdefault(key, len(self.tables))
            if found == len(self.tables):
                self.tables.append(subjects)
        return found

    def shared(self, table: pl.DataFrame) -> pl.DataFrame:
        """The table, its columns but the risk being those of the first that had the same."""
        risk = pl.Series(RISK, table[RISK].to_numpy())  # a copy: what was read may hold on to all of its file
        return self.tables[self.number(table)].hstack([risk])


class PredictionsCache:
    """Predictions by run and hash, in a folder that several processes may use at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, digests: Mapping[str, str]) -> dict[str, pl.DataFrame]:
        """Those of the runs asked for that are here, as long as their hash is the same."""
        found: dict[str, pl.DataFrame] = {}
        for pack in self._packs():
            found |= self._read(pack, digests)
        return found

    def keep(self, tables: Mapping[str, pl.DataFrame], digests: Mapping[str, str]) -> None:
        """Add predictions, so that the next reading finds them."""
        if not tables:
            return
        packs = self._packs()
        if len(packs) < MOST_PACKS:
            self._write(tables, digests)
            return
        before = {run_id: digest for pack in packs for run_id, digest in self._digests(pack).items()}
        self._write(self.load(before) | dict(tables), before | dict(digests))
        for pack in packs:
            shutil.rmtree(pack, ignore_errors=True)

    def _packs(self) -> list[Path]:
        return sorted(path.parent for path in self.folder.glob(f"*/{_RUNS}") if not path.parent.name.startswith("."))

    def _write(self, tables: Mapping[str, pl.DataFrame], digests: Mapping[str, str]) -> None:
        subjects = SharedSubjects()
        runs = pl.DataFrame(
            {
                "run_id": list(tables),
                "sha256": [digests[run_id] for run_id in tables],
                "subjects": [subjects.number(table) for table in tables.values()],
            }
        )
        with folder_aside(self.folder / uuid.uuid4().hex) as pack:
            pl.concat([table[RISK] for table in tables.values()]).to_frame().write_ipc(pack / _RISKS)
            runs.write_ipc(pack / _RUNS)
            for number, table in enumerate(subjects.tables):
                table.write_ipc(pack / f"subjects-{number}.arrow")

    def _read(self, pack: Path, digests: Mapping[str, str]) -> dict[str, pl.DataFrame]:
        try:
            runs, risks = pl.read_ipc(pack / _RUNS), pl.read_ipc(pack / _RISKS)[RISK]
            numbers = runs["subjects"].unique().to_list()
            subjects = {number: pl.read_ipc(pack / f"subjects-{number}.arrow") for number in numbers}
        except FileNotFoundError:
            return {}  # another process has just made one of several packs
        except (pl.exceptions.PolarsError, OSError) as error:
            _log.warning("%s is damaged (%s): what it held is fetched again", pack, error)
            shutil.rmtree(pack, ignore_errors=True)
            return {}
        found, start = {}, 0
        for run_id, digest, number in runs.iter_rows():
            n_rows = subjects[number].height
            if digests.get(run_id) == digest:
                found[run_id] = subjects[number].hstack([risks.slice(start, n_rows)])
            start += n_rows
        return found

    def _digests(self, pack: Path) -> dict[str, str]:
        return dict(pl.read_ipc(pack / _RUNS, columns=["run_id", "sha256"]).iter_rows())
