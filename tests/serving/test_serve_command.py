"""`ehrtrack serve` as a user starts it: a process, a registry, and clients over HTTP."""

from __future__ import annotations

import copy
import json
import os
import random
import signal
import socket
import threading
import urllib.parse
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
import requests
from conftest import Registry
from serving_models import Serving, as_request, serving

from ehrtrack.errors import ConfigError
from ehrtrack.pipeline.adapted import Bases
from ehrtrack.recipes.predict import predict
from ehrtrack.server.processes import free_port
from ehrtrack.serving.command import ServeSettings, serve
from ehrtrack.serving.messages import Answer, Facts, Health, Refusal
from ehrtrack.serving.models import Models, Watch, load

# of mlflow's own classes when its pyfunc is imported
pytestmark = pytest.mark.filterwarnings("ignore:.*[Tt]ype hint:UserWarning")

N_MUTATIONS = int(os.environ.get("EHRTRACK_MUTATIONS", "100"))
SECRET = "7731-SECRET"
CHAMPION = "models:/served@champion"


@pytest.fixture(scope="module")
def server(registry: Registry) -> Iterator[Serving]:
    (registry.folder / "tmp").mkdir()
    words = (CHAMPION, "second=models:/served/2", "--poll", "0.2")
    with serving(registry.folder, *words, TMPDIR=str(registry.folder / "tmp")) as server:
        yield server


@pytest.fixture(scope="module")
def times(registry: Registry) -> pl.DataFrame:
    """Each subject at its index date, and 250 days later."""
    index = registry.dataset.scan().filter(code="INDEX").select("subject_id", prediction_time="time").collect()
    later = index.with_columns(pl.col("prediction_time") + timedelta(days=250))
    return pl.concat([index, later]).sort("subject_id", "prediction_time")


def risks(registry: Registry, version: int, times: pl.DataFrame) -> list[float | None]:
    """By `ehrtrack predict`."""
    times.write_parquet(registry.folder / "times.parquet")
    out = registry.folder / f"risks-{version}.parquet"
    predict(f"models:/served/{version}", registry.folder / "meds", registry.folder / "times.parquet", out)
    return pl.read_parquet(out)["risk"].to_list()


def asked(server: Serving, told: dict[str, Any]) -> Answer:
    answer = requests.post(f"{server.address}/predict", json=told, timeout=60)
    assert answer.status_code == 200, answer.text
    return Answer.model_validate_json(answer.content)


def same(found: Answer, expected: list[float | None]) -> bool:
    """Whether risks are these to 1e-6, and missing in the same places."""
    told = np.array([np.nan if one.risk is None else one.risk for one in found.predictions])
    return bool(np.allclose(told, np.array(expected, dtype=float), rtol=0, atol=1e-6, equal_nan=True))


def test_the_answer_is_what_predict_writes(server: Serving, registry: Registry, times: pl.DataFrame) -> None:
    found = asked(server, as_request(registry.dataset, times))
    expected = risks(registry, 1, times)
    assert same(found, expected)
    assert 0 < expected.count(None) < len(expected) - 40
    assert (found.model.version, found.model.run_id) == ("1", registry.versions[0].run_id)


def test_health_and_model_say_what_answers(server: Serving, registry: Registry) -> None:
    health = Health.model_validate_json(requests.get(f"{server.address}/health", timeout=60).content)
    assert (health.is_serving, health.models[0].version) == (True, "1")
    assert "was looked up" in health.registry
    facts, second = [Facts.model_validate(one) for one in requests.get(f"{server.address}/model", timeout=60).json()]
    assert facts.measures == {"c_index": 0.7, "c_index_lower": 0.6}
    assert (facts.cohort, facts.max_tokens) == ("c0h0r7", 64)
    assert (second.model.name, second.model.version) == ("second", "2")


def test_a_request_chooses_among_the_models(server: Serving, registry: Registry, times: pl.DataFrame) -> None:
    told = as_request(registry.dataset, times.head(8))
    of_second = asked(server, told | {"model": "second"})
    assert same(of_second, risks(registry, 2, times.head(8)))
    assert same(asked(server, told | {"model": "served"}), risks(registry, 1, times.head(8)))
    assert (of_second.model.name, of_second.model.version) == ("second", "2")
    with pytest.raises(ConfigError, match="two models are called 'served'; give one another name"):
        serve(ServeSettings(("models:/served/1", "served=models:/served/2"), port=0), print)


