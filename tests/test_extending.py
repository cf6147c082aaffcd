"""The examples of docs/extending apply to the package as it is, pass their tests, and touch as few files as is said.

An example is a patch that adds something to the package, with its tests.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from itertools import chain
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


def test_each_example_applies_to_the_package_and_all_pass_their_tests(tmp_path: Path) -> None:
    """Each by itself; the tests of all in one copy and one process."""
    being_written = shutil.ignore_patterns("*.pyc.*")  # by other processes; what is compiled saves doing it again
    for name in ("ehrtrack", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=being_written)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    here = os.environ | {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}  # a repository above would hide the copy
    for patch in PATCHES:
        subprocess.run(["git", "apply", "--check", str(patch)], cwd=tmp_path, env=here, check=True)
    subprocess.run(["git", "apply", *map(str, PATCHES)], cwd=tmp_path, env=here, check=True)
    tests = {patch.stem: [name for name in touched(patch) if name.startswith("tests/")] for patch in PATCHES}
    assert all(tests.values()), f"an example brings no test of its own: {tests}"
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", *chain(*tests.values())]
    run = subprocess.run(command, cwd=tmp_path, env=here, capture_output=True, text=True, check=False)  # -m: the copy
    assert run.returncode == 0, run.stdout + run.stderr
    for names in tests.values():
        assert all(f"PASSED {name}::" in run.stdout for name in names)


def test_the_page_of_the_architecture_says_what_additions_touch() -> None:
    page = architecture.PAGE.read_text()
    assert architecture.with_sections(page, {"additions": architecture.additions()}) == page
    for name, most in architecture.MOST_FILES.items():
        assert 0 < len(architecture.files_touched(architecture.PATCHES / f"{name}.patch")) <= most
