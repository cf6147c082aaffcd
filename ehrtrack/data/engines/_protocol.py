"""What every engine offers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Engine(Protocol):
    """Runs a function over items.

    Attributes
    ----------
    n_workers : items that are worked on at the same time
    """

    n_workers: int

    def map(self, function: Callable[[Item], Result], items: Sequence[Item], description: str = "") -> list[Result]:
        """The results in the order of the items, whichever is done first; shows a progress bar on a terminal.

        Parameters
        ----------
        function : can be pickled: a function of a module, or a `functools.partial` of one

        Raises
        ------
        EhrtrackError
            If a worker died; what the function itself raises comes through as it is, once.
        """
        ...

    def __enter__(self) -> Engine: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


def thread_settings(n_workers: int) -> dict[str, str]:
    """Environment of a worker, so that n workers do not each start a thread a core; what is set already stays."""
    n_threads = str(max(1, (os.cpu_count() or 1) // n_workers))
    names = ("POLARS_MAX_THREADS", "OMP_NUM_THREADS")
    return {name: os.environ.get(name, n_threads) for name in names}


def worker_died(reason: object) -> str:
    """What to tell the user when the system ended a worker."""
    return (
        f"a worker process ended before its item was done ({reason}); most often memory ran out: use fewer workers "
        "or smaller shards. Start the command again: finished items are kept"
    )
