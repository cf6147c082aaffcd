"""Reading baselines back from the JSON that they are kept as."""

from __future__ import annotations

from ehrtrack.errors import CheckpointError


def no_such_model(text: str, what: str, of: type, reason: Exception) -> CheckpointError:
    """The error where a JSON text holds no model of a class, which is `what` in words."""
    return CheckpointError(f"{text[:60]!r} is not {what} ({reason!r}); give what {of.__name__}.to_json wrote")


def names_of(values: object) -> tuple[str, ...]:
    """Column names that were read from JSON. Raises ValueError where something else is among them, or one twice."""
    names = [value for value in values if isinstance(value, str)] if isinstance(values, list) else []
    if not isinstance(values, list) or len(set(names)) < len(values):
        raise ValueError(f"names of columns are different texts in a list, not {str(values)[:60]}")
    return tuple(names)
