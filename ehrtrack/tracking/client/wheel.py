"""The package as a wheel, made of what is running: it travels with a registered model, as no index has it."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import zipfile
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

import ehrtrack
from ehrtrack.errors import TrackingError

PACKAGE = "ehrtrack"
_DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip file can have: the same code gives the same bytes
_LEFT_OUT = ("__pycache__",)


def write_wheel(folder: Path) -> Path:
    """Write the running package as a wheel, which pip installs and which Python imports from as it is.

    `pip wheel` would build what lies in a checkout, with tools from an index; what is installed need not have one.

    Raises
    ------
    TrackingError
        If the package does not run from files, and so cannot be copied.
    """
    name, content = _wheel()
    (folder / name).write_bytes(content)
    return folder / name


@functools.cache
def _wheel() -> tuple[str, bytes]:
    """The wheel's name and bytes, a megabyte: made once, as the code that runs was read once."""
    root = Path(ehrtrack.__file__).parent
    if not root.is_dir():
        raise TrackingError(
            f"EHRTrack runs from {root}, which is no folder, so that its code cannot be kept with the model; install "
            "it (pip install) and register the run again"
        )
    distribution = metadata.distribution(PACKAGE)
    info = f"{PACKAGE}-{distribution.version}.dist-info"
    content = {
        f"{PACKAGE}/{file.relative_to(root).as_posix()}": file.read_bytes()
        for file in sorted(root.rglob("*"))
        if file.is_file() and not set(_LEFT_OUT) & set(file.parts)
    }
    content[f"{info}/METADATA"] = (distribution.read_text("METADATA") or "").encode()
    content[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: ehrtrack\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    content[f"{info}/entry_points.txt"] = (distribution.read_text("entry_points.txt") or "").encode()
    lines = [f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in content.items()]
    content[f"{info}/RECORD"] = "".join([*lines, f"{info}/RECORD,,\n"]).encode()
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            entry = zipfile.ZipInfo(name, _DATE)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return f"{PACKAGE}-{distribution.version}-py3-none-any.whl", made.getvalue()


@functools.cache
def pinned_requirements() -> tuple[str, ...]:
    """What the package depends on, in the versions that are running, as an index has them.

    A local label, as in 2.13.0+cpu, says how a build was made and is on no index; it is left out.
    """
    found = []
    for line in metadata.requires(PACKAGE) or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            version = metadata.version(requirement.name).partition("+")[0]
            found.append(f"{requirement.name}=={version}")
    return tuple(sorted(found))


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
