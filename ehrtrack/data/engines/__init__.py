"""Engines run one function over many items: in this process, in several, or on the workers of a cluster.

One module is one engine. Items and results travel between processes, so both are small: paths, not tables.
"""

from __future__ import annotations

from typing import cast

from ehrtrack import plugins
from ehrtrack.data.engines._protocol import Engine
from ehrtrack.errors import ConfigError

__all__ = ["Engine", "open_engine"]


def open_engine(name: str = "local", n_workers: int = 1) -> Engine:
    """An engine, to be used as a context manager: leaving it ends the processes that it started.

    Parameters
    ----------
    name : ``local`` or ``ray``
    n_workers : items that are worked on at the same time

    Raises
    ------
    ConfigError
        If there is no such engine, its package is not installed, or there would be no worker.
    """
    module = plugins.load("data.engines", name)
    if n_workers < 1:
        raise ConfigError(f"workers is {n_workers}; at least 1 is needed")
    return cast(Engine, module.open_engine(n_workers))
