"""Files and folders that are written aside and renamed, so that they are there whole or not at all.

What is being written is locked by its writer. A writer that was killed leaves it behind without the lock, records in
it and all, and the next one that writes the same finds it so and removes it; what lives on is never touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ehrtrack.errors import ConfigError


@contextmanager
def written_aside(file: Path) -> Iterator[Path]:
    """A path to write to, which becomes the file when the block ends well; its folder must be there."""

    def make(prefix: str) -> Path:
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=file.suffix, dir=file.parent)
        os.close(handle)
        return Path(name)

    with _locked(file.parent, f".{file.name}.", make) as aside:
        yield aside
        aside.chmod(0o644)
        aside.replace(file)


@contextmanager
def folder_aside(folder: Path) -> Iterator[Path]:
    """A folder to write to, which becomes `folder` when the block ends well, unless another made that first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder.parent, f".{folder.name}.") as aside:
        yield aside
        aside.chmod(0o755)
        try:
            aside.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder in `parent`, gone at the end unless it was renamed; leftovers of the same prefix go before."""
    with _locked(parent, prefix, lambda prefix: Path(tempfile.mkdtemp(prefix=prefix, dir=parent))) as folder:
        yield folder


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


@contextmanager
def _locked(parent: Path, prefix: str, make: Callable[[str], Path]) -> Iterator[Path]:
    """What `make` makes in `parent` under a name that begins so, locked while the block runs and gone after it."""
    _remove_leftovers(parent, prefix)
    with contextlib.ExitStack() as opened:
        path = make(prefix)
        while not _lock(path, opened):  # somebody took it for a leftover before it was locked
            path = make(prefix)
        try:
            yield path
        finally:
            _remove(path)


def _lock(path: Path, opened: contextlib.ExitStack) -> bool:
    """Lock it until `opened` ends, where the disk knows locks; whether it is still there then."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    opened.callback(os.close, descriptor)
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return path.exists()


def _remove_leftovers(parent: Path, prefix: str) -> None:
    names = os.listdir(parent) if parent.is_dir() else []
    for path in (parent / name for name in sorted(names) if name.startswith(prefix)):
        if not path.is_symlink():
            _remove_leftover(path)


def _remove_leftover(path: Path) -> None:
    with contextlib.ExitStack() as opened:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            opened.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, FileNotFoundError):
            return  # it is being written, or its writer has just ended
        except OSError as error:
            _tell(f"{path} may be left by a process that was killed ({error.strerror}); remove it if nothing writes it")
            return
        _remove(path)
        _tell(f"removed {path}, left by a process that was killed")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
