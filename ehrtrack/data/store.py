"""A tokenised cohort as memory-mapped flat arrays with offsets, kept in a folder named by its fingerprint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ehrtrack.arrays import Float32s, Int32s, Ints
from ehrtrack.data.cutoffs import check_different, has_several, one_history_a_cutoff, row_keys
from ehrtrack.data.events import BIRTH, MedsDataset, fingerprint_of
from ehrtrack.data.histories import NO_TIME, Histories, read_shard, subject_numbers, times_us
from ehrtrack.data.settings import KEEP_UNKNOWN, Births, VisitConfig
from ehrtrack.data.shards import ShardWork, in_two_shards
from ehrtrack.data.visits import (
    MICROSECONDS_PER_DAY,
    NO_DELAYS,
    VisitTokens,
    visit_tokens,
    years_since,
)
from ehrtrack.data.vocabulary import Vocabulary
from ehrtrack.errors import DataError
from ehrtrack.files import BROKEN, folder_aside, parse_json, written_aside

FORMAT = 1
"""Raised when the tokeniser or the layout changes, so that an older folder is not taken for a new one."""

DTYPES: dict[str, type[np.generic]] = {
    "subject_ids": np.int64,
    "offsets": np.int64,
    "token": np.int32,
    "age_years": np.float32,
    "visit": np.int32,
    "gap_days": np.float32,
    "end_age_years": np.float32,
    "end_gap_days": np.float32,
}
PER_TOKEN = ("token", "age_years", "visit", "gap_days")


@dataclass(frozen=True)
class TokenStore:
    """The visit tokens of N cutoffs, T in all; those of cutoff i are `offsets[i]:offsets[i + 1]`.

    A cutoff is a subject at a time. Most stores have one a subject, and there a row and a subject are the same.
    """

    subject_ids: Ints  # (N,) in the order of the cutoffs; again where a subject has several
    offsets: Ints  # (N + 1,)
    token: Int32s  # (T,) vocabulary index
    age_years: Float32s  # (T,) age at the visit, NaN if unknown; 0 for static facts
    visit: Int32s  # (T,) 0 = static facts, then 1.. in time order
    gap_days: Float32s  # (T,) since the visit before; 0 for the first and for static facts
    end_age_years: Float32s  # (N,) age at the cutoff, NaN if unknown
    end_gap_days: Float32s  # (N,) from the last visit to the cutoff; 0 without a visit
    fingerprint: str

    def __len__(self) -> int:
        return len(self.subject_ids)

    @property
    def n_tokens(self) -> Ints:
        """(N,) tokens of each subject; 0 is possible."""
        return np.diff(self.offsets)

    def rows(self, subject_ids: pl.Series | npt.ArrayLike) -> Ints:
        """(n,) the rows at which the subjects lie, in the order asked for.

        Raises
        ------
        DataError
            If a subject is not in the store, or subjects have several rows.
        """
        if has_several(pl.DataFrame({"subject_id": self.subject_ids})):
            raise DataError("subjects have several rows in this token store; ask for them by their numbers")
        wanted = np.asarray(subject_ids, dtype=np.int64)
        order = np.argsort(self.subject_ids, kind="stable")
        position = np.searchsorted(self.subject_ids, wanted, sorter=order)
        rows = order[np.minimum(position, len(order) - 1)] if len(order) else np.zeros(len(wanted), np.int64)
        absent = self.subject_ids[rows] != wanted if len(order) else np.ones(len(wanted), dtype=bool)
        if absent.any():
            raise DataError(
                f"{absent.sum()} of {len(wanted)} subjects are not in the token store "
                f"(first: subject {wanted[absent][0]}); build the store from the same cohort"
            )
        return rows.astype(np.int64)


def mean_age(store: TokenStore, rows: Ints) -> float:
    """The mean age in years of some subjects at their cutoffs, of those whose age is known; 0 where none is."""
    ages = store.end_age_years[rows]
    return float(ages[~np.isnan(ages)].mean()) if not np.isnan(ages).all() else 0.0


def build_store(
    dataset: MedsDataset,
    cutoffs: pl.DataFrame,
    vocabulary: Vocabulary,
    visits: VisitConfig,
    cache_dir: Path,
    work: ShardWork | None = None,
    *,
    delay_hours: Mapping[str, float] = NO_DELAYS,
    births: Births = "required",
) -> TokenStore:
    """Tokenise the subjects of `cutoffs` (columns subject_id, cutoff), or open the folder where it was done.

    A subject may have several cutoffs; each has a row of the store, in the order of `cutoffs`.

    Parameters
    ----------
    delay_hours : as of `is_known`
    births : with ``unknown`` a subject without a birth at or before its cutoff has ages that are NaN

    Raises
    ------
    DataError
        If a subject has a cutoff twice, lies in two shards, or has no birth at or before its cutoff where it needs one.
    """
    everything = ShardWork(cache_dir, work.engine) if work else ShardWork(cache_dir)
    store = tokenise_slice(
        dataset, cutoffs, vocabulary, visits, cache_dir, everything, delay_hours=delay_hours, births=births
    )
    assert store is not None
    return store


def tokens_of(
    shards: Iterable[tuple[Path, Histories]],
    cutoffs: pl.DataFrame,
    vocabulary: Vocabulary,
    visits: VisitConfig,
    *,
    delay_hours: Mapping[str, float] = NO_DELAYS,
    births: Births = "required",
) -> TokenStore:
    """As `build_store`, of events that are in memory, and with the tokens in memory: no file is written.

    Parameters
    ----------
    shards : what each is called in a message, and its events
    """
    table = _canonical(cutoffs)
    named = [
        (name, visit_tokens(*one_history_a_cutoff(events, table), vocabulary, visits, delay_hours))
        for name, events in shards
    ]
    heads = ((name, (part.subject_ids, part.n_tokens, part.birth_us, part.last_visit_us)) for name, part in named)
    arrays, rows = _join_subjects(heads, table, births)
    offsets = arrays["offsets"].astype(np.int64)
    arrays |= {name: np.zeros(int(offsets[-1]), DTYPES[name]) for name in PER_TOKEN}
    for (_, part), row in zip(named, rows, strict=True):
        place = _places(row, part.n_tokens, offsets)
        for name in PER_TOKEN:
            arrays[name][place] = getattr(part, name)
    return TokenStore(**{name: arrays[name].astype(DTYPES[name]) for name in DTYPES}, fingerprint="in memory")


def _canonical(cutoffs: pl.DataFrame) -> pl.DataFrame:
    """Raises DataError if a subject has a cutoff twice."""
    table = cutoffs.select(pl.col("subject_id").cast(pl.Int64), pl.col("cutoff").cast(pl.Datetime("us")))
    check_different(table)
    return table


def tokenise_slice(
    dataset: MedsDataset,
    cutoffs: pl.DataFrame,
    vocabulary: Vocabulary,
    visits: VisitConfig,
    cache_dir: Path,
    work: ShardWork,
    *,
    delay_hours: Mapping[str, float] = NO_DELAYS,
    births: Births = "required",
) -> TokenStore | None:
    """Tokenise the shards that fall to this machine; the store, if they were the last ones missing.

    Each shard becomes a file in the folder `FINGERPRINT.parts`; when all are there they are joined in the order of
    `cutoffs`, and the parts removed. All of it may be done at the same time, again, and after being killed.

    Parameters
    ----------
    delay_hours : as of `is_known`

    Raises
    ------
    DataError
        As `build_store`, when the parts are joined.
    """
    table = _canonical(cutoffs)
    made_from: dict[str, object] = {
        "format": FORMAT,
        "dataset": dataset.fingerprint(),
        "cutoffs": fingerprint_of(table),
        "vocabulary": vocabulary.fingerprint,
        "visits": visits.model_dump(mode="json"),
        **({"births": births} if births == "unknown" else {}),  # stores of before keep their names
    }
    if delay_hours:
        made_from["delay_hours"] = dict(delay_hours)
    fingerprint = fingerprint_of("store", made_from)
    folder = Path(cache_dir) / fingerprint
    parts = folder.with_name(f"{fingerprint}.parts")
    if not folder.is_dir():
        try:
            keep = partial(_keep_part, vocabulary=vocabulary, visits=visits, delay_hours=delay_hours)
            files = _tokenise(dataset, table, keep, parts, work)
            if not all(file.is_file() for file in files) and not folder.is_dir():
                return None
            _join(folder, files, table, {"fingerprint": fingerprint, **made_from})
        except FileNotFoundError:
            if not folder.is_dir():  # else another tokeniser joined the parts, and removed them
                raise
    shutil.rmtree(parts, ignore_errors=True)
    return open_store(folder)


def open_store(folder: Path) -> TokenStore:
    """Map the arrays of a store into memory; nothing is read until it is used.

    Raises
    ------
    DataError
        If it is damaged.
    """
    try:
        meta = parse_json((folder / "meta.json").read_bytes())
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in DTYPES}
        store = TokenStore(**arrays, fingerprint=str(meta["fingerprint"]))
        _check_lengths(store)
    except (OSError, EOFError, *BROKEN) as error:
        raise DataError(f"the tokens in {folder} are damaged ({error}); remove it, and it is made again") from error
    return store


def _check_lengths(store: TokenStore) -> None:
    """The arrays fit each other. Raises ValueError."""
    n_subjects, n_tokens = len(store.subject_ids), int(store.offsets[-1])
    expected = {name: n_tokens if name in PER_TOKEN else n_subjects + (name == "offsets") for name in DTYPES}
    found = {name: len(getattr(store, name)) for name in DTYPES}
    kinds = {name: getattr(store, name).dtype for name in DTYPES}
    if found != expected or kinds != DTYPES:
        raise ValueError(f"arrays of lengths {found}")


def _tokenise(
    dataset: MedsDataset, cutoffs: pl.DataFrame, keep_part: Callable[..., None], parts: Path, work: ShardWork
) -> list[Path]:
    """Write the parts that fall to this machine and are not there yet; the paths of all parts."""
    files = [(parts / f"{number:05d}.npy").resolve() for number in range(len(dataset.shards))]
    missing = [number for number in work.mine(dataset.shards) if not files[number].is_file()]
    if missing:
        parts.mkdir(parents=True, exist_ok=True)
        with written_aside(parts / "cutoffs.arrow") as aside:
            cutoffs.write_ipc(aside, compression="uncompressed")
        function = partial(keep_part, cutoffs=(parts / "cutoffs.arrow").resolve())
        work.engine.map(function, [(dataset.shards[number].resolve(), files[number]) for number in missing], "tokens")
    return files


def _keep_part(
    shard_and_file: tuple[Path, Path],
    *,
    cutoffs: Path,
    vocabulary: Vocabulary,
    visits: VisitConfig,
    delay_hours: Mapping[str, float],
) -> None:
    shard, file = shard_and_file
    if file.is_file():  # another machine may have done it since
        return
    events = read_shard(shard, has_visit_ids=visits.unit == "encounter")
    tokens = visit_tokens(*one_history_a_cutoff(events, pl.read_ipc(cutoffs)), vocabulary, visits, delay_hours)
    with written_aside(file) as aside, aside.open("wb") as out:
        for array in vars(tokens).values():
            np.save(out, array)


def _read_part(file: Path, n_arrays: int = len(fields(VisitTokens))) -> Iterator[npt.NDArray[Any]]:
    """The first arrays of a part, in the order of `VisitTokens`."""
    with file.open("rb") as part:
        for _ in range(n_arrays):
            yield np.load(part)


def _join(folder: Path, files: list[Path], cutoffs: pl.DataFrame, meta: dict[str, object]) -> None:
    """Write the arrays part by part, beside the folder, and rename: it is there whole or not at all."""
    heads = ((file, tuple(_read_part(file, 4))) for file in files)
    subjects, rows = _join_subjects(heads, cutoffs, meta.get("births"))
    with folder_aside(folder) as aside:
        for name, values in subjects.items():
            np.save(aside / f"{name}.npy", values.astype(DTYPES[name]))
        _join_tokens(aside, files, rows, subjects["offsets"].astype(np.int64))
        (aside / "meta.json").write_text(json.dumps(meta, indent=2, sort_keys=True) + "\n")


def _join_subjects(
    heads: Iterable[tuple[Path, tuple[Ints, ...]]], cutoffs: pl.DataFrame, births: object
) -> tuple[dict[str, npt.NDArray[np.generic]], list[Ints]]:
    """The arrays with an entry a cutoff, in the order of the cutoffs; and the rows of each part's cutoffs.

    Parameters
    ----------
    heads : what a part is called in a message, and the first four arrays of its `VisitTokens`
    """
    subject_ids, cutoff_us = cutoffs["subject_id"].to_numpy(), times_us(cutoffs["cutoff"])
    keys = row_keys(cutoffs)
    n_tokens = np.zeros(len(cutoffs), dtype=np.int64)
    birth_us, last_visit_us = np.full(len(cutoffs), NO_TIME), np.full(len(cutoffs), NO_TIME)
    part_of = np.full(len(cutoffs), -1)
    rows, files = [], []
    for number, (file, (keys_of_part, *of_subject)) in enumerate(heads):
        files.append(file)
        row, _ = subject_numbers(keys_of_part, keys)
        if (part_of[row] >= 0).any():
            twice = row[part_of[row] >= 0][0]
            raise DataError(in_two_shards(subject_ids[twice], [files[part_of[twice]], file]))
        part_of[row] = number
        n_tokens[row], birth_us[row], last_visit_us[row] = of_subject
        rows.append(row)
    if births != "unknown":
        _check_births(subject_ids, birth_us)
    end_gap_us = np.where(last_visit_us == NO_TIME, 0, cutoff_us - last_visit_us)
    return {
        "subject_ids": subject_ids,
        "offsets": np.concatenate([[0], np.cumsum(n_tokens)]),
        "end_age_years": years_since(birth_us, cutoff_us),
        "end_gap_days": end_gap_us / MICROSECONDS_PER_DAY,
    }, rows


def _join_tokens(folder: Path, files: list[Path], rows: list[Ints], offsets: Ints) -> None:
    """Copy the arrays of each part to where its subjects lie. The maps are opened anew a part, so that no more of the
    files than one part's share stays in memory."""
    targets = {name: folder / f"{name}.npy" for name in PER_TOKEN}
    for name, target in targets.items():
        np.lib.format.open_memmap(target, mode="w+", dtype=DTYPES[name], shape=(int(offsets[-1]),))
    for file, row in zip(files, rows, strict=True):
        part = VisitTokens(*_read_part(file))
        place = _places(row, part.n_tokens, offsets)
        for name, target in targets.items():
            np.load(target, mmap_mode="r+")[place] = getattr(part, name)


def _places(row: Ints, n_tokens: Ints, offsets: Ints) -> Ints | slice:
    """Where the tokens of a part go: the part's subjects lie in these rows of the store, one after another or not."""
    if len(row) and (np.diff(row) == 1).all():
        return slice(offsets[row[0]], offsets[row[-1] + 1])
    before = np.cumsum(n_tokens) - n_tokens
    places: Ints = np.repeat(offsets[row] - before, n_tokens) + np.arange(n_tokens.sum())
    return places


def _check_births(subject_ids: Ints, birth_us: Ints) -> None:
    missing = np.unique(subject_ids[birth_us == NO_TIME])
    if len(missing):
        raise DataError(
            f"{len(missing)} of {len(np.unique(subject_ids))} subjects have no {BIRTH} event at or before their cutoff "
            f"(first: subject {missing[0]}), and tokens carry ages; "
            f'add {BIRTH} events to the dataset, or leave these subjects out (data.births = "left_out"); '
            f"{KEEP_UNKNOWN}"
        )
