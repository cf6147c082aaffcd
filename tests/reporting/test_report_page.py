"""The report's page: it needs nothing beside it, is the same each time, and hides counts of a few."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest
from simulated_study import material

from ehrtrack.reporting.assemble import assemble
from ehrtrack.reporting.document import Column, Document, Prose, Section, Table
from ehrtrack.reporting.gather import _explanations
from ehrtrack.reporting.html import page
from ehrtrack.reporting.material import Material
from ehrtrack.reporting.write import write_report

SECTIONS = (
    *("answer", "results", "differences", "labels", "subjects", "table-one", "calibration", "survival"),
    *("decision", "subgroups", "explanation", "external", "learning", "cost", "sanity", "tripod", "provenance"),
)


class Elements(HTMLParser):
    """Every element with its attributes, and the text of scripts by their kind."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def values(self, *names: str) -> Iterator[tuple[str, str]]:
        """Tag and value of each of these attributes."""
        return ((tag, attrs[name]) for tag, attrs in self.found for name in names if name in attrs)


@pytest.fixture(scope="session")
def elements(report_folder: Path) -> Elements:
    return Elements((report_folder / "index.html").read_text("utf-8"))


def test_page_says_what_pretraining_read(report_folder: Path) -> None:
    text = (report_folder / "index.html").read_text("utf-8")
    assert text.count("Pretraining read records up to the index dates.") == 1


def test_page_loads_nothing_from_outside(elements: Elements) -> None:
    loaded = [value for _, value in elements.values("src", "srcset", "poster", "action")]
    assert loaded == []
    linked = [(tag, value) for tag, value in elements.values("href") if not value.startswith(("#", "data:"))]
    assert {tag for tag, _ in linked} == {"a"}
    assert all(re.fullmatch(r"http://127\.0\.0\.1:5000/#/experiments/1/runs/\w{32}", value) for _, value in linked)


def test_styles_load_nothing_from_outside(report_folder: Path) -> None:
    style = re.findall(r"<style>(.*?)</style>", (report_folder / "index.html").read_text("utf-8"), re.DOTALL)
    assert len(style) == 1
    assert "url(" not in style[0]
    assert "@import" not in style[0]


def test_page_is_under_10_mb_with_plotly_once(report_folder: Path) -> None:
    text = (report_folder / "index.html").read_text("utf-8")
    assert len(text.encode()) < 10_000_000
    assert text.count("* plotly.js v") == 1


def test_links_within_the_page_lead_somewhere(elements: Elements) -> None:
    there = {value for _, value in elements.values("id")}
    assert {value[1:] for _, value in elements.values("href") if value.startswith("#")} <= there


def test_ids_are_unique(elements: Elements) -> None:
    ids = [value for _, value in elements.values("id")]
    assert len(ids) == len(set(ids))


def test_same_material_gives_the_same_bytes(study_material: Material, report_folder: Path, tmp_path: Path) -> None:
    write_report(assemble(study_material), tmp_path)
    files = {file.relative_to(report_folder) for file in report_folder.rglob("*") if file.is_file()}
    assert {file.relative_to(tmp_path) for file in tmp_path.rglob("*") if file.is_file()} == files
    assert {file.suffix for file in files} == {".html", ".md", ".tex", ".csv", ".png", ".svg", ".pdf"}
    assert [file for file in files if (report_folder / file).read_bytes() != (tmp_path / file).read_bytes()] == []


def test_every_section_is_there(study_document: Document) -> None:
    assert tuple(section.key for section in study_document.sections) == SECTIONS


def test_answer_is_the_first_thing_on_the_page(report_folder: Path, study_material: Material) -> None:
    text = (report_folder / "index.html").read_text("utf-8")
    head = text[text.index("<body>") : text.index("</header>")]
    assert study_material.settings.question in head
    assert study_material.answer.partition(". ")[0] in head
    assert len(re.sub("<[^>]+>", "", head)) < 1000


def test_study_without_numbers_of_labels_has_no_label_curve() -> None:
    document = assemble(material(labels=(), n_test=200, models=("lora r8", "cox")))
    assert tuple(section.key for section in document.sections) == tuple(key for key in SECTIONS if key != "labels")


def test_external_validation_stands_beside_the_studys_own_test_subjects(study_document: Document) -> None:
    (section,) = (section for section in study_document.sections if section.key == "external")
    ((dataset, _, subjects, events, here, there, ratio, slope),) = section.tables()[0].cells()
    assert (dataset, subjects, events) == ("icu_b, labels death.parquet", "3,914", "957")
    assert (there, ratio, slope) == ("0.641 [0.620, 0.660]", "1.32", "")
    assert re.fullmatch(r"0\.\d{3} \[0\.\d{3}, 0\.\d{3}\]", here)


def test_what_carries_the_risk_is_shown_of_a_model_that_was_explained(study_document: Document) -> None:
    (section,) = (section for section in study_document.sections if section.key == "explanation")
    (table,) = section.tables()
    (first, second) = table.cells()
    assert first[:3] == ["DX//1 · what it means", "50", "50%"]
    assert first[3].startswith("0.400 [0.3")
    assert first[5] == "0.800 [0.800, 0.800]"
    assert second[:4] == ["LAB//$2 · what it means", "100", "100%", "0.000 [0.000, 0.000]"]
    assert "100 test subjects, occlusion" in table.caption


