"""The reference of settings has every setting there is, each with what it means, and tells a wrong name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ehrtrack.cli import main
from ehrtrack.config import PLUGIN_SECTIONS, RunConfig, parse_config
from ehrtrack.dotted import leaves
from ehrtrack.guide.reference import settings_page, settings_text
from ehrtrack.guide.tables import all_tables
from ehrtrack.plugins import names

SETTINGS = [setting for table in all_tables() for setting in table.settings]
PATHS = {setting.path for setting in SETTINGS}


def test_every_setting_says_what_it_means_and_what_values_it_takes() -> None:
    assert [setting.path for setting in SETTINGS if not setting.meaning] == []
    assert [setting.path for setting in SETTINGS if setting.values == "value"] == []


def test_every_setting_of_a_run_is_there() -> None:
    config = parse_config({"study": "s", "data": {"path": "meds"}, "cohort": {"labels": "labels.csv"}})
    open_tables = ("data.delay_hours", "search.parameters")
    paths = {path for path, _ in leaves(config.to_json()) if not path.startswith(open_tables)}

    assert {path for path in paths if path not in PATHS and not path.endswith((".name", ".rule"))} == set()
    assert set(RunConfig.model_fields) <= {table.section for table in all_tables()}


@pytest.mark.parametrize("section", PLUGIN_SECTIONS)
def test_every_choice_has_a_table(section: str) -> None:
    headings = {table.heading for table in all_tables()}

    assert {f'{section}: name = "{name}"' for name in names(PLUGIN_SECTIONS[section])} <= headings


def test_a_bound_a_default_and_a_meaning_are_shown() -> None:
    assert "  model.dropout = 0.1           (number, at least 0, below 1)\n      probability of" in settings_text(
        "model"
    )
    assert "| `model.dropout` | number, at least 0, below 1 | `0.1` | probability of dropout" in settings_page()


def test_a_wrong_name_is_told_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["settings", "strategy.loar"])

    assert end.value.code == 2
    assert "no settings of 'strategy.loar' (did you mean 'strategy.lora'?)" in capsys.readouterr().err


def test_settings_are_shown_without_torch_or_mlflow() -> None:
    program = (
        "import sys; from ehrtrack.guide.reference import settings_page; settings_page();"
        "print([name for name in ('torch', 'mlflow', 'polars') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
