"""One thread owns the models: it takes all requests that wait, scores them together, and answers them together."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from ehrtrack.serving.messages import Answer, Problem, Request
from ehrtrack.serving.models import Models
from ehrtrack.serving.reading import Refused
from ehrtrack.serving.scoring import answer

MOST_WAITING = 256
"""Requests that wait for their answers. At 200 a second the last of them has it in little more than a second."""
MOST_EVENTS_WAITING = 400_000
"""Events of these: what their memory grows with."""
MOST_TOGETHER = 8_192
"""Events of a batch. More at once gain nothing, and whoever comes meanwhile waits for all of them."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Asked:
    request: Request
    result: asyncio.Future[Answer | Refused]


class Batcher:
    """Scores requests in batches that make themselves: while one is being scored, the next one gathers.

    So a request that comes alone waits for nobody, and many that come at once share what a batch costs.

    Parameters
    ----------
    models : looked at anew for each batch, which is of one version as a whole
    """

    def __init__(self, models: Models) -> None:
        self._models = models
        self._queue: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()
        self._n_waiting = self._n_events = 0  # changed by the loop's thread alone
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def n_waiting(self) -> int:
        """Requests that have no answer yet."""
        return self._n_waiting

    @property
    def is_working(self) -> bool:
        """Whether requests are still taken."""
        return self._thread.is_alive()

    async def ask(self, request: Request) -> Answer:
        """The answer to a request.

        Raises
        ------
        Refused
            503 where too many wait already, or what is wrong with the request.
        """
        n_events = request.n_events
        if self._n_waiting >= MOST_WAITING or (self._n_waiting and self._n_events + n_events > MOST_EVENTS_WAITING):
            raise Refused(503, f"{self._n_waiting} requests wait already; try again in a second")
        result: asyncio.Future[Answer | Refused] = asyncio.get_running_loop().create_future()
        self._n_waiting, self._n_events = self._n_waiting + 1, self._n_events + n_events
        try:
            self._queue.put(_Asked(request, result))
            found = await result
        finally:
            self._n_waiting, self._n_events = self._n_waiting - 1, self._n_events - n_events
        if isinstance(found, Refused):
            raise found
        return found

    def close(self) -> None:
        """End the thread when it has answered all that wait."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        ended = False
        while not ended:
            first = self._queue.get()
            if first is None:
                return
            batch, n_events = [first], first.request.n_events
            while n_events < MOST_TOGETHER:
                try:
                    another = self._queue.get_nowait()
                except queue.Empty:
                    break
                if another is None:
                    ended = True
                    break
                batch.append(another)
                n_events += another.request.n_events
            self._answer([one for one in batch if not one.result.cancelled()])

    def _answer(self, batch: Sequence[_Asked]) -> None:
        models, by_name = self._models.now(), dict[str, list[_Asked]]()
        for one in batch:
            by_name.setdefault(one.request.model or next(iter(models)), []).append(one)
        for name, asked in by_name.items():
            if name not in models:
                needed = f"one of {', '.join(models)}"
                problem = Problem(where="model", found="a model that is not served", needed=needed)
                refused = Refused(404, f"model: found a model that is not served, needed {needed}", [problem])
                _tell(asked, [refused] * len(asked))
                continue
            requests = [one.request for one in asked]
            try:
                found = answer(models[name], requests)
            except Exception as error:  # noqa: BLE001  one request must not take the others, or the thread, with it
                if len(asked) > 1:
                    for one in asked:
                        self._answer([one])
                    continue
                # Not its message, which may quote records.
                steps = "".join(traceback.format_tb(error.__traceback__))
                _log.error("a request failed with %s\n%s", type(error).__name__, steps)
                found = [Refused(500, "the model failed at these records; the server's log says where")]
            _tell(asked, found)


def _tell(asked: Sequence[_Asked], found: Sequence[Answer | Refused]) -> None:
    """Hand the answers to the loop that waits for them, all at once: each crossing wakes it."""
    loop = asked[0].result.get_loop()
    if not loop.is_closed():  # as it is once what was in flight had 30 s to end
        loop.call_soon_threadsafe(_resolve, list(zip(asked, found, strict=True)))


def _resolve(pairs: Sequence[tuple[_Asked, Answer | Refused]]) -> None:
    for one, found in pairs:
        if not one.result.done():  # whoever asked may have gone
            one.result.set_result(found)
