"""Promotion by rules: who takes the champion's place, who is refused and why, and what is recorded of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from finished_runs import champion_run, config, made, predictions
from mlflow import MlflowClient

from ehrtrack.errors import DataError, TrackingError
from ehrtrack.recipes.compare import compare
from ehrtrack.recipes.promote import promote
from ehrtrack.recipes.registry import diff, list_models, list_versions
from ehrtrack.tracking.client.moves import moves_of, pin, roll_back

pytestmark = [
    pytest.mark.usefixtures("undrawn_figures"),
    pytest.mark.filterwarnings("ignore:.*[Tt]ype hint:UserWarning"),  # of mlflow's own classes
]


def versions() -> list[str]:
    return [str(version.version) for version in MlflowClient().search_model_versions("name = 'simulated'")]


def test_a_worse_run_is_refused_with_its_interval_and_makes_no_version(local_store: Path) -> None:
    told = config(local_store)
    good, bad = made(told, 0.9), made(told, 0.1)
    assert promote(good, why="the first").before is None
    with pytest.raises(DataError) as refused:
        promote(bad)
    said = str(refused.value)
    assert f"run {bad} does not become champion of 'simulated', and models:/simulated/1 stays champion" in said
    assert "the challenger is worse: validation C-index -0.0" in said
    assert "] against version 1 (paired, 95 %)" in said
    assert f"`ehrtrack promote {bad} --name simulated --force`" in said
    assert (champion_run(), versions()) == (good, ["1"])
    promote(bad, is_forced=True, why="the good one reads a code that is gone")
    assert champion_run() == bad
    assert str(moves_of("simulated")[-1]).endswith("the good one reads a code that is gone")
    assert moves_of("simulated")[-1].how == "promote --force"


def test_a_better_run_is_taken_and_a_rollback_brings_the_one_before_back(
    local_store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    told = config(local_store)
    first, second = made(told, 0.3), made(told, 0.9)
    promote(first)
    text = promote(second, why="better in winter").to_text()
    assert "it was models:/simulated/1, which is now models:/simulated@previous" in text
    assert "validation C-index +0.0" in text
    assert champion_run() == second
    roll_back("simulated", why="alarms at night")
    assert champion_run() == first
    moves = [(move.by, move.how, move.before, move.after, move.why) for move in moves_of("simulated")]
    assert moves[0] == ("ann", "promote", "", "1", "first champion")
    assert moves[1][:4] == ("ann", "promote", "1", "2")
    assert moves[1][4].startswith("better in winter; validation C-index +0.0")
    assert moves[2] == ("ann", "rollback", "2", "1", "alarms at night")
    # What was rolled back is not proposed again, by whatever way, until somebody says so.
    compare(told)
    assert (
        f"champion stays: version 2 was rolled back on {moves_of('simulated')[-1].at[:10]}" in capsys.readouterr().out
    )
    assert champion_run() == first
    with pytest.raises(DataError, match=r"version 2 was rolled back on .* by ann: alarms at night"):
        promote(second)
    promote(second, is_forced=True)
    assert champion_run() == second
    roll_back("simulated", why="again")
    roll_back("simulated", why="and back")
    assert champion_run() == second


def test_a_run_of_another_horizon_is_refused_and_a_name_of_its_own_takes_it(local_store: Path) -> None:
    year, half = config(local_store, 365), config(local_store, 180)
    first, other = made(year, 0.6), made(half, 0.9)
    promote(first)
    with pytest.raises(
        DataError, match=r"another cohort \(run .*, horizon 365 days\) than .*cohort-180, horizon 180 days"
    ):
        promote(other)
    assert champion_run() == first
    assert promote(other, name="half a year").version.uri == "models:/half a year/1"


def test_a_pinned_champion_is_kept_even_from_force_and_rollback(local_store: Path) -> None:
    told = config(local_store)
    first, second = made(told, 0.3), made(told, 0.6)
    better = made(told, 0.9)
    promote(first)
    promote(second, pins=True)
    for act in (lambda: promote(better), lambda: promote(better, is_forced=True)):
        with pytest.raises(DataError, match=r"tag ehrtrack\.pinned; `ehrtrack pin simulated --off`"):
            act()
    with pytest.raises(DataError, match="it is pinned"):
        promote("models:/simulated/1", is_forced=True)
    with pytest.raises(TrackingError, match="it is pinned"):
        roll_back("simulated", why="no")
    assert champion_run() == second
    pin("simulated", holds=False, why="the trial is over")
    promote(better)
    assert champion_run() == better
    assert [move.how for move in moves_of("simulated")] == ["promote", "promote", "pin", "unpin", "promote"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"files": ("model", "config")}, "cannot be paired .* has no artifact 'predictions/validation.parquet'"),
        ({"key": "2222"}, "cannot be paired .* 2 different keys"),
        ({"validation": predictions(0.1).head(100)}, "cannot be paired .* predict for 100 and 120 subjects"),
        ({"is_judged": False}, "it could not be judged: too few test events for a C-index with an interval"),
    ],
)
def test_who_cannot_be_compared_is_refused_with_the_reason(
    changes: dict[str, object], reason: str, local_store: Path
) -> None:
    told = config(local_store)
    first, other = made(told, 0.6), made(told, 0.9, **changes)  # type: ignore[arg-type]
    promote(first)
    with pytest.raises(DataError, match=reason):
        promote(other)
    assert (champion_run(), versions()) == (first, ["1"])


def test_with_too_few_events_for_an_interval_nobody_is_shown_to_be_as_good(local_store: Path) -> None:
    told = config(local_store)
    few = predictions(0.1, n_events=2)
    first, other = made(told, 0.6, validation=few), made(told, 0.9, validation=few)
    promote(first)
    with pytest.raises(DataError, match="validation subjects have too few events for an interval"):
        promote(other)


def test_only_what_foretells_an_outcome_and_is_there_can_be_promoted(local_store: Path) -> None:
    told = config(local_store)
    comparison = (made(told, 0.6), compare(told))[1].run.run_id
    with pytest.raises(DataError, match=f"run {comparison} is a compare: a champion foretells an outcome"):
        promote(comparison)
    with pytest.raises(TrackingError, match="has no artifact 'model'"):
        promote(made(told, 0.7, files=("predictions", "config")))
    with pytest.raises(TrackingError, match="has no version before to go back to"):
        roll_back("simulated", why="none")
    with pytest.raises(TrackingError, match="has no champion to go back to"):
        roll_back("nobody", why="none")


def test_what_there_is_and_how_two_differ_can_be_read(local_store: Path) -> None:
    assert "no registered models" in list_models()
    first = made(config(local_store), 0.1)
    second = made(config(local_store, baseline={"name": "lasso"}), 0.9)
    promote(first), promote(second, pins=True)
    assert "| simulated | 2        | 1        | 2        | yes    |" in list_models()
    listed = list_versions("simulated")
    assert "| 2       | champion | lasso | cohort-365 | 365" in listed
    assert "| 1       | previous | cox   |" in listed
    assert "  promote  1 -> 2  by " in listed
    said = diff("models:/simulated/1", "models:/simulated@champion")
    (changed,) = (line.split() for line in said.splitlines() if "baseline.name" in line)
    assert changed == ["|", "baseline.name", "|", "cox", "|", "lasso", "|"]
    assert "validation C-index of the second minus that of the first (paired, 95 %): +0.0" in said
    assert ": better" in said
