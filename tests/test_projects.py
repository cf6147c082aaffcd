"""Every configuration of every study loads, and takes one step on simulated subjects."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch
from simulated import Population, write_dataset
from simulated import study as simulated_study

from ehrtrack.config import Override, RunConfig, load_config
from ehrtrack.data.cohort import build_cohort
from ehrtrack.recipes.baseline import baseline
from ehrtrack.recipes.compare import compare
from ehrtrack.recipes.finetune import finetune
from ehrtrack.recipes.pretrain import pretrain
from ehrtrack.recipes.sweep import sweep
from ehrtrack.study.cells import read_study
from ehrtrack.study.keys import Inputs
from ehrtrack.study.questions import check_questions
from ehrtrack.study.settings import StudySettings
from ehrtrack.study.values import value_at
from ehrtrack.study_file import asks_question, read_study_file
from ehrtrack.tracking.client.queries import search_runs
from ehrtrack.validation import validate

torch.set_num_threads(1)

# of mlflow's own classes when a model is registered
pytestmark = pytest.mark.filterwarnings("ignore:.*[Tt]ype hint:UserWarning")

PROJECTS = Path(__file__).parents[1] / "projects"
STUDIES = sorted(file.parent.name for file in PROJECTS.glob("*/compare.toml"))
"""Those that are run by single commands; the others are a study's file and what it names."""
RECIPES = ("pretrain", "finetune", "baseline", "sweep", "compare")


def config_of(study: str, recipe: str, *overrides: Override) -> RunConfig:
    objective = "mlm" if recipe == "pretrain" else "survival"
    return load_config(PROJECTS / study / f"{recipe}.toml", overrides, objective=objective)


def test_the_studies_are_there() -> None:
    assert "gi_bleed" in STUDIES


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_is_a_readme_and_five_configurations_without_python(study: str) -> None:
    names = {file.name for file in (PROJECTS / study).iterdir() if file.is_file()}
    assert names >= {f"{recipe}.toml" for recipe in RECIPES} | {"README.md"}
    assert not [name for name in names if name.endswith(".py")]


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_configuration_loads_and_is_of_its_study(study: str, recipe: str) -> None:
    config = config_of(study, recipe)
    assert config.study == config_of(study, "pretrain").study
    pretrains_by = "time-to-event" if study == "simulated_transfer" else "mlm"
    assert config.objective.name == (pretrains_by if recipe == "pretrain" else "survival")
    assert not config.data.path.is_absolute()
    if recipe != "pretrain":
        assert config.cohort is not None
        pretraining = config_of(study, "pretrain").data
        elsewhere = {"path": pretraining.path, "split": pretraining.split}  # a study may pretrain at another site
        assert config.data.model_copy(update=elsewhere) == pretraining


def config_named(folder: Path, settings: StudySettings) -> RunConfig:
    assert settings.baseline is not None
    return load_config(folder / settings.baseline, kind="outcome")


@pytest.mark.parametrize("file", sorted(PROJECTS.glob("*/study.toml")), ids=lambda file: file.parent.name)
def test_a_study_file_asks_a_question_of_configurations_that_lie_beside_it(file: Path) -> None:
    settings = validate(StudySettings, read_study_file(file))
    assert isinstance(settings, StudySettings)
    named = [settings.finetune, settings.baseline, *settings.pretrain.values()]
    assert [name for name in named if name is not None and not (file.parent / name).is_file()] == []
    assert settings.question.endswith("?")
    assert (file.parent / "README.md").is_file()
    for name, kind in ((settings.finetune, "outcome"), *((of, "pretraining") for of in settings.pretrain.values())):
        if name is not None:
            assert load_config(file.parent / name, kind=kind).study == config_named(file.parent, settings).study


ASKED = [file for file in sorted(PROJECTS.glob("*/*.toml")) if asks_question(file)]


@pytest.mark.parametrize("file", ASKED, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_what_a_study_asks_is_answered_by_its_configurations(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ("data.path", "init.embeddings")  # by their names, as the data are not here
    monkeypatch.setattr(
        Inputs, "of", lambda self, config, recipe: {name: str(value_at(config, name)) for name in files}
    )
    check_questions(read_study(file))


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dataset, and labels of its subjects for studies that take their outcome from a file."""
    folder = tmp_path_factory.mktemp("projects")
    dataset = write_dataset(folder / "meds", Population(n_subjects=200))
    config = simulated_study(folder / "meds", folder / "cache")
    assert config.cohort is not None
    subjects = build_cohort(dataset, config.cohort, config.data.split).subjects
    labels = subjects.select("subject_id", pl.col("index_date").alias("prediction_time"), "follow_up_days", "is_event")
    labels.write_parquet(folder / "labels.parquet")
    return folder / "meds", folder / "labels.parquet"


@pytest.mark.parametrize("study", STUDIES)
def test_every_recipe_of_a_study_takes_a_step(
    study: str, simulated: tuple[Path, Path], local_store: Path, undrawn_figures: None
) -> None:
    data, labels = simulated
    small = [
        ("data.path", str(data)),
        ("data.split.rule", "hash"),  # simulated subjects have no groups of the study's
        ("data.split.train", "0.7"),
        ("data.split.validation", "0.15"),
        ("data.vocabulary.min_subjects", "2"),
        ("model.size", "tiny"),
        ("train.epochs", "1"),
        ("train.batch_tokens", "2048"),
        ("runtime.device", "cpu"),
        ("runtime.cache", str(local_store / "cache")),
    ]
    cohort = config_of(study, "finetune").cohort
    assert cohort is not None
    if cohort.labels is not None:
        people = [("cohort.labels", str(labels)), ("cohort.horizon_days", "365")]  # for as long as they are followed
    else:
        people = [
            ("cohort.index.rule", "first_code"),
            ("cohort.index.codes", '["INDEX$"]'),
            ("cohort.outcome", '{ codes = ["OUTCOME$"] }'),
            ("cohort.horizon_days", "365"),
        ]
        # whom the study admits is of its own codes and years, and simulated subjects are not
        people += [
            (f"cohort.{name}", "0")
            for name in ("min_history_days", "min_age_years")
            if getattr(cohort, name) is not None
        ]
        people += [("cohort.max_age_years", "150")] if cohort.max_age_years is not None else []
        people += [("cohort.end_of_study", "2030-01-01")] if cohort.end_of_study is not None else []
    pretrain(config_of(study, "pretrain", *small))
    finetune(config_of(study, "finetune", *small, *people))
    baseline(config_of(study, "baseline", *small, *people))
    sweep(config_of(study, "sweep", *small, *people, ("search.n_trials", "1"), ("search.refits", "1")))
    comparison = compare(config_of(study, "compare", *small, *people))
    assert comparison.champion.uri.startswith("models:/")
    name = config_of(study, "pretrain").study
    kinds = [run.kind for run in search_runs(name)]
    assert sorted(kinds) == ["baseline", "compare", "finetune", "finetune", "pretrain", "sweep", "trial"]
