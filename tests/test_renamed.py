"""Commands, sections and kinds of runs by their former names: taken until the next release, and told once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ehrtrack
from ehrtrack import renamed
from ehrtrack.cli.app import main
from ehrtrack.config import load_config, parse_config, parse_run_config
from ehrtrack.errors import ConfigError
from ehrtrack.tracking.client.listing import Wanted
from ehrtrack.tracking.client.queries import get_run, search_runs
from ehrtrack.tracking.run import tracked_run

ENDS = "the former name ends with the next release"
STUDY = 'study = "s"\ndata.path = "nowhere"\n'


@pytest.fixture(autouse=True)
def nothing_told_yet() -> None:
    renamed.tell.cache_clear()


@pytest.mark.parametrize(("former", "now"), [("frontier", "sensitivity"), ("canary", "negative-controls")])
def test_a_former_command_is_the_present_one(former: str, now: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([former, "--help"])
    assert not end.value.code
    shown = capsys.readouterr()
    assert f"Usage: ehrtrack {now}" in shown.out
    assert shown.err == f"ehrtrack: `ehrtrack {former}` is called `ehrtrack {now}` now; {ENDS}\n"


def test_former_sections_and_paths_are_taken_and_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "base.toml").write_text(f"{STUDY}[frontier]\nvalues = [1.0, 2.0]\n[canary]\nepochs = 3\n")
    (tmp_path / "now.toml").write_text('extends = "base.toml"\n[negative_controls]\nn_subjects = 7\n')
    for _ in range(2):
        config = load_config(tmp_path / "now.toml", [("frontier.parameter", "train.lr")])
    assert (config.sensitivity.parameter, config.sensitivity.values) == ("train.lr", (1.0, 2.0))
    assert (config.negative_controls.epochs, config.negative_controls.n_subjects) == (3, 7)
    told = capsys.readouterr().err.splitlines()
    assert told == [
        f"ehrtrack: [frontier] is called [sensitivity] now; {ENDS}",
        f"ehrtrack: [canary] is called [negative_controls] now; {ENDS}",
        f"ehrtrack: frontier.parameter is called sensitivity.parameter now; {ENDS}",
    ]


def test_a_section_by_both_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(f"{STUDY}[canary]\nepochs = 3\n[negative_controls]\nepochs = 4\n")
    with pytest.raises(ConfigError, match=re.escape("[canary] is called [negative_controls] now, and both are there")):
        load_config(tmp_path / "study.toml")


def test_the_configuration_of_an_earlier_run_is_read_and_keeps_its_identity(capsys: pytest.CaptureFixture[str]) -> None:
    now = parse_config({"study": "s", "data": {"path": "d"}, "negative_controls": {"epochs": 9}})
    logged = {renamed.FORMER_SECTIONS.get(name, name): value for name, value in now.to_json().items()}
    read = parse_run_config(logged)
    assert read.negative_controls.epochs == 9
    assert {"frontier", "canary"} <= read.identity().keys()
    assert capsys.readouterr().err == ""


def test_a_function_by_its_former_name_is_the_present_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert ehrtrack.frontier is ehrtrack.sensitivity
    assert capsys.readouterr().err == f"ehrtrack: ehrtrack.frontier is called ehrtrack.sensitivity now; {ENDS}\n"


def test_runs_of_a_former_kind_are_found_and_read_by_the_present_one(local_store: Path) -> None:
    ids = []
    for kind in ("canary", "negative-controls"):
        with tracked_run(experiment="s", name=kind, kind=kind) as run:
            pass
        ids.append(run.server_run_id)
    assert [run.run_id for run in search_runs("s", kinds=["negative-controls"])] == ids
    assert {get_run(run_id).kind for run_id in ids} == {"negative-controls"}
    assert [re.findall("'(.*)'", each) for each in Wanted({}, kinds=["negative-controls"]).filters()] == [
        ["negative-controls"],
        ["canary"],
    ]
