"""A folder that must stay as it is: it lists the SHA-256 of its files, and that of the list is kept elsewhere."""

from __future__ import annotations

from pathlib import Path

from ehrtrack.errors import CheckpointError
from ehrtrack.files import sha256_of
from ehrtrack.tracking.names import CHECKSUMS

CONTENT = "artifacts"
"""The part of a stored model in which nothing may be added; mlflow itself writes files beside it."""


def seal(folder: Path) -> str:
    """Write the list of a folder's files, as ``sha256sum -c`` reads it; returns the list's SHA-256."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    lines = [f"{sha256_of(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    (folder / CHECKSUMS).write_text("".join(lines))
    return sha256_of(folder / CHECKSUMS)


def check_seal(folder: Path, digest: str, *, name: str) -> None:
    """Make sure that a folder is what `seal` returned this digest for.

    Parameters
    ----------
    digest : empty where it is not known, and the files are only compared with the list beside them
    name : what the folder is called in a message

    Raises
    ------
    CheckpointError
        With the first file that is missing, changed or added.
    """
    sums = folder / CHECKSUMS
    if not sums.is_file():
        raise _broken(name, CHECKSUMS, "is missing")
    if digest and sha256_of(sums) != digest:
        raise _broken(name, CHECKSUMS, "was changed")
    listed = {path: line for line, _, path in (row.partition("  ") for row in sums.read_text().splitlines())}
    for path, wanted in listed.items():
        if not (folder / path).is_file():
            raise _broken(name, path, "is missing")
        if sha256_of(folder / path) != wanted:
            raise _broken(name, path, "was changed")
    for file in sorted((folder / CONTENT).rglob("*")):
        path = file.relative_to(folder).as_posix()
        if not file.is_dir() and path not in listed:
            raise _broken(name, path, "was added")


def _broken(name: str, path: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"{name} is not what was registered: {path} {what} in the store since then. It is not used: bring "
        "the store's files back from a backup, or fit the model again and register that run"
    )
