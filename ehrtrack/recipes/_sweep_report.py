"""The report of a sweep, from its trials and refits: made where the sweep ends, or from the tracking server alone."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from ehrtrack.errors import DataError
from ehrtrack.reporting.gather import gather
from ehrtrack.reporting.material import Material
from ehrtrack.reporting.sweep import optimism, sweep_document
from ehrtrack.reporting.write import INDEX, write_report
from ehrtrack.runlog import RunLogger
from ehrtrack.search import stored as stored_search
from ehrtrack.search.stored import SEARCH, Searched
from ehrtrack.study import stored as stored_study
from ehrtrack.study.cells import Study
from ehrtrack.study.results import StudyResults, study_results, told_by_server
from ehrtrack.study.stored import CELLS
from ehrtrack.tracking.client.connection import ui_command
from ehrtrack.tracking.client.queries import MissingArtifact, download, search_runs

REPORT = "report"


@dataclass(frozen=True)
class Refitted:
    """A search with the fits that followed.

    Attributes
    ----------
    study : of the fits
    """

    searched: Searched
    study: Study
    results: StudyResults

    def material(self) -> Material:
        """What the report is made of, beside the trials."""
        results = told_by_server(self.results, self.study)
        material = gather(results, results.findings())
        trials = search_runs(results.study, kinds=["trial"], status=None, parent_run_id=results.run_id)
        pages = {record.run_id: ui_command(record.experiment_id, run_id=record.run_id).url for record in trials}
        return replace(material, pages={**material.pages, **pages})

    def optimism(self, material: Material) -> float | None:
        """As `reporting.sweep.optimism`."""
        return optimism(self.searched, material)


def log_sweep_report(refitted: Refitted, logger: RunLogger) -> Material:
    """Make the report of a sweep whose run is open, and keep it with the run, with all that it is made of."""
    logger.log_json(stored_search.to_json(refitted.searched), SEARCH)
    logger.log_json(stored_study.to_json(refitted.study), CELLS)
    material = refitted.material()
    page = write_report(sweep_document(refitted.searched, material), sweep_page(refitted.study.name).parent)
    logger.log_folder(page.parent, REPORT)
    print(f"-> {page}", flush=True)
    return material


def report_of_sweep(study: str, file: Path, out: Path | None) -> Path:
    """Write the report of the last sweep of a study from what the tracking server has; returns the page's path.

    Raises
    ------
    DataError
        If no sweep of it has ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        for number, record in enumerate(reversed(search_runs(study, kinds=["sweep"], status=None))):
            try:
                search, cells = (
                    json.loads(download(record.run_id, name, Path(folder) / str(number)).read_text("utf-8"))
                    for name in (SEARCH, CELLS)
                )
            except MissingArtifact:
                continue
            made = stored_study.from_json(file, cells)
            results = study_results(made, run_id=record.run_id)
            refitted = Refitted(stored_search.from_json(search), made, results)
            document = sweep_document(refitted.searched, refitted.material())
            page = write_report(document, out or sweep_page(study).parent)
            print(f"-> {page}", flush=True)
            return page
    raise DataError(
        f"no sweep of study {study!r} has ended on this tracking server; run `ehrtrack sweep --config {file}` first, "
        "or set MLFLOW_TRACKING_URI to where it was run"
    )


def sweep_page(study: str) -> Path:
    """Where a sweep's report is written, below the working folder, unless another folder is asked for.

    >>> sweep_page("gi_bleed").as_posix()
    'reports/gi_bleed-sweep/index.html'
    """
    return Path("reports") / f"{study}-sweep" / INDEX
