"""A recipe's objective is of the kind that the recipe needs, however it was named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ehrtrack.config import check_objective, load_config, parse_config
from ehrtrack.errors import ConfigError
from ehrtrack.recipes.finetune import finetune
from ehrtrack.recipes.pretrain import pretrain

OUTCOMES = r"there are: classification, competing-risks, survival$"
RECORDS = r"there are: contrastive, forecast, mixed, mlm, next-visit, time-to-event$"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text('study = "s"\ndata = { path = "nowhere" }\nstrategy = { name = "scratch" }\n')
    return path


def test_an_outcome_is_not_learned_by_a_pretraining_objective(file: Path) -> None:
    with pytest.raises(ConfigError, match=rf"objective.name is 'mlm', and needed .* learns the outcome .*; {OUTCOMES}"):
        load_config(file, [("objective.name", "mlm")], kind="outcome")


def test_pretraining_has_no_outcome(file: Path) -> None:
    with pytest.raises(ConfigError, match=rf"objective.name is 'survival', and needed .* the records .*; {RECORDS}"):
        load_config(file, [("objective.name", "survival")], kind="pretraining")


def test_the_kind_says_which_objective_is_the_default(file: Path) -> None:
    assert load_config(file, kind="outcome").objective.name == "survival"
    assert load_config(file, kind="pretraining").objective.name == "mlm"


@pytest.mark.parametrize(
    ("override", "key"),
    [
        (
            ("search.parameters", '{"objective.name" = {choices = ["survival", "mlm"]}}'),
            "a choice of search.parameters",
        ),
        (
            ("sensitivity", '{parameter = "objective.name", values = ["survival", "mlm"]}'),
            "a value of sensitivity.parameter",
        ),
    ],
)
def test_a_search_or_a_sensitivity_analysis_stays_within_the_kind(
    file: Path, override: tuple[str, str], key: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^{key}.*objective\.name.* is 'mlm', and needed .*; {OUTCOMES}"):
        load_config(file, [override], kind="outcome")


def test_recipes_as_functions_refuse_it_before_they_read_anything() -> None:
    table = {"study": "s", "data": {"path": "nowhere"}, "objective": {"name": "mlm"}}
    with pytest.raises(ConfigError, match=OUTCOMES):
        finetune(parse_config(table))
    with pytest.raises(ConfigError, match=RECORDS):
        pretrain(parse_config(table | {"objective": {"name": "survival"}}))


def test_every_command_of_an_outcome_refuses_it_before_it_imports_torch(file: Path) -> None:
    recipes = ["finetune", "baseline", "sweep", "sensitivity", "negative-controls", "compare", "advise"]
    program = f"""
import sys
from ehrtrack.cli import main
for recipe in {recipes}:
    try:
        main([recipe, "--config", {str(file)!r}, "--objective.name", "mlm"])
    except SystemExit as end:
        print(recipe, end.code, sorted({{"torch", "mlflow", "polars"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [f"{recipe} 2 []" for recipe in recipes], done.stderr
    assert done.stderr.count("there are: classification, competing-risks, survival") == len(recipes)


def test_a_logged_run_of_any_kind_is_read() -> None:
    config = parse_config({"study": "s", "data": {"path": "d"}, "objective": {"name": "mlm"}})
    check_objective(config, "pretraining")
    assert config.objective.name == "mlm"
