"""A study from its start to its table, with recipes that only pretend to train: what is run, told, tried again."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from pretended import Recipes

from ehrtrack.errors import TrainingError
from ehrtrack.pipeline.cost import Cost
from ehrtrack.recipes.plan import plan
from ehrtrack.recipes.study import study
from ehrtrack.study.cells import read_study
from ehrtrack.tracking.client.connection import ServerUnavailable, client
from ehrtrack.tracking.client.queries import RunRecord, search_runs
from ehrtrack.tracking.names import CELL, CLOSED, CONFIGURATION, KIND
from ehrtrack.tracking.names import STUDY as STUDY_TAG

pytestmark = pytest.mark.usefixtures("undrawn_figures")

WriteStudy = Callable[..., Path]
STUDY = """
question = "Does pretraining pay?"
finetune = "finetune.toml"
baseline = "baseline.toml"
pretrain = "pretrain.toml"
reference = { baseline = "cox" }
price_per_hour = 2.0
[matrix]
strategy = ["full", "scratch"]
[repeats]
"runtime.seed" = [0, 1]
"""
ALL = [
    *("cox", "pretrain · seed 0", "full · seed 0", "scratch · seed 0"),
    *("pretrain · seed 1", "full · seed 1", "scratch · seed 1"),
]


def runs(kind: str, status: str | None = "FINISHED") -> list[RunRecord]:
    return search_runs("sim", kinds=[kind], status=status)


def test_a_study_runs_each_cell_once_under_its_own_run_and_gathers_repeats(
    local_store: Path, recipes: Recipes, write_study: WriteStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_study(STUDY)
    results = study(file)
    assert results is not None
    assert recipes.made == ALL
    (parent,) = runs("study")
    assert results.run_id == parent.run_id
    pretrainings = {run.name: run.run_id for run in runs("pretrain")}
    assert recipes.bases["full · seed 1"] == pretrainings["pretrain · seed 1"]
    assert (recipes.bases["scratch · seed 1"], recipes.bases["cox"]) == ("", "")
    finetunings = runs("finetune")
    assert {run.parent_run_id for run in finetunings} == {parent.run_id}
    assert [run.tags[CONFIGURATION] for run in finetunings] == ["full", "scratch", "full", "scratch"]
    assert [(repeat.settings, repeat.seed, repeat.n_train, repeat.n_test) for repeat in results.repeats] == [
        ({"baseline.name": "cox"}, 0, 140, 30),
        ({"strategy.name": "full"}, 0, 140, 30),
        ({"strategy.name": "scratch"}, 0, 140, 30),
        ({"strategy.name": "full"}, 1, 140, 30),
        ({"strategy.name": "scratch"}, 1, 140, 30),
    ]
    assert len(results.predictions) == 5
    assert (len(results.pretrainings), results.missing) == (2, {})
    said = capsys.readouterr().out
    assert re.search(r"^\| full +\| +2 \| 0\.740 \(0\.028\)", said, re.MULTILINE)
    assert re.search(r"^\[3 of 7 done, \d+ (s|min) and \d+\.\d\d EUR left\] .*: done, run", said, re.MULTILINE)
    assert "[7 of 7 done] scratch · seed 1: done, run" in said
    described = client().get_experiment(parent.experiment_id).tags["mlflow.note.content"]
    assert "Best by validation is full" in described
    assert (local_store / "reports" / "sim" / "index.html").is_file()


def test_a_study_that_is_done_is_told_and_not_done_again_also_without_its_queue(
    local_store: Path, recipes: Recipes, write_study: WriteStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_study(STUDY)
    first = study(file)
    (local_store / ".ehrtrack" / "sweeps.db").unlink()
    again = study(file)
    assert first is not None
    assert again is not None
    assert (again.run_id, again.repeats) == (first.run_id, first.repeats)
    assert recipes.made == ALL
    assert len(runs("study", None)) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"`ehrtrack report {file}` writes its report anew, as this version of the program has it"


def test_another_question_takes_the_cells_that_both_share_from_where_they_are(
    local_store: Path, recipes: Recipes, write_study: WriteStudy
) -> None:
    study(write_study(STUDY))
    recipes.made.clear()
    results = study(write_study(STUDY.replace('"scratch"]', '"scratch", "bitfit"]')))
    assert results is not None
    assert recipes.made == ["bitfit · seed 0", "bitfit · seed 1"]
    assert len(results.repeats) == 7
    assert len(runs("study")) == 2


def test_what_fails_is_tried_once_more_reported_and_tried_again_when_the_study_is_started_again(
    local_store: Path, recipes: Recipes, write_study: WriteStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_study(STUDY)
    recipes.trouble = {
        "pretrain · seed 1": [TrainingError("the loss is not finite"), TrainingError("the loss is not finite again")],
        "scratch · seed 0": [ValueError("a mistake of the program")],
    }
    with pytest.raises(TrainingError, match="2 of 7 cells have no result") as raised:
        study(file)
    assert "pretrain · seed 1: it failed 2 times: TrainingError: the loss is not finite again" in str(raised.value)
    assert "full · seed 1: its pretraining failed" in str(raised.value)
    said = capsys.readouterr()
    assert "Traceback" in said.err
    assert "scratch · seed 0: failed, and is tried once more: ValueError: a mistake of the program" in said.out
    assert [run.status for run in runs("study", None)] == ["FAILED"]
    text = plan(file, measures=False)
    assert "7 cells of 4 configurations: 5 done, 1 failed, 1 blocked" in text
    recipes.made.clear()
    results = study(file)
    assert results is not None
    assert recipes.made == ["pretrain · seed 1", "full · seed 1"]
    (parent,) = runs("study", None)
    assert (parent.status, parent.run_id) == ("FINISHED", results.run_id)


def test_a_run_that_is_deleted_is_made_again(local_store: Path, recipes: Recipes, write_study: WriteStudy) -> None:
    file = write_study(STUDY)
    study(file)
    (gone,) = [run for run in runs("finetune") if run.name == "full · seed 1"]
    client().delete_run(gone.run_id)
    recipes.made.clear()
    assert study(file) is not None
    assert recipes.made == ["full · seed 1"]


def test_a_server_that_is_away_for_a_moment_fails_no_cell(
    local_store: Path, recipes: Recipes, write_study: WriteStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes.trouble = {"cox": [ServerUnavailable("the server is down")] * 3}
    results = study(write_study(STUDY))
    assert results is not None
    assert results.missing == {}
    assert recipes.made[:4] == ["cox"] * 4
    assert capsys.readouterr().out.count("the server is down; waiting for it") == 1


def test_a_baseline_whose_worker_died_is_begun_anew_and_its_first_run_is_closed(
    local_store: Path, recipes: Recipes, write_study: WriteStudy
) -> None:
    file = write_study(STUDY)
    cox = read_study(file).cells[0]
    experiment = client().create_experiment("sim")
    tags = {CELL: cox.key, KIND: "baseline", STUDY_TAG: "sim"}
    dead = client().create_run(experiment, tags=tags, run_name="cox").info.run_id
    assert study(file) is not None
    first, second = runs("baseline", None)
    assert (first.run_id, first.status, second.status) == (dead, "KILLED", "FINISHED")
    assert "its worker is gone" in first.tags[CLOSED]


def test_a_plan_shows_what_is_done_what_is_left_and_what_it_costs(
    local_store: Path, recipes: Recipes, write_study: WriteStudy
) -> None:
    file = write_study(STUDY)
    before = plan(file, measures=False)
    assert "sim: 7 cells of 4 configurations: 7 waiting" in before
    assert before.splitlines()[-1] == "left: 7 cells of unknown time"
    assert not runs("study", None)
    assert not (local_store / ".ehrtrack" / "sweeps.db").exists()
    recipes.trouble = {"full · seed 1": [TrainingError("no")] * 2}
    with pytest.raises(TrainingError):
        study(file)
    for run in runs("finetune"):
        client().log_metric(run.run_id, "cost/total_seconds", 1800.0)
    after = plan(file, measures=False)
    assert re.search(r"^full +2  30 min each \(mean of 1 done\) +done FAILED$", after, re.MULTILINE)
    assert "left: 1 cells, 30 min of one worker, 1.00 EUR" in after


def test_what_scoring_takes_is_in_measured_times_once_a_run_has_shown_it(
    local_store: Path, recipes: Recipes, write_study: WriteStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ehrtrack.recipes.plan._measured", lambda cell: (1000, Cost(0, 1, 1.0, 30.0, 0.0)))
    file = write_study(STUDY)
    before = plan(file)
    assert re.search(r"^full +2  30 s", before, re.MULTILINE)
    assert before.endswith("; scoring and logging, some seconds a cell, are not in it before the first is done")
    recipes.trouble = {f"full · seed {seed}": [TrainingError("no")] * 2 for seed in (0, 1)}
    with pytest.raises(TrainingError):
        study(file)
    for run in runs("baseline"):
        client().log_metric(run.run_id, "cost/total_seconds", 16.0)
        client().log_metric(run.run_id, "cost/train_seconds", 10.0)
    after = plan(file)
    assert re.search(r"^full +2  36 s", after, re.MULTILINE)
    assert after.endswith("on the tracking server")
