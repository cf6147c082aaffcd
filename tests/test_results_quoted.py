"""The figures of studies in the project's pages are those of their results."""

from __future__ import annotations

import shutil
from pathlib import Path

import fill_results

ROOT = Path(__file__).parents[1]


def test_pages_quote_what_the_results_say() -> None:
    assert fill_results.pages(ROOT), "no page quotes a study"
    assert fill_results.main(["--check"]) == 0, "run: python tests/fill_results.py"


def test_a_figure_that_drifts_is_found(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "projects" / "nafld", tmp_path / "projects" / "nafld")
    page = (ROOT / "projects" / "nafld" / "README.md").read_text("utf-8")
    table = tmp_path / "projects" / "nafld" / "results" / "tables" / "main.csv"
    assert fill_results.filled(page, tmp_path) == page
    table.write_text(table.read_text("utf-8").replace("0.8306915", "0.8406915"), encoding="utf-8")
    assert "| cox | .745 (.140) | .841 (.031) |" in fill_results.filled(page, tmp_path)


def test_a_report_is_kept_without_what_was_there(tmp_path: Path) -> None:
    report, results = tmp_path / "reports" / "icu", tmp_path / "results"
    (report / "tables").mkdir(parents=True)
    (report / "tables" / "main.csv").write_text("a")
    (report / "tables" / "main.tex").write_text("b")
    (results / "tables").mkdir(parents=True)
    (results / "tables" / "label_curve.csv").write_text("of a study before")
    fill_results.take(report, results)
    assert [path.relative_to(results).as_posix() for path in results.rglob("*.*")] == ["tables/main.csv"]


def test_a_page_quotes_another_question_of_its_study_by_the_name_of_its_file(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "projects" / "nafld" / "results", tmp_path / "projects" / "nafld" / "results-all_labels")
    page = "<!-- results: nafld-all_labels/said -->\n<!-- end of results -->"
    assert "finished runs, commit" in fill_results.filled(page, tmp_path)
