"""The description of a dataset as one self-contained HTML page: no script, no network, no small counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

import polars as pl

from ehrtrack.data.description import Description
from ehrtrack.privacy import count_text, hide_parts, is_small

TOP_CODES = 25
MOST_MIXED = 5

_STYLE = """
:root { color-scheme: light dark; --line: #8885; --bar: #3b78b5; --soft: #888; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
table { width: 100%; border-collapse: collapse; table-layout: fixed; }
td { padding: .12rem .3rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td.label { width: 34%; overflow-wrap: anywhere; } td.count { width: 7.5em; text-align: right; }
td.label small { color: var(--soft); display: block; }
i { display: block; height: .9em; margin-top: .25em; background: var(--bar); }
p { color: var(--soft); max-width: 45rem; }
@media (max-width: 480px) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .4rem; }
  td.label { width: 44%; } td.count { width: 6em; } }
"""


def account(found: Description, *, hides_few: bool) -> Iterator[tuple[str, str]]:
    """The names and values of the counts.

    Parameters
    ----------
    hides_few : counts of fewer than 11 are ``<11``, days are left out, and so is what a hidden count follows from
    """

    def text(n: int) -> str:
        return count_text(n) if hides_few else f"{n:,}"

    yield "Subjects", text(found.n_subjects)
    yield "Events", text(found.n_events)
    yield "Codes", f"{found.codes.height:,}"
    if found.first_time is not None and found.last_time is not None:
        form = "%Y" if hides_few else "%Y-%m-%d"
        yield "Period", f"{found.first_time:{form}} to {found.last_time:{form}}"
    yield "Subjects with a death", text(found.n_deaths)
    yield "Subjects without a birth", text(found.n_subjects - found.n_births)
    yield "Results", f"{text(found.n_numeric)} numbers, {text(found.n_text)} texts, {text(found.n_empty)} empty"
    yield "Times without a clock", f"{text(found.n_without_clock)} of {text(found.n_timed)}, births aside"
    yield "Events without a time", text(found.n_static)
    yield "Events after today", text(found.n_future)
    mixed = _frequent(found, found.mixed_units()) if hides_few else found.mixed_units()
    yield "Codes with several units", f"{mixed.height:,}{_such_as(mixed)}"
    if found.splits:
        shown = hide_parts(list(found.splits.values())) if hides_few else [f"{n:,}" for n in found.splits.values()]
        parts = ", ".join(f"{count_text(n)} {name}" for name, n in zip(found.splits, shown, strict=True))
        yield "Split that comes with the data", parts
    else:
        yield "Split that comes with the data", "none"


def _frequent(found: Description, mixed: pl.DataFrame) -> pl.DataFrame:
    """The codes with several units, each of which occurs in the records of more than a few subjects."""
    few = found.codes.filter(pl.col("n_subjects").map_elements(is_small, return_dtype=pl.Boolean))
    few_bases = few.select(code=pl.col("code").str.extract("^(.*)//.*$")).unique()
    return mixed.join(few_bases, on="code", how="anti", maintain_order="left")


def _such_as(mixed: pl.DataFrame) -> str:
    examples = [f"{code} ({', '.join(units)})" for code, units, _ in mixed.head(MOST_MIXED).iter_rows()]
    return f", such as {'; '.join(examples)}" if examples else ""


def description_page(found: Description) -> str:
    """The HTML page. A bar whose events come from fewer than 11 subjects has neither length nor number."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in account(found, hides_few=True))
    name = escape(found.path.name)
    years, ages, lengths = (_shown(frame) for frame in (found.years, found.ages, found.lengths))
    without_clock = _without_clock(found.years, years)
    codes = found.codes.filter(~pl.col("n_subjects").map_elements(is_small, return_dtype=pl.Boolean)).head(TOP_CODES)
    return "".join(
        [
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>',
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>',
            f"<h1>{name}</h1><dl>{rows}</dl>",
            _section("Events a year", _bars(years)),
            _section("Times without a clock, of the events of a year", _bars(without_clock, full=100)),
            _section("Ages at events, in years", _bars(ages)),
            _section("Subjects by the length of their record", _bars(lengths)),
            _section(f"The {codes.height} most frequent codes", _bars(_code_rows(codes))),
            "<p>Counts of fewer than 11, and what they follow from, are not shown: &lt;11 and –. A code that fewer "
            "than 11 subjects have is not listed.</p></body></html>\n",
        ]
    )


Row = tuple[str, str, float]
"""A bar's label (HTML), its number as text, and its length."""


def _shown(frame: pl.DataFrame) -> list[Row]:
    """The number of events of each row, or of subjects if it has no events; hidden if they come from a few subjects."""
    counted = "n_events" if "n_events" in frame.columns else "n_subjects"
    counts, subjects = frame[counted].to_list(), frame["n_subjects"].to_list()
    is_hidden = [is_small(n) or is_small(count) for n, count in zip(subjects, counts, strict=True)]
    others = [place for place, hidden in enumerate(is_hidden) if not hidden and counts[place]]
    if sum(is_hidden) == 1 and others:  # otherwise the sum reveals it
        is_hidden[min(others, key=lambda place: counts[place])] = True
    return [
        (escape(label), count_text(None if hidden and not is_small(count) else count), 0 if hidden else count)
        for label, count, hidden in zip(frame["label"], counts, is_hidden, strict=True)
    ]


def _without_clock(years: pl.DataFrame, shown: Sequence[Row]) -> list[Row]:
    """The share of each year whose events are shown; ends of the scale stand for what a few events differ from."""
    rows = []
    for (label, _, length), row in zip(shown, years.iter_rows(named=True), strict=True):
        n, n_without = row["n_events"], row["n_without_clock"]
        n_without = 0 if is_small(n_without) else n if is_small(n - n_without) else n_without
        rows.append((label, f"{n_without / n:.0%}", 100 * n_without / n) if length else (label, "–", 0.0))
    return rows


def _code_rows(codes: pl.DataFrame) -> list[Row]:
    return [
        (
            f"{escape(code)}<small>{escape(description)}</small>" if description else escape(code),
            count_text(n_events),
            n_events,
        )
        for code, description, n_events in codes.select("code", "description", "n_events").iter_rows()
    ]


def _bars(rows: Sequence[Row], full: float | None = None) -> str:
    """The table of bars; the longest bar fills its cell unless a full length is given."""
    most = full or max((length for _, _, length in rows), default=0) or 1
    return "".join(
        f'<tr><td class="label">{label}</td><td class="count">{escape(number)}</td>'
        f'<td><i style="width:{100 * length / most:.1f}%"></i></td></tr>'
        for label, number, length in rows
    )


def _section(title: str, bars: str) -> str:
    return f"<h2>{escape(title)}</h2><table>{bars}</table>"
