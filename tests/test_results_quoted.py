"""The figures of studies in the project's pages are those of their results."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import fill_results
import findings
import polars as pl

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


FROZEN = {"strategy.name": "frozen", "strategy.head": "ridge"}
LORA, SCRATCH = {"strategy.name": "lora"}, {"strategy.name": "scratch"}
COLUMNS = (
    "configuration", "kind", "n_train", "val_c_index", "test_c_index", "reference", "finding", "settings",
    "pretraining", "seconds", "adapter_mb", "checkpoint_mb",
)  # fmt: skip
COX, COX_ALL = "cox · 128 labels", "cox · 2,048 labels"
ROWS: list[tuple[object, ...]] = [
    ("frozen · 128 labels", "finetune", 128, 0.61, 0.712, COX, "better", FROZEN, "forecast", 0.52, None, 2.9),
    ("lora r4 · 128 labels", "finetune", 128, 0.62, 0.603, COX, "no difference shown", LORA, "mlm", 12.3, 0.27, 2.9),
    ("lora r8 · 128 labels", "finetune", 128, 0.60, 0.704, COX, "better", LORA, "mlm", 13.0, 0.30, 2.9),
    ("scratch · 2,048 labels", "finetune", 2048, 0.60, 0.5, COX_ALL, "worse", SCRATCH, None, 1234.0, None, 2.8),
    (COX_ALL, "baseline", 2048, 0.60, 0.68, None, None, {}, None, 0.1, None, None),
    ("lasso · 128 labels", "baseline", 128, 0.64, 0.651, COX, "equivalent", {}, None, 1.0, None, None),
    ("ridge · 128 labels", "baseline", 128, 0.63, 0.699, COX, "no difference shown", {}, None, 1.0, None, None),
    (COX, "baseline", 128, 0.60, 0.650, None, None, {}, None, 0.1, None, None),
]


def write_main(root: Path, folder: str, rows: Sequence[tuple[object, ...]]) -> None:
    tables = root / "projects" / folder / "tables"
    tables.mkdir(parents=True)
    written = [[json.dumps(value) if isinstance(value, dict) else value for value in row] for row in rows]
    pl.DataFrame(written, schema=COLUMNS, orient="row", infer_schema_length=None).write_csv(tables / "main.csv")


def test_findings_of_all_studies_stand_beside_their_references_and_validation_chooses(tmp_path: Path) -> None:
    write_main(tmp_path, "clinic/results-all_labels", ROWS)
    write_main(tmp_path, "alone/results", ROWS[-2:])  # no network

    found = findings.findings(tmp_path / "projects").splitlines()

    link = "[clinic](../projects/clinic/README.md), all_labels"
    assert found[2:] == [
        f"| {link} | 128 | cox .650 | lasso .651\u00a0= | .712\u00a0▲ | .603 |  |  |",
        f"| {link} | 2,048 | cox .680 |  |  |  |  | .500\u00a0▼ |",
    ]
    assert findings.counts(tmp_path / "projects").splitlines()[2:] == [
        "| forecast, frozen, head solved | 1 better |  |  |",
        "| mlm, lora, head trained | 1 better, 1 no difference shown |  |  |",
        "| scratch |  |  | 1 worse |",
    ]
    assert findings.costs(tmp_path / "projects").splitlines()[2:] == [
        f"| {link} | 2,048 | 0.1 |  |  |  | 1,234 |  | 2.8 |"
    ]
