"""How OpenMP's threads wait between two parallel regions: decided before torch is loaded, by the command line alone."""

from __future__ import annotations

import os


def set_wait_policy() -> None:
    """Let threads spin for some microseconds and then sleep, unless the user chose otherwise.

    Threads that spin for long take the core from any other process that wants it; threads that sleep at once cost a
    third of a quiet machine. GNU's OpenMP reads ``GOMP_SPINCOUNT``, others know ``OMP_WAIT_POLICY`` alone. Both are
    read once, when torch loads OpenMP, so a notebook that wants the same calls this before it imports torch. Where one
    of the two is set already, neither is touched.

    >>> import os
    >>> from unittest.mock import patch
    >>> with patch.dict(os.environ, {"OMP_WAIT_POLICY": "ACTIVE"}):
    ...     set_wait_policy()
    ...     os.environ["OMP_WAIT_POLICY"]
    'ACTIVE'
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ.update(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="1000")
