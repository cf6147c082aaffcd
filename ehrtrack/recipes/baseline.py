"""A baseline: the same cohort, split, grid and evaluation as the transformers."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import torch

from ehrtrack.baselines.base import AnyFeatures, Labelled, baseline_class
from ehrtrack.config import RunConfig, check_objective
from ehrtrack.evaluation.metric_table import chosen_by
from ehrtrack.evaluation.oracle import checked_truth
from ehrtrack.evaluation.report import Report
from ehrtrack.objectives.base import Predictions
from ehrtrack.pipeline.histories import read_cohort
from ehrtrack.pipeline.labels import value_text
from ehrtrack.pipeline.model_folder import log_model
from ehrtrack.pipeline.prepare import CohortRecords, check_validation, prepare_cohort, settle
from ehrtrack.pipeline.report import (
    attained,
    conclude,
    horizon,
    judge_risks,
    log_cohort,
    log_evaluation,
    log_predictions,
    not_measured,
    scores,
)
from ehrtrack.pipeline.run import ALONE, Place, RecipeResult, describe, open_run
from ehrtrack.runlog import KEPT, TEST, Task, named
from ehrtrack.survival.metrics import require_comparable_pair
from ehrtrack.survival.time_grid import fit_time_grid
from ehrtrack.tracking.names import MODEL
from ehrtrack.training.steps import memory_mb

SECTIONS = ("study", "data", "cohort", "baseline", "init", "runtime")
N_INTERVALS = 20


def baseline(config: RunConfig, *, place: Place = ALONE) -> RecipeResult:
    """Fit a baseline to the outcome of a cohort.

    Parameters
    ----------
    place : of the run among others

    Raises
    ------
    EhrtrackError
        If the configuration, the data or the tracking server cannot be used.
    """
    check_objective(config, "outcome")
    config = settle(config)
    records = prepare_cohort(config)
    truth = checked_truth(config.cohort, records.store.subject_ids[records.rows["test"]])
    check_validation(records, lambda outcomes: require_comparable_pair(outcomes.follow_up_days, outcomes.is_event))
    training = records.outcomes[records.rows["train"]]
    grid = fit_time_grid(
        training.follow_up_days,
        training.is_event,
        horizon_days=records.cohort.horizon_days,
        n_intervals=N_INTERVALS,
    )
    has_classes = records.cohort.has_classes
    chosen = baseline_class(config.baseline.name, has_classes=has_classes)(config.baseline)
    name = chosen.title or config.baseline.name
    task: Task = "classes" if has_classes else "survival"
    features = read_cohort(chosen, config, records)
    with open_run(config, kind="baseline", sections=SECTIONS, model=name, task=task, place=place) as run:
        fingerprints = records.fingerprints()
        run.log_fingerprints(fingerprints)
        run.logger.set_tags({MODEL: name})
        log_cohort(run.logger, records)
        started = time.monotonic()
        train, kept = (_labelled(records, features, split) for split in ("train", "validation"))
        model = chosen.fit(train, kept)
        cost = {"train_seconds": time.monotonic() - started, "peak_memory_mb": memory_mb(torch.device("cpu"))}
        run.logger.log_metrics(named("cost", cost), step=0)
        facts = model.describe()
        run.logger.log_json(dict(facts), "baseline_fit.json")
        n_parameters = float(facts["n_parameters"])
        run.logger.log_metrics({"parameters/total": n_parameters, "parameters/trainable": n_parameters}, step=0)

        log_model(run, records, fingerprints, grid=grid, baseline=model.to_json())
        rows = records.rows
        # A model that learns from validation subjects too is judged on them by its twins in cross-validation.
        of_kept = chosen.validation_survival(model, kept, grid.edges_days)
        validation = Predictions(rows["validation"], np.asarray(of_kept))
        test = Predictions(rows["test"], np.asarray(model.survival(features[rows["test"]], grid.edges_days)))
        log_predictions(run.logger, records, validation=validation, test=test)
        with run.judging():
            reports = log_evaluation(
                run.logger,
                records,
                grid,
                validation=validation,
                test=test,
                seed=config.runtime.seed,
                truth=truth,
                task=task,
            )
            conclude(run.logger, _summary(name, records, facts, reports, task), judge_risks(reports, task))
            metrics = named(KEPT, reports[KEPT].metrics) | named(TEST, reports[TEST].metrics)
            return run.finished(metrics, task=task)


def _labelled(records: CohortRecords, features: AnyFeatures, split: str) -> Labelled:
    rows = records.rows[split]
    outcomes = records.outcomes[rows]
    return Labelled(
        features[rows],
        outcomes.follow_up_days,
        outcomes.is_event,
        outcomes.subject,
        has_classes=records.cohort.has_classes,
    )


def _summary(
    name: str, records: CohortRecords, facts: Mapping[str, object], reports: dict[str, Report], task: Task
) -> str:
    test, choice = reports[TEST], chosen_by({task})
    chosen = facts.get("chosen_by", f"validation {choice.title}")
    return describe(
        f"Baseline {name}",
        {
            **scores(reports, task),
            **attained(test),
            **not_measured(test),
            **horizon(records.cohort),
            f"validation {choice.title}": reports[KEPT].text(choice.key),
            "tuning": f"{facts['n_candidates']} settings tried, the best by {chosen} kept",
        }
        | {key: value_text(value) for key, value in facts.items() if key not in ("n_candidates", "chosen_by")},
    )
