"""A study's report: one page with the answer, and the tables and figures that it rests on."""

from __future__ import annotations

from pathlib import Path

from ehrtrack.config import load_config
from ehrtrack.errors import DataError
from ehrtrack.evaluation.answer import Findings
from ehrtrack.pipeline.prepare import prepare_cohort, settle
from ehrtrack.recipes._sweep_report import report_of_sweep
from ehrtrack.reporting.assemble import assemble
from ehrtrack.reporting.gather import TABLE_ONE, gather
from ehrtrack.reporting.material import shown_repeat
from ehrtrack.reporting.table_one import describe_subjects, table_one
from ehrtrack.reporting.write import INDEX, write_report
from ehrtrack.runlog import RunLogger
from ehrtrack.study.cells import Study, read_study
from ehrtrack.study.results import StudyResults, finished_cells, study_results, told_by_server
from ehrtrack.study.stored import stored_study
from ehrtrack.study_file import asks_question
from ehrtrack.tracking.client.queries import search_runs
from ehrtrack.tracking.names import STUDY_KEY

REPORT = "report"
"""Folder of the report among the artifacts of the study's run, and under the working folder."""


def report(path: Path, out: Path | None = None) -> Path:
    """Write the report of a study or a sweep from what the tracking server has; returns the page's path.

    Nothing is trained and no data are read: which cells the study has is kept by its own run. What is written does not
    depend on when or where it is.

    Parameters
    ----------
    path : the study's file, or the configuration of the sweep
    out : folder to write; ``reports/STUDY`` if not given, ``reports/STUDY-FILE`` of a file that is not ``study.toml``,
        and of a sweep ``reports/STUDY-sweep``

    Raises
    ------
    DataError
        If no run of the study is finished.
    """
    if not asks_question(path):
        return report_of_sweep(load_config(path).study, path, out)
    study = stored_study(path) or read_study(path)
    run_id = _run_of(study)
    results = told_by_server(study_results(study, run_id=run_id), study)
    page = _write(results, out or report_page(study.name, study.file).parent)
    print(f"-> {page}", flush=True)
    return page


def log_report(results: StudyResults, found: Findings, study: Study, logger: RunLogger) -> None:
    """Make the report of a study whose run is open, and keep it with the run, with Table 1 of the cohort it shows."""
    shown = shown_repeat(found.configurations).row.run_id
    cell = next(key for key, record in finished_cells(study).items() if record.run_id == shown)
    subjects = table_one(describe_subjects(prepare_cohort(settle(study.by_key[cell].config))))
    logger.log_table(subjects, TABLE_ONE)
    page = report_page(study.name, study.file)
    write_report(assemble(gather(told_by_server(results, study), found, table_one=subjects)), page.parent)
    logger.log_folder(page.parent, REPORT)
    print(f"-> {page}", flush=True)


def report_page(study: str, file: Path) -> Path:
    """Where a study's report is written, below the working folder, unless another folder is asked for.

    Two files may ask questions of the runs of one study: none writes over the report of another.

    >>> report_page("gi_bleed", Path("study.toml")).as_posix(), report_page("gi_bleed", Path("all.toml")).as_posix()
    ('reports/gi_bleed/index.html', 'reports/gi_bleed-all/index.html')
    """
    return Path("reports") / (study if file.stem == "study" else f"{study}-{file.stem}") / INDEX


def _write(results: StudyResults, folder: Path) -> Path:
    if not results.repeats:
        why = "; ".join(f"{cell}: {reason}" for cell, reason in results.missing.items())
        raise DataError(
            f"no run of study {results.study!r} is finished on this tracking server ({why}); run `ehrtrack study run` "
            "first, or set MLFLOW_TRACKING_URI to where it was run"
        )
    material = gather(results, results.findings())
    if material.table_one is None:
        print(
            "the study's run has no Table 1, which is made where the data are: `ehrtrack study run` makes it",
            flush=True,
        )
    return write_report(assemble(material), folder)


def _run_of(study: Study) -> str:
    """The study's own run, of several the last; empty without one."""
    runs = search_runs(study.name, kinds=["study"], status=None, tags={STUDY_KEY: study.queue})
    return runs[-1].run_id if runs else ""
