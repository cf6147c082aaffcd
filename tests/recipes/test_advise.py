from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from simulated import Population, study, write_dataset

from ehrtrack.cli import main
from ehrtrack.config import RunConfig, load_config, to_toml
from ehrtrack.pipeline.prepare import prepare_cohort
from ehrtrack.recipes import advise as module
from ehrtrack.recipes.advise import Advice, advise, rule_for


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("advise")
    write_dataset(folder / "meds", Population(n_subjects=150))
    return study(folder / "meds", folder / "cache")


@pytest.fixture(scope="module")
def advice(config: RunConfig) -> Advice:
    return advise(config, price=2.5, seconds=0.2)


@pytest.mark.parametrize(
    ("n_subjects", "strategies", "lambda_rank", "batch"),
    [
        (1_999, ("frozen",), (0.05, 0.05), (16, 32)),
        (2_000, ("lora",), (0.1, 0.1), (32, 64)),
        (20_000, ("lora",), (0.1, 0.1), (32, 64)),
        (20_001, ("lora", "full"), (0.1, 0.2), (64, 128)),
    ],
)
def test_the_rule_goes_by_labelled_subjects(
    n_subjects: int, strategies: tuple[str, ...], lambda_rank: tuple[float, float], batch: tuple[int, int]
) -> None:
    rule = rule_for(n_subjects)
    assert (rule.strategies, rule.lambda_rank, rule.batch_subjects) == (strategies, lambda_rank, batch)


def test_subjects_events_and_tokens_are_those_of_the_training_split(config: RunConfig, advice: Advice) -> None:
    records = prepare_cohort(config)
    rows = records.rows["train"]
    assert advice.subjects == len(rows)
    assert advice.events == records.outcomes.is_event[rows].sum()
    assert advice.tokens == np.minimum(records.store.n_tokens[rows] + 1, config.data.max_tokens).sum()
    assert advice.options[0].cost.tokens == advice.tokens


def test_frozen_trains_the_head_alone(advice: Advice) -> None:
    (option,) = advice.options
    width, n_intervals = 32, 20
    features = 3 * width
    head = (width + 1) + 2 * features + 2 * features + n_intervals
    assert option.n_trainable <= head  # fewer intervals where event times are few
    assert option.n_parameters > 5 * option.n_trainable
    assert option.cost.once_seconds > 0


def test_a_batch_of_subjects_becomes_a_budget_of_tokens_that_holds_them(config: RunConfig, advice: Advice) -> None:
    budget = advice.options[0].overrides["train.batch_tokens"]
    needed = advice.tokens / advice.subjects * 32
    assert needed <= budget < needed + 256
    assert budget >= config.data.max_tokens


def test_the_cost_is_hours_times_the_price(advice: Advice) -> None:
    cost = advice.options[0].cost
    assert cost.hours(10) - cost.hours(0) == pytest.approx(10 * cost.hours(1) - 10 * cost.hours(0))
    assert f"{cost.hours(advice.epochs) * 2.5:,.2f} at 2.5 an hour" in advice.to_text()


def test_the_settings_can_be_pasted_behind_the_command(config: RunConfig, advice: Advice, tmp_path: Path) -> None:
    (tmp_path / "finetune.toml").write_text(to_toml(config))
    line = next(line for line in advice.to_text().splitlines() if line.startswith("  settings"))
    words = line.split()[1:]
    pasted = load_config(
        tmp_path / "finetune.toml",
        [(name.removeprefix("--"), value) for name, value in zip(words[::2], words[1::2], strict=True)],
    )
    assert pasted.strategy.name == "frozen"
    assert pasted.train.patience == 10
    assert pasted.train.batch_tokens == advice.options[0].overrides["train.batch_tokens"]


def test_a_large_cohort_is_told_to_compare_lora_with_full(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "rule_for", lambda _: rule_for(50_000))
    lora, full = advise(config, seconds=0.05).options
    assert (lora.overrides["strategy.name"], full.overrides["strategy.name"]) == ("lora", "full")
    assert full.n_trainable == full.n_parameters > lora.n_trainable
    assert lora.cost.megabytes > 0
    assert "strategy.rank" not in full.overrides


def test_advice_says_where_measurements_disagree(advice: Advice) -> None:
    assert "lambda_rank: the ranking loss did not raise the C-index" in advice.to_text()
    assert "There is no measurement of another device here" in advice.to_text()


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
    assert "suggested: frozen, batches of 16 to 32 subjects" in capsys.readouterr().out
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
