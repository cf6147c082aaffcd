"""Where runs keep what they need: by the environment, by the working folder, and never in a clone that goes away."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

from ehrtrack.config import load_config
from ehrtrack.errors import ConfigError
from ehrtrack.home import HERE, home, known_caches, usual_cache


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as `mlflow run` makes one for a project that it fetches."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return Path(tempfile.mkdtemp())


@pytest.mark.skipif(sys.platform != "linux", reason="where user's data are differs")
def test_the_users_data_folder_is_that_of_the_xdg_specification(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    assert home() == tmp_path / "xdg" / "ehrtrack"
    monkeypatch.setenv("HOME", str(tmp_path / "anna"))
    for unset in ("", "relative/is/not/used"):
        monkeypatch.setenv("XDG_DATA_HOME", unset)
        assert home() == tmp_path / "anna" / ".local" / "share" / "ehrtrack"


def test_ehrtrack_home_wins_and_is_the_same_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EHRTRACK_HOME", str(tmp_path / "mine"))
    assert (home(), usual_cache()) == (tmp_path / "mine", tmp_path / "mine")
    monkeypatch.setenv("HOME", str(tmp_path / "anna"))
    monkeypatch.setenv("EHRTRACK_HOME", "~/mine")
    assert home() == tmp_path / "anna" / "mine"
    monkeypatch.setenv("EHRTRACK_HOME", "mine")
    with pytest.raises(ConfigError, match="EHRTRACK_HOME is 'mine'; needed is an absolute path"):
        usual_cache()


def test_a_clone_that_goes_away_keeps_nothing(clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clone / "sub").mkdir()
    (clone / "study.toml").write_text('study = "s"\ndata = { path = "meds" }\n')
    for folder, wanted in ((clone, home()), (clone / "sub", home()), (tmp_path, HERE), (clone.parent, HERE)):
        monkeypatch.chdir(folder)
        assert usual_cache() == wanted
        assert load_config(clone / "study.toml").runtime.cache == wanted


def test_what_earlier_runs_left_is_looked_for_in_both_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert known_caches() == [HERE]
    home().mkdir(parents=True)
    assert known_caches() == [HERE, home()]
    monkeypatch.setenv("EHRTRACK_HOME", str(tmp_path / "mine"))
    assert known_caches() == [tmp_path / "mine"]
    HERE.mkdir()
    assert known_caches() == [tmp_path / "mine", HERE]
