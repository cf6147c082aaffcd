"""docs/tutorial.md, followed word by word with fewer subjects and epochs: it ends with a champion and its risks."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from ehrtrack.cli import main

torch.set_num_threads(1)

pytestmark = pytest.mark.usefixtures("undrawn_figures")

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(sh|python|toml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHORTER = {
    "--subjects 2000": "--subjects 300",
    "pretrain.toml": "pretrain.toml --train.epochs 1",
    "finetune.toml": "finetune.toml --train.epochs 1",
    "study.toml": "study.toml --no-measure",
}
"""What the test runs instead; each is in the page, or the page has changed."""


def run(command: str) -> None:
    """A command of the page, in this process: starting one takes longer than most of them."""
    program, *words = shlex.split(command)
    assert program == "ehrtrack"
    with pytest.raises(SystemExit) as end:
        main(words)
    assert not end.value.code, command


def test_the_tutorial_ends_with_a_champion_and_its_risks(local_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for kind, body in BLOCK.findall(page):
        if kind == "toml":
            named = re.match(r"# (\S+)\n", body)
            assert named is not None
            Path(named[1]).write_text(body, encoding="utf-8")
        elif kind == "python":
            exec(body, names)
        else:
            for written, instead in SHORTER.items():
                body = body.replace(written, instead)
            for command in body.strip().splitlines():
                run(command)

    told = capsys.readouterr().out
    assert "models:/tutorial@champion" in told
    assert "22 cells of 8 configurations" in told
    risks = pl.read_parquet("risks.parquet")
    assert risks.height == pl.read_csv("labels.csv").height
    assert risks["risk"].drop_nulls().is_between(0, 1).all()


def test_what_the_test_shortens_is_in_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [written for written in SHORTER if written not in page] == []
