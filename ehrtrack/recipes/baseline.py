"""A baseline: the same cohort, split, grid and evaluation as the transformers."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from ehrtrack.baselines.base import AnyFeatures, Labelled, TokenHistories, baseline_class
from ehrtrack.config import RunConfig, check_objective
from ehrtrack.evaluation.oracle import checked_truth
from ehrtrack.evaluation.report import Report
from ehrtrack.objectives.base import Predictions
from ehrtrack.pipeline.embeddings import read_embeddings
from ehrtrack.pipeline.prepare import CohortRecords, check_validation, prepare_cohort, settle
from ehrtrack.pipeline.report import (
    attained,
    conclude,
    horizon,
    ibs_text,
    judge_risks,
    log_cohort,
    log_evaluation,
    log_predictions,
    not_measured,
)
from ehrtrack.pipeline.run import RecipeResult, describe, open_run
from ehrtrack.runlog import KEPT, TEST, named
from ehrtrack.survival.metrics import require_comparable_pair
from ehrtrack.survival.time_grid import fit_time_grid

SECTIONS = ("study", "data", "cohort", "baseline", "init", "runtime")
N_INTERVALS = 20


def baseline(config: RunConfig) -> RecipeResult:
    """Fit a baseline to the outcome of a cohort.

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
    name = config.baseline.name
    chosen = baseline_class(name)(config.baseline)
    histories = TokenHistories(
        records.store,
        records.vocabulary,
        np.arange(len(records.store)),
        config.data.max_tokens,
        config.runtime.device,
        read_embeddings(config, records),
        config.data.may_lack_age,
    )
    features = chosen.read(histories)
    with open_run(config, kind="baseline", sections=SECTIONS, name=name) as run:
        fingerprints = records.fingerprints()
        run.log_fingerprints(fingerprints)
        log_cohort(run.logger, records)
        started = time.monotonic()
        model = chosen.fit(*(_labelled(records, features, split) for split in ("train", "validation")))
        run.logger.log_metrics({"cost/train_seconds": time.monotonic() - started}, step=0)
        facts = model.describe()
        run.logger.log_json(dict(facts), "baseline_fit.json")
        n_parameters = float(facts["n_parameters"])
        run.logger.log_metrics({"parameters/total": n_parameters, "parameters/trainable": n_parameters}, step=0)

        def predictions(split: str) -> Predictions:
            rows = records.rows[split]
            return Predictions(rows, np.asarray(model.survival(features[rows], grid.edges_days)))

        run.log_model(records, fingerprints, grid=grid, baseline=model.to_json())
        validation, test = predictions("validation"), predictions("test")
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
            )
            conclude(run.logger, _summary(name, records, facts, reports), judge_risks(reports))
            return run.finished(named(KEPT, reports[KEPT].metrics) | named(TEST, reports[TEST].metrics))


def _labelled(records: CohortRecords, features: AnyFeatures, split: str) -> Labelled:
    rows = records.rows[split]
    outcomes = records.outcomes[rows]
    return Labelled(features[rows], outcomes.follow_up_days, outcomes.is_event, outcomes.subject)


def _summary(name: str, records: CohortRecords, facts: Mapping[str, object], reports: dict[str, Report]) -> str:
    test = reports[TEST]
    return describe(
        f"Baseline {name}",
        {
            "test C-index (95 % interval)": test.text("c_index"),
            "test integrated Brier score": ibs_text(test),
            **attained(test),
            **not_measured(test),
            **horizon(records.cohort),
            "validation C-index": reports[KEPT].text("c_index"),
            "tuning": f"{facts['n_candidates']} settings tried, the best by validation C-index kept",
        }
        | {key: str(value) for key, value in facts.items() if key != "n_candidates"},
    )
