"""Tell the user's own service, such as a chat or a mailbox, how a study ended."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ehrtrack.errors import ConfigError
from ehrtrack.privacy import Privacy
from ehrtrack.recipes.report import report_page
from ehrtrack.signals import received
from ehrtrack.study.results import StudyResults, Unfinished
from ehrtrack.tracking.outbox.masking import NOTIFY, without_secrets

MOST_OF_AN_ANSWER = 800
"""Characters of whole sentences, the first of which is told however long it is."""
MOST_OF_AN_ERROR = 500
LEAST_SECRET = 4
"""Characters of a part of the address that is not shown."""
_NO_SUBJECTS = Privacy(key=b"")
"""Hides subjects, whatever the tracking server may be told of them."""


@dataclass(frozen=True)
class Message:
    """What is told.

    Attributes
    ----------
    is_good : whether all went well
    """

    title: str
    body: str
    is_good: bool


class Notifier:
    """The service of EHRTRACK_NOTIFY.

    Raises
    ------
    ConfigError
        If the package that reaches it is not installed, or it is none that there is. The address is not shown: most
        of them are passwords.
    """

    def __init__(self, address: str) -> None:
        try:
            import apprise
        except ModuleNotFoundError as error:
            raise ConfigError(
                f'{NOTIFY} is set, and telling a service needs another package: pip install "ehrtrack[notify]"; or '
                f"unset {NOTIFY}"
            ) from error
        with _heard():
            service = apprise.Apprise.instantiate(address)
        if service is None:
            scheme = re.match(r"\w+(?=://)", address)
            raise ConfigError(
                f"{NOTIFY} holds no address of a service that can be told"
                f"{f' (it begins with {scheme[0]}://)' if scheme else ''}; needed is one address as apprise writes "
                "them, such as json://HOST:PORT/PATH, mailto://USER:PASSWORD@DOMAIN or slack://TOKEN_A/TOKEN_B/TOKEN_C"
            )
        self._name = str(service.service_name)
        self._services = apprise.Apprise(service)
        self._hidden = sorted(re.findall(rf"[^/:@?&=\s]{{{LEAST_SECRET},}}", address.partition("://")[2]), key=len)

    def tell(self, message: Message) -> None:
        """Send a message; one that does not arrive is told here, and changes nothing."""
        import apprise

        with _heard() as said:
            try:
                answer = self._services.notify(
                    body=without_secrets(message.body),
                    title=without_secrets(message.title),
                    notify_type=apprise.NotifyType.SUCCESS if message.is_good else apprise.NotifyType.FAILURE,
                    body_format=apprise.NotifyFormat.TEXT,
                )
                is_sent = bool(answer)
            except Exception as error:  # noqa: BLE001  a study is what it is, whatever becomes of a message
                said.append(f"{type(error).__name__}: {error}")
                is_sent = False
        if not is_sent:
            reason = self._shown(" ".join(said)) or "it gave no reason"
            print(
                f"the message of how it ended could not be sent by {self._name} ({NOTIFY}): {reason}",
                file=sys.stderr,
                flush=True,
            )

    def _shown(self, text: str) -> str:
        """A text without any part of the address."""
        for part in reversed(self._hidden):
            text = text.replace(part, "***")
        return without_secrets(text)


def end_is_told(file: Path, work: Callable[[], StudyResults | None]) -> StudyResults | None:
    """Work for a study, and tell the service of EHRTRACK_NOTIFY, if there is one, how it ended.

    The end of a study is told by the worker that keeps its record, and a failure by the worker that it befell. One
    that is told to stop, by Ctrl-C or SIGTERM, is no failure.

    Parameters
    ----------
    file : the study's
    work : returns what it came to, and None where another worker says so

    Raises
    ------
    ConfigError
        If the address of EHRTRACK_NOTIFY cannot be used, before anything else is done.
    """
    address = os.environ.get(NOTIFY, "").strip()
    if not address:
        return work()
    notifier = Notifier(address)
    try:
        results = work()
    except Unfinished as error:
        notifier.tell(message_of_end(file, error.results))
        raise
    except Exception as error:
        if received() is None:  # a query that Ctrl-C broke into has an error of its own
            notifier.tell(message_of_failure(file, error))
        raise
    if results is not None:
        notifier.tell(message_of_end(file, results))
    return results


def message_of_end(file: Path, results: StudyResults) -> Message:
    """What a study came to: its question and answer, how many cells are done, hours, and where the report is."""
    n_missing = len(results.missing)
    n_done = len(results.repeats) + len(results.pretrainings)
    metrics = [repeat.row.metrics for repeat in results.repeats] + [run.metrics for run in results.pretrainings]
    hours = sum(of_run.get("cost/total_seconds", 0.0) for of_run in metrics) / 3600
    page = report_page(results.study, file).resolve()
    without = f", {n_missing} {'has' if n_missing == 1 else 'have'} no result" if n_missing else ""
    parts = [
        results.settings.question,
        first_sentences(results.findings().answer, MOST_OF_AN_ANSWER) or "No run that can be compared is finished.",
        f"{n_done} {'cell is' if n_done == 1 else 'cells are'} done{without}; {hours:.1f} hours of runs.",
        f"Report: {page} on {socket.gethostname()}" if page.is_file() else "",
    ]
    title = f"{results.study}: {'not all of the study is done' if n_missing else 'the study is done'}"
    return Message(title, "\n\n".join(filter(None, parts)), is_good=not n_missing)


def message_of_failure(file: Path, error: Exception) -> Message:
    """What ended a worker before the study was done."""
    reason = _NO_SUBJECTS.message(f"{type(error).__name__}: {error}")[:MOST_OF_AN_ERROR]
    body = f"A worker on {socket.gethostname()} ended: {reason}\n\nWhat is finished is kept; start it again to go on."
    return Message(f"{file}: a worker failed", body, is_good=False)


def first_sentences(text: str, most: int) -> str:
    """The whole sentences at the beginning of a text that fit into so many characters, and at least one.

    Examples
    --------
    >>> first_sentences("Best is full, with .712 (sd .001). Does it pay? It does.", 50)
    'Best is full, with .712 (sd .001). Does it pay?'
    """
    first, *others = re.split(r"(?<=[.?!]) (?=[A-Z])", text)
    kept = first
    for sentence in others:
        if len(kept) + 1 + len(sentence) > most:
            break
        kept += f" {sentence}"
    return kept


@contextmanager
def _heard() -> Iterator[list[str]]:
    """What apprise warns of while inside; it is kept from all other logs, for it may name the address."""
    said: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logger, handler = logging.getLogger("apprise"), Handler(logging.WARNING)
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
