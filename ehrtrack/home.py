"""Where this machine keeps what runs need: journals, snapshots, tokenised records, and the key of subjects' hashes."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

from ehrtrack.errors import ConfigError

VARIABLE = "EHRTRACK_HOME"
HERE = Path(".ehrtrack")
"""Of the working folder."""

_TEMPORARY = re.compile(r"tmp[a-z0-9_]{8}")  # what Python's tempfile calls a folder, and `mlflow run` a clone


def home() -> Path:
    """The folder that all of a user's working folders share: EHRTRACK_HOME, or ``ehrtrack`` in the user's data folder.

    Raises
    ------
    ConfigError
        If EHRTRACK_HOME is no absolute path, or nothing says where the user's data are.
    """
    given = os.environ.get(VARIABLE, "").strip()
    if given:
        folder = Path(given).expanduser()
        if not folder.is_absolute():
            raise ConfigError(f"{VARIABLE} is {given!r}; needed is an absolute path, which is the same from any folder")
        return folder
    return _data_folder() / "ehrtrack"


def usual_cache() -> Path:
    """Where runs keep what they need unless ``runtime.cache`` says otherwise.

    It is EHRTRACK_HOME if that is set, else ``.ehrtrack`` in the working folder; in a folder that is temporary, as one
    that ``mlflow run`` fetched a project to, it is the user's data folder, since that one will be gone.
    """
    return home() if os.environ.get(VARIABLE, "").strip() or _is_temporary(Path.cwd()) else HERE


def known_caches() -> list[Path]:
    """The folders here in which runs may have left something: the usual one first, and those that others would use."""
    try:
        shared = [home()]
    except ConfigError:
        if os.environ.get(VARIABLE, "").strip():
            raise
        shared = []  # without a data folder there is nothing in it
    others = [folder for folder in (HERE, *shared) if folder.is_dir()]
    return list(dict.fromkeys([usual_cache(), *others]))


def make_cache(folder: Path) -> None:
    """Make sure, before any work, that the cache is a folder that can be written to.

    One that is made here is kept out of git, whatever repository it lies in: it holds records, and the key of subjects.

    Raises
    ------
    ConfigError
        If it is not.
    """
    try:
        if not folder.exists():
            folder.mkdir(parents=True)
            (folder / ".gitignore").write_text("*\n")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"runtime.cache is {str(folder)[:200]!r}, where nothing can be written ({error.strerror}); "
            "set it to a folder that you may write to"
        ) from error


def _data_folder() -> Path:
    """The user's data folder, after the XDG base directory specification, or as macOS has it."""
    given = Path(os.environ.get("XDG_DATA_HOME", ""))
    if given.is_absolute():
        return given
    try:
        user = Path.home()
    except RuntimeError as error:
        raise ConfigError(f"this user has no home folder ({error}); set {VARIABLE} to a folder to write to") from error
    return user / ("Library/Application Support" if sys.platform == "darwin" else ".local/share")


def _is_temporary(folder: Path) -> bool:
    """Whether a folder is one that Python's tempfile made, or lies in one."""
    inside = os.path.relpath(folder.resolve(), Path(tempfile.gettempdir()).resolve())
    return bool(_TEMPORARY.fullmatch(Path(inside).parts[0])) if inside != "." else False
