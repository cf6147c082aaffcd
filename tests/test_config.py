"""Configuration: TOML files, dotted overrides, and errors that name what was meant."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ehrtrack import plugins
from ehrtrack.config import RunConfig, load_config, override, parse_config, parse_run_config, to_toml
from ehrtrack.data.sources.base import Source
from ehrtrack.dotted import parse_value
from ehrtrack.errors import ConfigError
from ehrtrack.search_space import Choices

PRETRAIN = """
study = "icu"

[data]
path = "data/icu"
max_tokens = 64

[data.visits]
unit = "hour"

[model]
size = "tiny"

[objective]
name = "mlm"
mask_probability = 0.2

[train]
epochs = 7
"""
FINETUNE = """
extends = "pretrain.toml"

[cohort]
horizon_days = 90
outcome = { death = true }
index = { rule = "age", years = 50 }

[objective]
name = "survival"

[strategy]
name = "lora"
rank = 16

[train]
lr = 2e-4
"""

PUBLIC_NAMES = {
    "data.path": "elsewhere",
    "cohort.labels": "labels.csv",
    "cohort.index.rule": "date",
    "cohort.outcome.death": "true",
    "cohort.horizon_days": "30",
    "model.size": "small",
    "model.dropout": "0.2",
    "strategy.name": "lora",
    "strategy.rank": "4",
    "strategy.alpha": "32",
    "strategy.dropout": "0.1",
    "objective.lambda_rank": "0.3",
    "init.run": "0123",
    "train.epochs": "3",
    "train.batch_tokens": "8",
    "train.lr": "1e-4",
    "train.weight_decay": "0.2",
    "train.patience": "2",
    "runtime.seed": "9",
    "runtime.device": "cpu",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pretrain.toml").write_text(PRETRAIN)
    (tmp_path / "finetune.toml").write_text(FINETUNE)
    return tmp_path


@pytest.fixture
def finetune(folder: Path) -> Callable[..., RunConfig]:
    def load(**overrides: str) -> RunConfig:
        dotted = [(name.replace("__", "."), value) for name, value in overrides.items()]
        return load_config(folder / "finetune.toml", dotted)

    return load


def dump(section: Any) -> dict[str, Any]:
    values: dict[str, Any] = section.model_dump()
    return values


def test_a_file_extends_another_table_by_table(finetune: Callable[..., RunConfig]) -> None:
    config = finetune()
    assert (config.study, str(config.data.path), config.data.visits.unit) == ("icu", "data/icu", "hour")
    assert (config.train.epochs, config.train.lr) == (7, 2e-4)
    assert dump(config.strategy) == {
        "name": "lora", "rank": 16, "alpha": 16, "dropout": 0.05, "embeddings": False, "dora": False, "head": "trained",
    }  # fmt: skip


def test_a_file_that_names_another_choice_drops_the_settings_of_the_one_before(
    finetune: Callable[..., RunConfig],
) -> None:
    assert "mask_probability" not in dump(finetune().objective)


def test_overrides_win_over_the_file(finetune: Callable[..., RunConfig]) -> None:
    config = finetune(strategy__rank="2", train__lr="0.5", model__dropout="0.3", runtime__device="cpu")
    assert (dump(config.strategy)["rank"], config.train.lr) == (2, 0.5)
    assert (config.model.dropout, config.runtime.device) == (0.3, "cpu")


def test_an_override_that_switches_the_choice_drops_its_former_settings_and_says_so(
    finetune: Callable[..., RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    frozen = {"name": "frozen", "embeddings": False, "cache": True, "head": "trained"}
    assert dump(finetune(strategy__name="frozen").strategy) == frozen
    assert "strategy.name=frozen: rank of lora no longer apply" in capsys.readouterr().out


def test_the_switch_comes_first_in_whatever_order_overrides_are_given(folder: Path) -> None:
    for overrides in ([("strategy.embeddings", "true"), ("strategy.name", "frozen")],):
        for given in (overrides, overrides[::-1]):
            config = load_config(folder / "finetune.toml", given)
            assert dump(config.strategy) == {"name": "frozen", "embeddings": True, "cache": True, "head": "trained"}


def test_another_index_rule_drops_the_settings_of_the_one_before(folder: Path) -> None:
    given = [("cohort.index.date", "2020-01-31"), ("cohort.index.rule", "date")]
    config = load_config(folder / "finetune.toml", given)
    assert config.cohort is not None
    assert config.to_json()["cohort"]["index"] == {"rule": "date", "date": "2020-01-31"}


@pytest.mark.parametrize(("text", "value"), [("true", True), ("True", True), ("False", False), ("false", False)])
def test_pythons_and_tomls_spelling_of_a_flag_are_one(
    finetune: Callable[..., RunConfig], text: str, value: bool
) -> None:
    assert dump(finetune(strategy__embeddings=text).strategy)["embeddings"] is value


def test_a_value_that_is_no_toml_is_text(finetune: Callable[..., RunConfig]) -> None:
    assert finetune(init__run="models:/icu@champion").init.run == "models:/icu@champion"
    assert finetune(init__run="").init.run == ""


def test_a_run_id_of_digits_stays_text(finetune: Callable[..., RunConfig]) -> None:
    for run_id in ("12345678901234567890123456789012", "1234567890123456789012345678e012"):
        assert finetune(init__run=run_id).init.run == run_id


@pytest.mark.parametrize("name", [n for n in PUBLIC_NAMES if not n.startswith("cohort.")])
def test_every_public_name_can_be_overridden(folder: Path, name: str) -> None:
    config = load_config(folder / "finetune.toml", [(name, PUBLIC_NAMES[name])])
    value: Any = config.to_json()
    for part in name.split("."):
        value = value[part]
    assert str(value).lower() in (
        PUBLIC_NAMES[name],
        str(float(PUBLIC_NAMES[name])) if "e-" in PUBLIC_NAMES[name] else "",
    )


def test_the_public_names_of_the_cohort_exist(folder: Path) -> None:
    config = load_config(folder / "finetune.toml", [("cohort.horizon_days", "30")])
    assert config.cohort is not None
    assert config.cohort.horizon_days == 30
    config = load_config(folder / "pretrain.toml", [("cohort.labels", "labels.csv")], objective="mlm")
    assert config.cohort is not None
    assert config.cohort.labels == Path("labels.csv")


@pytest.mark.parametrize(
    ("dotted", "value", "message"),
    [
        ("train.epoch", "3", r"unknown config key 'train\.epoch' \(did you mean 'epochs'\?\); there are: epochs"),
        ("strategy.rnak", "3", r"unknown config key 'strategy\.rnak' \(did you mean 'rank'\?\)"),
        ("objective.lamda_rank", "1", r"'objective\.lamda_rank' \(did you mean 'lambda_rank'\?\)"),
        ("cohort.horizon", "1", r"'cohort\.horizon' \(did you mean 'horizon_days'\?\)"),
        ("data.visits.units", "day", r"'data\.visits\.units' \(did you mean 'unit'\?\)"),
        ("modle.size", "small", r"'modle' \(did you mean 'model'\?\)"),
        ("strategy.name", "lorra", r"unknown strategy 'lorra' \(did you mean 'lora'\?\)"),
        ("model.size", "smal", r"unknown model\.size 'smal' \(did you mean 'small'\?\)"),
        ("train.epochs", "0", r"'train\.epochs' is 0: .*greater than or equal to 1"),
        ("train.lr", "fast", r"'train\.lr' is 'fast'"),
        ("strategy.dropout", "1.0", r"'strategy\.dropout' is 1\.0"),
        ("study.name", "x", r"'study' is a value, not a table"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_the_nearest(folder: Path, dotted: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(folder / "finetune.toml", [(dotted, value)])


def test_an_unknown_key_inside_the_index_rule_names_the_nearest(folder: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"unknown config key 'cohort\.index\.yeras' \(did you mean 'years'\?\); there are: rule, years$",
    ):
        load_config(folder / "finetune.toml", [("cohort.index.yeras", "50")])


def test_all_problems_are_told_at_once(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.epoch.*train\.lrr|train\.lrr.*train\.epoch"):
        load_config(folder / "finetune.toml", [("train.epoch", "3"), ("train.lrr", "1")])


def test_a_missing_file_lists_those_beside_it(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config file .*finetun\.toml; in .* there is: finetune\.toml, pretrain"):
        load_config(folder / "finetun.toml")


def test_a_missing_base_file_is_named(folder: Path) -> None:
    (folder / "finetune.toml").write_text('extends = "nothing.toml"')
    with pytest.raises(ConfigError, match=r"nothing\.toml"):
        load_config(folder / "finetune.toml")


@pytest.mark.parametrize("content", [b"study = ", b'study = "\xff\xfe"'])
def test_a_file_that_is_no_toml_is_refused(folder: Path, content: bytes) -> None:
    (folder / "bad.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.toml is not valid TOML"):
        load_config(folder / "bad.toml")


def test_a_folder_instead_of_a_file_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError):
        load_config(folder)


def test_files_that_extend_each_other_are_refused(folder: Path) -> None:
    (folder / "a.toml").write_text('extends = "b.toml"')
    (folder / "b.toml").write_text('extends = "a.toml"')
    with pytest.raises(ConfigError, match="extends"):
        load_config(folder / "a.toml")


def test_a_chain_of_files_has_an_end(folder: Path) -> None:
    for number in range(1_500):
        (folder / f"{number}.toml").write_text(f'extends = "{number + 1}.toml"\n')
    (folder / "1500.toml").write_text((folder / "finetune.toml").read_text())
    with pytest.raises(ConfigError, match="extends more than 32 files, one another"):
        load_config(folder / "0.toml")
    assert load_config(folder / "1480.toml").study


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "large"])
def test_a_file_without_an_end_is_not_read(folder: Path, kind: str) -> None:
    file = folder / "endless.toml"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "folder":
        file.mkdir()
    else:
        with file.open("wb") as sparse:
            sparse.truncate(2**40)
    (folder / "top.toml").write_text('extends = "endless.toml"\n')
    message = "at most 10,000,000 are read" if kind == "large" else "is a folder, a pipe or a device; give a TOML file"
    for name in ("endless.toml", "top.toml"):
        with pytest.raises(ConfigError, match=message):
            load_config(folder / name)


@pytest.mark.parametrize(
    "extends", ["'/dev/zero'", "'a\\u0000b'", '"a\\u0000b"', "['a.toml']", "3", f"'{'a' * 300}'"], ids=str
)
def test_what_is_no_path_of_a_file_is_not_extended(folder: Path, extends: str) -> None:
    (folder / "top.toml").write_text(f"extends = {extends}\n")
    with pytest.raises(ConfigError):
        load_config(folder / "top.toml")


@pytest.mark.parametrize(
    "content",
    [f"a = {'[' * 5_000}", f"a = {'1' * 5_000}", ".".join(["a"] * 5_000) + " = 1"],
    ids=["deep", "long", "keys"],
)
def test_toml_beyond_what_can_be_read_is_refused(folder: Path, content: str) -> None:
    (folder / "top.toml").write_text(f'extends = "finetune.toml"\n{content}\n')
    with pytest.raises(ConfigError):
        load_config(folder / "top.toml")


@pytest.mark.parametrize("text", ["1" * 5_000, "[" * 5_000])
def test_an_override_beyond_what_toml_can_hold_is_text(text: str) -> None:
    assert parse_value(text) == text


@pytest.mark.parametrize("value", ["1000000", str(2**63), "-1"])
@pytest.mark.parametrize("name", ["runtime.threads", "runtime.workers"])
def test_more_threads_and_workers_than_a_machine_has_are_refused(folder: Path, name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"'{name}' is {value}"):
        load_config(folder / "finetune.toml", [(name, value)])


@pytest.mark.parametrize("section", ["train", "strategy", "objective"])
def test_a_value_where_a_table_belongs_is_refused(section: str) -> None:
    with pytest.raises(ConfigError, match=section):
        parse_config({"study": "s", "data": {"path": "x"}, section: "lora"})


def test_missing_keys_are_named() -> None:
    with pytest.raises(ConfigError, match=r"'data\.path' is missing"):
        parse_config({"study": "s", "data": {}})


def test_run_config_json_brings_back_the_same_configuration(finetune: Callable[..., RunConfig]) -> None:
    config = finetune(strategy__embeddings="true", data__split__seed="4")
    again = parse_config(json.loads(json.dumps(config.to_json())))
    assert again == config
    assert again.to_json() == config.to_json()


def test_toml_brings_back_the_same_configuration(finetune: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = finetune(strategy__rank="4", objective__lambda_rank="0.25", init__run="abc")
    (tmp_path / "best.toml").write_text(to_toml(config))
    assert load_config(tmp_path / "best.toml") == config


def test_an_override_of_a_configuration_changes_that_value_alone(finetune: Callable[..., RunConfig]) -> None:
    config = finetune()
    changed = override(config, {"strategy.rank": 2, "strategy.dropout": 0.2})
    expected = config.to_json()
    expected["strategy"] |= {"rank": 2, "dropout": 0.2}
    assert changed.to_json() == expected


def test_params_are_flat_dotted_and_of_the_sections_asked_for(finetune: Callable[..., RunConfig]) -> None:
    params = finetune().to_params(("study", "strategy", "cohort"))
    assert params["study"] == "icu"
    assert params["strategy.rank"] == 16
    assert params["cohort.index.years"] == 50
    assert {name.split(".")[0] for name in params} == {"study", "strategy", "cohort"}
    assert "cohort.labels" not in params


def test_the_objective_of_the_recipe_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "plain.toml").write_text('study = "s"\n[data]\npath = "x"\n')
    assert load_config(tmp_path / "plain.toml", objective="mlm").objective.name == "mlm"
    assert load_config(tmp_path / "plain.toml").objective.name == "survival"


def test_a_table_of_parameters_replaces_the_default_search_space(folder: Path) -> None:
    text = FINETUNE + '\n[search.parameters]\n"strategy.rank" = { choices = [2, 4] }\n'
    (folder / "sweep.toml").write_text(text)
    parameters = load_config(folder / "sweep.toml").search.parameters
    assert parameters == {"strategy.rank": Choices(choices=(2, 4))}


SLOW_TO_IMPORT = (
    *("torch", "mlflow", "sklearn", "sksurv", "optuna", "peft", "scipy"),
    *("pandas", "polars", "pyarrow", "duckdb", "numpy"),
)
COHORT = r"""
[data.vocabulary]
exclude = ["LOINC//"]
[cohort]
index = { rule = "first_code", codes = ["ICD10//I2[12]", "RxNorm//(140587|3355)$"] }
outcome = { codes = ['ICD10//K9\d\.2'] }
horizon_days = 365
"""


def test_reading_a_config_imports_nothing_that_is_slow_to_import(tmp_path: Path) -> None:
    """So a misspelt key is told in a moment: every choice of every plug-in package, and code patterns, are read."""
    program = f"""
