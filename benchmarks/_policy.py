"""What `ehrtrack` does to a process before it imports torch; done to every process that measures.

Both sides of a comparison run in the same process, so a policy that helps the library helps its peer as well.
"""

from __future__ import annotations

import os


def prepare_process() -> None:
    """Let OpenMP threads sleep while they wait, so that a busy core does not hold up the other one."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
