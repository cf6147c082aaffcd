"""The machine and the code that numbers are of."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
ISA_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
    "sve",
)
PACKAGES = (
    *("torch", "transformers", "peft", "numpy", "polars", "duckdb", "pandas"),
    *("lifelines", "scikit-survival", "mlflow"),
)


def describe_machine() -> dict[str, str]:
    """CPU, memory, system, torch and its build, versions of the peers, and the git commit."""
    import torch

    cpu = _cpu_info()
    build = torch.__config__.show()
    libraries = re.findall(r"(oneAPI Math Kernel Library Version [\d.]+|MKL-DNN v[\d.]+|BLAS_INFO=\w+)", build)
    return {
        "cpu": cpu.get("model name", platform.processor() or platform.machine()),
        "cores": str(psutil.cpu_count(logical=False) or "unknown") + f" ({os.cpu_count()} logical)",
        "isa": " ".join(flag for flag in ISA_FLAGS if flag in cpu.get("flags", cpu.get("Features", "")).split()),
        "memory_gb": f"{psutil.virtual_memory().total / 1e9:.1f}",
        "system": platform.platform(),
        "load_at_start": f"{os.getloadavg()[0]:.2f}",
        "python": platform.python_version(),
        "torch_build": ", ".join([torch.backends.cpu.get_cpu_capability(), *libraries]),
        **{name: _version(name) for name in PACKAGES},
        "commit": git_commit(),
    }


def git_commit() -> str:
    """The commit, with ``-dirty`` where files differ from it (results of measurements aside).

    Where there is no git folder, EHRTRACK_GIT_COMMIT names it, as for runs.
    """
    commit = _git("rev-parse", "--short=12", "HEAD") or os.environ.get("EHRTRACK_GIT_COMMIT", "unknown")[:12]
    changes = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return f"{commit}{'-dirty' if changes else ''}"


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _cpu_info() -> dict[str, str]:
    file = Path("/proc/cpuinfo")
    if not file.is_file():
        return {}
    lines = (line.partition(":") for line in file.read_text().split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
