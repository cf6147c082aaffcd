from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from simulated import Population, study, write_dataset

from ehrtrack.cli import main
from ehrtrack.config import RunConfig, load_config, override, to_toml
from ehrtrack.pipeline.prepare import prepare_cohort
from ehrtrack.recipes import advise as module
from ehrtrack.recipes.advise import Advice, advise
from ehrtrack.study.evidence import Result, nearest, read_results, standings


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("advise")
    write_dataset(folder / "meds", Population(n_subjects=150))
    return study(folder / "meds", folder / "cache")


@pytest.fixture(scope="module")
def advice(config: RunConfig) -> Advice:
    return advise(config, price=2.5, seconds=0.2)


def test_subjects_events_and_tokens_are_those_of_the_training_split(config: RunConfig, advice: Advice) -> None:
    records = prepare_cohort(config)
    rows = records.rows["train"]
    assert advice.subjects == len(rows)
    assert advice.events == records.outcomes.is_event[rows].sum()
    assert advice.tokens == np.minimum(records.store.n_tokens[rows] + 1, config.data.max_tokens).sum()
    assert advice.option.cost.tokens == advice.tokens


def test_the_option_is_the_network_that_studies_found_best(config: RunConfig, advice: Advice) -> None:
    settings = nearest(read_results(), advice.subjects)
    assert advice.network == standings(settings)[0]
    assert advice.option.overrides == advice.network.result.settings
    assert 0 < advice.option.n_trainable <= advice.option.n_parameters


def test_the_cost_is_hours_times_the_price(advice: Advice) -> None:
    cost = advice.option.cost
    none, one, ten = (replace(cost, epochs=n).hours for n in (0, 1, 10))
    assert ten - none == pytest.approx(10 * (one - none))
    assert f"{cost.hours * 2.5:,.2f} at 2.5 an hour" in advice.to_text()


def test_the_settings_can_be_pasted_behind_the_command(config: RunConfig, advice: Advice, tmp_path: Path) -> None:
    (tmp_path / "finetune.toml").write_text(to_toml(config))
    lines = [line.split()[1:] for line in advice.to_text().splitlines() if line.startswith("  settings")]
    lines += [line.split() for line in advice.to_text().splitlines() if line.startswith("  --baseline.")]
    assert len(lines) == 1 + len(advice.baselines)
    for words in lines:
        pairs = [(name.removeprefix("--"), value) for name, value in zip(words[::2], words[1::2], strict=True)]
        load_config(tmp_path / "finetune.toml", pairs)


def test_every_configuration_of_the_results_can_be_asked_for(config: RunConfig) -> None:
    results = read_results()
    assert len(results) > 30
    for result in results:
        override(config, result.settings)


def test_studies_of_other_sizes_are_called_a_guess(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    cox, full = {"baseline.name": "cox"}, {"strategy.name": "full", "train.lr": 1e-4}
    results = [
        Result("near", "cox", True, 100, 1, 0.7, 1.0, cox),
        Result("near", "full", False, 100, 1, 0.6, 1.0, full, "mlm"),
        Result("far", "cox", True, 10_000, 1, 0.7, 1.0, cox),
        Result("far", "full", False, 10_000, 1, 0.8, 1.0, full, "mlm"),
    ]
    monkeypatch.setattr(module, "read_results", lambda: results)
    text = advise(config, seconds=0.05).to_text()
    assert "far: more than 3 times as many labels or as few, so that this is a guess" in text
    assert "a network was above the best baseline in 1 of 2" in text
    assert "fit first, in minutes:\n  --baseline.name cox\n" in text
    assert (
        "then compare: full, the best network of 2 studies\n  settings    --strategy.name full --train.lr 0.0001\n"
        in text
    )
    assert "  pretrained  --objective.name mlm\n" in text
    assert "There is no measurement of another device here" in text


def test_no_head_is_solved_for_only_to_tell_what_a_step_costs(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"strategy.name": "full", "strategy.head": "ridge"}
    monkeypatch.setattr(module, "read_results", lambda: [Result("a", "full", False, 100, 1, 0.6, 1.0, settings)])
    assert advise(config, seconds=0.05).option.overrides == settings
    assert "the head begins as solved" not in capsys.readouterr().out


def test_a_head_that_is_solved_for_takes_no_epochs(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"strategy.name": "frozen", "strategy.head": "ridge"}
    monkeypatch.setattr(module, "read_results", lambda: [Result("a", "frozen", False, 100, 1, 0.6, 1.0, settings)])
    advice = advise(config, seconds=0.05)
    assert advice.option.cost.hours == advice.option.cost.once_seconds / 3600
    assert " for a head that is solved for\n" in advice.to_text()


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["advise", *words])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def test_the_command_needs_no_tracking_server(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "finetune.toml").write_text(to_toml(config))
    assert run("--config", "finetune.toml", "--price", "1") == 0
    assert "best baseline and best network of our studies" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["finetune.toml"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--objective.name", "mlm"], "needed is an objective that learns the outcome of a cohort"),
        (["--model.size", "huge"], "unknown model.size 'huge'"),
        (["--data.path", "/nowhere"], "/nowhere"),
    ],
)
def test_what_cannot_be_used_ends_with_exit_code_2(
    config: RunConfig, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "finetune.toml").write_text(to_toml(config))
    assert run("--config", str(tmp_path / "finetune.toml"), *words) == 2
    assert message in capsys.readouterr().err
