"""What is asked and what is answered, as JSON: the models that check requests, and that OpenAPI is made from."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, WithJsonSchema, field_validator
from pydantic_core import PydanticCustomError

MOST_SUBJECTS = 1_000
MOST_EVENTS = 100_000
"""Of all subjects of a request."""
MOST_TIMES = 1_000
"""Prediction times of a subject."""
MOST_DAYS = 100
MOST_NUMBERS = 100_000
"""Prediction times of a request, times its days: what the answer holds at most."""
MOST_CHARACTERS = 256

EPOCH = datetime(1970, 1, 1)
_INT64 = 2**63
_MICROSECOND = timedelta(microseconds=1)


def read_stamp(value: object) -> int:
    """A moment as microseconds since 1970 in UTC, out of ISO 8601 text; without a zone it is in UTC, as times of MEDS.

    Raises
    ------
    PydanticCustomError
        If it is anything else. The message does not repeat it.

    Examples
    --------
    >>> read_stamp("1970-01-01T02:00:01+02:00"), read_stamp("1970-01-02")
    (1000000, 86400000000)
    """
    try:
        if not isinstance(value, str) or value[4:8:3] != "--":  # ISO 8601 has 20200131 and weeks too
            raise ValueError
        stamp = datetime.fromisoformat(value)
        if stamp.tzinfo is not None:
            stamp = stamp.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):
        needed = "a time such as 2020-01-31T14:00:00+01:00, in the years 1 to 9999; without a zone it is in UTC"
        raise PydanticCustomError("stamp", needed) from None
    return (stamp - EPOCH) // _MICROSECOND


_STAMP_SCHEMA = {"type": "string", "format": "date-time", "examples": ["2020-01-31T14:00:00+01:00", "2020-01-31"]}
Stamp = Annotated[int, BeforeValidator(read_stamp), WithJsonSchema(_STAMP_SCHEMA)]
Text = Annotated[str, Field(min_length=1, max_length=MOST_CHARACTERS)]


class Message(BaseModel):
    """Nothing is converted, and no field is passed over."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


class Event(Message):
    """One event of a subject's record, as in MEDS."""

    code: Text
    time: Stamp | None = Field(None, description="none for a static fact")
    numeric_value: float | None = None
    visit_id: Text | None = Field(None, description="read by a model whose visits are encounters")


class Subject(Message):
    """A subject's record, and when it is to be scored; events after a prediction time have no part in it."""

    subject_id: int = Field(ge=-_INT64, lt=_INT64)
    events: Annotated[list[Event], FailFast()] = Field(max_length=MOST_EVENTS)
    birth: Stamp | None = Field(None, description="as an event MEDS_BIRTH at this time")
    prediction_times: list[Stamp] = Field(min_length=1, max_length=MOST_TIMES)

    @field_validator("prediction_times")
    @classmethod
    def _are_different(cls, times: list[int]) -> list[int]:
        return _different(times, "each prediction time once")


class Request(Message):
    """Subjects to be scored."""

    subjects: list[Subject] = Field(min_length=1, max_length=MOST_SUBJECTS)
    days: list[Annotated[float, Field(gt=0)]] = Field(
        [], max_length=MOST_DAYS, description="at which survival is told; the horizon where none is named"
    )
    model: Text | None = Field(None, description="which of the models served; the first where none is named")

    @field_validator("subjects")
    @classmethod
    def _have_different_ids(cls, subjects: list[Subject]) -> list[Subject]:
        _different([subject.subject_id for subject in subjects], "each subject_id once")
        return subjects

    @property
    def n_events(self) -> int:
        """Of all subjects."""
        return sum(len(subject.events) for subject in self.subjects)

    @property
    def n_times(self) -> int:
        """Of all subjects."""
        return sum(len(subject.prediction_times) for subject in self.subjects)


def _different(values: list[int], needed: str) -> list[int]:
    if len(set(values)) < len(values):
        raise PydanticCustomError("twice", needed)
    return values


class ModelNamed(BaseModel):
    """Which model made an answer."""

    name: str
    version: str | None = Field(description="of the registered model; none of a model that was named by its run")
    run_id: str
    horizon_days: float


class OfCause(BaseModel):
    """What is foretold of one of several causes."""

    cause: int = Field(description="from 1")
    risk: float = Field(description="cumulative incidence at the horizon")
    incidence: list[float] = Field(description="cumulative incidence at each of the days")


class Prediction(BaseModel):
    """A subject at a prediction time, in the order of the request."""

    subject_id: int
    prediction_time: datetime
    risk: float | None = Field(description="of the outcome, of any cause, up to the horizon; none where a reason is")
    survival: list[float] | None = Field(description="free of the outcome, of all causes, at each of the days")
    causes: list[OfCause] | None = Field(description="of a model that tells causes apart")
    reason: str | None = Field(description="why there is no risk")
    n_events: int = Field(description="that are known at this time and that the model could read")
    n_unknown_events: int = Field(description="of these, how many are of codes that the model does not know")


class Answer(BaseModel):
    """The predictions for a request; all are of one version of the model."""

    model: ModelNamed
    days: list[float]
    predictions: list[Prediction]


class Problem(BaseModel):
    """What is wrong in one place of a request. No value of the request is repeated."""

    where: str
    found: str
    needed: str


class Refusal(BaseModel):
    """Why there is no answer."""

    detail: str
    problems: list[Problem] = []


class Health(BaseModel):
    """Whether requests are answered, and by what."""

    is_serving: bool
    models: list[ModelNamed]
    n_waiting: int = Field(description="requests that wait for the model")
    registry: str = Field(description="whether a champion that moves is noticed")


class Facts(BaseModel):
    """What the registered run says of the model."""

    model: ModelNamed
    outcome: str
    n_causes: int
    cohort: str | None = Field(description="fingerprint of the cohort that it is for")
    max_tokens: int = Field(description="of a record that are read, the latest first")
    measures: dict[str, float] = Field(description="on the test subjects of its run, with bounds of 95 %")


def in_utc(microseconds: int) -> datetime:
    """The moment so many microseconds after 1970."""
    return (EPOCH + timedelta(microseconds=microseconds)).replace(tzinfo=UTC)


def request_schema() -> dict[str, Any]:
    """The JSON schemas of a request and its parts, by name, as OpenAPI refers to them."""
    schema = Request.model_json_schema(ref_template="#/components/schemas/{model}")
    parts: dict[str, Any] = schema.pop("$defs")
    return parts | {"Request": schema}


def where(place: Sequence[str | int]) -> str:
    """A place in a request, in the spelling of a reader.

    Examples
    --------
    >>> where(["subjects", 3, "events", 7, "time"])
    'subjects[3].events[7].time'
    """
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
    return text.removeprefix(".") or "the body"
