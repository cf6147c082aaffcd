"""The card of a registered model: what it is for, on whom it was judged, how well, and what it is made from.

After Mitchell et al. 2019, Model Cards for Model Reporting. Everything in it is read from the runs that are tracked, so
that nothing is said that cannot be looked up.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from ehrtrack.data.vocabulary import SPECIAL_TOKENS, Vocabulary
from ehrtrack.evaluation.benchmark import RunRow
from ehrtrack.evaluation.metric_table import interval_text, number_text, with_bounds
from ehrtrack.pipeline.model_files import VOCABULARY
from ehrtrack.pipeline.run_rows import EVALUATION, run_row
from ehrtrack.runlog import KEPT, TEST
from ehrtrack.tracking.client.queries import MissingArtifact, RunRecord, download, search_runs
from ehrtrack.tracking.names import CONTROLS, EVALUATED_ON, GIT_COMMIT, MODEL_RUN, VERDICT

if TYPE_CHECKING:
    import pandas as pd

CARD = "model_card.md"
"""The file of a version that holds its card."""
_SCORES = {  # key -> what it is called, and how it is written
    "c_index": ("C-index", ".3f"), "uno_c": ("Uno's C", ".3f"), "auc_horizon": ("AUC at the horizon", ".3f"),
    "auroc": ("AUROC", ".3f"), "auprc": ("AUPRC", ".3f"), "ibs": ("integrated Brier score", ".4f"),
    "brier": ("Brier score", ".4f"),
}  # fmt: skip
_CALIBRATION = {
    "calibration_slope": ("calibration slope", ".2f"), "observed_to_expected": ("observed over expected risk", ".2f"),
    "ici": ("integrated calibration index", ".3f"),
}  # fmt: skip
_COSTS = {
    "parameters/total": ("parameters", ",.0f"), "parameters/trainable": ("of which trained", ",.0f"),
    "cost/train_seconds": ("seconds of training", ",.1f"), "cost/peak_memory_mb": ("MB of memory", ",.0f"),
    "cost/checkpoint_mb": ("MB of weights", ",.2f"), "cost/adapter_mb": ("MB of the adapter", ",.2f"),
}  # fmt: skip
_COHORT = ("cohort.", "data.split.")
_NONE = ("not logged by the run",)


def model_card(record: RunRecord, name: str, form: str) -> str:
    """The card of a finished run's model, as Markdown.

    Parameters
    ----------
    name : of the registered model
    form : of this version: what of the model it holds, and how large that is
    """
    row = run_row(record)
    with tempfile.TemporaryDirectory(prefix="ehrtrack-") as folder:
        subgroups, summary = (
            _table(record.run_id, path, Path(folder)) for path in ("evaluation/subgroups.csv", "cohort/summary.csv")
        )
    of_study = search_runs(record.study, kinds=[CONTROLS, EVALUATION])
    controls = [one for one in of_study if one.kind == CONTROLS]
    external = [one for one in of_study if one.tags.get(MODEL_RUN) == record.run_id]
    sections: dict[str, Sequence[str]] = {
        "Intended use": _intended_use(row, name),
        "Cohort": [*_cohort(record, row), *_as_lines(summary)],
        "Scores on test subjects": [*_numbers(record.metrics, _SCORES, TEST), *_kept(record.metrics)],
        "Calibration": [*_numbers(record.metrics, _CALIBRATION, TEST)],
        "External validation": [line for one in external for line in _external(one)] or ["none so far"],
        "Subgroups": _as_lines(subgroups),
        "Negative controls and sanity": _controls(record, controls),
        "Limits": _limits(record, row),
        "Cost": [*_numbers(record.metrics, _COSTS, "")],
        "Lineage": _lineage(record, form),
    }
    said = (f"## {title}\n\n" + "".join(f"- {line}\n" for line in lines or _NONE) for title, lines in sections.items())
    return f"# {name}: {row.label}\n\n" + "\n".join(said)


def measures_of(record: RunRecord) -> dict[str, float]:
    """Scores and calibration on the test subjects, as the card tells them, with their bounds, by metric."""
    keys = [f"{TEST}/{key}{end}" for key in (*_SCORES, *_CALIBRATION) for end in ("", "_lower", "_upper")]
    return {key.removeprefix(f"{TEST}/"): record.metrics[key] for key in keys if key in record.metrics}


def input_example(model_folder: Path) -> pd.DataFrame | None:
    """Events of one made-up subject in codes that the model knows; None of a folder without a vocabulary."""
    import pandas as pd

    if not (model_folder / VOCABULARY).is_file():
        return None
    vocabulary = Vocabulary.load(model_folder / VOCABULARY)
    codes = list(dict.fromkeys(vocabulary.code_of_token[len(SPECIAL_TOKENS) :]))[:3]
    times = [datetime(1960, 5, 1)] + [datetime(2020, 1, 1)] * len(codes)
    return pd.DataFrame(
        {
            "subject_id": 1,
            "prediction_time": pd.Series([datetime(2020, 1, 2)] * len(times), dtype="datetime64[us]"),
            "time": pd.Series(times, dtype="datetime64[us]"),
            "code": ["MEDS_BIRTH", *codes],
        }
    )


def _intended_use(row: RunRow, name: str) -> list[str]:
    what = f"within {row.horizon_days} days of the prediction time" if row.horizon_days else "of the label's class"
    return [
        f"Research on event histories: the risk of the outcome {what}, for subjects who would be in the cohort below.",
        "Not for the care of single patients: no version of it was examined for that.",
        f"`ehrtrack predict --model models:/{name}@champion` gives no risk, and a reason, to who is outside of it.",
    ]


def _cohort(record: RunRecord, row: RunRow) -> Iterator[str]:
    yield f"fingerprint {row.cohort_fingerprint}; horizon {row.horizon_days or 'none'} (days)"
    told = [f"{path} = {value}" for path, value in sorted(record.params.items()) if path.startswith(_COHORT)]
    if told:
        yield ", ".join(told)
    sizes = {"n_train": "training", "n_validation": "validation", "n_test": "test"}
    known = [
        f"{record.metrics[f'cohort/{key}']:,.0f} {of}" for key, of in sizes.items() if f"cohort/{key}" in record.metrics
    ]
    if known:
        yield f"subjects: {', '.join(known)}"


def _numbers(metrics: Mapping[str, float], wanted: Mapping[str, tuple[str, str]], split: str) -> Iterator[str]:
    for key, (title, form) in wanted.items():
        text = interval_text(metrics, *with_bounds(f"{split}/{key}" if split else key), form=form)
        if text:
            yield f"{title}: {text}"


def _kept(metrics: Mapping[str, float]) -> Iterator[str]:
    """The validation score by which the run was chosen."""
    for key in ("c_index", "auroc"):
        text = number_text(metrics.get(f"{KEPT}/{key}"), ".3f")
        if text:
            yield f"{_SCORES[key][0]} on the validation subjects, by which it was chosen: {text}"


def _external(record: RunRecord) -> list[str]:
    found = [*_numbers(record.metrics, _SCORES, TEST), *_numbers(record.metrics, _CALIBRATION, TEST)]
    return [f"{record.tags.get(EVALUATED_ON, 'another dataset')} (run {record.run_id}): {'; '.join(found)}"]


def _controls(record: RunRecord, controls: Sequence[RunRecord]) -> list[str]:
    checks = {
        tag.removeprefix("sanity."): state for tag, state in sorted(record.tags.items()) if tag.startswith("sanity.")
    }
    lines = [f"{check}: {state}" for check, state in checks.items() if check != "verdict"]
    lines += [f"negative controls, run {one.run_id}: {one.tags.get(VERDICT, 'no verdict')}" for one in controls]
    return lines if controls else [*lines, "no run of negative controls (`ehrtrack negative-controls`) in the study"]


def _limits(record: RunRecord, row: RunRow) -> list[str]:
    lines = [
        "Scores are of subjects of the same dataset unless external validation is told above; elsewhere codes, care "
        "and the frequency of the outcome differ.",
        "Subgroups were looked at one by one, without an adjustment for their number.",
    ]
    failed = [
        tag.removeprefix("sanity.") for tag, state in record.tags.items() if tag.startswith("sanity.") and state != "ok"
    ]
    if others := sorted(set(failed) - {"verdict"}):
        lines.append(f"Not ok in the sanity checks of its run: {', '.join(others)}.")
    if not row.metrics.get(f"{TEST}/calibration_slope"):
        lines.append("Too few test events to judge its calibration.")
    return lines


def _lineage(record: RunRecord, form: str) -> list[str]:
    base = record.params.get("init.run", "")
    steps = [f"base: pretraining run {base}, weights {record.tags.get('fingerprint.base', 'unknown')}"] if base else []
    if record.metrics.get("cost/adapter_mb"):
        steps.append(f"adapter: `adapter` of run {record.run_id}, trained on that base")
    return [
        *steps,
        f"this version {form}",
        f"run {record.run_id} ({record.name}, {record.kind}, {record.started:%Y-%m-%d}), study {record.study}",
        f"code: git {record.tags.get(GIT_COMMIT, 'unknown')}",
        *(f"{tag}: {value}" for tag, value in sorted(record.tags.items()) if tag.startswith("fingerprint.")),
    ]


def _table(run_id: str, path: str, folder: Path) -> pl.DataFrame | None:
    try:
        return pl.read_csv(download(run_id, path, folder), infer_schema=False)
    except MissingArtifact:
        return None


def _as_lines(table: pl.DataFrame | None) -> list[str]:
    """A line for each row: the columns that have a value."""
    if table is None:
        return []
    return [
        ", ".join(f"{name} {_short(value)}" for name, value in row.items() if value not in (None, ""))
        for row in table.iter_rows(named=True)
    ]


def _short(value: str) -> str:
    """Numbers of a file at the precision of a card."""
    try:
        return value if value.isdigit() else f"{float(value):.3g}"
    except ValueError:
        return value
