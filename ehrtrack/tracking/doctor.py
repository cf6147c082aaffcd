"""``ehrtrack doctor``: find what would stop a run on this machine before it starts."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from ehrtrack.errors import ConfigError
from ehrtrack.home import known_caches, usual_cache
from ehrtrack.privacy import KEY_FILE, KEY_VARIABLE, Privacy, has_key, read_key
from ehrtrack.tracking.client.diagnosis import Finding, check_server
from ehrtrack.tracking.outbox.sync import find_journals

MIN_FREE_GB, ENOUGH_FREE_GB = 1, 10


def check_all(*, n_megabytes: int = 10) -> Iterator[Finding]:
    """All checks, one by one as they finish; checks of the server stop once a failure makes the next ones pointless."""
    yield from check_server(n_megabytes)
    yield check_disk(Path.cwd())
    yield check_gpu()
    for folder in known_caches():
        yield check_journals(folder)
    yield check_subject_key(usual_cache())


def check_disk(folder: Path) -> Finding:
    """Check that the disk has room for checkpoints, and for journals while the server is unreachable."""
    free_gb = shutil.disk_usage(folder).free / 1e9
    text = f"{free_gb:.1f} GB free in {folder}"
    if free_gb < MIN_FREE_GB:
        return Finding("fail", "disk", f"{text}; free at least {MIN_FREE_GB} GB, or work on another disk")
    if free_gb < ENOUGH_FREE_GB:
        return Finding(
            "warn", "disk", f"{text}; checkpoints of a large model and its journal take some {ENOUGH_FREE_GB}"
        )
    return Finding("ok", "disk", text)


def check_gpu() -> Finding:
    """Check whether there is a GPU, and whether torch can use it."""
    import torch

    built = f"torch {torch.__version__}"
    seen = _nvidia_gpus()
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        try:
            torch.ones(8, 8, device="cuda").sum().item()
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            return Finding(
                "fail",
                "gpu",
                f"{name} is seen, but {built} cannot compute on it: {reason}; install a torch built for it",
            )
        return Finding("ok", "gpu", f"{torch.cuda.device_count()} x {name}; {built} computes on it")
    if torch.backends.mps.is_available():
        return Finding("ok", "gpu", f"Apple's, by MPS; {built}")
    if not seen:
        return Finding("warn", "gpu", f"none is seen (nvidia-smi); {built} trains on the CPU")
    if torch.version.cuda is None:
        return Finding(
            "fail", "gpu", f"{seen} is there, but {built} is built without CUDA; pip install --force-reinstall torch"
        )
    return Finding(
        "fail",
        "gpu",
        f"{seen} is there, but {built}, built for CUDA {torch.version.cuda}, cannot use it; "
        "take a newer NVIDIA driver or a torch built for an older CUDA (pytorch.org/get-started/locally)",
    )


def check_journals(folder: Path) -> Finding:
    """Check for journals of earlier runs in this folder that were not sent."""
    left = find_journals(folder) if folder.exists() else []
    if left:
        return Finding(
            "warn", "journals", f"{len(left)} in {folder} of runs not sent as a whole; when none runs: ehrtrack sync"
        )
    return Finding("ok", "journals", f"none left unsent in {folder}")


def check_subject_key(cache: Path) -> Finding:
    """Report the key under which runs of this machine log their subjects."""
    if not has_key(cache):
        return Finding(
            "warn",
            "subjects",
            f"the first run here makes a key of their hashes; to compare with runs of another machine, bring its "
            f"{cache / KEY_FILE}, or set the same {KEY_VARIABLE}",
        )
    try:
        key = read_key(cache)
    except ConfigError as error:
        return Finding("fail", "subjects", str(error))
    return Finding("ok", "subjects", f"are logged under hashes, key {Privacy(key).fingerprint}")


def _nvidia_gpus() -> str:
    """The driver's own list, such as ``NVIDIA H100 80GB HBM3``; empty if there is no driver or no GPU."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return ", ".join(done.stdout.split("\n")).strip(", ") if done.returncode == 0 else ""
