"""What is answered to whom: each subject as `predict` would answer it alone, and refusals that repeat nothing."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from serving_models import a_study, as_request, write_model
from simulated import Population, write_dataset

from ehrtrack.cli import main
from ehrtrack.data.events import MedsDataset
from ehrtrack.errors import DataError
from ehrtrack.pipeline.prediction_parts import with_days
from ehrtrack.pipeline.predictor import Predictor, load_predictor
from ehrtrack.serving import batching, gate
from ehrtrack.serving.app import make_app
from ehrtrack.serving.batching import Batcher
from ehrtrack.serving.command import TOKEN, ServeSettings, serve
from ehrtrack.serving.messages import Answer, Facts, ModelNamed, Request, read_stamp
from ehrtrack.serving.models import Models
from ehrtrack.serving.reading import Refused, read_request
from ehrtrack.serving.scoring import Served, answer

torch.set_num_threads(1)
SUBJECT = {"subject_id": 1, "events": [{"code": "INDEX", "time": "2020-01-01"}], "prediction_times": ["2020-01-02"]}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> MedsDataset:
    return write_dataset(tmp_path_factory.mktemp("answers") / "meds", Population(n_subjects=40))


@pytest.fixture(scope="module", params=[1, 2], ids=["one outcome", "two causes"])
def predictor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("model")
    objective = {"name": "survival"} if request.param == 1 else {"name": "competing-risks"}
    return load_predictor(write_model(folder / "m", a_study(folder, objective=objective), 0, n_causes=request.param))


def served(predictor: Predictor, name: str = "m") -> Served:
    named = ModelNamed(name=name, version="1", run_id="r", horizon_days=predictor.grid.horizon_days)
    facts = Facts(model=named, outcome="", n_causes=predictor.n_causes, cohort=None, max_tokens=64, measures={})
    return Served(predictor, facts)


def read(told: Mapping[str, Any]) -> Request:
    return read_request(json.dumps(told).encode())


def only(found: list[Answer | Refused]) -> Answer:
    assert len(found) == 1
    assert isinstance(found[0], Answer)
    return found[0]


def index_of(dataset: MedsDataset) -> pl.DataFrame:
    return dataset.scan().filter(code="INDEX").select("subject_id", prediction_time="time").collect()


def test_each_row_is_what_predict_says_of_its_subject_alone(dataset: MedsDataset, predictor: Predictor) -> None:
    index = index_of(dataset)
    later = index.with_columns(pl.col("prediction_time") + timedelta(days=250))
    times, days = pl.concat([index, later]).sort("subject_id", "prediction_time"), [10.5, 365.0]
    found = only(answer(served(predictor), [read(as_request(dataset, times, days=days))]))
    expected = with_days(predictor.predict_dataset(dataset, times), predictor.grid, days)
    any_cause = expected.filter(cause="any") if "cause" in expected.columns else expected
    assert [(one.subject_id, one.reason) for one in found.predictions] == any_cause.select(
        "subject_id", "reason"
    ).rows()
    assert any_cause["reason"].null_count() not in (0, times.height)
    scored = [one for one in found.predictions if one.risk is not None]
    is_scored = pl.col("risk").is_not_null()
    np.testing.assert_allclose([one.risk for one in scored], any_cause.filter(is_scored)["risk"], atol=1e-6)
    survival = 1 - any_cause.filter(is_scored).select("risk_10.5", "risk_365").to_numpy()
    np.testing.assert_allclose([one.survival for one in scored], survival, atol=1e-6)
    if "cause" in expected.columns:
        of_causes = expected.filter(is_scored, pl.col("cause") != "any")
        told = [[cause.risk, *cause.incidence] for one in scored for cause in one.causes or ()]
        np.testing.assert_allclose(told, of_causes.select("risk", "risk_10.5", "risk_365").to_numpy(), atol=1e-6)
        assert [cause.cause for cause in scored[0].causes or ()] == [1, 2]
    else:
        assert {one.causes for one in found.predictions} == {None}


def test_requests_that_are_scored_together_get_the_answers_that_each_would_get(
    dataset: MedsDataset, predictor: Predictor
) -> None:
    """Also where both call different subjects by one id, and ask for different days."""
    index = index_of(dataset)
    first = as_request(dataset, index[:2], days=[30])
    second = as_request(dataset, index[2:5])
    for subject, number in zip(second["subjects"], (1, 2, 3), strict=True):
        subject["subject_id"] = number
    requests = [read(first), read(second)]
    together = answer(served(predictor), requests)
    for request, found in zip(requests, together, strict=True):
        alone = only(answer(served(predictor), [request]))
        assert isinstance(found, Answer)
        assert found.days == alone.days
        assert [one.subject_id for one in found.predictions] == [one.subject_id for one in alone.predictions]
        np.testing.assert_allclose(
            [one.risk for one in found.predictions], [one.risk for one in alone.predictions], atol=1e-6
        )


def test_times_with_zones_and_a_birth_are_the_events_that_they_stand_for(
    dataset: MedsDataset, predictor: Predictor
) -> None:
    told = as_request(dataset, index_of(dataset)[:1])
    plain = only(answer(served(predictor), [read(told)])).predictions[0]
    subject = told["subjects"][0]
    (birth,) = (event["time"] for event in subject["events"] if event["code"] == "MEDS_BIRTH")
    subject["events"] = [event for event in subject["events"] if event["code"] != "MEDS_BIRTH"][::-1]
    subject["birth"] = birth
    for event in subject["events"]:
        if "time" in event:
            event["time"] = datetime.fromisoformat(event["time"]).astimezone(ZONE).isoformat()
    moved = only(answer(served(predictor), [read(told)])).predictions[0]
    assert moved == plain
    assert moved.prediction_time.utcoffset() == timedelta(0)


ZONE = datetime.fromisoformat("2020-01-01T00:00:00+05:30").tzinfo


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [
        ("1970-01-01T01:00:00+01:00", 0),
        ("1970-01-01", 0),
        ("1970-01-01 00:00:01.5Z", 1_500_000),
        ("0001-01-01T00:00:00+14:00", None),
        ("19700101", None),
        ("1970-W01-4", None),
        ("1970-02-30", None),
        (" 1970-01-01", None),
        ("0", None),
        (0, None),
        (True, None),
    ],
)
def test_a_stamp_is_iso_8601_with_its_parts_apart(text: object, microseconds: int | None) -> None:
    if microseconds is not None:
        assert read_stamp(text) == microseconds
        return
    with pytest.raises(
        Refused, match=r"subjects\[0\]\.events\[0\]\.time: found .* needed a time such as 2020-01-31T14"
    ):
        read({"subjects": [SUBJECT | {"events": [{"code": "A", "time": text}]}]})


def test_a_subject_of_unknown_codes_has_a_reason_whoever_else_is_asked_for(
    dataset: MedsDataset, predictor: Predictor
) -> None:
    told = as_request(dataset, index_of(dataset)[:2])
    strange = told["subjects"][1]
    for event in strange["events"]:
        event["code"] = event["code"].replace("DISEASE", "ANOTHER").replace("INDEX", "ANOTHER")
    known, unknown = only(answer(served(predictor), [read(told)])).predictions
    assert known.reason is None
    assert known.n_unknown_events == 0
    assert unknown.risk is None
    assert unknown.reason is not None
    assert unknown.reason.startswith(f"the model does not know {unknown.n_unknown_events} of {unknown.n_events} events")
    (refused,) = answer(served(predictor), [read({"subjects": [strange]})])
    assert isinstance(refused, Refused)
    assert refused.status == 400
    assert "they are coded otherwise" in refused.refusal.detail
    assert "ANOTHER" not in refused.refusal.model_dump_json()
    # as `predict` says of it alone
    times = pl.DataFrame(
        {"subject_id": [1], "prediction_time": [datetime.fromisoformat(strange["prediction_times"][0])]}
    )
    frame = pl.DataFrame(
        [(1, event.get("time"), event["code"]) for event in strange["events"]],
        schema={"subject_id": pl.Int64, "time": pl.String, "code": pl.String},
        orient="row",
    ).with_columns(pl.col("time").str.to_datetime(time_zone="UTC").dt.replace_time_zone(None).cast(pl.Datetime("us")))
    with pytest.raises(DataError, match="the model does not know"):
        predictor.predict_events(frame, times.with_columns(pl.col("prediction_time").dt.replace_time_zone(None)))


def test_a_day_past_the_horizon_is_refused_in_its_place(predictor: Predictor) -> None:
    (refused,) = answer(served(predictor), [read({"subjects": [SUBJECT], "days": [30, 365, 365.5]})])
    assert isinstance(refused, Refused)
    assert refused.status == 422
    (problem,) = refused.refusal.problems
    assert (problem.where, problem.needed) == ("days[2]", "days within the horizon of 365 days")


SECRET = "7731-SECRET"


@pytest.mark.parametrize(
    ("change", "status", "where", "said"),
    [
        ({"subject_id": "1"}, 422, "subjects[0].subject_id", "found text, needed a valid integer"),
        ({"subject_id": 2**63}, 422, "subjects[0].subject_id", "found a number, needed less than"),
        ({"events": [{"code": 5}]}, 422, "subjects[0].events[0].code", "found a number, needed a valid string"),
        ({"events": [{"code": ""}]}, 422, "subjects[0].events[0].code", "needed at least 1 character"),
        ({"events": [{"code": "x" * 257}]}, 422, "subjects[0].events[0].code", "found text of length 257"),
        ({"events": [{}]}, 422, "subjects[0].events[0].code", "found nothing, needed a value"),
        ({"events": [{"code": "A", SECRET: 1}]}, 422, "subjects[0].events[0]", "found a field that there is not"),
        (
            {"events": [{"code": "A", "numeric_value": SECRET}]},
            422,
            "subjects[0].events[0].numeric_value",
            "valid number",
        ),
        (
            {"events": [{"code": "A", "numeric_value": True}]},
            422,
            "subjects[0].events[0].numeric_value",
            "true or false",
        ),
        ({"birth": SECRET}, 422, "subjects[0].birth", "found text, needed a time such as"),
        ({"prediction_times": []}, 422, "subjects[0].prediction_times", "at least 1 item"),
        ({"prediction_times": ["2020-01-02", "2020-01-02T00:00Z"]}, 422, "subjects[0].prediction_times", "each pred"),
        ({"events": None}, 422, "subjects[0].events", "found null"),
        ({"events": [{"code": "A"}] * 100_001}, 413, "subjects[0].events", "at most 100000 items"),
        ({"prediction_times": ["2020-01-02"] * 1001}, 413, "subjects[0].prediction_times", "at most 1000 items"),
    ],
)
def test_what_is_wrong_is_told_by_its_place_and_kind(
    change: dict[str, Any], status: int, where: str, said: str
) -> None:
    with pytest.raises(Refused) as refused:
        read({"subjects": [SUBJECT | change]})
    assert refused.value.status == status
    assert refused.value.refusal.problems[0].where == where
    assert said in refused.value.refusal.detail
    assert SECRET not in refused.value.refusal.model_dump_json()


A_THOUSAND_TIMES = [f"{year}-01-01" for year in range(1000, 2000)]


def subjects(n: int = 2, **fields: Any) -> dict[str, Any]:
    return {"subjects": [SUBJECT | {"subject_id": number} | fields for number in range(n)]}


@pytest.mark.parametrize(
    ("told", "status", "said"),
    [
        pytest.param(b"{", 422, "the body: found no JSON, needed JSON; EOF", id="no JSON"),
        pytest.param([], 422, "the body: found a list", id="a list"),
        pytest.param(subjects(0), 422, "found a list of length 0, needed at least 1 item", id="nobody"),
        pytest.param(subjects(1) | {"days": [math.nan]}, 422, "days[0]: found a number, needed a finite", id="NaN"),
        pytest.param({"subjects": [SUBJECT, SUBJECT]}, 422, "needed each subject_id once", id="twice"),
        pytest.param(subjects(1001), 413, "subjects: found a list of length 1,001", id="subjects"),
        pytest.param(subjects(events=[{"code": "A"}] * 50_001), 413, "a request of 100,002 events", id="events"),
        pytest.param(subjects(1) | {"days": [1] * 101}, 413, "days: found a list of length 101", id="days"),
        pytest.param(
            subjects(prediction_times=A_THOUSAND_TIMES) | {"days": [1] * 51}, 413, "102,000 prediction times", id="both"
        ),
    ],
)
def test_a_body_that_is_no_request_is_refused(told: Any, status: int, said: str) -> None:
    with pytest.raises(Refused) as refused:
        read_request(told if isinstance(told, bytes) else json.dumps(told).encode())
    assert refused.value.status == status
    assert said in refused.value.refusal.detail


def test_of_many_problems_twenty_are_listed_and_all_are_counted() -> None:
    wrong = [SUBJECT | {"subject_id": number, "birth": "?"} for number in range(50)]
    with pytest.raises(Refused) as refused:
        read({"subjects": wrong})
    assert len(refused.value.refusal.problems) == 20
    assert refused.value.refusal.detail.endswith("(and 49 more)")


@pytest.fixture
def batcher(dataset: MedsDataset, predictor: Predictor) -> Iterator[Batcher]:
    models = Models()
    models.put(served(predictor))
    batcher = Batcher(models)
    yield batcher
    batcher.close()


def ask_all(batcher: Batcher, requests: list[Request]) -> list[Answer | BaseException]:
    async def ask() -> list[Answer | BaseException]:
        return await asyncio.gather(*map(batcher.ask, requests), return_exceptions=True)

    return asyncio.run(ask())


def test_a_request_that_fails_takes_no_other_with_it_and_its_error_is_not_told(
    batcher: Batcher, dataset: MedsDataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told = [read(as_request(dataset, index_of(dataset)[n : n + 1])) for n in range(3)]

    def fails_at_2(model: Served, requests: list[Request]) -> list[Answer | Refused]:
        if any(request.subjects[0].subject_id == 2 for request in requests):
            raise ValueError(SECRET)
        return answer(model, requests)

    monkeypatch.setattr(batching, "answer", fails_at_2)
    first, second, third = ask_all(batcher, told)
    assert isinstance(first, Answer)
    assert isinstance(third, Answer)
    assert isinstance(second, Refused)
    assert (second.status, SECRET in second.refusal.detail) == (500, False)
    assert "a request failed with ValueError" in caplog.text
    assert SECRET not in caplog.text
    assert batcher.n_waiting == 0


def test_a_model_that_is_not_served_is_refused_by_the_names_of_those_that_are(
    batcher: Batcher, dataset: MedsDataset
) -> None:
    told = as_request(dataset, index_of(dataset)[:1])
    found, refused = ask_all(batcher, [read(told | {"model": "m"}), read(told | {"model": "n"})])
    assert isinstance(found, Answer)
    assert isinstance(refused, Refused)
    assert refused.status == 404
    assert refused.refusal.detail == "model: found a model that is not served, needed one of m"


Call = Callable[..., tuple[int, dict[str, str], bytes]]


@pytest.fixture
def call(batcher: Batcher) -> Call:
    """Call the application, as uvicorn does: status, headers, body."""
    models = Models()

    def called(
        method: str, path: str, chunks: list[bytes], headers: dict[str, str], token: str = ""
    ) -> tuple[int, dict[str, str], bytes]:
        app = make_app(models, batcher, token=token, host="127.0.0.1", registry=lambda: "")
        sent: list[Any] = []
        waiting = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
        waiting.append({"type": "http.request", "body": b"", "more_body": False})

        async def receive() -> Any:
            return waiting.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        raw = [(name.lower().encode(), value.encode()) for name, value in ({"Host": "localhost:1"} | headers).items()]
        scope = {"type": "http", "method": method, "path": path, "headers": raw, "query_string": b"", "root_path": ""}
        asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
        told = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], told, b"".join(message.get("body", b"") for message in sent[1:])

    return called


JSON = {"Content-Type": "application/json"}


def test_who_lacks_the_token_is_refused_before_the_body_is_read(call: Call) -> None:
    for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic token-token-token"}):
        status, headers, body = call("POST", "/predict", [b"{"], JSON | given, token="token-token-token")
        assert (status, headers["www-authenticate"]) == (401, "Bearer")
        assert b"Authorization: Bearer TOKEN" in body
    known = {"Authorization": "bearer token-token-token", "Host": "runs.example.org"}
    assert call("POST", "/predict", [b"{"], JSON | known, token="token-token-token")[0] == 422
    assert call("GET", "/health", [], {}, token="token-token-token")[0] == 200


def test_without_a_token_only_names_of_this_machine_are_answered(call: Call) -> None:
    for host in ("localhost", "127.0.0.1:8000", "[::1]:80"):
        assert call("GET", "/health", [], {"Host": host})[0] == 200
    for host in ("evil.example.org", "evil.example.org:8000", "localhost.example.org", ""):
        assert call("GET", "/model", [], {"Host": host})[0] == 403


def test_a_body_that_grows_past_the_limit_is_refused_while_it_is_read(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "MOST_BYTES", 1000)
    assert call("POST", "/predict", [b" " * 600] * 2, JSON)[0] == 413
    assert call("POST", "/predict", [], JSON | {"Content-Length": "1001"})[0] == 413
    assert call("POST", "/predict", [b" " * 1000], JSON)[0] == 422
    monkeypatch.setattr(gate, "MOST_BYTES_AT_ONCE", 500)
    assert call("POST", "/predict", [b" " * 600], JSON)[0] == 503
    assert call("POST", "/predict", [b"{}"], {"Content-Type": "text/plain"})[0] == 415


def test_a_full_queue_says_when_to_come_again(
    call: Call, dataset: MedsDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = json.dumps(as_request(dataset, index_of(dataset)[:1])).encode()
    assert call("POST", "/predict", [body], JSON)[0] == 200
    monkeypatch.setattr(batching, "MOST_WAITING", 0)
    status, headers, _ = call("POST", "/predict", [body], JSON)
    assert (status, headers["retry-after"]) == (503, "1")


def test_the_page_of_the_routes_fetches_nothing(call: Call) -> None:
    status, _, body = call("GET", "/docs", [], {})
    assert status == 200
    assert b"/predict" in body
    assert b"http" not in body.replace(b"https://runs.example.org", b"").replace(b"HTTP", b"")


def test_others_may_call_only_with_a_token_that_cannot_be_guessed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    with pytest.raises(SystemExit) as end:
        main(["serve", "models:/none@champion", "--host", "0.0.0.0"])
    assert end.value.code == 2
    assert f"set {TOKEN}" in capsys.readouterr().err
    monkeypatch.setenv(TOKEN, "short")
    with pytest.raises(Exception, match=f"{TOKEN} has 5 characters, and needed are 16"):
        serve(ServeSettings(("models:/none@champion",)), print)
