"""The number of threads that a run took is written in its configuration, and it is resumed with that number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from simulated import Population, study, write_dataset

from ehrtrack.config import RunConfig, load_config
from ehrtrack.pipeline import prepare as _prepare
from ehrtrack.pipeline.prepare import settle
from ehrtrack.recipes.finetune import finetune
from ehrtrack.recipes.resume import resume
from ehrtrack.recipes.sweep import sweep
from ehrtrack.tracking.client.queries import RunRecord, download, get_run, search_runs
from ehrtrack.tracking.names import CONTINUED_WITH

pytestmark = pytest.mark.usefixtures("undrawn_figures")


@pytest.fixture
def numbers_set(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of threads that were asked for, in order; in place of taking them, as cores may be busy here."""
    told: list[int] = []
    monkeypatch.setattr(_prepare, "use_threads", told.append)
    return told


def patch_free(monkeypatch: pytest.MonkeyPatch, *found: int) -> None:
    """These numbers of threads in place of a look at the machine, one a look."""
    left = list(found)

    def free_threads() -> int:
        return left.pop(0) if left else pytest.fail("the machine was looked at once more")

    monkeypatch.setattr(_prepare, "free_threads", free_threads)


def configuration(folder: Path, **sections: object) -> RunConfig:
    write_dataset(folder / "meds", Population(n_subjects=120))
    train = {"epochs": 2, "batch_tokens": 512}
    return study(folder / "meds", folder / "cache", strategy={"name": "scratch"}, train=train, **sections)


def logged(record: RunRecord, folder: Path) -> int:
    """Threads in the configuration that a run logged."""
    values = json.loads(download(record.run_id, "run_config.json", folder / record.run_id).read_text())
    threads: int = values["runtime"]["threads"]
    assert record.params["runtime.threads"] == str(threads)
    return threads


@pytest.mark.parametrize(("asked", "expected"), [(0, 2), (3, 3)])
def test_a_configuration_that_leaves_the_number_open_goes_on_with_what_was_found(
    asked: int, expected: int, numbers_set: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_free(monkeypatch, 2)
    config = study(tmp_path, tmp_path / "cache", runtime={"threads": asked, "seed": 4})
    settled = settle(config)
    assert (settled.runtime.threads, numbers_set) == (expected, [expected])
    assert settled.runtime.model_copy(update={"threads": asked}) == config.runtime
    assert settled.model_copy(update={"runtime": config.runtime}) == config


@pytest.mark.parametrize(("overrides", "expected"), [((), 2), ((("runtime.threads", "1"),), 1)])
def test_a_run_is_resumed_with_the_number_of_its_beginning_unless_another_is_asked_for(
    overrides: tuple[tuple[str, str], ...],
    expected: int,
    numbers_set: list[int],
    local_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    patch_free(monkeypatch, 2)  # and no second look: on resuming, the machine may be another or have other work

    def stop(epoch: int, metrics: dict[str, float]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(configuration(local_store), on_epoch=stop)
    (begun,) = search_runs("simulated", kinds=["finetune"], status=None)
    assert logged(begun, local_store) == 2
    assert resume(begun.run_id, overrides).run_id == begun.run_id
    assert numbers_set == [2, expected]
    is_said = "runtime.threads (then 2, now 1): sums are made in another order" in capsys.readouterr().out
    assert is_said == bool(overrides)
    told = get_run(begun.run_id).tags.get(CONTINUED_WITH, "")
    assert told == ("runtime.threads (then 2, now 1)" if overrides else "")


def test_a_sweep_looks_once_for_all_its_trials_and_its_best_configuration_is_for_any_machine(
    numbers_set: list[int], local_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_free(monkeypatch, 2)
    search = {"n_trials": 1, "refits": 1, "parameters": {"train.lr": {"choices": [1e-3]}}}
    run = sweep(configuration(local_store, search=search))
    runs = search_runs("simulated", kinds=["sweep", "trial", "finetune"], status=None)
    assert [logged(record, local_store) for record in runs] == [2, 2, 2] == numbers_set
    assert load_config(download(run.run_id, "best.toml", local_store / "best")).runtime.threads == 0
