"""The files beside the page: LaTeX that a compiler can take, CSV at full precision, figures."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ehrtrack.plots.style import COLOURS
from ehrtrack.reporting.document import Column, Table
from ehrtrack.reporting.figures import with_palette
from ehrtrack.reporting.latex import table_to_latex
from ehrtrack.reporting.material import Material
from ehrtrack.reporting.tripod import AUTHOR, ITEMS, tripod_section

SPECIAL = r"a_b & 50 % of $x$ #1 {y} ~z ^w \n <11 ± 2 – “quoted”"


def test_environments_and_braces_of_latex_are_balanced(report_folder: Path) -> None:
    files = sorted(report_folder.rglob("*.tex"))
    assert len(files) > 10
    for file in files:
        text = file.read_text("utf-8")
        stack = []
        for word, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
            if word == "begin":
                stack.append(name)
            else:
                assert stack.pop() == name, file
        assert stack == [], file
        outside = re.sub(r"\\begin\{verbatim\}.*?\\end\{verbatim\}", "", text, flags=re.DOTALL)
        bare = re.sub(r"\\[{}]", "", outside)
        assert bare.count("{") == bare.count("}"), file


def test_latex_of_the_whole_takes_files_that_are_there(report_folder: Path) -> None:
    text = (report_folder / "report.tex").read_text("utf-8")
    taken = re.findall(r"\\input\{([^}]+)\}", text)
    taken += re.findall(r"\\includegraphics\[[^]]*\]\{([^}]+)\}", text)
    assert len(taken) > 15
    assert [name for name in taken if not (report_folder / name).is_file()] == []


def test_rows_of_latex_have_as_many_cells_as_there_are_columns(report_folder: Path) -> None:
    for file in (report_folder / "tables").glob("*.tex"):
        lines = [line for line in file.read_text("utf-8").splitlines() if line.endswith(r" \\")]
        cells = {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines if r"\multicolumn" not in line}
        assert len(cells) == 1, file


def test_marks_that_latex_reads_are_escaped() -> None:
    table = Table("t", SPECIAL, pl.DataFrame({"a": [SPECIAL]}), (Column(SPECIAL, lambda row: row["a"]),))
    lines = table_to_latex(table).splitlines()
    row = lines[lines.index(r"\midrule") + 1]
    assert row == (
        r"a\_b \& 50 \% of \$x\$ \#1 \{y\} \textasciitilde{}z \textasciicircum{}w \textbackslash{}n "
        r"\textless{}11 $\pm$ 2 -- ``quoted'' \\"
    )


def test_latex_of_other_letters_is_ascii_or_said(report_folder: Path) -> None:
    for file in report_folder.rglob("*.tex"):
        odd = sorted({mark for mark in file.read_text("utf-8") if ord(mark) > 0xFF})
        assert odd == [], file


def test_heads_over_several_columns_are_of_booktabs() -> None:
    def one(row: object) -> str:
        return "1"

    columns = (Column("m", one), Column("a", one, group="G"), Column("b", one, group="G"), Column("c", one))
    lines = table_to_latex(Table("t", "", pl.DataFrame({"x": [1]}), columns)).splitlines()
    start = lines.index(r"\toprule")
    assert lines[start + 1 : start + 4] == [
        r" & \multicolumn{2}{c}{G} &  \\",
        r"\cmidrule(lr){2-3}",
        r"m & a & b & c \\",
    ]


def test_csv_of_the_main_table_is_at_full_precision(report_folder: Path, study_material: Material) -> None:
    found = pl.read_csv(report_folder / "tables" / "main.csv")
    assert found["test_c_index"].to_list() == study_material.table["test_c_index"].to_list()


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_every_chart_has_its_files(report_folder: Path, suffix: str) -> None:
    names = {file.stem for file in (report_folder / "figures").glob(f"*.{suffix}")}
    assert names == {
        *(
            "flow",
            "differences",
            "label_curve",
            "calibration",
            "decision_curve",
            "subgroups_1",
            "subgroups_2",
            "contributions_1",
        ),
        *("score_by_n_trainable", "score_by_seconds", "survival_by_risk", "learning_curves"),
    }


def test_figures_tell_no_time(report_folder: Path) -> None:
    for file in (report_folder / "figures").iterdir():
        assert not re.search(rb"CreationDate|ModDate|dc:date|tIME", file.read_bytes()), file


def test_tripod_has_27_items_in_order() -> None:
    numbers = [int(re.sub("[a-z]", "", item.number)) for item in ITEMS]
    assert sorted(set(numbers)) == list(range(1, 28))
    assert numbers == sorted(numbers)
    assert len({item.number for item in ITEMS}) == len(ITEMS) == 52


def test_item_of_a_section_that_is_not_there_is_the_authors() -> None:
    section = tripod_section(["subjects"], {"subjects": "Flow"})
    (table,) = section.tables()
    told = dict(table.frame.select("item", "told").iter_rows())
    assert told["20a"] == "Flow: flow, and follow-up by split"
    assert told["20b"] == AUTHOR


def test_pictures_are_small_and_look_as_they_were_drawn(report_folder: Path) -> None:
    pictures = sorted(report_folder.rglob("*.png"))
    assert len(pictures) > 3
    for picture in pictures:
        with Image.open(picture) as opened:
            assert opened.mode == "P"
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    for n, colour in enumerate(COLOURS):
        axes.fill_between([0, 1], [n, n + 1], [n + 2, n + 3], color=colour, alpha=0.3)
        axes.plot([0, 1], [n, n + 2], color=colour)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=200)
    small = with_palette(drawn)
    assert len(small) < drawn.tell() / 2
    with Image.open(drawn) as before, Image.open(io.BytesIO(small)) as after:
        colours = [np.asarray(of.convert("RGB"), int) for of in (before, after)]
    assert np.abs(colours[0] - colours[1]).max() < 32
