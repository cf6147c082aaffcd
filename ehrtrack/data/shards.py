"""Working through the shards of a dataset, on one machine or on many that share a file system.

What is found in a shard is a file, named by all that decides it, written aside and renamed: it is there whole or
not at all, and whoever needs it next, here or elsewhere, does not find it again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import polars as pl

from ehrtrack.data.engines import Engine, open_engine
from ehrtrack.data.events import MedsDataset
from ehrtrack.data.histories import holding_shards
from ehrtrack.data.tables import READ_ERRORS
from ehrtrack.errors import ConfigError, DataError
from ehrtrack.files import written_aside
from ehrtrack.home import make_cache

FORMAT = 2
"""Raised when what a pass finds in a shard changes, so that an older file is not taken for a new one."""

ShardSlice = tuple[int, int]
"""(i, n): the i-th of n slices of the shards, i from 1 to n."""


def parse_slice(text: str) -> ShardSlice:
    """A slice of the shards from ``"2/8"``.

    Raises
    ------
    ConfigError
        If it is not written so, or i is not from 1 to n.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    i, n = map(int, match.groups()) if match else (0, 0)
    if not 1 <= i <= n:
        raise ConfigError(f"--shard is {text!r}; write i/n with i from 1 to n, such as 2/8 for the second of 8 slices")
    return i, n


@dataclass(frozen=True)
class ShardWork:
    """Who does which shards, and where what they find is kept.

    Attributes
    ----------
    folder : on a file system that all machines share
    engine : runs the shards; by default one after another in this process
    slice : the shards that fall to this machine: every n-th, from the i-th on
    """

    folder: Path
    engine: Engine = field(default_factory=open_engine)
    slice: ShardSlice = (1, 1)

    def mine(self, shards: Sequence[Path]) -> list[int]:
        """The numbers of the shards that fall to this machine."""
        i, n = self.slice
        return list(range(i - 1, len(shards), n))

    def tables(self, dataset: MedsDataset, function: Callable[[Path], pl.DataFrame], name: str, key: str) -> list[Path]:
        """The parquet files with what the function returns for each shard, in the order of the shards.

        All shards are needed, so this machine begins with its own and goes on with whatever the others have not
        done by then: nobody waits for anybody, and each shard is done once if all begin together.

        Parameters
        ----------
        name : of the pass, shown
        key : fingerprint of all that decides the result, but the data
        """
        folder = self.folder / "shards" / f"{name}-v{FORMAT}-{key}-{dataset.fingerprint()}"
        files = [folder / f"{number:05d}.parquet" for number in range(len(dataset.shards))]
        mine = self.mine(dataset.shards)
        others = sorted(set(range(len(files))) - set(mine), key=lambda number: (number - self.slice[0]) % len(files))
        missing = [number for number in mine + others if not files[number].is_file()]
        if missing:
            folder.mkdir(parents=True, exist_ok=True)
            pairs = [(dataset.shards[number].resolve(), files[number].resolve()) for number in missing]
            self.engine.map(partial(_keep_table, function), pairs, name)
        return files

    def share(self, table: pl.DataFrame, key: str) -> Path:
        """A table that every worker reads, as a file."""
        file = (self.folder / "shards" / f"{key}.arrow").resolve()
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            with written_aside(file) as aside:
                table.write_ipc(aside, compression="uncompressed")
        return file


@contextmanager
def open_work(
    folder: Path, *, engine: str = "local", n_workers: int = 1, part: ShardSlice = (1, 1)
) -> Iterator[ShardWork]:
    """Work with an engine of its own, which ends with it.

    Raises
    ------
    ConfigError
        If there is no such engine, or its package is not installed, or nothing can be written to the folder.
    """
    make_cache(Path(folder))
    with open_engine(engine, n_workers) as opened, holding_shards():
        yield ShardWork(Path(folder), opened, part)


def read_kept(file: Path) -> pl.DataFrame:
    """A table that a pass kept.

    Raises
    ------
    DataError
        If it is damaged.
    """
    try:
        return pl.read_parquet(file)
    except READ_ERRORS as error:
        raise DataError(f"{file} is damaged ({error}); remove {file.parent}, and it is made again") from error


def _keep_table(function: Callable[[Path], pl.DataFrame], shard_and_file: tuple[Path, Path]) -> None:
    shard, file = shard_and_file
    if not file.is_file():  # another machine may have done it since
        table = function(shard)
        with written_aside(file) as aside:
            table.write_parquet(aside)


def in_two_shards(subject_id: int, shards: list[Path]) -> str:
    """What is said of a subject whose events lie in several shards."""
    return (
        f"subject {subject_id} is in more than one shard ({', '.join(shard.stem for shard in shards)}); a MEDS dataset "
        "keeps all events of a subject in one: import the data again, or sort them by subject before sharding"
    )
