"""What runs are called, grouped and coloured by in the tracking UI."""

from __future__ import annotations

from pathlib import Path

import pytest
from simulated import study

from ehrtrack.config import RunConfig, override
from ehrtrack.pipeline.labels import transformer_label
from ehrtrack.pipeline.run import open_run
from ehrtrack.tracking.client.connection import client
from ehrtrack.tracking.client.queries import RunRecord, get_run
from ehrtrack.tracking.logger import TrackedRun

RUN_ID = "0123456789abcdef" * 2


def config(folder: Path) -> RunConfig:
    return study(folder / "no data", folder / "cache", strategy={"name": "lora", "rank": 8})


def opened(told: RunConfig, **how: object) -> RunRecord:
    with open_run(told, sections=("study", "strategy"), **how) as run:  # type: ignore[arg-type]
        pass
    return get_run(run.logger.reference)


def test_a_transformer_and_a_baseline_stand_in_one_grouping(local_store: Path) -> None:
    told = override(config(local_store), {"runtime.seed": 2})
    lora = opened(told, kind="finetune", model=transformer_label(told), task="survival")
    cox = opened(config(local_store), kind="baseline", model="cox", task="survival")
    assert (lora.name, cox.name) == ("lora r8 · tiny · seed 2", "cox")
    groups = [client().get_run(run.run_id).data.params["model"] for run in (lora, cox)]
    assert groups == ["lora r8", "cox"]
    assert lora.params["strategy.name"] == "lora"
    assert (lora.tags["ehrtrack.task"], lora.tags["mlflow.runColor"]) == ("survival", "#E69F00")
    assert cox.tags["mlflow.runColor"] == "#222222"


@pytest.mark.parametrize("kind", ["sweep", "sensitivity", "study", "demo", "compare"])
def test_a_run_of_several_models_is_in_no_group(kind: str, local_store: Path) -> None:
    run = opened(config(local_store), kind=kind, name=kind)
    assert "strategy.name" not in run.params
    assert run.params["strategy.rank"] == "8"
    assert "model" not in client().get_run(run.run_id).data.params
    assert "mlflow.runColor" not in run.tags


def test_a_colour_that_a_user_chose_stays_when_the_run_is_joined(
    local_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = client().create_run("0", tags={"mlflow.runColor": "#ff0000"}).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", mine)
    assert opened(config(local_store), kind="finetune", model="full").tags["mlflow.runColor"] == "#ff0000"


def test_run_ids_in_a_description_are_links_but_not_in_code(local_store: Path) -> None:
    with open_run(config(local_store), kind="demo", sections=("study",), name="demo") as run:
        assert isinstance(run.logger, TrackedRun)
        run.logger.set_description(f"pretrained by run: {RUN_ID}; to continue: `ehrtrack resume {RUN_ID}`")
    link = f"[{RUN_ID}](#/runs/{RUN_ID}?workflowType=machine_learning)"
    shown = get_run(run.logger.reference).tags["mlflow.note.content"]
    assert shown == f"pretrained by run: {link}; to continue: `ehrtrack resume {RUN_ID}`"
