"""What may leave the machine: subjects under keyed hashes, no dates of theirs, no counts of a few of them."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from ehrtrack.errors import ConfigError
from ehrtrack.files import written_aside
from ehrtrack.home import VARIABLE as HOME_VARIABLE
from ehrtrack.home import home

_log = logging.getLogger(__name__)

KEY_VARIABLE = "EHRTRACK_SUBJECT_SECRET"
KEY_FILE = "subject.key"
LEAST_KEY_CHARACTERS = 16

RAW = "raw"
"""Stands for the key's fingerprint where subjects are logged as they are."""

LEAST_COUNT = 11
"""Counts from 1 to one less are not shown (the cell size of the US Medicare and Medicaid agency)."""
SMALL = f"<{LEAST_COUNT}"

_COUNT_COLUMN = re.compile(r"n_(subjects|events|dropped|at_risk|patients)(_.*)?")
_COUNT_METRIC = re.compile(r"(.*/)?(n_)?(.+_)?(subjects|events)")
_YEAR = r"(?:1[89]|20|21)\d\d"
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_DATE = re.compile(
    rf"""(?<![\w.])(?: {_YEAR}([-/.])\d\d?\1\d\d?                          # 1950-03-04, 1950/3/4
                 | \d\d?([-/.])\d\d?\2{_YEAR}                            # 04.03.1950, 3/4/1950
                 | {_YEAR}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])         # 19500304
                 | \d\d?(?:st|nd|rd|th)?[-\s.]+{_MONTH}[-\s,]+{_YEAR}      # 4 March 1950, 04-MAR-1950
                 | {_MONTH}\s+\d\d?(?:st|nd|rd|th)?,?\s+{_YEAR}            # March 4, 1950
                 )(?!\d) (?:[T\s]\d\d:\d\d(?::\d\d(?:\.\d+)?)?)?""",
    re.VERBOSE | re.IGNORECASE,
)
_SUBJECT = re.compile(
    r"""\b((?:subject|patient|person)s?(?:_ids?)?\W{1,5})-?\d+                  # subject 17, subject_ids = [17
        (?:(?:\s*[,;]\s*(?:and\s+|or\s+)?|\s+(?:and|or|to)\s+)-?\d+\b)*""",  # , 23 and 4711
    re.VERBOSE | re.IGNORECASE,
)
_LONG_NUMBER = re.compile(r"(?<![\w./])-?\d{6,}\b")
_FEW = re.compile(r"(?<!at least )(?<![\w.,-])([1-9]|10) (?=(?:of [\d,]+ )?(?:\w+ )?(?:subjects?|events?|beyond)\b)")


