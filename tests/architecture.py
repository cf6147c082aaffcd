"""The tables of docs/architecture.md, counted from git: what an addition touches, and how large the package is.

``python tests/architecture.py`` writes them anew; a test fails when they are no longer what git says.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PATCHES = ROOT / "docs" / "extending"
BEFORE = "259b31f"
"""The last commit before plug-ins had base classes and metrics a table."""

MOST_FILES = {"objective": 3, "baseline": 1, "source": 1, "strategy": 1, "metric": 2, "plot": 2}
"""Files of the package that an addition may touch."""


def files_touched(patch: Path) -> list[str]:
    """The files of the package that a patch adds or changes.

    >>> files_touched(PATCHES / "baseline.patch")
    ['ehrtrack/baselines/exponential.py']
    """
    counted = _git("apply", "--numstat", str(patch)).splitlines()
    return [line.split("\t")[2] for line in counted if line.split("\t")[2].startswith("ehrtrack/")]


def additions() -> str:
    """A table of the example patches, and how many files of the package each touches."""
    lines = ["| to add | files | which | example |", "|---|--:|---|---|"]
    for name, most in MOST_FILES.items():
        touched = files_touched(PATCHES / f"{name}.patch")
        which = ", ".join(f"`{file}`" for file in touched)
        lines.append(
            f"| {name} | {len(touched)} of at most {most} | {which} | [`{name}.patch`](extending/{name}.patch) |"
        )
    return "\n".join(lines)


def size() -> str:
    """A table of the package's size at `BEFORE` and now."""
    lines = ["| | files | lines | of them docstrings | modules over 400 lines |", "|---|--:|--:|--:|--:|"]
    now = [(ROOT / name).read_text() for name in _git("ls-files", "ehrtrack/*.py").split()]
    names = [name for name in _git("ls-tree", "-r", "--name-only", BEFORE, "ehrtrack").split() if name.endswith(".py")]
    then = [_git("show", f"{BEFORE}:{name}") for name in names]
    for when, modules in ((f"at `{BEFORE}`", then), ("now", now)):
        n_lines = [len(text.splitlines()) for text in modules]
        n_doc = sum(_docstring_lines(text) for text in modules)
        n_long = sum(n > 400 for n in n_lines)
        lines.append(f"| {when} | {len(modules)} | {sum(n_lines):,} | {n_doc:,} | {n_long} |")
    return "\n".join(lines)


def with_sections(page: str, sections: dict[str, str]) -> str:
    """The page with the text between ``<!-- NAME -->`` and ``<!-- end of NAME -->`` replaced."""
    for name, text in sections.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        page = re.sub(rf"{begin}\n.*?{end}", lambda _, b=begin, t=text, e=end: f"{b}\n{t}\n{e}", page, flags=re.DOTALL)
    return page


def _docstring_lines(text: str) -> int:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes: Iterable[ast.AST] = ast.walk(ast.parse(text))
    docs = (ast.get_docstring(node) for node in nodes if isinstance(node, documented))
    return sum(len(doc.splitlines()) for doc in docs if doc)


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    PAGE.write_text(with_sections(PAGE.read_text(), {"additions": additions(), "size": size()}))
