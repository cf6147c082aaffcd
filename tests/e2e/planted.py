"""Subjects, dates and secrets that must not be sent, and a search for them in whatever was: rows, files, archives."""

from __future__ import annotations

import gzip
import io
import re
import shutil
import sqlite3
import zipfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from ehrtrack.tracking import logger as run_logger

FIRST_SUBJECT = 730_000_001
URL_PASSWORD = "pw-in-url-7c1f"
SECRETS = {
    "MLFLOW_TRACKING_USERNAME": "anna",
    "MLFLOW_TRACKING_PASSWORD": "pw-of-anna-93ab",
    "AWS_ACCESS_KEY_ID": "AKIAPLANTED41",
    "AWS_SECRET_ACCESS_KEY": "aws-planted-5d20",
    "EHRTRACK_PROXY": "http://joe:pw-of-proxy-18e4@proxy:3128",
}
SECRET_TEXTS = (URL_PASSWORD, "pw-of-anna-93ab", "AKIAPLANTED41", "aws-planted-5d20", "pw-of-proxy-18e4")

_NUMBER = re.compile(rb"(?<![\d.])\d{8,19}(?!\d)")
_DATES = (
    (re.compile(rb"\d{4}-\d\d-\d\d"), "%Y-%m-%d"),
    (re.compile(rb"\d\d\.\d\d\.\d{4}"), "%d.%m.%Y"),
    (re.compile(rb"\d\d/\d\d/\d{4}"), "%d/%m/%Y"),
    (re.compile(rb"\d\d/\d\d/\d{4}"), "%m/%d/%Y"),
)


@dataclass(frozen=True)
class Planted:
    """What must not be found.

    Attributes
    ----------
    subject_ids : their own ids
    days : every day on which something happened to one of them
    moments_us : every moment of theirs, in microseconds since 1970
    """

    subject_ids: frozenset[int]
    days: frozenset[str]
    moments_us: npt.NDArray[np.int64]
    secrets: tuple[str, ...] = SECRET_TEXTS

    @classmethod
    def of(cls, data: Path) -> Planted:
        events = pl.read_parquet(data / "data" / "0.parquet")
        times = events["time"].drop_nulls().cast(pl.Datetime("us"))
        return cls(
            frozenset(events["subject_id"].to_list()),
            frozenset(times.dt.strftime("%Y-%m-%d").to_list()),
            np.unique(times.cast(pl.Int64).to_numpy()),
        )

    def in_bytes(self, content: bytes) -> set[str]:
        """What is found in plain content: text, or numbers of 8 bytes at any place."""
        found = {f"secret {secret}" for secret in self.secrets if secret.encode() in content}
        numbers = {int(match) for match in _NUMBER.findall(content)}
        found |= {f"subject {number}" for number in numbers & self.subject_ids}
        found |= {f"day {number}" for number in numbers if _is_day(str(number), self.days)}
        for pattern, form in _DATES:
            written = {match.decode() for match in pattern.findall(content)}
            found |= {f"day {text}" for text in written if _as_day(text, form) in self.days}
        wanted = np.concatenate([np.fromiter(self.subject_ids, dtype=np.int64), self.moments_us])
        for shift in range(min(8, len(content) - 7)):
            values = np.frombuffer(content[shift : shift + (len(content) - shift) // 8 * 8], dtype="<i8")
            found |= {f"number {value}" for value in values[np.isin(values, wanted)]}
        return found

    def in_file(self, name: str, content: bytes) -> set[str]:
        """What is found in a file, also under its compression."""
        found = self.in_bytes(content)
        if name.endswith(".parquet"):
            for column in pl.read_parquet(io.BytesIO(content)):
                found |= self._in_column(column)
        elif zipfile.is_zipfile(io.BytesIO(content)):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                for inner in archive.namelist():
                    found |= self.in_file(inner, archive.read(inner))
        elif content[:2] == b"\x1f\x8b":
            found |= self.in_file(name.removesuffix(".gz"), gzip.decompress(content))
        return found

    def _in_column(self, column: pl.Series) -> set[str]:
        while column.dtype == pl.List:
            column = column.explode()
        if column.dtype.is_temporal():
            found = set(column.cast(pl.Datetime("us")).dt.strftime("%Y-%m-%d").to_list()) & self.days
            return {f"day {day}" for day in found}
        return self.in_bytes("\n".join(map(str, column.to_list())).encode())


def sent(server: Path) -> Iterator[tuple[str, bytes]]:
    """Everything that a server has: the rows of its database, and every file."""
    with closing(sqlite3.connect(server / "mlflow.db")) as database:
        yield "rows", "\n".join(database.iterdump()).encode()
    yield from files(server / "artifacts")


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            yield str(file.relative_to(folder)), file.read_bytes()


@contextmanager
def journals_kept(folder: Path) -> Iterator[None]:
    """Inside, journals of finished runs are moved to `folder`, and the words of their figures are beside them."""
    folder.mkdir()

    def keep(journal: Path) -> None:
        shutil.move(journal, folder / journal.name)

    log_figure = run_logger.TrackedRun.log_figure

    def log_words(run: run_logger.TrackedRun, figure: Figure, name: str) -> None:
        words = [text.get_text() for text in figure.findobj(Text)]
        with (folder / "figures.txt").open("a") as file:
            file.write("\n".join([name, *words]) + "\n")
        log_figure(run, figure, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_logger, "remove_journal", keep)
        patch.setattr(run_logger.TrackedRun, "log_figure", log_words)
        yield


def _as_day(text: str, form: str) -> str:
    try:
        return datetime.strptime(text, form).strftime("%Y-%m-%d")
    except ValueError:
        return ""


def _is_day(digits: str, days: frozenset[str]) -> bool:
    return len(digits) == 8 and f"{digits[:4]}-{digits[4:6]}-{digits[6:]}" in days
