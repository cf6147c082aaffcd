"""A question that no two configurations of its study answer is refused before anything starts, with what to write."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from ehrtrack.cli import main
from ehrtrack.errors import ConfigError
from ehrtrack.evaluation.pairs import asked_pairs, pairs_to_reference
from ehrtrack.evaluation.repeats import Configuration
from ehrtrack.study.cells import read_study
from ehrtrack.study.questions import check_questions
from ehrtrack.tracking.client.queries import search_runs

WriteStudy = Callable[..., Path]
STUDY = """
question = "Is it better than Cox?"
finetune = "finetune.toml"
baseline = "baseline.toml"
pretrain = "pretrain.toml"
reference = { baseline = "cox" }
compare = [
    { question = "Does LoRA pay?", this = { strategy = "lora" }, to = { strategy = "full", "train.lr" = 1e-4 } },
    COMPARE
]
exclude = [{ strategy = "full", "train.lr" = 2e-3 }, { strategy = "scratch", "train.lr" = 1e-4 }]
[matrix]
strategy = ["lora", "full", "scratch"]
"train.lr" = [1e-4, 2e-3]
baseline = ["cox"]
"""
APART = '{ question = "Does pretraining pay?", this = { strategy = "full" }, to = { strategy = "scratch" } }'


def configurations(file: Path) -> list[Configuration]:
    cells = read_study(file).cells
    own = {cell.configuration: cell.settings for cell in cells if cell.recipe != "pretrain"}
    return [Configuration(label, settings, ()) for label, settings in own.items()]


def test_sides_that_differ_in_a_setting_that_neither_names_are_told_with_what_makes_them_a_pair(
    write_study: WriteStudy,
) -> None:
    study = read_study(write_study(STUDY.replace("COMPARE", APART)))
    with pytest.raises(ConfigError) as refused:
        check_questions(study)
    told = str(refused.value)
    assert told.count("- compare") == 1
    assert (
        "- compare 2, 'Does pretraining pay?': the nearest two are full and scratch, and they "
        "differ in train.lr (0.0001 and 0.002) too, which neither side names. Write this = "
        '{ strategy = "full", "train.lr" = 0.0001 } and to = { strategy = "scratch", "train.lr" = 0.002 }'
    ) in told
    sides = re.search(r"Write (this = .*) and (to = .*)", told)
    assert sides is not None
    written = f'{{ question = "Does pretraining pay?", {sides[1]}, {sides[2]} }}'
    assert tomllib.loads(f"a = {written}")
    mended = write_study(STUDY.replace("COMPARE", written))
    check_questions(read_study(mended))
    asked = read_study(mended).settings.compare
    assert [len(asked_pairs(configurations(mended), one)) for one in asked] == [2, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("COMPARE", '{ question = "?", this = { strategy = "lora" }, to = { "data.max_tokens" = 64 } }'),
            "compare 2, '?': to = { \"data.max_tokens\" = 64 } means no configuration, as data.max_tokens is not in "
            "the matrix; name values of the matrix",
        ),
        (
            ("COMPARE", '{ question = "?", this = { baseline = "cox" }, to = { baseline = "cox" } }'),
            "compare 2, '?': this and to mean the same configuration, cox; name two",
        ),
        (
            ('reference = { baseline = "cox" }', 'reference = { "data.max_tokens" = 64 }'),
            'reference: reference = { "data.max_tokens" = 64 } means no configuration, as data.max_tokens is not in',
        ),
    ],
)
def test_a_selection_that_pairs_nothing_is_told_with_the_reason(
    write_study: WriteStudy, change: tuple[str, str], message: str
) -> None:
    study = read_study(write_study(STUDY.replace(*change).replace("COMPARE", "")))
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_questions(study)


def test_a_reference_that_is_like_no_other_configuration_is_told_with_what_to_write(write_study: WriteStudy) -> None:
    text = """
    question = "Is it better than from scratch?"
    finetune = "finetune.toml"
    pretrain = "pretrain.toml"
    exclude = [{ strategy = "full", "train.lr" = 2e-3 }, { strategy = "scratch", "train.lr" = 1e-4 }]
    reference = { strategy = "scratch" }
    [matrix]
    strategy = ["full", "scratch"]
    "train.lr" = [1e-4, 2e-3]
    """
    written = '{ strategy = "scratch", "train.lr" = 0.002 }'
    with pytest.raises(ConfigError, match=re.escape(f"which the reference does not name. Write reference = {written}")):
        check_questions(read_study(write_study(text)))
    check_questions(read_study(write_study(text.replace('{ strategy = "scratch" }\n', f"{written}\n"))))


def test_a_study_of_the_reference_alone_compares_nothing_and_is_run(write_study: WriteStudy) -> None:
    alone = 'question = "How good is it?"\nbaseline = "baseline.toml"\nreference = { baseline = "cox" }\n[matrix]\n'
    check_questions(read_study(write_study(alone + 'baseline = ["cox"]\n')))


def test_what_is_told_before_is_what_pairs_afterwards(write_study: WriteStudy) -> None:
    file = write_study(STUDY.replace("COMPARE", ""))
    check_questions(read_study(file))
    found = configurations(file)
    settings = read_study(file).settings
    assert len(pairs_to_reference(found, settings.reference)) == 4
    assert [len(asked_pairs(found, one)) for one in settings.compare] == [2]


@pytest.mark.parametrize("words", [("study", "plan"), ("study", "run"), ("work",)])
def test_plan_run_and_work_refuse_it_and_nothing_is_started(
    words: tuple[str, ...], local_store: Path, write_study: WriteStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_study(STUDY.replace("COMPARE", APART))
    with pytest.raises(SystemExit) as end:
        main([*words, str(file)])
    assert end.value.code == 2
    assert "compare 2, 'Does pretraining pay?'" in capsys.readouterr().err
    assert search_runs("sim", status=None) == []
    assert not (local_store / ".ehrtrack" / "sweeps.db").exists()
