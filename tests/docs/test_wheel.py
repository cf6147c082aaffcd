"""The wheel has all that `ehrtrack demo` and a report need without a checkout."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ehrtrack.errors import ConfigError

ROOT = Path(__file__).parents[2]
demo = importlib.import_module("ehrtrack.recipes.demo")  # its package has a function of this name


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> frozenset[str]:
    """The files of the wheel, made from a copy of what git would take: a build leaves folders beside its sources."""
    folder = tmp_path_factory.mktemp("wheel")
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "ehrtrack", "projects", "pyproject.toml", "README.md", "setup.py", "LICENSE"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        (folder / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "copy" / name)
    build = "import setuptools.build_meta as build; print(build.build_wheel('..'))"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=folder / "copy", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(folder / done.stdout.splitlines()[-1]) as wheel:
        return frozenset(wheel.namelist())


def test_it_has_the_package_the_studies_and_the_licence(names: frozenset[str]) -> None:
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ehrtrack").rglob("*.py")}
    studies = {f"ehrtrack/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "projects").glob("*/*.toml")}
    studies |= {
        f"ehrtrack/{path.relative_to(ROOT).as_posix()}" for path in ROOT.glob("projects/*/results*/tables/main.csv")
    }
    assets = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ehrtrack" / "reporting" / "assets").iterdir()}

    assert (modules | studies | assets) - names == set()
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "docs", "benchmarks"))]


def test_the_demo_brings_its_study_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "SHIPPED", ROOT)

    demo._bring_project()
    brought = {path.name for path in demo.PROJECT.iterdir()}
    (demo.PROJECT / "study.toml").write_text("mine")
    demo._bring_project()

    assert brought == {path.name for path in (ROOT / demo.PROJECT).iterdir()}
    assert (demo.PROJECT / "study.toml").read_text() == "mine"


def test_without_the_study_anywhere_the_demo_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "SHIPPED", tmp_path / "package")

    with pytest.raises(ConfigError, match=r"the demo needs projects/gi_bleed below the working folder"):
        demo._bring_project()
