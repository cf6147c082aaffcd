"""The code and the machine of a run, which are recorded so that the run can be repeated."""

from __future__ import annotations

import functools
import getpass
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

UNKNOWN = "unknown"
_CODE = ("ehrtrack", "pyproject.toml", "requirements.lock", "MLproject")


@dataclass(frozen=True)
class GitState:
    """The commit of the running code; `dirty` is "true", "false" or "unknown"."""

    commit: str
    dirty: str


def git_state() -> GitState:
    """The commit of the EHRTrack checkout that runs, and whether its code differs from that commit.

    An image without a git folder names its commit in EHRTRACK_GIT_COMMIT. Code that is not in a git checkout,
    or a machine without git, gives "unknown".
    """
    for folder in (Path(__file__).parents[2], Path.cwd()):
        commit = _git(folder, "rev-parse", "HEAD")
        # An installed package in the .venv of somebody else's repository is not that repository.
        if commit and _git(folder, "ls-files", "--full-name", ":/ehrtrack/__init__.py"):
            changes = _git(folder, "status", "--porcelain", "--", *(f":/{path}" for path in _CODE))
            return GitState(commit, UNKNOWN if changes is None else str(bool(changes)).lower())
    return GitState(os.environ.get("EHRTRACK_GIT_COMMIT") or UNKNOWN, UNKNOWN)


def user_name() -> str:
    """The user: the tracking login, otherwise the name of the account, otherwise "unknown"."""
    try:
        return os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    except (ImportError, KeyError, OSError):  # a container's user id need not have a name
        return UNKNOWN


def environment() -> dict[str, Any]:
    """Python, machine and installed packages, as JSON-able values."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "n_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch": _torch(),
        "packages": {name: version for name, version in sorted(_packages().items())},
    }


@functools.cache
def _packages() -> dict[str, str]:
    """By name; read once in a process, as it takes a quarter of a second."""
    return {package.metadata["Name"]: package.version for package in metadata.distributions()}


def _torch() -> dict[str, Any]:
    torch = sys.modules.get("torch")  # not imported for this alone: it takes seconds
    if torch is None:
        return {}
    has_cuda = torch.cuda.is_available()
    return {
        "version": torch.__version__,
        "n_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if has_cuda else [],
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or UNKNOWN


@functools.cache
def _git(folder: Path, *arguments: str) -> str | None:
    """The output of git, or None if it fails or is not installed; asked once, as the code that runs was read once."""
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
