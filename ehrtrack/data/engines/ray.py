"""A Ray cluster: the one that RAY_ADDRESS names, else one started on this machine and ended with the engine.

Workers read and write the files themselves, so on a cluster all paths lie on a file system that every node has.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from types import ModuleType, TracebackType
from typing import Any

from tqdm import tqdm

from ehrtrack.data.engines._protocol import Engine, Item, Result, thread_settings, worker_died
from ehrtrack.errors import ConfigError, EhrtrackError


def open_engine(n_workers: int) -> Engine:
    """The engine of a Ray cluster.

    Raises
    ------
    ConfigError
        If Ray is not installed, or nothing answers at RAY_ADDRESS.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f"engine 'ray' needs the package ray, which cannot be imported ({error}); "
            "install it with: pip install 'ehrtrack[ray]', or use engine 'local'"
        ) from error
    return RayEngine(ray, n_workers)


class RayEngine:
    """Connects when it is made; a connection that the program had already is used and left open."""

    def __init__(self, ray: ModuleType, n_workers: int) -> None:
        self.n_workers = n_workers
        self._ray = ray
        self._has_started = not ray.is_initialized()
        if self._has_started:
            _connect(ray, n_workers)

    def map(self, function: Callable[[Item], Result], items: Sequence[Item], description: str = "") -> list[Result]:
        """The results in the order of the items; see `Engine.map`."""
        task = self._ray.remote(num_cpus=1)(_call)
        waiting = list(enumerate(items))[::-1]
        running: dict[Any, int] = {}
        results: dict[int, Result] = {}
        with tqdm(total=len(items), desc=description, disable=None) as progress:
            while waiting or running:
                while waiting and len(running) < self.n_workers:
                    place, item = waiting.pop()
                    running[task.remote(function, item)] = place
                (done,), _ = self._ray.wait(list(running), num_returns=1)
                results[running.pop(done)] = self._get(done)
                progress.update()
        return [results[place] for place in range(len(items))]

    def _get(self, reference: Any) -> Any:
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except exceptions.RayTaskError as error:
            raise error.cause from None
        except (exceptions.WorkerCrashedError, exceptions.OutOfMemoryError, exceptions.NodeDiedError) as error:
            raise EhrtrackError(worker_died(error)) from error

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._has_started:
            self._ray.shutdown()


def _call(function: Callable[[Item], Result], item: Item) -> Result:
    # Ray wants a plain function, and `function` may be a partial.
    return function(item)


def _connect(ray: ModuleType, n_workers: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS")
    settings: dict[str, Any] = {"address": address}
    if not address:
        # "local" starts a cluster even where another one runs on this machine.
        settings = {"address": "local", "num_cpus": n_workers, "include_dashboard": False}
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            **settings,
            runtime_env={"env_vars": thread_settings(n_workers)},
            logging_level="ERROR",
            log_to_driver=False,
        )
    except ConnectionError as error:
        raise ConfigError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({error}); start one with `ray start --head`, "
            "or unset RAY_ADDRESS to start one on this machine"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray puts in one of its own, which would end a run unrecorded
