"""Test predictions of many runs: fetched at the same time, checked by their hashes, and kept on this machine."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl

from ehrtrack.errors import DataError
from ehrtrack.evaluation.benchmark import RunRow
from ehrtrack.home import make_cache
from ehrtrack.pipeline.prediction_packs import PredictionsCache, SharedSubjects
from ehrtrack.tracking.client.queries import MissingArtifact, fetch_file, place_of
from ehrtrack.tracking.names import TEST_PREDICTIONS

TO_MEND = (
    "send what the machine of that run still keeps (`ehrtrack sync` there), or make the run again and delete this one"
)
N_CONNECTIONS = 8
_CURVES = (pl.List, pl.Array)


def read_test_predictions(rows: Sequence[RunRow], *, cache: Path) -> tuple[dict[str, pl.DataFrame], dict[str, str]]:
    """Test predictions by run id, for paired differences; and of the runs that have none to be read, why, by run id.

    The curves of risk over time are left out: the risk at the horizon stays. Files that were read before are not
    fetched again as long as the run's tag has their hash; those of runs from before there was one are known by the run,
    which never changes once it is finished.

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


def _fetch(run_ids: Sequence[str], digests: dict[str, str]) -> tuple[dict[str, pl.DataFrame], dict[str, str]]:
    tables: dict[str, pl.DataFrame] = {}
    left_out: dict[str, str] = {}
    subjects = SharedSubjects()
    with tempfile.TemporaryDirectory(prefix="ehrtrack-") as folder, ThreadPoolExecutor(N_CONNECTIONS) as pool:

        def read(run_id: str) -> pl.DataFrame | str:
            try:
                file = fetch_file(run_id, TEST_PREDICTIONS, Path(folder) / run_id)
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


def _table(file: Path, digest: str) -> pl.DataFrame:
    content = file.read_bytes()
    if digest and hashlib.sha256(content).hexdigest() != digest:
        raise DataError(f"{TEST_PREDICTIONS} is damaged: it is not the file whose hash the run has as a tag")
    try:
        schema = pl.read_parquet_schema(io.BytesIO(content))
        columns = [name for name, kind in schema.items() if not isinstance(kind, _CURVES)]
        table = pl.read_parquet(io.BytesIO(content), columns=columns)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{TEST_PREDICTIONS} is damaged ({error})") from error
    days = {"follow_up_days", "follow_up_rank"} & set(table.columns)
    missing = [name for name in ("subject_id", "is_event", "risk") if name not in table.columns]
    if missing or not days:
        raise DataError(f"{TEST_PREDICTIONS} lacks {', '.join(missing) or 'the follow-up'}")
    return table
