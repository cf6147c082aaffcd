"""This machine: one worker is this process, more are processes beside it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType

from tqdm import tqdm

from ehrtrack.data.engines._protocol import Engine, Item, Result, thread_settings, worker_died
from ehrtrack.errors import EhrtrackError


def open_engine(n_workers: int) -> Engine:
    """The engine of this machine."""
    return LocalEngine(n_workers)


class LocalEngine:
    """Processes are started by the first `map` that needs them, and end with the engine."""

    def __init__(self, n_workers: int) -> None:
        self.n_workers = n_workers
        self._pool: ProcessPoolExecutor | None = None

    def map(self, function: Callable[[Item], Result], items: Sequence[Item], description: str = "") -> list[Result]:
        """The results in the order of the items; see `Engine.map`."""
        with tqdm(total=len(items), desc=description, disable=None) as progress:
            if self.n_workers == 1:
                return [_advance(progress, function(item)) for item in items]
            futures = [self._started().submit(function, item) for item in items]
            try:
                for future in as_completed(futures):
                    _advance(progress, future.result())
            except BrokenProcessPool as error:
                raise EhrtrackError(worker_died(error)) from error
            finally:
                _cancel(futures)
            return [future.result() for future in futures]

    def _started(self) -> ProcessPoolExecutor:
        # A forked child would inherit the locks of polars' and torch's threads, but not the threads.
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.n_workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_set_environment,
                initargs=(thread_settings(self.n_workers),),
            )
        return self._pool

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def _set_environment(settings: Mapping[str, str]) -> None:
    """Runs in a worker before the libraries that read these are imported: they come with the first item.

    Ctrl-C in a terminal reaches workers as well. It ends them without a traceback of each: files are renamed when they
    are whole, and the process above is the one to speak.
    """
    os.environ.update(settings)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _advance(progress: tqdm, result: Result) -> Result:
    progress.update()
    return result


def _cancel(futures: Sequence[Future[Result]]) -> None:
    for future in futures:
        future.cancel()
