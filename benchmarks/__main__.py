"""Measure the rows of the table, print them, and keep them in a dated file."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks._machine import describe_machine
from benchmarks._results import FOLDER, new_results, report_line, resumed_results
from benchmarks._row import ROW_PACKAGE, Measured, Row, row_modules

ANSWER = "@row "
"""Begins the lines of a row's process that tell a result; all else it prints is passed over."""


def main(words: Sequence[str] | None = None, *, package: str = ROW_PACKAGE) -> int:
    """Exit code: 0, or 1 when rows are under their floor and ``--check`` is given, or 2 for an unknown row."""
    options = _parser().parse_args(words)
    modules = row_modules(package)
    every = {row.name: row for module in modules.values() for row in module.ROWS}
    if options.list:
        for row in every.values():
            print(f"{row.name:<28} {row.title}{' (--large)' if row.is_large else ''}")
        return 0
    unknown = [name for name in options.only or () if name not in every]
    if unknown:
        near = difflib.get_close_matches(unknown[0], every, n=1)
        hint = f"; did you mean {near[0]}?" if near else "; --list shows them"
        print(f"benchmarks: there is no row {unknown[0]!r}{hint}", file=sys.stderr)
        return 2
    wanted = [row for row in every.values() if (row.name in options.only if options.only else True)]
    wanted = [row for row in wanted if options.large or not row.is_large or options.only]

    machine = describe_machine()
    results = resumed_results(options.out, machine, is_quick=options.quick) if options.resume else None
    results = results or new_results(options.out, machine, is_quick=options.quick)
    print(f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}, commit {machine['commit']}")
    left = [row for row in wanted if not results.is_measured(row)]
    for name, module in modules.items():
        rows = [row for row in module.ROWS if row in left]
        for row, outcome, seconds in _measure(f"{package}.{name}", rows, is_quick=options.quick):
            results.keep(row, outcome, seconds)
            print(f"\r{report_line(row, outcome)}", flush=True)
    results.write()
    print(f"kept in {results.file} and {results.file.with_suffix('.md').name}")
    if not options.check:
        return 0
    under = results.below_floor(wanted)
    print("\n".join(["under their floor:", *under]) if under else "every row reaches its floor")
    return 1 if under else 0


def _measure(module: str, rows: list[Row], *, is_quick: bool) -> Iterator[tuple[Row, Measured | str, float]]:
    """Measure the rows of a module in a process of their own, and give each as it is there."""
    if not rows:
        return
    left = {row.name: row for row in rows}
    command = [sys.executable, "-m", "benchmarks.children.row", module, *left, *(["--quick"] if is_quick else [])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    started = time.monotonic()
    print(f"measuring {', '.join(left)} ", end="", file=sys.stderr, flush=True)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(ANSWER):
                answer = json.loads(line.removeprefix(ANSWER))
                outcome = answer["reason"] if "reason" in answer else Measured(answer["value"], answer["details"])
                yield left.pop(answer["name"]), outcome, time.monotonic() - started
                started = time.monotonic()
    for row in left.values():
        yield row, f"its process ended with exit code {process.returncode}", time.monotonic() - started


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure these rows")
    parser.add_argument("--check", action="store_true", help="exit 1 and name the rows that are under their floor")
    parser.add_argument("--quick", action="store_true", help="few rounds: does it run, about where is it")
    parser.add_argument("--large", action="store_true", help="also the rows of 50 million events (several minutes)")
    parser.add_argument("--resume", action="store_true", help="go on with the last results file of this commit")
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="FOLDER", help="where results are kept")
    return parser


if __name__ == "__main__":
    sys.exit(main())
