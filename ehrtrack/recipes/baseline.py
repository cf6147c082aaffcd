"""A baseline: the same cohort, split, grid and evaluation as the transformers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext

import numpy as np
import torch

from ehrtrack.baselines.base import AnyFeatures, Labelled, baseline_class
from ehrtrack.config import RunConfig, check_objective
from ehrtrack.data.outcomes import Outcomes
from ehrtrack.evaluation.evaluate import evaluate
from ehrtrack.evaluation.metric_table import METRICS, chosen_by
from ehrtrack.evaluation.oracle import checked_truth
from ehrtrack.evaluation.report import Report
from ehrtrack.evaluation.split import Context, EvaluationConfig, Split
from ehrtrack.objectives.base import Predictions
from ehrtrack.pipeline.histories import read_cohort
from ehrtrack.pipeline.labels import value_text
from ehrtrack.pipeline.logged_model import log_model
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
from ehrtrack.pipeline.trial import as_trial
from ehrtrack.runlog import KEPT, TEST, Task, named
from ehrtrack.survival.metrics import require_comparable_pair
from ehrtrack.survival.time_grid import fit_time_grid
from ehrtrack.tracking.names import MODEL
from ehrtrack.training.device_facts import memory_mb

SECTIONS = ("study", "data", "cohort", "baseline", "init", "runtime")
N_INTERVALS = 20


def baseline(config: RunConfig, *, is_trial: bool = False, place: Place = ALONE) -> RecipeResult:
    """Fit a baseline to the outcome of a cohort.

    Parameters
    ----------
    is_trial : a sweep's trial is scored on validation subjects alone, and keeps no model
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
    kind = "trial" if is_trial else "baseline"
    with open_run(config, kind=kind, sections=SECTIONS, model=name, task=task, place=place) as run:
        fingerprints = records.fingerprints()
        run.log_fingerprints(fingerprints)
        run.logger.set_tags({MODEL: name})
        log_cohort(run.logger, records)
        started = time.monotonic()
        train, kept = (_labelled(records, features, split) for split in ("train", "validation"))
        with as_trial(run) if is_trial else nullcontext():
            model = chosen.fit(train, kept)
        cost = {"train_seconds": time.monotonic() - started, "peak_memory_mb": memory_mb(torch.device("cpu"))}
        run.logger.log_metrics(named("cost", cost), step=0)
        facts = model.describe()
        run.logger.log_json(dict(facts), "baseline_fit.json")
        n_parameters = float(facts["n_parameters"])
        run.logger.log_metrics({"parameters/total": n_parameters, "parameters/trainable": n_parameters}, step=0)

        # A model that learns from validation subjects too is judged on them by its twins in cross-validation.
        of_kept = np.asarray(chosen.validation_survival(model, kept, grid.edges_days))
        if is_trial:
            of_validation = Split(of_kept, grid, training, _outcomes(records, "validation"))
            found = evaluate(of_validation, Context(EvaluationConfig(), config.runtime.seed), task=task).metrics
            return run.finished(run.log_kept({name: found[name] for name in METRICS if name in found}))
        log_model(run, records, fingerprints, grid=grid, baseline=model.to_json())
        rows = records.rows
        validation = Predictions(rows["validation"], of_kept)
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


def _outcomes(records: CohortRecords, split: str) -> Outcomes:
    return records.outcomes[records.rows[split]]


def _labelled(records: CohortRecords, features: AnyFeatures, split: str) -> Labelled:
    outcomes = _outcomes(records, split)
    return Labelled(
        features[records.rows[split]],
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
