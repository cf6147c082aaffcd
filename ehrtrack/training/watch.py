"""The progress of an epoch, shown while it runs: a bar in a terminal, a line a minute elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

LINE_SECONDS = 60.0


@contextmanager
def watched_epoch(
    name: str,
    *,
    n_done: int,
    n_batches: int,
    epochs_left: int,
    is_silent: bool = False,
    has_terminal: bool | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Callable[[int, float], None]]:
    """Show how far an epoch is while it lasts; what is yielded is to be called after each step.

    It takes the number of the epoch's batches that are done, and the mean loss of the epoch so far. In a terminal there
    is a bar. Elsewhere, such as in the log of a job, a line comes once a minute, with the time that is left at most: as
    long as each batch takes what the batches of this epoch took.

    Parameters
    ----------
    n_done, n_batches : batches of the epoch that were done before, and all that it has
    epochs_left : at most, after this one
    is_silent : nothing is shown
    has_terminal : whether somebody watches a terminal; found out by itself where not given
    clock : seconds, of which only differences count

    Examples
    --------
    A clock that goes half a minute each time it is read, and an epoch of four batches with one more to come:

    >>> seconds = iter(range(0, 300, 30))
    >>> watched = {"has_terminal": False, "clock": lambda: next(seconds)}
    >>> with watched_epoch("epoch 1/2", n_done=0, n_batches=4, epochs_left=1, **watched) as told:
    ...     for done in (1, 2, 3):
    ...         told(done, 0.5)
    epoch 1/2   50 %  train/loss 0.5000  at most 3 min left
    """
    if is_silent or (sys.stderr.isatty() if has_terminal is None else has_terminal):
        with tqdm(
            total=n_batches, initial=n_done, desc=name, leave=False, delay=3, disable=True if is_silent else None
        ) as bar:
            yield lambda n, loss: _moved(bar, n)
        return
    began = last = clock()
    first = n_done

    def told(n_done: int, loss: float) -> None:
        nonlocal last
        now = clock()
        if now - last < LINE_SECONDS:
            return
        last = now
        batches_left = n_batches - n_done + epochs_left * n_batches
        left = (now - began) / (n_done - first) * batches_left
        share = n_done / n_batches
        print(f"{name}  {share:>4.0%}  train/loss {loss:.4f}  at most {time_text(left)} left".replace("%", " %"))
        sys.stdout.flush()

    yield told


def _moved(bar: tqdm, n_done: int) -> None:
    bar.update(n_done - bar.n)


def time_text(seconds: float) -> str:
    """A duration as people say it.

    >>> [time_text(seconds) for seconds in (8, 90, 4000)]
    ['8 s', '2 min', '1.1 h']
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
