"""Each notebook runs from its first cell to its last, in a new folder; without a kernel, as they are plain Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)

pytestmark = pytest.mark.usefixtures("undrawn_figures")

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def run(name: str) -> dict[str, Any]:
    """What a notebook's names stand for after its last cell."""
    notebook = json.loads((NOTEBOOKS / name).read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        assert not cell.get("outputs"), "notebooks are kept without what they printed"
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    return names


def test_what_can_be_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run("what_can_be_known.ipynb")

    assert names["oracle"].lower > 0.5
    assert names["difference"].lower < 0 < names["difference"].upper
    assert names["slopes"]["spread"] == pytest.approx(names["slopes"]["true"] / 2, rel=0.05)


def test_runs_from_python(local_store: Path) -> None:
    names = run("runs_from_python.ipynb")

    assert names["found"].status == "FINISHED"
    assert names["comparison"].champion is not None
    assert names["risks"].height == 300


def test_every_notebook_is_run() -> None:
    assert {path.name for path in NOTEBOOKS.glob("*.ipynb")} == {"what_can_be_known.ipynb", "runs_from_python.ipynb"}
