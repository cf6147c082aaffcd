"""Pretraining is told from pretraining that transfers, and the probe that tells it changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from simulated import Population, study, write_dataset

from ehrtrack.config import RunConfig, override
from ehrtrack.errors import ConfigError, DataError
from ehrtrack.pipeline import fit as pipeline_fit
from ehrtrack.recipes.pretrain import pretrain
from ehrtrack.recipes.resume import resume
from ehrtrack.simulate.population import simulate
from ehrtrack.simulate.world import load_world
from ehrtrack.tracking.client.queries import RunRecord, get_run
from ehrtrack.training.sanity import learned_codes
from ehrtrack.training.steps import Training

pytestmark = pytest.mark.usefixtures("undrawn_figures")

TIMES = ("seconds", "per_second", "memory", "cost/", "utilisation")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site that writes each thing in one way, so that few records teach something."""
    folder = tmp_path_factory.mktemp("world") / "site"
    simulate(load_world("target-site", ["n_synonyms=1"]), folder, n_subjects=1500, seed=0)
    return folder


def pretrained(data: Path, folder: Path, *, epochs: int, **objective: Any) -> RunRecord:
    config = study(
        data,
        folder / "cache",
        cohort=None,
        model={"encoder": "summaries", "size": "tiny"},
        objective=objective,
        train={"epochs": epochs, "batch_tokens": 2048, "lr": 5e-3},
    )
    return get_run(pretrain(override(config, {"data.max_tokens": 512})).run_id)


def test_masked_pretraining_that_does_not_transfer_has_not_learned(world: Path, local_store: Path) -> None:
    run = pretrained(world, local_store, epochs=4, name="mlm")
    assert run.metrics["val/mlm_loss"] < 0.98 * run.metrics["val/unigram_loss"]  # which was enough
    assert run.metrics["probe/states_r2"] < 0.7 * run.metrics["probe/counts_r2"]
    assert run.tags["sanity.learned"] == "fail"
    assert "states know less than counts" in run.tags["mlflow.note.content"]


def test_forecasts_on_summaries_transfer(world: Path, local_store: Path) -> None:
    run = pretrained(world, local_store, epochs=3, name="forecast")
    assert run.metrics["probe/states_r2"] > 0.8 * run.metrics["probe/counts_r2"] > 0.05
    assert run.metrics["probe/seconds"] > 0
    assert learned_codes(run.metrics, {}).state == "ok"  # whatever so few records say of its own loss
    assert "- **probe**: a ridge on its states foretells" in run.tags["mlflow.note.content"]


def small(local_store: Path, **objective: Any) -> RunConfig:
    """A pretraining of seconds with dropout, which would show if random numbers were drawn out of turn."""
    data = local_store / "meds"
    if not data.is_dir():
        write_dataset(data, Population(n_subjects=200))
    return study(data, local_store / "cache", cohort=None, objective={"name": "mlm"} | objective)


def without_times(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{n: v for n, v in epoch.items() if not any(word in n for word in TIMES)} for epoch in history]


@pytest.fixture
def histories(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, float]]]:
    """The metrics by epoch of each training that comes to its end."""
    seen: list[list[dict[str, float]]] = []
    fit = pipeline_fit.fit

    def noted(*arguments: Any, **settings: Any) -> Any:
        result = fit(*arguments, **settings)
        seen.append(result.history)
        return result

    monkeypatch.setattr(pipeline_fit, "fit", noted)
    return seen


def test_a_probe_changes_nothing_of_the_training(local_store: Path, histories: list[list[dict[str, float]]]) -> None:
    records = [get_run(pretrain(small(local_store, probe_epochs=when)).run_id) for when in ("never", "end", 1)]
    never, end, each = (without_times(history) for history in histories)
    assert never == end
    assert [{n: v for n, v in epoch.items() if not n.startswith("probe/")} for epoch in each] == never
    assert all("probe/states_r2" in epoch for epoch in each)
    assert "probe/states_r2" not in records[0].metrics
    assert "probe" not in records[0].tags["mlflow.note.content"]
    assert records[1].metrics["probe/states_r2"] == each[-1]["probe/states_r2"]


def test_a_resumed_run_has_the_same_probes_and_keeps_the_epoch_that_they_choose(
    local_store: Path, histories: list[list[dict[str, float]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(local_store, select_by="probe")
    whole = get_run(pretrain(config).run_id)
    take_step, n_steps = Training.take_step, 0

    def interrupted(self: Training, batches: Any) -> None:
        nonlocal n_steps
        n_steps += 1
        if self.progress.epoch == 2 and self.progress.n_done == 1:
            raise KeyboardInterrupt
        take_step(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "take_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config)
    (stopped,) = [folder.name for folder in (local_store / "cache" / "runs").iterdir()]
    resumed = get_run(resume(stopped, is_forced=True).run_id)
    assert without_times(histories[1]) == without_times(histories[0])
    states = [epoch["probe/states_r2"] for epoch in histories[0]]
    for run in (whole, resumed):
        assert run.metrics["kept/epoch"] == 1 + states.index(max(states))
        assert run.metrics["probe/states_r2"] == states[-1]


def test_records_that_are_too_short_are_left_out_aloud(
    local_store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ehrtrack.training.probe.LEAST_FITTED", 10_000)
    run = get_run(pretrain(small(local_store)).run_id)
    assert "no probe of what the states foretell: nothing new comes within" in capsys.readouterr().out
    assert "probe/states_r2" not in run.metrics
    assert "- **probe**: none: nothing new comes within" in run.tags["mlflow.note.content"]
    assert "counts" not in run.tags["mlflow.note.content"].split("learned: ")[1].split("\n")[0]
    with pytest.raises(DataError, match="nothing new comes within"):
        pretrain(small(local_store, select_by="probe"))


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"select_by": "probe", "probe_epochs": "never"}, "select_by=probe needs a probe after each epoch"),
        ({"select_by": "probe", "probe_epochs": 2}, "select_by=probe needs a probe after each epoch"),
        ({"probe_epochs": 0}, "probe_epochs"),
        ({"name": "mixed", "settings": {"mlm": {"probe_epochs": 1}}}, "probe_epochs is a setting of the sum"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    objective: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        study(tmp_path, tmp_path, objective={"name": "mlm"} | objective)
