"""What a finished dataset holds: the account that an import ends with, as far as the data tell, and how it is spread.

Shards are read one after another by streaming queries, so memory does not grow with the dataset. Nothing here is of one
subject: all numbers count events or subjects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from ehrtrack.data.clocks import is_midnight
from ehrtrack.data.events import BIRTH, DEATH, MedsDataset
from ehrtrack.data.histories import damage_named
from ehrtrack.data.tables import read_table
from ehrtrack.data.visits import DAYS_PER_YEAR, MICROSECONDS_PER_DAY

MOST_YEARS_APART = 20
"""Calendar years that are shown one by one; more are put together, by 2, 5, 10 ... years."""

LENGTH_EDGES_DAYS = {
    "under a day": 1.0,
    "under a month": 30.0,
    "under a year": DAYS_PER_YEAR,
    "1 to 2 years": 2 * DAYS_PER_YEAR,
    "2 to 5 years": 5 * DAYS_PER_YEAR,
    "5 to 10 years": 10 * DAYS_PER_YEAR,
    "10 to 20 years": 20 * DAYS_PER_YEAR,
}
LONGEST = "20 years and more"
UNKNOWN_AGE_BAND = "not known"


@dataclass(frozen=True)
class Description:
    """Counts of a dataset.

    Attributes
    ----------
    n_births, n_deaths : subjects with a birth, and with a death.
    n_numeric, n_text, n_empty : events with a number, with a text alone, and with neither though others of their code
        have one.
    n_static : events without a time.
    n_timed : events with a time, births aside.
    n_without_clock : of these, those whose time is a midnight of the source's zone: a date without a clock.
    n_future : events after today.
    first_time, last_time : of the events, births aside.
    splits : subjects of each split that comes with the dataset; empty where none does.
    codes : code, description, n_events, n_subjects, n_numeric, n_text; the most frequent first.
    years : label, n_events, n_subjects, n_without_clock of the timed events, in order; subjects of several years put
        together are those of the year that has most.
    ages : label, n_events, n_subjects; ages at events by ten years, and events of subjects without a birth.
    lengths : label, n_subjects; time from the first event to the last, birth aside.
    """

    path: Path
    n_shards: int
    n_subjects: int
    n_events: int
    n_births: int
    n_deaths: int
    n_static: int
    n_timed: int
    n_without_clock: int
    n_future: int
    first_time: datetime | None
    last_time: datetime | None
    splits: dict[str, int]
    codes: pl.DataFrame
    years: pl.DataFrame
    ages: pl.DataFrame
    lengths: pl.DataFrame

    @property
    def n_numeric(self) -> int:
        """Events with a number."""
        return int(self.codes["n_numeric"].sum())

    @property
    def n_text(self) -> int:
        """Events with a text and no number."""
        return int(self.codes["n_text"].sum())

    @property
    def n_empty(self) -> int:
        """Events without a result, of codes that have results."""
        with_results = self.codes.filter(pl.col("n_numeric") + pl.col("n_text") > 0)
        return int((with_results["n_events"] - with_results["n_numeric"] - with_results["n_text"]).sum())

    def mixed_units(self) -> pl.DataFrame:
        """Codes that seem to have several units: with numbers, and alike but for what follows the last ``//``.

        Returns
        -------
        code, units (list), n_events; the most frequent first
        """
        parts = self.codes.filter((pl.col("n_numeric") > 0) & (pl.col("code").str.count_matches("//") >= 2))
        parts = parts.with_columns(
            unit=pl.col("code").str.extract("^.*//(.*)$"), code=pl.col("code").str.extract("^(.*)//.*$")
        )
        grouped = parts.group_by("code").agg(units=pl.col("unit").sort(), n_events=pl.col("n_numeric").sum())
        return grouped.filter(pl.col("units").list.len() > 1).sort("n_events", "code", descending=[True, False])


def describe_dataset(dataset: MedsDataset) -> Description:
    """Count what the dataset holds.

    Raises
    ------
    DataError
        If a shard or the split's file cannot be read.
    """
    parts = []
    for shard in dataset.shards:
        with damage_named((shard,)):
            parts.append(_of_shard(MedsDataset(dataset.path, (shard,)), dataset.time_zone))
    of_code, of_year, of_age, of_length, totals = (pl.concat(frames) for frames in zip(*parts, strict=True))
    sums = totals.select(pl.exclude("first_time", "last_time").sum()).row(0, named=True)
    descriptions = pl.DataFrame(
        list(dataset.code_descriptions().items()), schema={"code": pl.String, "description": pl.String}, orient="row"
    )
    codes = _summed(of_code, "code").sort("n_events", "code", descending=[True, False])
    return Description(
        path=dataset.path,
        n_shards=len(dataset.shards),
        **sums,
        first_time=totals["first_time"].min(),
        last_time=totals["last_time"].max(),
        splits=_splits(dataset.path / "metadata" / "subject_splits.parquet"),
        codes=codes.join(descriptions, on="code", how="left", maintain_order="left"),
        years=_in_few_periods(_summed(of_year, "year").sort("year")),
        ages=_labelled_ages(_summed(of_age, "decade")),
        lengths=_in_order(_summed(of_length, "label"), [*LENGTH_EDGES_DAYS, LONGEST]),
    )


def _summed(frame: pl.DataFrame, key: str) -> pl.DataFrame:
    """A subject lies in one shard, so that counts of subjects add up."""
    return frame.group_by(key).agg(pl.all().sum())


def _of_shard(shard: MedsDataset, time_zone: str) -> list[pl.DataFrame]:
    events = shard.scan().select("subject_id", "time", pl.col("code").cast(pl.String), "numeric_value", "text_value")
    is_birth, time = pl.col("code") == BIRTH, pl.col("time")
    lives = events.group_by("subject_id").agg(
        birth=time.filter(is_birth).min(),
        is_dead=(pl.col("code") == DEATH).any(),
        first_time=time.filter(~is_birth).min(),
        last_time=time.filter(~is_birth).max(),
    )
    counts = {"n_events": pl.len().cast(pl.Int64), "n_subjects": pl.col("subject_id").n_unique().cast(pl.Int64)}
    dated = events.filter(time.is_not_null() & ~is_birth).with_columns(is_date=is_midnight(time, time_zone))
    has_number = pl.col("numeric_value").is_not_null()
    queries = [
        events.group_by("code").agg(
            **counts,
            n_numeric=has_number.sum().cast(pl.Int64),
            n_text=(~has_number & pl.col("text_value").is_not_null()).sum().cast(pl.Int64),
        ),
        dated.group_by(year=time.dt.year()).agg(**counts, n_without_clock=pl.col("is_date").sum().cast(pl.Int64)),
        _aged(dated, lives).group_by("decade").agg(**counts),
        lives.filter(pl.col("first_time").is_not_null())
        .group_by(label=_length())
        .agg(n_subjects=pl.len().cast(pl.Int64)),
        lives.select(
            n_subjects=pl.len().cast(pl.Int64),
            n_births=pl.col("birth").is_not_null().sum().cast(pl.Int64),
            n_deaths=pl.col("is_dead").sum().cast(pl.Int64),
            first_time=pl.col("first_time").min(),
            last_time=pl.col("last_time").max(),
        ),
        events.select(
            n_events=pl.len().cast(pl.Int64),
            n_static=time.is_null().sum().cast(pl.Int64),
            n_timed=(time.is_not_null() & ~is_birth).sum().cast(pl.Int64),
            n_future=(time > datetime.now(UTC).replace(tzinfo=None)).sum().cast(pl.Int64),
        ),
    ]
    codes, years, ages, lengths, of_lives, of_events = pl.collect_all(queries, engine="streaming")
    n_without_clock = pl.Series("n_without_clock", [years["n_without_clock"].sum()], dtype=pl.Int64)
    return [codes, years, ages, lengths, of_lives.hstack(of_events).with_columns(n_without_clock)]


def _aged(dated: pl.LazyFrame, lives: pl.LazyFrame) -> pl.LazyFrame:
    """The events with the decade of life that they are in; null without a birth, and before it."""
    years = (pl.col("time") - pl.col("birth")).dt.total_days() / DAYS_PER_YEAR
    decade = (years / 10).floor().clip(upper_bound=9).cast(pl.Int32)
    joined = dated.join(lives.select("subject_id", "birth"), on="subject_id")
    return joined.with_columns(decade=pl.when(years >= 0).then(decade))


def _length() -> pl.Expr:
    days = (pl.col("last_time") - pl.col("first_time")).dt.total_microseconds() / MICROSECONDS_PER_DAY
    label = pl.lit(LONGEST)
    for name, edge in reversed(LENGTH_EDGES_DAYS.items()):
        label = pl.when(days < edge).then(pl.lit(name)).otherwise(label)
    return label


def _in_few_periods(years: pl.DataFrame) -> pl.DataFrame:
    """Calendar years, which rise, or periods of some years where they are many."""
    numbers = years["year"].to_list()
    span = 1 + numbers[-1] - numbers[0] if numbers else 1
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000, 10_000) if span <= MOST_YEARS_APART * step)
    start = pl.col("year") // step * step
    label = start.cast(pl.String) if step == 1 else pl.format("{}–{}", start, start + step - 1)
    return (
        years.with_columns(label=label)
        .group_by("label", maintain_order=True)
        .agg(pl.col("n_events").sum(), pl.col("n_subjects").max(), pl.col("n_without_clock").sum())
    )


def _labelled_ages(ages: pl.DataFrame) -> pl.DataFrame:
    labels = {decade: f"{10 * decade}–{10 * decade + 9}" for decade in range(9)} | {9: "90 and over"}
    label = pl.col("decade").replace_strict(labels, default=UNKNOWN_AGE_BAND, return_dtype=pl.String)
    return _in_order(ages.with_columns(label=label).drop("decade"), [*labels.values(), UNKNOWN_AGE_BAND])


def _in_order(frame: pl.DataFrame, labels: Sequence[str]) -> pl.DataFrame:
    """The rows in the order of their labels; those between that are empty are 0."""
    return pl.DataFrame({"label": labels}).join(frame, on="label", how="left", maintain_order="left").fill_null(0)


def _splits(path: Path) -> dict[str, int]:
    if not path.is_file():
        return {}
    table = read_table(path, ("subject_id", "split"), "metadata/subject_splits.parquet")
    counts = table.group_by("split").len().sort("len", "split", descending=[True, False])
    return {str(split): n for split, n in counts.iter_rows()}
