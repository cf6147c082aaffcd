"""What a registered version is made of: by whatever call, neither its owner nor a second user changes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import requests
from running_servers import RunningServer, needs_login

pytestmark = needs_login

DIGEST = "d" * 64
VERSION = f"registered/{DIGEST}"
FILES = {f"{VERSION}/artifacts/model/weights": b"of the version", f"{VERSION}/model_code.py": b"code"}


@dataclass(frozen=True)
class Client:
    """Calls to a server, as one of its users."""

    server: RunningServer
    user: str

    def call(self, method: str, path: str, **values: Any) -> requests.Response:
        login = (self.user, self.server.password(self.user))
        return requests.request(method, f"{self.server.address}/{path}", auth=login, timeout=60, **values)

    def post(self, call: str, method: str = "POST", **values: object) -> requests.Response:
        return self.call(method, f"api/2.0/mlflow/{call}", json=values)

    def made(self, call: str, **values: object) -> dict[str, Any]:
        answer = self.post(call, **values)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


@dataclass(frozen=True)
class Registered:
    """A version that ada registered of one run, to be loaded on the model of another."""

    ada: Client
    eve: Client
    experiment: str
    run: str
    base: str

    def at(self, path: str, run: str = "", api: str = "api") -> str:
        return f"{api}/2.0/mlflow-artifacts/artifacts/{self.experiment}/{run or self.run}/artifacts/{path}"

    def files(self) -> dict[str, bytes]:
        found = {path: self.eve.call("GET", self.at(path)).content for path in FILES}
        return found | {"base": self.eve.call("GET", self.at("model/weights", self.base)).content}


@pytest.fixture(scope="module")
def registered(second_life: RunningServer) -> Registered:
    ada, eve = Client(second_life, "ada"), Client(second_life, "eve")
    experiment = ada.made("experiments/create", name="of ada")["experiment_id"]
    run, base = (
        ada.made("runs/create", experiment_id=experiment)["run"]["info"]["run_id"] for _ in ("adapter", "base")
    )
    made = Registered(ada, eve, experiment, run, base)
    for path, content in FILES.items():
        assert ada.call("PUT", made.at(path), data=content).status_code == 200
    assert ada.call("PUT", made.at("model/weights", base), data=b"of the base").status_code == 200
    ada.made("registered-models/create", name="m")
    tags = [{"key": "ehrtrack.base", "value": f"runs:/{base}/model"}]
    ada.made("model-versions/create", name="m", source=f"runs:/{run}/{VERSION}", run_id=run, tags=tags)
    return made


@pytest.mark.parametrize("user", ["ada", "eve", "admin"])
def test_no_call_changes_or_removes_a_file_of_a_version_or_of_its_base(registered: Registered, user: str) -> None:
    before, who = registered.files(), Client(registered.ada.server, user)
    assert before == FILES | {"base": b"of the base"}
    weights = f"{VERSION}/artifacts/model/weights"
    answers = {
        f"{method} {path}": who.call(method, path, data=b"other")
        for api in ("api", "ajax-api")
        for method, path in [
            ("PUT", registered.at(weights, api=api)),
            ("PUT", registered.at(f"{VERSION}/artifacts/model/more", api=api)),
            ("PUT", registered.at("model/weights", registered.base, api=api)),
            ("DELETE", registered.at(weights, api=api)),
            ("DELETE", registered.at(VERSION, api=api)),
            ("DELETE", registered.at("registered", api=api)),
            (
                "DELETE",
                registered.at("", api=api).rstrip("/"),
            ),
            ("DELETE", registered.at("model", registered.base, api=api)),
            ("POST", f"ajax-api/2.0/mlflow/upload-artifact?run_uuid={registered.run}&path={weights}"),
            ("DELETE", f"{api}/2.0/mlflow-artifacts/artifacts/{registered.experiment}"),
        ]
    }
    answers |= {
        "delete_run": who.post("runs/delete", run_id=registered.run),
        "delete base": who.post("runs/delete", run_id=registered.base),
        "delete_experiment": who.post("experiments/delete", experiment_id=registered.experiment),
    }
    assert {call: answer.status_code for call, answer in answers.items() if answer.status_code not in (400, 403)} == {}
    if user == "ada":  # the other is refused for who she is
        assert {answer.status_code for answer in answers.values()} == {400}
        assert "models:/m/1" in answers["delete base"].json()["message"]
    assert registered.files() == before


def test_a_second_user_changes_nothing_that_the_registry_says_of_a_version(registered: Registered) -> None:
    eve = registered.eve
    calls: dict[str, tuple[str, dict[str, object]]] = {
        "model-versions/delete": ("DELETE", {"version": "1"}),
        "model-versions/update": ("PATCH", {"version": "1", "description": "other"}),
        "model-versions/set-tag": ("POST", {"version": "1", "key": "ehrtrack.base", "value": "runs:/x/model"}),
        "model-versions/delete-tag": ("DELETE", {"version": "1", "key": "ehrtrack.base"}),
        "registered-models/alias": ("POST", {"alias": "champion", "version": "1"}),
        "registered-models/rename": ("POST", {"new_name": "n"}),
        "registered-models/delete": ("DELETE", {}),
        "model-versions/create": ("POST", {"source": f"runs:/{registered.run}/model", "run_id": registered.run}),
    }
    answers = {call: eve.post(call, method, name="m", **values) for call, (method, values) in calls.items()}
    assert {call: answer.status_code for call, answer in answers.items() if answer.status_code != 403} == {}
    said = eve.call("GET", "api/2.0/mlflow/model-versions/search").json()["model_versions"]
    assert [(of["version"], of["source"]) for of in said if of["name"] == "m"] == [
        ("1", f"runs:/{registered.run}/{VERSION}")
    ]


def test_all_else_of_its_run_is_as_before_and_without_versions_the_run_can_go(registered: Registered) -> None:
    ada = registered.ada
    for path in ("notes.txt", "model/weights", f"registered/{'e' * 64}/MLmodel", "resume/slot-0/state"):
        assert ada.call("PUT", registered.at(path), data=b"of the run").status_code == 200
    assert ada.call("DELETE", registered.at("resume/slot-0")).status_code == 200
    other = ada.made("runs/create", experiment_id=registered.experiment)["run"]["info"]["run_id"]
    ada.made("runs/delete", run_id=other)
    assert ada.post("runs/delete", run_id=registered.run).status_code == 400
    assert ada.post("model-versions/delete", "DELETE", name="m", version="1").status_code == 200
    ada.made("runs/delete", run_id=registered.run)
    ada.made("runs/delete", run_id=registered.base)