def test_the_last_explanation_of_a_configurations_run_is_read(study_material: Material) -> None:
    best = study_material.configurations[0]
    (record,) = study_material.external
    tags = {"model_run": best.rows[0].run_id, "ehrtrack.explained": "60 test subjects, occlusion"}
    runs = [
        replace(record, run_id=digit * 32, kind="explain", tags=tags | {"ehrtrack.explained": said})
        for digit, said in (("1", "60 test subjects, occlusion"), ("2", "200 test subjects, occlusion"))
    ]
    runs.append(
        replace(record, run_id="3" * 32, kind="explain", tags={"model_run": best.rows[0].run_id})
    )  # of a subject
    asked = []

    def read(run_id: str, folder: str, names: tuple[str, ...]) -> dict[str, pl.DataFrame]:
        asked.append((run_id, folder, names))
        return {"codes": study_material.explanations[best.label].table}

    found = _explanations(study_material.configurations, runs, read)
    assert asked == [("2" * 32, "explain", ("codes",))]
    assert [(label, one.said) for label, one in found.items()] == [(best.label, "200 test subjects, occlusion")]


def test_sections_of_what_is_not_there_are_left_out_and_the_author_is_told(study_material: Material) -> None:
    without = {"evaluations": {}, "cohort": {}, "predictions": {}, "records": {}, "table_one": None, "learning": None}
    bare = replace(study_material, differences=(), controls=(), external=(), explanations={}, **without)
    document = assemble(bare)
    keys = [section.key for section in document.sections]
    assert keys == ["answer", "results", "labels", "calibration", "cost", "tripod", "provenance"]
    tripod = next(table for table in document.tables() if table.name == "tripod")
    told = dict(tripod.frame.select("item", "told").iter_rows())
    assert told["6b"] == "author must write"
    assert told["24"].startswith("Calibration: ")


def test_negative_controls_of_earlier_runs_have_their_present_names(study_material: Material) -> None:
    (record,) = study_material.controls
    note = record.tags["mlflow.note.content"].replace("control_", "canary_")
    earlier = replace(study_material, controls=(replace(record, tags={"mlflow.note.content": note}),))
    controls = next(table for table in assemble(earlier).tables() if table.name == "controls")
    assert controls.frame["control"].to_list() == ["permuted", "future", "planted"]


def test_small_counts_are_hidden(report_folder: Path) -> None:
    text = (report_folder / "report.md").read_text("utf-8")
    assert "- born and alive at the index date: – subjects (<11 left out)" in text
    assert "4,117" not in text  # which 4,120 before it would tell 3 from
    assert re.search(r"\| validation +\| +514 \| +<11 \|", text)
    subgroups = pl.read_csv(report_folder / "tables" / "subgroups.csv", infer_schema=False)
    few = subgroups.filter(pl.col("group") == "under 18")
    assert few["n_subjects"].to_list() == ["<11"]


def test_text_out_of_the_data_is_no_markup() -> None:
    evil = '</script><script>alert(1)</script><b onclick="x">'
    table = Table("t", evil, pl.DataFrame({"a": [evil]}), (Column(evil, lambda row: row["a"]),), notes=(evil,))
    text = page(Document(evil, evil, (Section("answer", evil, (Prose((evil,)),)), Section("s", evil, (table,)))))
    assert "alert(1)</script>" not in text
    assert not [attrs for _, attrs in Elements(text).found if "onclick" in attrs]


def test_text_of_a_chart_cannot_end_its_script(study_material: Material) -> None:
    one = study_material.configurations[0]
    evil = replace(one, label="</script><script>alert(1)</script>")
    tables = study_material.evaluations[one.label]
    found = replace(
        study_material,
        configurations=[evil],
        evaluations={evil.label: tables},
        predictions={evil.label: study_material.predictions[study_material.configurations[0].label]},
        learning=None,
        differences=(),
        table=study_material.table.head(1),
    )
    text = page(assemble(found))
    assert "alert(1)</script>" not in text


def test_charts_are_read_back_as_they_were(elements: Elements, report_folder: Path) -> None:
    text = (report_folder / "index.html").read_text("utf-8")
    charts = dict(re.findall(r'<script type="application/json" data-of="([\w-]+)">(.*?)</script>', text, re.DOTALL))
    assert set(charts) == {value for tag, value in elements.values("id") if tag == "div" and value.startswith("plot-")}
    names = [trace.get("name") for trace in json.loads(charts["plot-label_curve"])["data"] if "name" in trace]
    assert names == ["lora r8", "cox", "scratch"]


def test_tables_can_be_taken_out_of_the_page(elements: Elements, report_folder: Path) -> None:
    files = {
        attrs["download"]: base64.b64decode(attrs["href"].partition(",")[2])
        for tag, attrs in elements.found
        if tag == "a" and "download" in attrs
    }
    for name in ("main.csv", "differences.tex", "tripod.md"):
        assert files[name] == (report_folder / "tables" / name).read_bytes()


def test_run_pages_are_linked(elements: Elements, study_material: Material) -> None:
    linked = {value for _, value in elements.values("href")}
    assert {study_material.pages[r.row.run_id] for one in study_material.configurations for r in one.repeats} <= linked
