"""Numbers and tables of Markdown pages."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence


def number(value: object, digits: int, sign: str = "") -> str:
    """A number below 1 without its leading zero; empty where there is none."""
    if value is None:
        return ""
    text = f"{float(str(value)):{sign}.{digits}f}"
    return text.replace("0.", ".", 1) if abs(float(text)) < 1 else text


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """A table; columns of numbers are set to the right."""

    def lines() -> Iterator[str]:
        yield _line(header)
        yield _line(["--:" if column in right else "---" for column in range(len(header))])
        yield from map(_line, rows)

    return "\n".join(lines())


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
