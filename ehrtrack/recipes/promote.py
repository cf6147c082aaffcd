"""Promotion: a run is made champion of a registered model, by the rules that `compare` goes by."""

from __future__ import annotations

from dataclasses import dataclass

from ehrtrack.errors import ConfigError, DataError, TrackingError
from ehrtrack.pipeline.champion import register, ruling
from ehrtrack.pipeline.run_rows import run_row
from ehrtrack.tracking.client.moves import Move, is_pinned, pin, pin_text, present_champion, set_champion
from ehrtrack.tracking.client.queries import RunRecord, get_run, resolve_run
from ehrtrack.tracking.client.registry import ModelVersion, find_version
from ehrtrack.tracking.names import why_no_model_name

MODEL_KINDS = ("finetune", "baseline")
"""Kinds of runs whose models have an outcome."""


@dataclass(frozen=True)
class Promotion:
    """What came of a promotion.

    Attributes
    ----------
    before : the champion that there was
    move : the record of the move; None where the version was champion already
    """

    version: ModelVersion
    before: ModelVersion | None
    move: Move | None
    comparison: str

    def to_text(self) -> str:
        """For people."""
        name, number = self.version.name, self.version.version
        if self.move is None:
            return f"{self.version.uri} is champion already"
        was = "none" if self.before is None else f"{self.before.uri}, which is now models:/{name}@previous"
        compared = f"\n{self.comparison}" if self.comparison else ""
        return f"models:/{name}@champion is version {number} (run {self.version.run_id}); it was {was}{compared}"


def promote(
    reference: str,
    *,
    name: str = "",
    is_forced: bool = False,
    pins: bool = False,
    merges: bool = False,
    why: str = "",
) -> Promotion:
    """Make a run the champion of a registered model, if it is not worse than the one there is.

    The rules are those of `pipeline.champion.ruling`, as for what `compare` proposes. A run that is refused makes no
    version. The champion before is kept as ``models:/NAME@previous``, and the move is recorded on the model.

    Parameters
    ----------
    reference : run id, or ``models:/NAME/VERSION``
    name : the registered model; that of the version, or the run's study, if empty
    is_forced : override every rule but the pin
    pins : keep it champion, whatever is promoted or compared later
    merges : as a version that stands alone, where it would be an adapter to be loaded on its base
    why : the reason, for the record

    Raises
    ------
    DataError
        If a rule refuses it; the message says which, with the interval, and what would allow it.
    TrackingError
        If there is no such run or version, or it has no model.
    """
    known = find_version(reference) if reference.startswith("models:/") else None
    name = name or (known.name if known else "")
    if (
        known is not None and is_forced and name == known.name and not (merges and known.is_adapter)
    ):  # even one whose run is gone
        if is_pinned(name):
            raise DataError(f"{known.uri} does not become champion of {name!r}: {pin_text(name)}")
        return _moved(known, why, "", is_forced=True, pins=pins)
    record = _record_of_a_model(resolve_run(reference).run_id)
    name = name or record.study
    if reason := why_no_model_name(name):
        raise ConfigError(f"--name {name!r} is no name of a model: {reason}")
    row = run_row(record)
    ruled = ruling(row, name, is_forced=is_forced)
    if ruled.refusal is not None:
        present = present_champion(name)
        stays = "no version becomes champion" if present is None else f"{present.uri} stays champion"
        raise DataError(f"run {record.run_id} does not become champion of {name!r}, and {stays}: {ruled.refusal}")
    return _moved(register(row, name, merges=merges), why, ruled.comparison, is_forced=is_forced, pins=pins)


def _moved(version: ModelVersion, why: str, comparison: str, *, is_forced: bool, pins: bool) -> Promotion:
    before = present_champion(version.name)
    move = None
    if before is None or before.version != version.version:
        reasons = "; ".join(part for part in (why, comparison) if part) or "first champion"
        move = set_champion(version, how="promote --force" if is_forced else "promote", why=reasons)
    if pins:
        pin(version.name, why=why or "promoted with --pin")
    return Promotion(version, before, move, comparison)


def _record_of_a_model(run_id: str) -> RunRecord:
    record = get_run(run_id)
    if record.kind not in MODEL_KINDS:
        raise DataError(
            f"run {run_id} is a {record.kind or 'run of something else'}: a champion foretells an outcome; promote a "
            f"run of {' or '.join(MODEL_KINDS)}"
        )
    if record.status != "FINISHED":
        raise TrackingError(f"run {run_id} is {record.status}: only what is finished can be promoted")
    return record