import sys
from ehrtrack import plugins
from ehrtrack.config import PLUGIN_SECTIONS, load_config
for section, package in PLUGIN_SECTIONS.items():
    for name in plugins.names(package):
        load_config({str(tmp_path / "study.toml")!r}, [(f"{{section}}.name", name)])
print(sorted(set({SLOW_TO_IMPORT!r}) & set(sys.modules)))
"""
    (tmp_path / "study.toml").write_text('study = "s"\ndata.path = "."\n' + COHORT)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_settings_of_a_choice_are_those_of_its_class() -> None:
    assert plugins.settings("data.sources", "events-csv") is plugins.plugin("data.sources", "events-csv", Source).Config


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        *(("icu/mortality", "icu-mortality"), ("Étude: décès", "Étude-décès"), ("a@b", "a-b"), (" icu", "icu")),
        *(("icu\nmortality", "icu-mortality"), ("..", "mystudy"), ("a/../b", "a-..-b"), ("x" * 257, "x" * 100)),
    ],
)
def test_a_name_that_the_registry_would_refuse_is_refused_at_the_start(folder: Path, name: str, instead: str) -> None:
    file = folder / "study.toml"
    file.write_text(f'study = {json.dumps(name)}\ndata = {{ path = "meds" }}\n')
    with pytest.raises(ConfigError) as refused:
        load_config(file)
    assert f"study is {name!r}, and the best run is registered under that name: " in str(refused.value)
    assert f"Call it {instead!r}, or set registry.model" in str(refused.value)
    assert load_config(file, [("registry.model", "icu")]).study == name
    with pytest.raises(ConfigError, match=r"registry\.model is"):
        load_config(file, [("study", "icu"), ("registry.model", "a/b")])
    values = parse_config({"study": "icu", "data": {"path": "meds"}}).to_json()
    assert parse_config(values | {"study": name}).study == name  # a run of before stays readable


def test_a_pretraining_of_before_it_was_cut_read_whole_records() -> None:
    logged = {"study": "x", "data": {"path": "meds"}, "cohort": {"labels": "labels.csv"}}
    assert parse_run_config(logged).pretraining_records == "whole"
    assert parse_config(logged).pretraining_records == "cut"
    assert parse_config({"study": "x", "data": {"path": "meds"}}).pretraining_records == "whole"
    assert parse_run_config(logged).data.identity() == parse_config(logged).data.identity()
