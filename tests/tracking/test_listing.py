"""Many runs at once: read from the tables or over HTTP in parts, they are those that mlflow's client gives."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from weather import proxy

from ehrtrack.tracking.client import listing, queries
from ehrtrack.tracking.client.connection import client, tracking_uri
from ehrtrack.tracking.client.experiments import every_experiment_id
from ehrtrack.tracking.client.listing import Found, Wanted, from_database, from_server, of_entity
from ehrtrack.tracking.run import tracked_run


@pytest.fixture(params=["local_store", "http_store"])
def store(request: pytest.FixtureRequest) -> object:
    return request.getfixturevalue(request.param)


def made(study: str, n_runs: int = 3) -> list[str]:
    ids = []
    for number in range(n_runs):
        kind = ("finetune", "baseline", "pretrain")[number % 3]
        with tracked_run(experiment=study, name=f"run {number}", kind=kind, params={"seed": number}) as run:
            run.log_metrics({"val/loss": 2.0}, step=1)
            run.log_metrics({"val/loss": 1.0, "test/c_index": math.nan, "big": math.inf}, step=2)
            run.set_tags({"note": "x" * 100, "group": "g" if number else "h"})
        assert run.server_run_id is not None
        ids.append(run.server_run_id)
    return ids


def by_client(condition: str) -> dict[str, Found]:
    runs = client().search_runs(every_experiment_id(), condition)
    return {run.info.run_id: of_entity(run) for run in runs}


def plain(found: list[Found]) -> dict[str, str]:
    """NaN equals itself as text."""
    return {run.run_id: repr((run, sorted(run.params), sorted(run.metrics))) for run in map(_sorted, found)}


def _sorted(run: Found) -> Found:
    ordered = (dict(sorted(values.items())) for values in (run.params, run.metrics, run.tags))
    return Found(*(getattr(run, name) for name in list(Found.__dataclass_fields__)[:7]), *ordered)


def test_the_tables_say_what_mlflows_client_says(local_store: object) -> None:
    ids = made("s")
    made("other", 1)
    found = from_database(client(), Wanted({"ehrtrack.study": "s"}))
    assert plain(found) == plain(list(by_client("tags.`ehrtrack.study` = 's'").values()))
    assert {run.run_id for run in found} == set(ids)
    assert math.isnan(found[0].metrics["test/c_index"])


@pytest.mark.parametrize(
    ("conditions", "wanted"),
    [
        ({"kinds": ["finetune"]}, [0]),
        ({"kinds": ["finetune", "baseline"]}, [0, 1]),
        ({"params": {"cfg.seed": "2"}}, [2]),
        ({"status": "FAILED"}, []),
        ({"status": "FINISHED", "kinds": ["pretrain", "trial"]}, [2]),
    ],
)
def test_every_condition_has_to_hold(conditions: dict[str, object], wanted: list[int], local_store: object) -> None:
    ids = made("s")
    found = from_database(client(), Wanted({"ehrtrack.study": "s"}, **conditions))  # type: ignore[arg-type]
    assert {run.run_id for run in found} == {ids[number] for number in wanted}


def test_what_is_deleted_is_in_no_list(store: object) -> None:
    study = f"deleted {type(store).__name__}"
    ids = made(study)
    client().delete_run(ids[0])
    assert {run.run_id for run in queries.search_runs(study)} == set(ids[1:])
    client().delete_experiment(client().get_run(ids[1]).info.experiment_id)
    assert queries.search_runs(study) == []


def test_over_http_a_large_search_is_cut_into_parts(http_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = made("parts", 7)
    monkeypatch.setattr(listing, "ROWS_PER_PAGE", 1)
    condition = "tags.`ehrtrack.study` = 'parts'"
    found = from_server(tracking_uri(), every_experiment_id(), [condition])
    assert sorted(run.run_id for run in found) == sorted(ids)
    assert plain(found) == plain(list(by_client(condition).values()))


def test_a_small_search_is_one_call(http_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made("small", 2)
    with proxy(http_store) as weather:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", weather.address)
        assert len(queries.search_runs("small")) == 2
        assert weather.seen == ["POST /api/2.0/mlflow/experiments/search", "POST /api/2.0/mlflow/runs/search"]
        weather.seen.clear()
        assert len(queries.search_runs("small", kinds=["finetune", "baseline"])) == 2
        assert weather.seen[1:] == ["POST /api/2.0/mlflow/runs/search"] * 2


def test_a_file_is_one_call(http_store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with tracked_run(experiment="file", name="a", kind="finetune") as run:
        run.log_text("text", "predictions/x.txt")
        run.log_text("text", "predictions/first.txt")
    with proxy(http_store) as weather:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", weather.address)
        (record,) = queries.search_runs("file")
        queries.fetch_file(
            record.run_id, "predictions/first.txt", tmp_path / "got"
        )  # mlflow asks what the server can do
        weather.seen.clear()
        file = queries.fetch_file(record.run_id, "predictions/x.txt", tmp_path / "got")
        assert file.read_text() == "text"
        assert len(weather.seen) == 1
        with pytest.raises(
            queries.MissingArtifact, match=r"no artifact 'predictions/y\.txt'; there: predictions/first"
        ):
            queries.fetch_file(record.run_id, "predictions/y.txt", tmp_path / "got")


def test_a_file_of_this_machine_is_read_where_it_lies(local_store: object, tmp_path: Path) -> None:
    with tracked_run(experiment="file", name="a", kind="finetune") as run:
        run.log_text("text", "predictions/x.txt")
    assert run.server_run_id is not None
    file = queries.fetch_file(run.server_run_id, "predictions/x.txt", tmp_path / "got")
    assert file.read_text() == "text"
    assert not (tmp_path / "got").exists()
    with pytest.raises(queries.MissingArtifact):
        queries.fetch_file(run.server_run_id, "predictions/y.txt", tmp_path / "got")
