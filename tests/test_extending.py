"""The examples of docs/extending apply to the package as it is, pass their tests, and touch as few files as is said.

An example is a patch that adds something to the package, with its tests.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import architecture
import pytest

ROOT = Path(__file__).parents[1]
N_FILES = {"metric": 2, "plot": 2}
"""Files of the package that an example touches, by its name; its tests are not counted. Examples of choices, such as
objectives and sources, are tested in test_extending_plugins.py, by the contracts of each."""
PATCHES = [ROOT / "docs" / "extending" / f"{name}.patch" for name in N_FILES]
CHOICES = {"objective", "baseline", "source", "strategy"}


def touched(patch: Path) -> list[str]:
    """The files that a patch changes or adds."""
    return re.findall(r"^\+\+\+ b/(\S+)$", patch.read_text(), re.MULTILINE)


def test_every_example_is_counted() -> None:
    assert {patch.stem for patch in (ROOT / "docs" / "extending").glob("*.patch")} == set(N_FILES) | CHOICES


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_an_example_touches_as_few_files_as_is_said(patch: Path) -> None:
    assert sum(name.startswith("ehrtrack/") for name in touched(patch)) == N_FILES[patch.stem]


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_an_example_applies_to_the_package_and_passes_its_tests(patch: Path, tmp_path: Path) -> None:
    without = shutil.ignore_patterns("__pycache__")
    for name in ("ehrtrack", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=without)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    here = os.environ | {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}  # a repository above would hide the copy
    subprocess.run(["git", "apply", str(patch)], cwd=tmp_path, env=here, check=True)
    tests = [name for name in touched(patch) if name.startswith("tests/")]
    assert tests, f"{patch.name} brings no test of its own"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]  # -m: the copy is imported
    run = subprocess.run(command, cwd=tmp_path, env=here, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout


def test_the_page_of_the_architecture_says_what_additions_touch() -> None:
    page = architecture.PAGE.read_text()
    assert architecture.with_sections(page, {"additions": architecture.additions()}) == page
    for name, most in architecture.MOST_FILES.items():
        assert 0 < len(architecture.files_touched(architecture.PATCHES / f"{name}.patch")) <= most
