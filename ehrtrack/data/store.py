"""A tokenised cohort as memory-mapped flat arrays with offsets, kept in a folder named by its fingerprint."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from ehrtrack.data.events import BIRTH, MedsDataset, fingerprint_of, life_spans
from ehrtrack.data.splits import SplitConfig, assign_splits
from ehrtrack.data.visits import DAYS_PER_YEAR, VisitConfig, days_between, visit_tokens
from ehrtrack.data.vocabulary import Vocabulary
from ehrtrack.errors import DataError

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


@dataclass(frozen=True)
class TokenStore:
    """The visit tokens of N subjects, T in all; those of subject i are `offsets[i]:offsets[i + 1]`."""

    subject_ids: npt.NDArray[np.int64]  # (N,) in the order of the cutoffs
    offsets: npt.NDArray[np.int64]  # (N + 1,)
    token: npt.NDArray[np.int32]  # (T,) vocabulary index
    age_years: npt.NDArray[np.float32]  # (T,) age at the visit; 0 for static facts
    visit: npt.NDArray[np.int32]  # (T,) 0 = static facts, then 1.. in time order
    gap_days: npt.NDArray[np.float32]  # (T,) since the visit before; 0 for the first and for static facts
    end_age_years: npt.NDArray[np.float32]  # (N,) age at the cutoff
    end_gap_days: npt.NDArray[np.float32]  # (N,) from the last visit to the cutoff; 0 without a visit
    fingerprint: str

    def __len__(self) -> int:
        return len(self.subject_ids)

    @property
    def n_tokens(self) -> npt.NDArray[np.int64]:
        """(N,) tokens of each subject; 0 is possible."""
        return np.diff(self.offsets)

    def rows(self, subject_ids: pl.Series | npt.ArrayLike) -> npt.NDArray[np.int64]:
        """(n,) the rows at which the subjects lie, in the order asked for.

        Raises
        ------
        DataError
            If a subject is not in the store.
        """
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


def build_store(
    dataset: MedsDataset, cutoffs: pl.DataFrame, vocabulary: Vocabulary, visits: VisitConfig, cache_dir: Path
) -> TokenStore:
    """Tokenise the subjects of `cutoffs` (columns subject_id, cutoff), or open the folder where it was done.

    Raises
    ------
    DataError
        If a subject appears twice, or has no birth at or before its cutoff.
    """
    table = cutoffs.select(pl.col("subject_id").cast(pl.Int64), pl.col("cutoff").cast(pl.Datetime("us")))
    if table["subject_id"].is_duplicated().any():
        first = table.filter(pl.col("subject_id").is_duplicated())["subject_id"][0]
        raise DataError(f"subject {first} has more than one cutoff; give one a subject")
    parts = {
        "format": FORMAT,
        "dataset": dataset.fingerprint(),
        "cutoffs": fingerprint_of(table),
        "vocabulary": vocabulary.fingerprint,
        "visits": visits.model_dump(mode="json"),
    }
    fingerprint = fingerprint_of("store", parts)
    folder = Path(cache_dir) / fingerprint
    if not folder.is_dir():
        arrays = _tokenise(dataset, table, vocabulary, visits)
        _write_aside(folder, arrays, {"fingerprint": fingerprint, **parts})
    return open_store(folder)


def open_store(folder: Path) -> TokenStore:
    """Map the arrays of a store into memory; nothing is read until it is used."""
    meta = json.loads((folder / "meta.json").read_text())
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in DTYPES}
    return TokenStore(**arrays, fingerprint=meta["fingerprint"])


def record_cutoffs(dataset: MedsDataset, split: SplitConfig) -> pl.DataFrame:
    """Where each whole record ends, for pretraining: at death, else at the last event.

    Returns
    -------
    subject_id, cutoff datetime[us], split; sorted by subject_id. Subjects with no dated event are left out.
    """
    ends = (
        life_spans(dataset.scan())
        .select("subject_id", cutoff=pl.coalesce("death", "last_time", "birth"))
        .drop_nulls("cutoff")
        .sort("subject_id")
        .collect(engine="streaming")
    )
    return ends.with_columns(assign_splits(ends["subject_id"], split))


def _tokenise(
    dataset: MedsDataset, cutoffs: pl.DataFrame, vocabulary: Vocabulary, visits: VisitConfig
) -> dict[str, npt.NDArray[np.generic]]:
    tokens = visit_tokens(dataset.scan(), cutoffs, vocabulary, visits)
    births = (
        dataset.scan()
        .filter(pl.col("code") == BIRTH)
        .group_by("subject_id")
        .agg(birth=pl.col("time").min())
        .collect(engine="streaming")
    )
    per_subject = tokens.group_by("subject_id").agg(
        n_tokens=pl.len().cast(pl.Int64), last_visit=pl.col("visit_start").max()
    )
    subjects = (
        cutoffs.with_row_index("row")
        .join(births, on="subject_id", how="left")
        .join(per_subject, on="subject_id", how="left")
        .sort("row")
        .with_columns(
            pl.col("n_tokens").fill_null(0),
            end_age_years=days_between("birth", "cutoff") / DAYS_PER_YEAR,
            end_gap_days=days_between("last_visit", "cutoff").fill_null(0.0),
        )
    )
    ordered = tokens.join(subjects.select("subject_id", "row"), on="subject_id").sort("row", "visit", "token")
    columns = {
        "subject_ids": subjects["subject_id"].to_numpy(),
        "offsets": np.concatenate([[0], np.cumsum(subjects["n_tokens"].to_numpy())]),
        **{name: ordered[name].to_numpy() for name in ("token", "age_years", "visit", "gap_days")},
        **{name: subjects[name].to_numpy() for name in ("end_age_years", "end_gap_days")},
    }
    return {name: columns[name].astype(dtype) for name, dtype in DTYPES.items()}


def _write_aside(folder: Path, arrays: dict[str, npt.NDArray[np.generic]], meta: dict[str, object]) -> None:
    """Write beside the folder and rename: it is there whole or not at all, whoever else builds the same."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for name, array in arrays.items():
            np.save(aside / f"{name}.npy", array)
        (aside / "meta.json").write_text(json.dumps(meta, indent=2, sort_keys=True) + "\n")
        aside.chmod(0o755)
        try:
            aside.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