def test_the_schema_names_every_part_and_refers_to_none_that_is_not_there(server: Serving) -> None:
    schema = requests.get(f"{server.address}/openapi.json", timeout=60).json()
    parts = schema["components"]["schemas"]
    assert {"Request", "Subject", "Event", "Answer", "Prediction", "Refusal"} <= set(parts)
    text = json.dumps(schema)
    named = {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert named <= set(parts)
    assert set(schema["paths"]["/predict"]["post"]["responses"]) >= {"200", "400", "413", "422", "503"}
    assert "example.org" not in text.replace("runs.example.org", "")


def mutated(told: dict[str, Any], rng: random.Random) -> bytes:
    """The bytes of a request in which something is wrong, more often than not."""
    told = copy.deepcopy(told)
    events = [event for subject in told["subjects"] for event in subject["events"]]
    for _ in range(rng.randint(0, 5)):
        field = rng.choice(list(ODD))
        rng.choice(events)[field] = rng.choice(ODD[field])
    for _ in range(rng.choice([0, 0, 1, 3])):
        node, key = rng.choice(list(places(told)))
        how = rng.randrange(6)
        if how == 0:
            del node[key]
        elif how == 1:
            node[key] = rng.choice(JUNK)
        elif how == 2 and isinstance(node, dict):
            node[SECRET] = node[key]
        elif how == 3 and isinstance(node, list):
            node.append(copy.deepcopy(node[key]))
        elif how == 4:
            node[key] = [node[key]]
        else:
            node[key] = f"{SECRET}{node[key]}"[: rng.randint(0, 300)]
    body = bytearray(json.dumps(told).encode())
    if rng.random() < 0.1:
        for _ in range(rng.randint(1, 4)):
            body[rng.randrange(len(body))] = rng.randrange(256)
    return bytes(body[: rng.randrange(len(body))] if rng.random() < 0.05 else body)


ODD: dict[str, list[Any]] = {
    "code": [
        "MEDS_BIRTH",
        "MEDS_DEATH",
        "[UNK]",
        "[PAD]",
        "LAB//Q1",
        "LAB",
        ".*",
        "\0",
        "é" * 256,
        " ",
        SECRET,
        "OUTCOME",
    ],
    "time": ["0001-01-01", "9999-12-31T23:59:59Z", "2016-06-01T00:00:00+23:59", None, "2016-02-29 12:00:00.000001"],
    "numeric_value": [0, -1, 1e308, -1e308, 5e-324, 5, None],
    "visit_id": ["v", "\0", None],
}
"""Values that are allowed, and are in no record."""
JUNK: list[Any] = [
    *(None, True, False, 0, -1, 1e308, -1e308, 2**63, -(2**63) - 1, 0.5, float("nan"), float("inf"), "", " ", "\0"),
    *("\ud800", "é" * 300, "9999-12-31T23:59:59-12:00", "0001-01-01", "2020-02-30", "1e5", "MEDS_BIRTH", "MEDS_DEATH"),
    *("[UNK]", "[PAD]", "LAB//Q1", ".*", [], {}, [[]], {"a": {}}, [1] * 50, "INDEX", "2016-06-01T00:00:00+23:59"),
]


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a request, with each of its keys."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield node, key
        if isinstance(value, dict | list):
            yield from places(value)


def test_mutated_requests_are_answered_or_refused_and_nothing_of_them_is_repeated(
    server: Serving, registry: Registry, times: pl.DataFrame
) -> None:
    told = as_request(registry.dataset, times.head(3), days=[30, 60])
    expected = asked(server, told)
    rng = random.Random(0 if N_MUTATIONS == 100 else None)
    statuses: dict[int, int] = {}
    with requests.Session() as session:
        for number in range(N_MUTATIONS):
            body = mutated(told, rng)
            answer = session.post(
                f"{server.address}/predict", data=body, headers={"Content-Type": "application/json"}, timeout=60
            )
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
            assert answer.status_code in (200, 400, 413, 422), (number, body, answer.text)
            kind = Answer if answer.status_code == 200 else Refusal
            kind.model_validate_json(answer.content)
            assert SECRET not in answer.text, body
    assert min(statuses[200], statuses[422]) > N_MUTATIONS // 10
    assert asked(server, told) == expected
    assert SECRET not in "\n".join(server.said)
    assert "Traceback" not in "\n".join(server.said)


def test_paths_and_methods_that_there_are_not_are_refused(server: Serving) -> None:
    assert requests.get(f"{server.address}/nothing", timeout=60).status_code == 404
    assert requests.get(f"{server.address}/predict", timeout=60).status_code == 405
    assert requests.post(f"{server.address}/predict", data=b"{}", timeout=60).status_code == 415
    assert requests.get(f"{server.address}/health", headers={"Host": "evil.example.org"}, timeout=60).status_code == 403


def test_a_body_over_the_limit_is_refused_whether_its_length_is_told_or_not(server: Serving) -> None:
    headers = {"Content-Type": "application/json"}
    for body in (b" " * (8 * 2**20 + 1), iter([b" " * 2**20] * 9)):
        answer = requests.post(f"{server.address}/predict", data=body, headers=headers, timeout=60)
        assert answer.status_code == 413
        assert "send the subjects in parts" in answer.text


def test_a_champion_that_moves_under_load_drops_nothing_and_mixes_nothing(
    server: Serving, registry: Registry, times: pl.DataFrame
) -> None:
    told = as_request(registry.dataset, times.head(8))
    expected = {str(version): risks(registry, version, times.head(8)) for version in (1, 2)}
    assert expected["1"] != expected["2"]
    wrong: list[Any] = []
    answered = {"1": 0, "2": 0}
    ended = threading.Event()

    def client() -> None:
        with requests.Session() as session:
            while not ended.wait(0.02):  # four that ask without a pause keep the server from what it has to load
                answer = session.post(f"{server.address}/predict", json=told, timeout=60)
                if answer.status_code != 200:
                    wrong.append(answer.text)
                    return
                found = Answer.model_validate_json(answer.content)
                version = str(found.model.version)
                if not same(found, expected[version]):
                    wrong.append(found)
                answered[version] += 1

    clients = [threading.Thread(target=client) for _ in range(4)]
    for one in clients:
        one.start()
    try:
        for number in (2, 1, 2):
            registry.move(number)
            before, deadline = answered[str(number)], 600
            while answered[str(number)] < before + 8 and not wrong and deadline:
                ended.wait(0.1)
                deadline -= 1
    finally:
        ended.set()
        for one in clients:
            one.join()
    assert wrong == []
    assert min(answered.values()) >= 8
    assert list((registry.folder / "tmp").iterdir()) == []  # of the models that were fetched
    assert server.said[-1] == "served: version 2 answers now, in the place of 1"


def test_a_registry_that_is_away_leaves_what_is_served_and_health_says_so(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.move(1)
    models, said = Models(), list[str]()
    models.put(load(CHAMPION, Bases()))
    assert Watch(models, "models:/served/1", Bases(), name="served", seconds=1, tell=said.append).state.endswith(
        "never moves"
    )
    told, store = threading.Event(), os.environ["MLFLOW_TRACKING_URI"]

    def tell(text: str) -> None:
        said.append(text)
        told.set()

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    watch = Watch(models, CHAMPION, Bases(), name="served", seconds=0.01, tell=tell)
    try:
        assert told.wait(60)
        assert watch.state.startswith(f"{CHAMPION} could not be looked up or read since ")
        assert "what is served stays" in said[0]
        assert models.now()["served"].named.version == "1"
        told.clear()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
        registry.move(2)
        assert told.wait(60)
        assert said[1:] == ["served: version 2 answers now, in the place of 1"]
        assert models.now()["served"].named.version == "2"
    finally:
        watch.close()


def test_sigterm_lets_what_is_in_flight_be_answered(server: Serving, registry: Registry, times: pl.DataFrame) -> None:
    """The last test of this server. The body is sent when the signal has come."""
    body = json.dumps(as_request(registry.dataset, times.head(4))).encode()
    place = urllib.parse.urlsplit(server.address)
    with socket.create_connection((str(place.hostname), int(place.port or 0)), timeout=60) as connection:
        kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nExpect: 100-continue"
        connection.sendall(f"POST /predict HTTP/1.1\r\nHost: localhost\r\n{kind}\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 100")  # it waits for the body
        server.process.send_signal(signal.SIGTERM)
        while True:  # until it listens no more
            try:
                socket.create_connection((str(place.hostname), int(place.port or 0)), timeout=60).close()
            except OSError:
                break
        connection.sendall(body)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 200")
    Answer.model_validate_json(answer.partition(b"\r\n\r\n")[2])
    assert server.process.wait(60) == 143
    assert "Traceback" not in "\n".join(server.said)
