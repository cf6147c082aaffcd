"""The logger of a run: every call becomes a record in its outbox, which a thread sends to the server."""

from __future__ import annotations

import json
import logging
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from ehrtrack.errors import TrackingError
from ehrtrack.privacy import Privacy
from ehrtrack.tracking import names
from ehrtrack.tracking.client.connection import ui_command
from ehrtrack.tracking.client.views import with_links
from ehrtrack.tracking.names import MAX_TAG_CHARACTERS
from ehrtrack.tracking.outbox.delivery import ROWS_PER_CALL
from ehrtrack.tracking.outbox.journal import REFUSED, Journal, remove_journal
from ehrtrack.tracking.outbox.masking import without_secrets
from ehrtrack.tracking.outbox.sender import Sender, drain_seconds
from ehrtrack.tracking.recovery.lease import Heartbeat, RunClaimLost

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

Scalar = str | int | float | bool
_Value = TypeVar("_Value")

# mlflow's limit; beyond it its client cuts silently.
MAX_PARAM_CHARACTERS = 6000

_log = logging.getLogger(__name__)


class TrackedRun:
    """A run that is being tracked; a RunLogger.

    Every method writes to the local journal and returns; a background thread sends it. A server that is unreachable,
    hangs or refuses a call causes warnings and nothing else here. TrackingError is raised for values that no server
    could accept, and if the journal cannot be written. Once another process has claimed the run, every method raises
    its subclass RunClaimLost.

    Parameters
    ----------
    run_key : names the run from its first record on, with or without a server, and never changes; its journal's folder
        has this name, and the server finds by it the run that it made
    resumed_run_id : the server's id of the run that this process resumes
    attempt : the number of this process's claim to the run; 0 where it began it
    """

    def __init__(
        self, journal: Journal, *, run_key: str, name: str, resumed_run_id: str | None = None, attempt: int = 0
    ) -> None:
        self.run_key = run_key
        self.name = name
        self.status = "RUNNING"
        self.privacy: Privacy | None = None
        self._journal = journal
        self._resumed_run_id = resumed_run_id
        self._params: dict[str, str] = {}
        self._has_description = False
        self.is_resumable = False
        self._snapshot_end = 0
        self._next_slot = 0
        self._has_snapshots = False
        self._removes_snapshots = False
        self._claim_lost: RunClaimLost | None = None
        self._sender = Sender(journal, self._note_claim_lost)
        self._heartbeat = Heartbeat(
            lambda: self._sender.delivery.progress.run_id, attempt=attempt, on_claim_lost=self._note_claim_lost
        )

    @property
    def server_run_id(self) -> str | None:
        """The id that the server gave the run; None as long as no server has the run. A resumed run always has one."""
        return self._sender.delivery.progress.run_id or self._resumed_run_id

    @property
    def reference(self) -> str:
        """What a run within this one names as its parent: the server's id if it is known yet, otherwise the key.

        Both stay valid, since a server that receives the run later finds it by its key.
        """
        return self.server_run_id or self.run_key

    @property
    def label(self) -> str:
        """The name of the run in messages: the server's id, or "with key ..." as long as there is none."""
        return self.server_run_id or f"with key {self.run_key}"

    @property
    def experiment_id(self) -> str | None:
        """The server's id of the experiment, or None as long as no server has made the run."""
        return self._sender.delivery.progress.experiment_id or None

    @property
    def url(self) -> str:
        """The link to this run's page in the UI, or to the UI as long as there is no such page."""
        return ui_command(self.experiment_id, run_id=self.server_run_id).url

    def check_is_ours(self) -> None:
        """Check that no other process is known to have claimed the run; the server is not asked.

        Raises
        ------
        RunClaimLost
            If one has.
        """
        if self._claim_lost is not None:
            raise self._claim_lost

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Record all metrics of one step (an epoch) in one call."""
        time_ms = now_ms()
        rows = {key: float(value) for key, value in metrics.items()}
        if self.privacy:
            rows = self.privacy.metrics(rows)
        for values in _parts(rows, ROWS_PER_CALL["metrics"]):
            self._append({"do": "metrics", "time": time_ms, "step": step, "values": values})

    def log_params(self, params: Mapping[str, Scalar]) -> None:
        """Record values that are fixed for the whole run, under ``cfg.`` names.

        A value beyond mlflow's limit is cut, with a warning, and kept whole under ``long_params/``.

        Raises
        ------
        TrackingError
            If one of them has another value already.
        """
        rows = {}
        for key, value in params.items():
            text = str(value)
            if len(text) > MAX_PARAM_CHARACTERS:
                self.log_text(text, f"long_params/{key}.txt")
                text = self._cut(text, MAX_PARAM_CHARACTERS, what=f"param {key}", whole=f"long_params/{key}.txt")
            full = names.PARAM_PREFIX + key
            if self._params.setdefault(full, text) != text:
                raise TrackingError(
                    f"Changing param values is not allowed: {full} of run {self.label} is {self._params[full]!r}, "
                    f"and was to become {text!r}; log it under another name"
                )
            rows[full] = text
        for values in _parts(rows, ROWS_PER_CALL["params"]):
            self._append({"do": "params", "values": values})

    def log_group(self, model: str) -> None:
        """Record the name of the run's model as a param that all repeats share, by which the UI groups runs."""
        self._append({"do": "params", "values": {names.GROUP: model}})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set searchable text on the run; text beyond mlflow's limit is cut, with a warning."""
        rows = {}
        for key, value in tags.items():
            text = str(value)
            if len(text) > MAX_TAG_CHARACTERS:
                text = self._cut(text, MAX_TAG_CHARACTERS, what=f"tag {key}")
            rows[key] = text
        for values in _parts(rows, ROWS_PER_CALL["tags"]):
            self._append({"do": "tags", "values": values})

    def set_description(self, markdown: str) -> None:
        """Set the readable summary on the run's page; a long one is kept whole in ``description.md``."""
        if self.privacy:
            markdown = self.privacy.text(markdown)  # a measure's reason to be left out counts subjects and events
        markdown = with_links(markdown)
        if len(markdown) > MAX_TAG_CHARACTERS:
            self.log_text(markdown, "description.md")
            markdown = self._cut(markdown, MAX_TAG_CHARACTERS, what="the description", whole="description.md")
        self.set_tags({"mlflow.note.content": markdown})
        self._has_description = True

    def log_dataset(self, name: str, *, fingerprint: str, source: str, context: str = "") -> None:
        """Show a dataset on the run's page, by its fingerprint; `context` is its use, such as "training"."""
        self._append({"do": "dataset", "name": name, "fingerprint": fingerprint, "source": source, "context": context})

    def log_text(self, text: str, name: str) -> None:
        """Store a text artifact, such as ``"summary.md"``."""
        with self._written(name) as file:
            file.write_text(without_secrets(text), encoding="utf-8")

    def log_json(self, value: Any, name: str) -> None:
        """Store a JSON artifact, such as ``"run_config.json"``; NaN is refused, since JSON has none."""
        with self._written(name) as file:
            text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
            file.write_text(without_secrets(text) + "\n", encoding="utf-8")

    def log_table(self, frame: pl.DataFrame, name: str) -> None:
        """Store a table as ``.parquet`` or ``.csv``, by the suffix of `name`."""
        if self.privacy:
            frame = self.privacy.table(frame)
        with self._written(name) as file:
            if file.suffix == ".parquet":
                frame.write_parquet(file)
            elif file.suffix == ".csv":
                frame.write_csv(file)
            else:
                raise TrackingError(f"table {name!r} must end in .parquet or .csv")

    def log_figure(self, figure: Figure, name: str) -> None:
        """Store a figure as ``.png`` and close it."""
        with self._written(name) as file:
            figure.savefig(file, dpi=120, bbox_inches="tight")
        figure.clear()

    def log_folder(self, folder: Path, name: str, *, is_handed_over: bool = False) -> None:
        """Store all files of a folder under the artifact path `name`.

        Parameters
        ----------
        is_handed_over
            Nobody will write to these files again: the journal links them instead of copying them.
        """
        files = sorted(file for file in Path(folder).rglob("*") if file.is_file())
        if not files:
            raise TrackingError(f"no files to store as {name!r} in {folder}")
        path = names.checked_artifact_path(name)
        records = [
            self._journal.keep(file, f"{path}/{file.relative_to(folder).as_posix()}", is_handed_over=is_handed_over)
            for file in files
        ]
        self._append(*records)

    def log_snapshot(self, folder: Path, *, is_last: bool = False) -> bool:
        """Store a snapshot in one of two places in turn, so that one is whole while the other is written.

        A snapshot is skipped while the previous one is still being sent, so that an unreachable server costs the disk
        space of two snapshots and not of all.

        Parameters
        ----------
        folder : whose files nobody will write to again
        is_last : whether it is the last one, which is not skipped

        Returns
        -------
        Whether it is in the journal.
        """
        if not is_last and self._sender.delivery.progress.position < self._snapshot_end:
            return False
        place = names.SNAPSHOT_SLOTS[self._next_slot]
        files = sorted(file for file in folder.iterdir() if file.is_file())
        records = [self._journal.keep(file, f"{place}/{file.name}", is_handed_over=True) for file in files]
        self._snapshot_end = self._append(*records)
        self._next_slot = 1 - self._next_slot
        self._has_snapshots = True
        return True

    def start_at_slot(self, slot: int) -> None:
        """Write the next snapshot to this one of the two places, because the other holds the last whole one."""
        self._next_slot = slot
        self._has_snapshots = True

    def remove_snapshots(self) -> None:
        """Remove the snapshots once the server knows that the run has ended; until then they may be needed."""
        self._removes_snapshots = self._has_snapshots

    def end(self, status: str, *, tag: str = "", reason: str = "") -> None:
        """Set the final status of the run (FINISHED, FAILED or KILLED) and its reason."""
        if self.is_resumable and status == "KILLED":
            self.set_tags({names.RESUMABLE: "true"})
        if tag:
            self.set_tags({tag: reason})
            if not self._has_description:
                self.set_description(f"**{status.capitalize()}**: {reason}")
        removed = {"remove": names.RESUME_ARTIFACTS} if self._removes_snapshots else {}
        self._append({"do": "end", "status": status, "time": now_ms()} | removed)
        self.status = status

    def wait_for_registration(self) -> None:
        """Wait some seconds for the server to create the run.

        Raises
        ------
        TrackingError
            If the run can never be created, for example in a deleted experiment.
        """
        self._sender.wait_for_registration()
        if self._sender.trouble is not None or not self._sender.delivery.progress.run_id:
            _log.warning("run %s is not on the server yet; it will be made when the server answers", self.label)

    def give_up(self) -> None:
        """Remove the journal of a run that can never be created."""
        self._heartbeat.stop()
        self._journal.close()
        remove_journal(self._journal.folder)

    def close(self, *, is_nested: bool) -> None:
        """Wait a bounded time for the rest to be sent, and print what is left."""
        if is_nested and self._sender.trouble is not None:
            _behind.append(self)  # its parent waits, once for all; training continues
            return
        self._finish(drain_seconds())
        if not is_nested:
            while _behind:
                _behind.pop(0)._finish(drain_seconds() if self._sender.is_complete else 0.0)

    def hurry(self) -> None:
        """Limit the time that `close` takes, because the machine is about to be shut down."""
        self._sender.hurry()

    def _finish(self, seconds: float) -> None:
        self._heartbeat.stop()
        sender, folder = self._sender, self._journal.folder
        sender.finish(seconds, is_urgent=self.status == "KILLED")
        if self._claim_lost is not None:
            _log.warning("%d records of run %s are left out", len(sender.delivery.pending()), self.label)
            remove_journal(folder)
        elif sender.is_complete and sender.delivery.is_finished():
            remove_journal(folder)
        elif sender.is_complete and sender.delivery.account.refused:
            _log.warning(
                "run %s is on the server but for %d of its values, which the server refuses: see %s",
                *(self.label, sender.delivery.account.refused, folder / REFUSED),
            )
        elif not sender.is_complete:
            _log.warning(
                "%d records of run %s are not on the server yet (%s); they are safe in %s. Send them with: "
                "ehrtrack sync %s",
                *(len(sender.delivery.pending()), self.label, sender.refusal or sender.trouble or "it is slow"),
                *(folder, shlex.quote(str(folder))),
            )

    def _note_claim_lost(self, lost: RunClaimLost) -> None:
        self._claim_lost = lost

    def _append(self, *records: Mapping[str, Any]) -> int:
        self.check_is_ours()
        end = self._journal.append(*records)
        self._sender.notify()
        return end

    @contextmanager
    def _written(self, name: str) -> Iterator[Path]:
        """A path to write to; afterwards the file is in the journal as the artifact `name`."""
        path = PurePosixPath(names.checked_artifact_path(name))
        file = self._journal.stage(path.name)
        try:
            yield file
            record = self._journal.keep(file, str(path))
        except BaseException:
            shutil.rmtree(file.parent, ignore_errors=True)
            raise
        self._append(record)
        if record["path"] == names.TEST_PREDICTIONS:
            self.set_tags({names.PREDICTIONS_DIGEST: record["sha256"]})

    def _cut(self, text: str, limit: int, *, what: str, whole: str = "") -> str:
        place = f"; whole in {whole}" if whole else ""
        _log.warning("%s has %d characters, %d are kept%s", what, len(text), limit, place)
        ending = f" … ({len(text)} characters{place})"
        return text[: limit - len(ending)] + ending


# Runs within a run that ended while the server was away.
_behind: list[TrackedRun] = []


def _parts(rows: Mapping[str, _Value], size: int) -> Iterator[dict[str, _Value]]:
    items = iter(rows.items())
    while part := dict(islice(items, size)):
        yield part


def now_ms() -> int:
    """The current time as journals and servers store it: milliseconds since 1970."""
    return int(time.time() * 1000)
