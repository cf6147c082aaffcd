"""A request out of the bytes of its body: checked by the models of `messages`, refused in words that repeat nothing."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from ehrtrack.serving.messages import (
    MOST_EVENTS,
    MOST_NUMBERS,
    Problem,
    Refusal,
    Request,
    where,
)

MOST_PROBLEMS = 20
"""How many are told."""
_LENGTHS = ("too_long", "too_short", "string_too_long", "string_too_short")
_STARTS = ("Input should be ", "Input should ", "List should have ", "String should have ", "Invalid JSON: ")
_KINDS = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list",
          dict: "an object"}  # fmt: skip


class Refused(Exception):
    """A request that gets no answer.

    Attributes
    ----------
    status : of HTTP
    refusal : what is said
    """

    def __init__(self, status: int, detail: str, problems: list[Problem] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.refusal = Refusal(detail=detail, problems=problems or [])


def read_request(body: bytes) -> Request:
    """The request of a body.

    Raises
    ------
    Refused
        422 with the places that are wrong, of each subject's events the first; 413 where there is more than is
        answered at once.

    Examples
    --------
    >>> subject = b'{"subject_id": 1, "events": [{"code": 5}], "prediction_times": ["2020-01-31"]}'
    >>> try:
    ...     read_request(b'{"subjects": [' + subject + b"]}")
    ... except Refused as refused:
    ...     print(refused.status, refused.refusal.problems[0])
    422 where='subjects[0].events[0].code' found='a number' needed='a valid string'
    """
    try:
        request = Request.model_validate_json(body)
    except ValidationError as error:
        raise _refused(error) from None
    if request.n_events > MOST_EVENTS:
        raise _too_many(f"{request.n_events:,} events", f"{MOST_EVENTS:,}")
    n_numbers = request.n_times * max(len(request.days), 1)
    if n_numbers > MOST_NUMBERS:
        raise _too_many(f"{n_numbers:,} prediction times and days", f"{MOST_NUMBERS:,}")
    return request


def _too_many(found: str, most: str) -> Refused:
    return Refused(413, f"a request of {found}; the most is {most}: send it in parts")


def _refused(error: ValidationError) -> Refused:
    found = error.errors(include_url=False, include_context=False)
    is_too_much = any(one["type"] == "too_long" for one in found)
    problems = [_problem(one) for one in found[:MOST_PROBLEMS]]
    more = f" (and {len(found) - 1:,} more)" if len(found) > 1 else ""
    first = f"{problems[0].where}: found {problems[0].found}, needed {problems[0].needed}"
    return Refused(413 if is_too_much else 422, first + more, problems)


def _problem(error: Any) -> Problem:
    kind, place = error["type"], list(error["loc"])
    needed = str(error["msg"])
    for start in _STARTS:
        needed = needed.removeprefix(start).partition(" after validation")[0]
    if kind == "missing":
        return Problem(where=where(place), found="nothing", needed="a value")
    if kind == "extra_forbidden":  # the field's name is the sender's, and may be of a record
        return Problem(where=where(place[:-1]), found="a field that there is not", needed="fields of the schema alone")
    if kind == "json_invalid":
        return Problem(where="the body", found="no JSON", needed=f"JSON; {needed}")
    found = _KINDS.get(type(error["input"]), "something else")
    if kind in _LENGTHS:
        found = f"{found} of length {len(error['input']):,}"
    return Problem(where=where(place), found=found, needed=needed)
