"""Who is champion of a registered model, who was before, and every move of it: who made it, when and why."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from ehrtrack.errors import CheckpointError, TrackingError
from ehrtrack.tracking import names
from ehrtrack.tracking.client.connection import client, redacted, tracking_errors, tracking_uri
from ehrtrack.tracking.client.registry import CHAMPION, ModelVersion, find_version
from ehrtrack.tracking.provenance import user_name

PREVIOUS = "previous"
"""The alias of the version that was champion before."""
MOST_CHARACTERS = 1000
"""Of a reason; a tag of a registered model holds 5,000."""


@dataclass(frozen=True)
class Move:
    """A move of a model's champion, or of its pin.

    Attributes
    ----------
    at : UTC, ISO 8601
    by : the login, or the account's name
    how : promote, compare, rollback, pin or unpin; with ``--force`` where a rule was overridden
    before, after : versions; empty where there was none

    Examples
    --------
    >>> print(Move("2026-11-29T15:40:12+00:00", "ann", "promote", before="1", after="2", why="better in winter"))
    2026-11-29 15:40:12 UTC  promote  1 -> 2  by ann: better in winter
    """

    at: str
    by: str
    how: str
    before: str
    after: str
    why: str

    def __str__(self) -> str:
        moved = f"{self.before or 'none'} -> {self.after or 'none'}" if self.before != self.after else self.after
        return f"{self.at[:19].replace('T', ' ')} UTC  {self.how}  {moved}  by {self.by}: {self.why}"


def present_champion(name: str) -> ModelVersion | None:
    """The version that ``models:/NAME@champion`` points at; None where no version is, or there is no such model."""
    return _of_alias(name, CHAMPION)


def set_champion(version: ModelVersion, *, how: str, why: str) -> Move:
    """Make a version the champion and keep the one before as ``models:/NAME@previous``.

    The alias moves first and the record follows: a client that dies in between leaves a champion that counts as set by
    hand (`is_set_by_hand`), and never a record of what did not happen.
    """
    name, before = version.name, present_champion(version.name)
    with tracking_errors(f"make version {version.version} the champion of model {name!r}"):
        client().set_registered_model_alias(name, CHAMPION, version.version)
        if before is not None and before.version != version.version:
            client().set_registered_model_alias(name, PREVIOUS, before.version)
        client().set_registered_model_tag(name, names.SET_CHAMPION, version.version)
        move = _record(name, how=how, why=why, before=before.version if before else "", after=version.version)
        if names.ROLLED_BACK in version.tags:
            client().delete_model_version_tag(name, version.version, names.ROLLED_BACK)
    return move


def roll_back(name: str, *, why: str) -> Move:
    """Make the previous champion champion again; the one that it replaces is marked, and is then the previous one.

    Raises
    ------
    TrackingError
        If there is no champion or none before it, or the model is pinned.
    """
    present, previous = present_champion(name), _of_alias(name, PREVIOUS)
    if present is None or previous is None or present.version == previous.version:
        raise TrackingError(
            f"model {name!r} on {redacted(tracking_uri())} has no {'champion' if present is None else 'version before'}"
            f" to go back to; `ehrtrack models {name}` lists its versions, `ehrtrack promote models:/{name}/VERSION` "
            "makes one of them champion"
        )
    if is_pinned(name):
        raise TrackingError(f"{present.uri} stays champion: {pin_text(name)}")
    with tracking_errors(f"mark version {present.version} of model {name!r} as rolled back"):
        mark = f"{_now()[:19]} by {user_name()}: {_short(why)}"
        client().set_model_version_tag(name, present.version, names.ROLLED_BACK, mark)
    return set_champion(previous, how="rollback", why=why)


def pin(name: str, *, holds: bool = True, why: str) -> Move:
    """Keep the champion, whatever is promoted or compared; or let it move again, where it no longer holds.

    Raises
    ------
    TrackingError
        If there is no champion to keep, or no such model.
    """
    version = find_version(f"models:/{name}@{CHAMPION}")
    with tracking_errors(f"{'pin' if holds else 'unpin'} model {name!r}"):
        how = "pin" if holds else "unpin"
        move = _record(name, how=how, why=why, before=version.version, after=version.version)
        if holds:
            client().set_registered_model_tag(name, names.PINNED, "true")
            return move
        if names.PINNED in _tags(name):
            client().delete_registered_model_tag(name, names.PINNED)
        if names.PINNED in version.tags:
            client().delete_model_version_tag(name, version.version, names.PINNED)
    return move


def is_pinned(name: str) -> bool:
    """Whether the model's champion, or the model, was pinned."""
    present = present_champion(name)
    return _says_pinned(_tags(name)) or (present is not None and _says_pinned(present.tags))


def pin_text(name: str) -> str:
    """Why a pinned champion stays, and what would let it move."""
    return f"it is pinned by the tag {names.PINNED}; `ehrtrack pin {name} --off` lets it move again"


def is_set_by_hand(name: str) -> bool:
    """Whether the alias points elsewhere than the last recorded move left it."""
    present = present_champion(name)
    return present is not None and _tags(name).get(names.SET_CHAMPION) != present.version


def moves_of(name: str) -> list[Move]:
    """All moves of a model's champion that were recorded, the first first.

    Raises
    ------
    CheckpointError
        If a record is none that this version can read.
    """
    found = []
    for key, value in sorted(_tags(name).items()):
        if key.startswith(names.MOVE):
            try:
                found.append(Move(**json.loads(value)))
            except (ValueError, TypeError) as error:
                raise CheckpointError(f"the tag {key} of model {name!r} is no record of a move: {error}") from error
    return found


def _record(name: str, *, how: str, why: str, before: str, after: str) -> Move:
    """Under a key of its own, so that two moves at once are both kept."""
    move = Move(_now(), user_name(), how, before, after, _short(why))
    key = f"{names.MOVE}{move.at.replace(':', '').replace('+0000', 'Z')}-{secrets.token_hex(2)}"
    client().set_registered_model_tag(name, key, json.dumps(asdict(move), ensure_ascii=False))
    return move


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _short(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 3]}..."


def _says_pinned(tags: dict[str, str]) -> bool:
    return tags.get(names.PINNED, "false").lower() != "false"


def _model(name: str) -> Any:
    """The registered model of exactly this name, or None."""
    with tracking_errors(f"look up model {name!r}"):
        mark = '"' if "'" in name else "'"
        found = client().search_registered_models(f"name = {mark}{name}{mark}")
    return next((model for model in found if model.name == name), None)


def _tags(name: str) -> dict[str, str]:
    model = _model(name)
    return {} if model is None else dict(model.tags)


def _of_alias(name: str, alias: str) -> ModelVersion | None:
    model = _model(name)
    return find_version(f"models:/{name}/{model.aliases[alias]}") if model and alias in model.aliases else None
