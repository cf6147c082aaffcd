"""The view of an experiment's page in the UI: its runs, their order, columns and charts.

A view is what the UI's "Share" button stores, as a tag of the experiment. This one was tried with mlflow 3.17; column
widths and names of charts have no effect there, and its filters know no OR.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from ehrtrack.evaluation.metric_table import Metric, names_shown
from ehrtrack.runlog import KEPT, TEST, VALIDATION, VALIDATION_LOSS
from ehrtrack.tracking import names

_RUN_ID = re.compile(r"(?<![\w/\[])[0-9a-f]{32}(?![\w\]])")
_CODE = re.compile(r"(`[^`]*`)")

RUNS_COMPARED = 20
SECONDS = "cost/train_seconds"
_SCORES, _LEARNING = "ehrtrack-scores", "ehrtrack-learning"


def runs_view(metric: Metric) -> str:
    """The view of runs that are judged by a metric of choice: the best on the validation subjects first.

    Shown are runs whose test subjects have the metric: no pretraining, trial, comparison, or run that failed.

    Examples
    --------
    >>> from ehrtrack.evaluation.metric_table import C_INDEX
    >>> json.loads(runs_view(C_INDEX))["searchFilter"]
    'metrics.`test/c_index` > 0'
    """
    kept, test = metric.named(KEPT), metric.named(TEST)
    others = [name for name in names_shown("ui", metric.tasks) if name.startswith(f"{TEST}/")]
    is_bound = tuple(name for name in others if name.startswith(f"{test}_"))
    columns = [
        f"params.`{names.GROUP}`",
        f"params.`{names.PARAM_PREFIX}model.size`",
        "metrics.`parameters/trainable`",
        f"metrics.`{kept}`",
        f"metrics.`{test}`",
        f"tags.`{names.score_tag(metric.key)}`",
        *(f"metrics.`{name}`" for name in others if name != test and name not in is_bound),
        f"metrics.`{SECONDS}`",
        f"tags.`{names.VERDICT}`",
    ]
    state = {
        "selectedColumns": columns,
        "searchFilter": f"metrics.`{test}` > 0",
        "orderByKey": f"metrics.`{kept}`",
        "orderByAsc": metric.better == "lower",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "compareRunCharts": [
            _chart("BAR", _SCORES, metricKey=kept),
            _chart("BAR", _SCORES, metricKey=test),
            _chart("SCATTER", _SCORES, xaxis=_axis(SECONDS), yaxis=_axis(kept)),
            _curve(metric.named(VALIDATION)),
            _curve(VALIDATION_LOSS),
        ],
        "compareRunSections": [
            _section(_SCORES, "Which model is best, and what it costs"),
            _section(_LEARNING, "Learning curves"),
        ],
        "isAccordionReordered": True,
    }
    return json.dumps(state)


def run_link(run_id: str, text: str = "") -> str:
    """A Markdown link to the page of a run, which works on any page of the same server.

    >>> run_link("0" * 32, "the base")
    '[the base](#/runs/00000000000000000000000000000000?workflowType=machine_learning)'
    """
    return f"[{text or run_id}](#/runs/{run_id}?workflowType=machine_learning)"


def with_links(markdown: str, *, shortened: Iterable[str] = ()) -> str:
    """The text with each run id as a link to the run's page, but in code, which is for copying.

    Parameters
    ----------
    shortened : ids that the text may also name by their first eight digits

    Examples
    --------
    >>> with_links(f"like `ehrtrack resume {'1' * 32}`")
    'like `ehrtrack resume 11111111111111111111111111111111`'
    """
    parts = _CODE.split(markdown)
    for number in range(0, len(parts), 2):
        parts[number] = _RUN_ID.sub(lambda found: run_link(found[0]), parts[number])
        for run_id in shortened:
            parts[number] = re.sub(rf"\b{run_id[:8]}\b", run_link(run_id, run_id[:8]), parts[number])
    return "".join(parts)


def _chart(kind: str, section: str, **of_kind: Any) -> dict[str, Any]:
    name = "-".join([kind, *(str(value) for value in of_kind.values() if isinstance(value, str))])
    return {
        "type": kind,
        "uuid": f"{section}-{name.lower().replace('/', '-')}",
        "metricSectionId": section,
        "runsCountToCompare": RUNS_COMPARED,
        "deleted": False,
        "isGenerated": False,
    } | of_kind


def _curve(metric: str) -> dict[str, Any]:
    """A metric by epoch."""
    return _chart(
        "LINE",
        _LEARNING,
        metricKey=metric,
        selectedMetricKeys=[metric],
        xAxisKey="step",
        scaleType="linear",
        xAxisScaleType="linear",
        lineSmoothness=0,
        range={},
        selectedYAxisMetricKey="METRIC",
        yAxisKey="metric",
        yAxisExpressions=[],
        selectedXAxisMetricKey="",
    )


def _axis(metric: str) -> dict[str, str]:
    return {"key": metric, "type": "METRIC"}


def _section(section: str, title: str) -> dict[str, Any]:
    return {
        "uuid": section,
        "name": title,
        "display": True,
        "isReordered": True,
        "deleted": False,
        "isGenerated": False,
    }
