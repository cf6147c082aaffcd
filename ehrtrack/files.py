"""What several parts do with files: read JSON and digests, and write files and folders that are whole or not there.

What is being written is locked by its writer. A writer that was killed leaves it behind without the lock, records in
it and all, and the next one that writes the same finds it so and removes it; what lives on is never touched.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ehrtrack.locks import lock

BROKEN = (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError)
"""What is raised by reading fields from a text that is not what its reader wants."""


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text from elsewhere.

    Raises
    ------
    ValueError
        Whatever is wrong with it: its syntax or encoding, a number of more digits than Python converts, or nesting that
        is too deep to be read.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def written_aside(file: Path, *, mode: int = 0o644, keeps_first: bool = False) -> Iterator[Path]:
    """A path to write to, which becomes the file when the block ends well, whole on the disk; its folder must be there.

    Parameters
    ----------
    mode : the file's permissions; while it is written only its owner can read it
    keeps_first : a file that is there already stays, also one that another process has just made

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "counts.json"
    >>> with written_aside(file) as aside:
    ...     _ = aside.write_text("[1, 2]")
    ...     file.exists()
    False
    >>> file.read_text()
    '[1, 2]'
    """

    def make(prefix: str) -> Path:
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=file.suffix, dir=file.parent)
        os.close(handle)
        return Path(name)

    with _locked(file.parent, f".{file.name}.", make) as aside:
        yield aside
        aside.chmod(mode)
        flush(aside)
        if keeps_first:
            _name_once(aside, file)
        else:
            aside.replace(file)
        flush(file.parent)


@contextmanager
def folder_aside(folder: Path) -> Iterator[Path]:
    """A folder to write to, which becomes `folder` when the block ends well, unless another made that first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder.parent, f".{folder.name}.") as aside:
        yield aside
        try:
            publish(aside, folder)
        except OSError:
            if not folder.is_dir():
                raise


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder in `parent`, gone at the end unless it was renamed; leftovers of the same prefix go before."""
    with _locked(parent, prefix, lambda prefix: Path(tempfile.mkdtemp(prefix=prefix, dir=parent))) as folder:
        yield folder


def publish(aside: Path, folder: Path) -> None:
    """Give a finished folder its name, once all that lies in it is on the disk; an empty one of that name gives way.

    Raises
    ------
    OSError
        If there is something of that name already.
    """
    for parent, _, names in os.walk(aside):
        for name in names:
            flush(Path(parent, name))
        flush(Path(parent))
    aside.chmod(0o755)
    aside.rename(folder)
    flush(folder.parent)


def flush(path: Path) -> None:
    """Have a file's content, or a folder's list of names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks keep no lists
            raise
    finally:
        os.close(descriptor)


def _name_once(aside: Path, file: Path) -> None:
    try:
        os.link(aside, file)
    except FileExistsError:
        pass
    except OSError:  # a disk that knows no links
        if not file.exists():
            aside.replace(file)


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
        lock(descriptor, waits=True)
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
            lock(descriptor, waits=False)
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
