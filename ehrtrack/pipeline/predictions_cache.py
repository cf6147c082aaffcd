"""Test predictions of many runs: fetched at the same time, checked by their hashes, and kept on this machine.

Runs of one cohort predict for the same subjects, which are kept once, and of each run only its risks. What one
call fetched is a pack: ``runs.arrow`` (run, hash of its file, number of its subjects), ``risks.arrow`` of all runs one
after the other, and ``subjects-N.arrow``.
"""

from __future__ import annotations

import hashlib
import io
import logging
import shutil
import tempfile
import threading
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl

from ehrtrack.errors import DataError
from ehrtrack.evaluation.benchmark import RunRow
from ehrtrack.files import folder_aside
from ehrtrack.home import make_cache
from ehrtrack.tracking.client.queries import MissingArtifact, fetch_file, place_of
from ehrtrack.tracking.names import TEST_PREDICTIONS, VALIDATION_PREDICTIONS

TO_MEND = (
    "send what the machine of that run still keeps (`ehrtrack sync` there), or make the run again and delete this one"
)
N_CONNECTIONS = 8
MOST_PACKS = 16
"""More packs than these are merged into one, so that many small comparisons do not make many files."""
RISK = "risk"
_RUNS, _RISKS = "runs.arrow", "risks.arrow"
_CURVES = (pl.List, pl.Array)

_log = logging.getLogger(__name__)


def read_test_predictions(rows: Sequence[RunRow], *, cache: Path) -> tuple[dict[str, pl.DataFrame], dict[str, str]]:
    """Test predictions by run id, for paired differences, and by run id the reasons why others cannot be read.

    Only the risk at the horizon is kept, not its curve over time. A file that was read before is not fetched again as
    long as the run's tag has its hash. A run that was logged before there was this tag is identified by its id alone,
    since a finished run never changes.

    Parameters
    ----------
    rows : finished runs
    cache : folder in which copies are kept

    Raises
    ------
    TrackingError
        If the server does not answer.
    """
    make_cache(cache)
    kept = PredictionsCache(cache / "predictions")
    digests = {row.run_id: place_of(row.run_id).predictions_digest for row in rows}
    known = kept.load(digests)
    absent = [run_id for run_id in digests if run_id not in known]
    fetched, left_out = _fetch(absent, digests)
    kept.keep(fetched, digests)
    both = known | fetched
    return {row.run_id: both[row.run_id] for row in rows if row.run_id in both}, left_out


def read_validation_predictions(rows: Sequence[RunRow]) -> dict[str, pl.DataFrame]:
    """Validation predictions by run id, without the curves.

    Raises
    ------
    MissingArtifact, DataError
        If a run has none, or they are damaged.
    """
    tables = {}
    with tempfile.TemporaryDirectory(prefix="ehrtrack-") as folder:
        for row in rows:
            file = fetch_file(row.run_id, VALIDATION_PREDICTIONS, Path(folder) / row.run_id)
            tables[row.run_id] = _table(file, "", VALIDATION_PREDICTIONS)
    return tables


def _fetch(run_ids: Sequence[str], digests: dict[str, str]) -> tuple[dict[str, pl.DataFrame], dict[str, str]]:
    tables: dict[str, pl.DataFrame] = {}
    left_out: dict[str, str] = {}
    subjects = SharedSubjects()
    with tempfile.TemporaryDirectory(prefix="ehrtrack-") as folder, ThreadPoolExecutor(N_CONNECTIONS) as pool:

        def read(run_id: str) -> pl.DataFrame | str:
            try:
                own = Path(folder) / str(threading.get_ident())  # making and removing one for each run takes as long
                file = fetch_file(run_id, TEST_PREDICTIONS, own)  # as fetching
                table = subjects.shared(_table(file, digests[run_id]))
                if file.is_relative_to(folder):
                    file.unlink()
                return table
            except (MissingArtifact, DataError) as reason:
                return f"{reason}; {TO_MEND}"

        for run_id, found in zip(run_ids, pool.map(read, run_ids), strict=True):
            if isinstance(found, str):
                left_out[run_id] = found
            else:
                tables[run_id] = found
    return tables, left_out


def _table(file: Path, digest: str, name: str = TEST_PREDICTIONS) -> pl.DataFrame:
    content = file.read_bytes()
    if digest and hashlib.sha256(content).hexdigest() != digest:
        raise DataError(f"{name} is damaged: it is not the file whose hash the run has as a tag")
    try:
        schema = pl.read_parquet_schema(io.BytesIO(content))
        columns = [name for name, kind in schema.items() if not isinstance(kind, _CURVES)]
        table = pl.read_parquet(io.BytesIO(content), columns=columns)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{name} is damaged ({error})") from error
    days = {"follow_up_days", "follow_up_rank"} & set(table.columns)
    missing = [name for name in ("subject_id", "is_event", "risk") if name not in table.columns]
    if missing or not days:
        raise DataError(f"{name} lacks {', '.join(missing) or 'the follow-up'}")
    return table


class SharedSubjects:
    """Tables of several runs that share the memory of equal subjects; several threads may add tables."""

    def __init__(self) -> None:
        self.tables: list[pl.DataFrame] = []
        self._number: dict[object, int] = {}
        self._lock = threading.Lock()

    def number(self, table: pl.DataFrame) -> int:
        """The position in `tables` of a table's subjects (all columns but the risk); new ones are added."""
        subjects = table.drop(RISK)
        key = (subjects.height, *subjects.schema.items(), subjects.hash_rows().to_numpy().tobytes())
        with self._lock:
            found = self._number.setdefault(key, len(self.tables))
            if found == len(self.tables):
                self.tables.append(subjects)
        return found

    def shared(self, table: pl.DataFrame) -> pl.DataFrame:
        """The table with the subjects of the first equal one."""
        risk = pl.Series(RISK, table[RISK].to_numpy())  # a copy: what was read may hold on to all of its file
        return self.tables[self.number(table)].hstack([risk])


class PredictionsCache:
    """Predictions by run and hash, in a folder that several processes may use at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, digests: Mapping[str, str]) -> dict[str, pl.DataFrame]:
        """The predictions of those runs that are in the cache with the same hash."""
        found: dict[str, pl.DataFrame] = {}
        for pack in self._packs():
            found |= self._read(pack, digests)
        return found

    def keep(self, tables: Mapping[str, pl.DataFrame], digests: Mapping[str, str]) -> None:
        """Add predictions to the cache."""
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
