"""Every public measure, cohort rule and section of settings has an example, and all examples of the package run."""

from __future__ import annotations

import ast
import doctest
import importlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import ehrtrack

PACKAGE = Path(ehrtrack.__file__).parent
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
SHOWN_BY_EXAMPLE = ("survival/", "evaluation/", "config.py", "search_space.py", "section.py", "data/sources/base.py")
"""Folders and modules of which every public function and class has an example."""
COHORT_RULES = (
    *("data/index_rules.py", "data/eligibility.py", "data/few_labels.py", "data/horizon.py", "data/observation.py"),
    *("data/outcomes.py", "data/split_rules.py", "data/splits.py"),
)
READ_DATA = {
    *("with_reasons", "with_splits", "split_records", "n_read_in_pretraining", "table_fingerprint", "subject_groups"),
    "unit_where_several",
}
"""Functions of those modules that read a dataset or a table of a source, of which a few lines make no example."""

Definition = ast.FunctionDef | ast.ClassDef


def public_definitions(path: Path) -> Iterator[Definition]:
    for node in TREES[path].body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node


@cache
def sections() -> frozenset[str]:
    """The names of all subclasses of `Section`, and itself."""
    bases = {
        node.name: {ast.unparse(base) for base in node.bases}
        for path in TREES
        for node in public_definitions(path)
        if isinstance(node, ast.ClassDef)
    }
    found = {"Section"}
    while more := {name for name, of_class in bases.items() if of_class & found} - found:
        found |= more
    return frozenset(found)


def needs_example(path: Path, node: Definition) -> bool:
    inside = path.relative_to(PACKAGE).as_posix()
    is_shown = inside in COHORT_RULES or inside.startswith(SHOWN_BY_EXAMPLE)
    return (is_shown and node.name not in READ_DATA) or node.name in sections()


def test_every_section_of_settings_is_found() -> None:
    assert {"RunConfig", "CoxConfig", "MeanPoolConfig", "TimeSplit", "VisitIndex", "LoraConfig", "World"} <= sections()


def test_every_public_measure_rule_and_section_has_a_docstring_with_an_example() -> None:
    lacking = [
        f"{path.relative_to(PACKAGE)}: {node.name}"
        for path in TREES
        for node in public_definitions(path)
        if needs_example(path, node) and ">>> " not in (ast.get_docstring(node) or "")
    ]
    assert lacking == []


def module_name(path: Path) -> str:
    return ".".join(("ehrtrack", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def n_examples(path: Path) -> int:
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = (ast.get_docstring(node) or "" for node in ast.walk(TREES[path]) if isinstance(node, nodes))
    return sum(len(doctest.DocTestParser().get_examples(doc)) for doc in docs)


@pytest.mark.parametrize("path", [path for path in TREES if n_examples(path)], ids=module_name)
def test_examples_give_what_they_say(path: Path) -> None:
    result = doctest.testmod(importlib.import_module(module_name(path)), verbose=False)

    assert result.failed == 0, "what was expected and what came is in the captured output"
    assert result.attempted == n_examples(path), "an example stands where doctest does not find it"
