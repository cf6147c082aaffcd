"""Which subjects are in which shard of an import, and where in the runs each shard's candidates lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from ehrtrack.arrays import Int32s, Ints
from ehrtrack.data.events import BIRTH, DEATH
from ehrtrack.data.importing.candidates import Candidates, Run


@dataclass(frozen=True)
class Piece:
    """Successive candidates of a run."""

    path: Path
    table_index: int
    first_row: int
    n_rows: int


@dataclass(frozen=True)
class ShardTask:
    """All that one shard is made of, to be written by any process that sees the files.

    Attributes
    ----------
    subjects : file with `number`, `subject_id` of all subjects, sorted by `subject_id`.
    codes : file with `number`, `code` of all codes: birth, the others in alphabetical order, death.
    first_subject, n_subjects : the shard's subjects, by their rows in `subjects`.
    out : the shard's file.
    time_zone : of the source, in whose days births and deaths are placed.
    """

    pieces: tuple[Piece, ...]
    subjects: Path
    codes: Path
    first_subject: int
    n_subjects: int
    out: Path
    time_zone: str


def order_codes(candidates: Candidates) -> pl.DataFrame:
    """`number` and `code` of all codes: birth, the others in alphabetical order, death."""
    codes = pl.DataFrame({"number": range(candidates.codes.n_texts), "code": candidates.codes.texts()})
    codes = codes.with_columns(pl.col("number").cast(pl.UInt32))
    return codes.sort(pl.col("code") != BIRTH, pl.col("code") == DEATH, "code")


def plan_shards(
    candidates: Candidates, subjects: pl.DataFrame, *, out: Path, events_per_shard: int, time_zone: str
) -> tuple[list[ShardTask], Ints]:
    """One task for each shard, and by table the candidates whose subject no roster names, which no shard has.

    Subjects are taken in order of their ids; a shard ends with the first that reaches `events_per_shard`
    candidates. A run whose candidates do not lie shard by shard is written anew so that they do.
    """
    n = subjects["n_events"]
    first_subjects = (((n.cum_sum() - n) // events_per_shard).rle_id()).unique_counts().cum_sum().shift(1, fill_value=0)
    edges = np.append(first_subjects.to_numpy(), subjects.height)
    shard_of = np.full(candidates.subjects.n_texts, -1, np.int32)
    shard_of[subjects["number"].to_numpy()] = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
    pieces: list[list[Piece]] = [[] for _ in edges[1:]]
    n_unknown = np.zeros(len(candidates.accounts), np.int64)
    for run in candidates.runs:
        bounds, n_dropped = _arrange(run, shard_of, len(pieces))
        n_unknown[run.table_index] += n_dropped
        for shard in np.flatnonzero(np.diff(bounds)):
            first, end = int(bounds[shard]), int(bounds[shard + 1])
            pieces[shard].append(Piece(run.path, run.table_index, first, end - first))
    subjects_file, codes_file = candidates.folder / "subjects.arrow", candidates.folder / "codes.arrow"
    subjects.select("number", "subject_id").write_ipc(subjects_file, compression="uncompressed")
    order_codes(candidates).write_ipc(codes_file, compression="uncompressed")
    tasks = [
        ShardTask(
            pieces=tuple(pieces[shard]),
            subjects=subjects_file,
            codes=codes_file,
            first_subject=int(edges[shard]),
            n_subjects=int(edges[shard + 1] - edges[shard]),
            out=out / f"{shard}.parquet",
            time_zone=time_zone,
        )
        for shard in range(len(pieces))
    ]
    return [task for task in tasks if task.pieces], n_unknown


def name_shards(written: Sequence[Path]) -> None:
    """Number the shards from 0, with as many digits for each: in order of their names they are in order."""
    n_digits = len(str(len(written) - 1))
    for number, path in enumerate(written):
        path.rename(path.with_name(f"{number:0{n_digits}}.parquet"))


def _arrange(run: Run, shard_of: Int32s, n_shards: int) -> tuple[Ints, int]:
    """The row of the run where each shard begins, and how many candidates without a shard it had."""
    candidates = pl.read_ipc(run.path)
    shard = shard_of[candidates["subject"].to_numpy()]
    n_unknown = int(np.count_nonzero(shard < 0))
    if n_unknown or (shard[1:] < shard[:-1]).any():
        order = stable_order(shard + 1, n_shards + 1)[n_unknown:]
        shard = shard[order.to_numpy()]
        candidates.rechunk()[order].write_ipc(run.path, compression="uncompressed")
    return np.searchsorted(shard, np.arange(n_shards + 1)), n_unknown


def stable_order(numbers: npt.NDArray[np.integer], n_numbers: int) -> pl.Series:
    """The rows in ascending order of `numbers`, which are below `n_numbers`; equals stay as they are."""
    # NumPy sorts integers of at most 16 bits by radix, five times as fast as others.
    order = np.argsort(numbers.astype(np.min_scalar_type(n_numbers)), kind="stable")
    return pl.Series(order.astype(np.uint32))  # with which Polars gathers in two thirds of the time
