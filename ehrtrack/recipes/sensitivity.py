"""A sensitivity analysis: the same fine-tuning at several values of one setting, and what each buys and costs."""

from __future__ import annotations

from pathlib import Path

from ehrtrack import plots
from ehrtrack.config import RunConfig, check_objective, override
from ehrtrack.data.events import fingerprint_of
from ehrtrack.dotted import parse_value
from ehrtrack.errors import ConfigError
from ehrtrack.evaluation.metric_table import names_shown
from ehrtrack.evaluation.paired import differences_to, unpaired
from ehrtrack.evaluation.sensitivity import Point, conclusion, sensitivity_table, to_markdown
from ehrtrack.pipeline.inputs import input_fingerprints, pin_base
from ehrtrack.pipeline.predictions_cache import read_test_predictions
from ehrtrack.pipeline.prepare import settle
from ehrtrack.pipeline.run import Place, RecipeResult, describe, open_run
from ehrtrack.pipeline.run_rows import run_row
from ehrtrack.recipes.finetune import finetune
from ehrtrack.search_space import Scalar
from ehrtrack.tracking.client.queries import RunRecord, get_run, search_runs
from ehrtrack.training.ranks import join_ranks

SECTIONS = ("study", "data", "cohort", "model", "objective", "strategy", "init", "train", "sensitivity", "runtime")
KEY_TAG = "fingerprint.sensitivity"
FORMER_KEY_TAG = "fingerprint.frontier"
"""The same of runs that were logged when a sensitivity analysis was called a frontier."""


def sensitivity(config: RunConfig) -> RecipeResult:
    """Fine-tune at each value of ``sensitivity.parameter``, and log table, plot and conclusion.

    Each value is a child run, evaluated and logged like any other. Started again with the same configuration, the
    values that are finished are taken from where they are.

    Raises
    ------
    EhrtrackError
        If the configuration, the data or the tracking server cannot be used.
    """
    if join_ranks(config.runtime.device).count > 1:
        raise ConfigError("a sensitivity analysis is one process; its values are fitted one after another")
    check_objective(config, "outcome")
    config = settle(pin_base(config))  # another pretraining may finish between two values
    parameter, values = config.sensitivity.parameter, config.sensitivity.values
    variants = {value: override(config, {parameter: value}) for value in values}  # a wrong path or value ends it here
    settings = config.identity(without=("runtime", "registry", "compare", "search", "sensitivity"))
    key = fingerprint_of("frontier", parameter, settings, input_fingerprints(config))
    done = _finished(config.study, key, parameter)
    with open_run(config, kind="sensitivity", sections=SECTIONS, name=f"sensitivity to {parameter}") as run:
        run.logger.set_tags({KEY_TAG: key})
        found: dict[Scalar, RunRecord] = {}
        for number, (value, variant) in enumerate(variants.items(), start=1):
            print(f"\n{parameter} = {value} ({number} of {len(values)})", flush=True)
            if value in done:
                print(f"finished before, as run {done[value].run_id}", flush=True)
                found[value] = done[value]
            else:
                found[value] = get_run(finetune(variant, place=Place(run.logger.reference)).run_id)
        table = sensitivity_table(_points(found, config.runtime.cache))
        text = f"{to_markdown(table, parameter)}\n{conclusion(table, parameter)}\n"
        run.logger.log_table(table, "sensitivity.csv")
        run.logger.log_text(text, "sensitivity.md")
        run.logger.log_figure(plots.sensitivity_plot(table, parameter=parameter), "plots/sensitivity.png")
        run.logger.set_description(describe(f"Sensitivity to {parameter}", {"values": f"{len(values)}"}) + f"\n{text}")
        print(f"\n{text}", flush=True)
        return run.finished({})


def _finished(study: str, key: str, parameter: str) -> dict[Scalar, RunRecord]:
    """Finished runs of the same sensitivity analysis, by value."""
    earlier = [
        run
        for tag in (FORMER_KEY_TAG, KEY_TAG)
        for run in search_runs(study, kinds=["sensitivity"], status=None, tags={tag: key})
    ]
    children = [run for one in earlier for run in search_runs(study, kinds=["finetune"], parent_run_id=one.run_id)]
    return {parse_value(child.params[parameter]): child for child in children}


def _points(found: dict[Scalar, RunRecord], cache: Path) -> list[Point]:
    rows = [run_row(record) for record in found.values()]
    predictions, left_out = read_test_predictions(rows, cache=cache)
    first = rows[0]
    if first.run_id in predictions:
        left_out |= unpaired(first, rows, predictions)
    paired = {run_id: table for run_id, table in predictions.items() if run_id not in left_out}
    against_first = differences_to(first.run_id, rows, paired) if first.run_id in paired else {}
    for run_id, reason in left_out.items():
        print(f"run {run_id} is left out of the differences: {reason}", flush=True)
    names = names_shown("sensitivity", {first.task})
    return [
        Point(
            value,
            record.run_id,
            {name: record.metrics[name] for name in names if name in record.metrics},
            against_first.get(record.run_id),
        )
        for value, record in found.items()
    ]