@dataclass(frozen=True)
class Privacy:
    """How a run's tables and messages are changed before they are logged.

    Attributes
    ----------
    key : of the hashes that subjects are called by; None logs subjects and dates as they are, because that was asked
    hides_days : the study's settings name a calendar date, from which days of follow-up would give back a subject's
        dates; their ranks are logged instead, and order subjects alike
    """

    key: bytes | None = field(repr=False)
    hides_days: bool = False

    @property
    def fingerprint(self) -> str:
        """Tells runs that call subjects alike; 16 hexadecimal digits that do not give the key away."""
        return RAW if self.key is None else _hash(self.key, "fingerprint")[:16]

    def table(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The table with subjects under hashes (and in their order), without dates, small counts as ``<11``."""
        if self.key is not None:
            frame = frame.drop(
                name for name, kind in frame.schema.items() if kind.is_temporal() and kind != pl.Duration
            )
            if "subject_id" in frame.columns:
                frame = self._without_days(frame).with_columns(self.pseudonyms(frame["subject_id"]))
                frame = frame.sort("subject_id", maintain_order=True)  # the order of ids would tell of them
        frame = frame.with_columns(
            pl.Series(column.name, hide_small(column.to_list()), dtype=pl.String)
            for column in frame
            if _COUNT_COLUMN.fullmatch(column.name) and column.dtype.is_integer() and column.is_between(1, 10).any()
        )
        texts = [name for name, kind in frame.schema.items() if kind == pl.String and name != "subject_id"]
        return frame.with_columns(pl.col(name).map_elements(self.text, return_dtype=pl.String) for name in texts)

    def text(self, text: str) -> str:
        """A table's text without subject ids, dates and small counts."""
        if self.key is not None:
            text = _SUBJECT.sub(r"\1(not logged)", _DATE.sub("(date not logged)", text))
        return _FEW.sub(f"{SMALL} ", text)

    def message(self, text: str) -> str:
        """An error's message as `text`, without long numbers, which may be subjects' ids."""
        text = self.text(text)
        return text if self.key is None else _LONG_NUMBER.sub("(number not logged)", text)

    def metrics(self, values: dict[str, float]) -> dict[str, float]:
        """The metrics without those that count a few subjects."""
        return {
            name: value
            for name, value in values.items()
            if not (_COUNT_METRIC.fullmatch(name) and 0 < value < LEAST_COUNT)
        }

    def pseudonyms(self, subject_ids: pl.Series) -> pl.Series:
        """HMAC-SHA256 of each id under the key, the first 128 bits as 32 hexadecimal digits."""
        assert self.key is not None
        names = [_hash(self.key, f"subject {subject_id}")[:32] for subject_id in subject_ids]
        return pl.Series(subject_ids.name, names, dtype=pl.String)

    def _without_days(self, frame: pl.DataFrame) -> pl.DataFrame:
        if not self.hides_days or "follow_up_days" not in frame.columns:
            return frame
        rank = pl.col("follow_up_days").rank("dense").cast(pl.Float64)
        return frame.with_columns(rank).rename({"follow_up_days": "follow_up_rank"})


def read_key(cache: Path) -> bytes:
    """The key of the hashes: EHRTRACK_SUBJECT_SECRET, else the file ``subject.key`` in the cache.

    Where there is none it is that of the user's folder (`ehrtrack.home`), made once, so that runs from different
    folders can be compared; a key that is in the cache alone becomes that one.

    Raises
    ------
    ConfigError
        If the key is too short, others can read the file, or it cannot be made.
    """
    text = os.environ.get(KEY_VARIABLE, "")
    source = f"the environment variable {KEY_VARIABLE}"
    if not text:
        file = cache / KEY_FILE
        try:
            if not file.exists():
                _make_key_file(file, _shared_key())
            text, source = file.read_text().strip(), str(file)
        except OSError as error:
            raise ConfigError(
                f"the key of subjects' hashes cannot be kept in {file}: {error}; set runtime.cache to a folder you may "
                f"write to, or give the key in {KEY_VARIABLE}"
            ) from error
        _check_private(file)
    if len(text) < LEAST_KEY_CHARACTERS:
        raise ConfigError(
            f"the key of subjects' hashes in {source} has {len(text)} characters, and at least {LEAST_KEY_CHARACTERS} "
            "are needed; make one with: openssl rand -hex 32"
        )
    if not os.environ.get(KEY_VARIABLE):
        _share(text)
    return text.encode()


def has_key(cache: Path) -> bool:
    """Whether runs with this cache have a key already."""
    return bool(os.environ.get(KEY_VARIABLE)) or any((folder / KEY_FILE).exists() for folder in (cache, home()))


def _shared_key() -> str:
    """The key of the user's folder; a new one that is in no such folder where there can be none, which is told."""
    _share(secrets.token_hex(32))
    shared = home() / KEY_FILE
    if not shared.exists():
        return secrets.token_hex(32)
    _check_private(shared)
    return shared.read_text().strip()


def _share(text: str) -> None:
    """Make a key that of the user's folder, unless that has one."""
    file = home() / KEY_FILE
    try:
        if not file.exists():
            _make_key_file(file, text)
    except OSError as error:
        _log.warning(
            "the key of subjects' hashes cannot be kept in %s, for runs from other folders: %s; set %s to a folder "
            "that can be written to",
            *(file, error, HOME_VARIABLE),
        )


def _check_private(file: Path) -> None:
    if file.stat().st_mode & 0o077:
        raise ConfigError(
            f"{file} can be read by other users, who could find out subjects by it; chmod 600 {file}, or give "
            f"the key in {KEY_VARIABLE}"
        )


def _make_key_file(file: Path, text: str) -> None:
    """Make the file; of several processes that do so at once, one wins."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(file, mode=0o600, keeps_first=True) as aside:
        aside.write_text(text + "\n")


def _hash(key: bytes, message: str) -> str:
    return hmac.new(key, message.encode(), hashlib.sha256).hexdigest()


def is_small(count: int | None) -> bool:
    """Whether a count is of too few to be shown."""
    return count is not None and 0 < count < LEAST_COUNT


def count_text(count: int | str | None) -> str:
    """A count as it is shown: ``2,694``, ``<11`` for a few, ``–`` for one that was hidden before."""
    if count is None:
        return "–"
    if isinstance(count, str):
        return f"{int(count):,}" if count.isdigit() else count
    return SMALL if is_small(count) else f"{count:,}"


def hide_small(counts: Sequence[int | None]) -> list[str | None]:
    """Counts as text, small ones as ``<11``."""
    return [None if n is None else SMALL if is_small(n) else str(n) for n in counts]


def hide_parts(counts: Sequence[int]) -> list[str | None]:
    """As `hide_small`, for parts of a known sum: a single hidden one takes the smallest other with it (None)."""
    shown = hide_small(counts)
    others = [place for place, n in enumerate(counts) if n and not is_small(n)]
    if sum(map(is_small, counts)) == 1 and others:
        shown[min(others, key=lambda place: counts[place])] = None
    return shown


def hide_in_attrition(attrition: pl.DataFrame) -> pl.DataFrame:
    """The flow of subjects without steps that dropped a few, of which no difference of other numbers tells either.

    A step that dropped fewer than 11, or rows of fewer than 11, shares its numbers with neighbours: of them all, the
    last alone says how many are left, and none how many it dropped.

    Parameters
    ----------
    attrition : step, n_subjects (left), n_dropped; the first row is the start. Where subjects have several rows also
        n_times (rows left), n_times_dropped, n_subjects_with_dropped

    Returns
    -------
    The same columns and rows, counts as text; None is a number that would give another one away.
    """
    counts = {name: attrition[name].to_list() for name in attrition.columns if name != "step"}
    for group in _steps_together(counts["n_dropped"], counts.get("n_subjects_with_dropped")):
        if len(group) > 1:
            for name, of_name in counts.items():
                _hide_in_group(name, of_name, group)
    return attrition.with_columns(pl.Series(name, hide_small(found), dtype=pl.String) for name, found in counts.items())


def _hide_in_group(name: str, counts: list[int | None], group: Sequence[int]) -> None:
    """Of what steps have in common, keep what is left after the last, and that a step dropped none, or a few."""
    is_left, is_of_rows = name in ("n_subjects", "n_times"), name.startswith("n_times")
    for row in group[:-1] if is_left else group:
        is_kept = not is_left and counts[row] in range(1 if is_of_rows else LEAST_COUNT)
        counts[row] = counts[row] if is_kept else None


def _steps_together(dropped: Sequence[int], touched: Sequence[int] | None) -> list[list[int]]:
    """Groups of neighbouring steps, each of which dropped nobody or enough subjects, and rows of none or of enough."""

    def is_of_few(group: Sequence[int]) -> bool:
        most_touched = None if touched is None else max(touched[row] for row in group)
        return is_small(sum(dropped[row] for row in group)) or is_small(most_touched)

    groups: list[list[int]] = []
    for row in range(len(dropped)):
        if len(groups) > 1 and is_of_few(groups[-1]):
            groups[-1].append(row)
        else:
            groups.append([row])
    while len(groups) > 1 and is_of_few(groups[-1]):
        last = groups.pop()
        groups[-1] += last
    return groups


def hide_in_summary(summary: pl.DataFrame) -> pl.DataFrame:
    """The splits' events and follow-up, without what tells of a few subjects: rates, where their counts are hidden.

    Parameters
    ----------
    summary : split, n_subjects, n_events, event_rate and other statistics. Where subjects have several rows, of which
        the events are counted, also n_subjects_with_event, by which it is judged whether they are of a few
    """
    has_several = "n_subjects_with_event" in summary.columns
    of_events = ["n_subjects_with_event", "n_events"] if has_several else ["n_events"]
    subjects, with_event = summary["n_subjects"].to_list(), summary[of_events[0]].to_list()
    hidden = [is_small(d) or is_small(n - d) for n, d in zip(subjects, with_event, strict=True)]
    others = [name for name in summary.columns if name not in ("split", "n_subjects", "n_events")]
    few = pl.Series([is_small(n) for n in subjects])
    shown = {name: summary[name].to_list() for name in of_events}
    for row in (row for row, is_hidden in enumerate(hidden) if is_hidden):
        kept = of_events[:1] if is_small(with_event[row]) else []  # a few are told as such
        for name in of_events:
            shown[name][row] = shown[name][row] if name in kept else None
    return summary.with_columns(pl.when(~few).then(pl.col(name)) for name in others).with_columns(
        event_rate=pl.when(~pl.Series(hidden)).then("event_rate"),
        n_subjects=pl.Series(hide_parts(subjects), dtype=pl.String),
        **{name: pl.Series(hide_small(counts), dtype=pl.String) for name, counts in shown.items()},
    )


def hide_in_groups(table: pl.DataFrame) -> pl.DataFrame:
    """Scores by group of subjects, without counts of a few, or what is left of an attribute's sum to tell them.

    Parameters
    ----------
    table : attribute, group, n_subjects, n_events and scores; the groups of an attribute are all subjects
    """
    parts = [
        part.with_columns(
            pl.Series(name, hide_parts(part[name].to_list()), dtype=pl.String) for name in ("n_subjects", "n_events")
        )
        for part in table.partition_by("attribute", maintain_order=True)
    ]
    return pl.concat(parts) if parts else table
