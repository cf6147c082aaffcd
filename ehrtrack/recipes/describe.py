"""What a finished MEDS dataset holds, for the terminal and as a page."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ehrtrack.data.description import Description, describe_dataset
from ehrtrack.data.events import open_dataset
from ehrtrack.files import written_aside
from ehrtrack.pipeline.description_page import TOP_CODES, account, description_page

BAR_WIDTH = 40


def describe(data: Path, html: Path | None = None) -> Description:
    """Print the account of a dataset, and write it as a page if asked for.

    Parameters
    ----------
    data : folder of a MEDS dataset
    html : file for one page that needs nothing beside it, in which counts of fewer than 11 are hidden

    Raises
    ------
    DataError
        If the dataset cannot be read.
    """
    found = describe_dataset(open_dataset(data))
    print(description_text(found), flush=True)
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(html) as page:
            page.write_text(description_page(found), encoding="utf-8")
        print(f"-> {html}", flush=True)
    return found


def description_text(found: Description) -> str:
    """The account with a chart of letters for each picture; counts are exact, as an import's are."""
    lines = [str(found.path), *(f"{name}: {value}" for name, value in account(found, hides_few=False))]
    shares = found.years.with_columns(
        n_events=(100 * pl.col("n_without_clock") / pl.col("n_events")).round().cast(pl.Int64)
    )
    codes = found.codes.head(TOP_CODES).rename({"code": "label"})
    lines += _chart("Events a year", found.years, "n_events")
    lines += _chart("Times without a clock, % of the events of a year", shares, "n_events")
    lines += _chart("Ages at events, years", found.ages, "n_events")
    lines += _chart("Subjects by the length of their record", found.lengths, "n_subjects")
    lines += _chart(f"The {codes.height} most frequent codes", codes, "n_events")
    return "\n".join(lines)


def _chart(title: str, frame: pl.DataFrame, column: str) -> list[str]:
    labels, numbers = frame["label"].to_list(), frame[column].to_list()
    most, width = max([1, *numbers]), max(map(len, labels), default=0)
    bars = (
        f"  {label:<{width}} {n:>12,} {'█' * round(BAR_WIDTH * n / most)}".rstrip()
        for label, n in zip(labels, numbers, strict=True)
    )
    return ["", title, *bars]
