"""The results file: JSON that is kept row by row, and the same as a table in Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks._row import NOT_MEASURED, Measured, Row

FOLDER = Path(__file__).parent / "results"


@dataclass
class Results:
    """What rows came to on one machine at one commit; written after each row."""

    file: Path
    machine: dict[str, str]
    is_quick: bool
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    def keep(self, row: Row, outcome: Measured | str, seconds: float) -> None:
        """Keep a row's value, or the reason why there is none."""
        entry: dict[str, Any] = {**asdict(row), "measuring_seconds": round(seconds, 1)}
        if isinstance(outcome, Measured):
            entry |= {"value": outcome.value, "details": outcome.details}
        else:
            entry |= {"value": None, "reason": outcome}
        self.rows[row.name] = entry
        self.write()

    def write(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        kept = {"machine": self.machine, "is_quick": self.is_quick, "rows": self.rows}
        aside = self.file.with_suffix(".part")
        aside.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        aside.replace(self.file)
        self.file.with_suffix(".md").write_text(self.to_markdown(), encoding="utf-8")

    def is_measured(self, row: Row) -> bool:
        return self.rows.get(row.name, {}).get("value") is not None

    def below_floor(self, rows: Sequence[Row]) -> list[str]:
        """A line for each judged row that is under its floor, or has no value."""
        lines = []
        for row in rows:
            entry = self.rows.get(row.name, {"value": None, "reason": "not measured"})
            if row.floor is None:
                continue
            if entry["value"] is None and entry["reason"].startswith(NOT_MEASURED):
                continue  # of another device: told in the results, and nothing that was lost
            if entry["value"] is None:
                lines.append(f"{row.name}: no value ({entry['reason']})")
            elif not row.reaches(entry["value"], row.floor):
                bound = "at most" if row.is_lower_better else "at least"
                value, floor = _number(entry["value"], row.unit), _number(row.floor, row.unit)
                lines.append(f"{row.name}: {value}, needed {bound} {floor}")
        return lines

    def to_markdown(self) -> str:
        """The table, the details behind each value, and the machine."""
        lines = [f"# Benchmarks, {self.file.stem}", ""]
        if self.is_quick:
            lines += ["Few rounds (`--quick`): numbers to look at, not to quote.", ""]
        lines += ["| row | what | value | floor | aim | |", "|---|---|---|---|---|---|"]
        lines += [_table_line(entry) for entry in self.rows.values()]
        lines += ["", "## What the values are made of", ""]
        lines += [
            f"- **{name}**: " + ", ".join(f"{key} {_short(value)}" for key, value in entry.get("details", {}).items())
            for name, entry in self.rows.items()
            if entry.get("details")
        ]
        lines += ["", "## Machine", "", *(f"- {key}: {value}" for key, value in self.machine.items()), ""]
        return "\n".join(lines)


def new_results(folder: Path, machine: dict[str, str], *, is_quick: bool) -> Results:
    """A results file named by the time and the commit."""
    stamp = datetime.now().strftime("%Y-%m-%dT%H%M")
    name = f"{stamp}_{machine['commit']}{'-quick' if is_quick else ''}.json"
    return Results(folder / name, machine, is_quick)


def resumed_results(folder: Path, machine: dict[str, str], *, is_quick: bool) -> Results | None:
    """The newest results file of the same commit, CPU, torch and kind, to go on with; None if there is none."""
    for file in sorted(folder.glob("*.json"), reverse=True):
        kept = json.loads(file.read_text(encoding="utf-8"))
        same = all(kept["machine"].get(key) == machine[key] for key in ("commit", "cpu", "torch"))
        if same and kept["is_quick"] == is_quick:
            return Results(file, kept["machine"], is_quick, kept["rows"])
    return None


def report_line(row: Row, outcome: Measured | str) -> str:
    """One line for the terminal."""
    if isinstance(outcome, str):
        return f"{row.name:<28} {'–':>10}  {outcome}"
    return f"{row.name:<28} {_number(outcome.value, row.unit):>10}  {_bounds(row):<28} {_verdict(row, outcome.value)}"


def _table_line(entry: dict[str, Any]) -> str:
    row = Row(**{key: entry[key] for key in Row.__dataclass_fields__})
    bounds = [("≤ " if row.is_lower_better else "") + _number(b, row.unit) if b is not None else "" for b in _both(row)]
    if entry["value"] is None:
        return f"| {row.name} | {row.title} | – | {bounds[0]} | {bounds[1]} | {entry['reason']} |"
    value = _number(entry["value"], row.unit)
    return f"| {row.name} | {row.title} | {value} | {bounds[0]} | {bounds[1]} | {_verdict(row, entry['value'])} |"


def _both(row: Row) -> tuple[float | None, float | None]:
    return row.floor, row.aim


def _bounds(row: Row) -> str:
    if row.floor is None:
        return ""
    sign = "≤ " if row.is_lower_better else ""
    aim = "" if row.aim is None else f", aim {_number(row.aim, row.unit)}"
    return f"(floor {sign}{_number(row.floor, row.unit)}{aim})"


def _verdict(row: Row, value: float) -> str:
    if row.floor is None:
        return "shown"
    if not row.reaches(value, row.floor):
        return "UNDER ITS FLOOR"
    return "aim reached" if row.reaches(value, row.aim) else "met"


def _number(value: float, unit: str) -> str:
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"
    return f"×{text}" if unit == "×" else f"{text} {unit}"


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}")
