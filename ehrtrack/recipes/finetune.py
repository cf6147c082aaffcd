"""Fine-tuning: adapt an encoder to a time-to-event outcome, and evaluate it on subjects it never saw."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

from ehrtrack import plots
from ehrtrack.config import RunConfig, check_objective
from ehrtrack.data.cohort import n_people
from ehrtrack.evaluation.causes import causes_text
from ehrtrack.evaluation.metric_table import METRICS, chosen_by
from ehrtrack.evaluation.oracle import checked_truth
from ehrtrack.evaluation.report import Report
from ehrtrack.pipeline.build import adapt, read_base
from ehrtrack.pipeline.fit import feed, solve, train, with_features
from ehrtrack.pipeline.labels import transformer_label
from ehrtrack.pipeline.logged_model import log_model
from ehrtrack.pipeline.prepare import (
    CohortRecords,
    check_base_split,
    check_same_reading,
    check_validation,
    prepare_cohort,
    settle,
)
from ehrtrack.pipeline.pretraining_records import said_of_base
from ehrtrack.pipeline.report import (
    attained,
    conclude,
    horizon,
    judge_encoder,
    judge_risks,
    judge_training,
    learning_matrices,
    log_cohort,
    log_evaluation,
    log_predictions,
    not_measured,
    scores,
)
from ehrtrack.pipeline.run import ALONE, Place, RecipeResult, Recorder, Resumption, describe, open_run
from ehrtrack.pipeline.trial import as_trial
from ehrtrack.privacy import count_text
from ehrtrack.runlog import KEPT, TEST, VALIDATION, Task, named
from ehrtrack.strategies.base import parameter_table
from ehrtrack.tracking.names import PRETRAINING_RECORDS
from ehrtrack.training.loop import FitResult
from ehrtrack.training.ranks import join_ranks
from ehrtrack.training.sanity import based

SECTIONS = ("study", "data", "cohort", "model", "objective", "strategy", "init", "train", "runtime")


def finetune(
    config: RunConfig,
    *,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
    is_trial: bool = False,
    place: Place = ALONE,
    resume: Resumption | None = None,
) -> RecipeResult:
    """Fine-tune an encoder to the outcome of a cohort.

    Parameters
    ----------
    on_epoch : called after each epoch with its number and metrics; may raise `TrainingStopped`
    is_trial : a sweep's trial is scored on validation subjects alone, and keeps no model
    place : of the run among others
    resume : the run to resume from its last snapshot

    Raises
    ------
    EhrtrackError
        If the configuration, the data or the tracking server cannot be used, or the loss is not finite.
    """
    check_objective(config, "outcome")
    ranks = join_ranks(config.runtime.device)
    config = settle(config)
    base, config = ranks.from_main(partial(read_base, config))
    records = ranks.main_first(lambda: prepare_cohort(config, None if base is None else base.vocabulary))
    if base is not None:
        is_same_data = base.fingerprints["data"] == records.dataset.fingerprint()
        check_same_reading(config.data, base.config.data, is_same_data=is_same_data)
        check_base_split(records.dataset, records.cohort, config.data.split, base.fingerprints)
    was_read = ""
    if base is not None:
        was_read = ranks.from_main(partial(said_of_base, base.config, base.fingerprints, config, records.dataset))
        print(f"the base model read records {was_read}", flush=True)
    truth = checked_truth(config.cohort, records.store.subject_ids[records.rows["test"]])
    adapted = adapt(config, records, base, ranks)
    strategy, objective, model = adapted.strategy, adapted.objective, adapted.model
    check_validation(records, objective.rehearse)
    batches = feed(config, records, model, objective, ranks)

    kind = "trial" if is_trial else "finetune"
    fingerprints = records.fingerprints() | {"base": base.fingerprints["encoder"] if base else "none"}
    with open_run(
        config,
        kind=kind,
        sections=SECTIONS,
        place=place,
        model=transformer_label(config),
        task=objective.task,
        ranks=ranks,
        resume=resume,
        fingerprints=fingerprints,
    ) as run:
        run.log_fingerprints(fingerprints)
        run.log_parameters(parameter_table(model, strategy))
        run.logger.set_tags({PRETRAINING_RECORDS: was_read} if was_read else {})
        log_cohort(run.logger, records)
        if adapted.keeps_states:
            batches = with_features(batches, adapted.plain, ranks)
        with as_trial(run) if is_trial else nullcontext():
            if strategy.solves_head:
                result = solve(run, adapted.plain, objective, batches, on_epoch)
            else:
                begin_epoch = partial(strategy.begin_epoch, model)
                result = train(run, model, objective, batches, ranks, on_epoch, begin_epoch=begin_epoch)
        if is_trial:
            _log_curves(run, result)
            scores = [name for name, of in METRICS.items() if KEPT in of.splits and of.named(VALIDATION) in result.kept]
            return run.finished(run.log_kept({name: result.kept[f"{VALIDATION}/{name}"] for name in scores}))
        merged = strategy.merge(model)
        log_model(run, records, fingerprints, model=merged, grid=objective.grid)
        run.log_adapter(partial(strategy.save_adapter, model, base=adapted.base))
        # A model that learned from validation subjects too is judged on them by its twins in cross-validation.
        validation = result.held_out or objective.predict(model, batches.split("validation"), ranks.device)
        test = objective.predict(model, batches.split("test"), ranks.device)
        log_predictions(run.logger, records, validation=validation, test=test)
        with run.judging():
            _log_curves(run, result)
            reports = log_evaluation(
                run.logger,
                records,
                objective.grid,
                validation=validation,
                test=test,
                seed=config.runtime.seed,
                truth=truth,
                task=objective.task,
                threshold=objective.threshold,
            )
            verdicts = [
                *judge_risks(reports, objective.task),
                judge_training(result),
                *([] if base is None else [based(config.init.run, base.failed_checks)]),
                *judge_encoder(
                    adapted.start, merged.cpu(), learning_matrices(model, strategy), is_pretrained=base is not None
                ),
            ]
            summary = _summary(config, records, result, reports, objective.task, was_read=was_read)
            conclude(run.logger, summary, verdicts)
            metrics = named(KEPT, reports[KEPT].metrics) | named(TEST, reports[TEST].metrics)
            return run.finished(metrics, task=objective.task)


def _log_curves(run: Recorder, result: FitResult) -> None:
    run.log_loss(result)
    run.logger.log_figure(plots.metric_curves(result.history, kept_epoch=result.kept_epoch), "plots/metrics.png")


def _summary(
    config: RunConfig,
    records: CohortRecords,
    result: FitResult,
    reports: dict[str, Report],
    task: Task,
    *,
    was_read: str,
) -> str:
    test, choice = reports[TEST], chosen_by({task})
    of_what = " of any cause" if "causes" in test.tables else ""
    training = records.cohort.subjects[records.rows["train"]]
    n_subjects, n_with_event = n_people(training), n_people(training.filter("is_event"))
    return describe(
        f"{transformer_label(config)} fine-tuning of a {config.model.title} encoder",
        {
            **scores(reports, task),
            **causes_text(test),
            **attained(test),
            **not_measured(test),
            f"validation {choice.title}{of_what}": reports[KEPT].text(choice.key),
            "training subjects (events)": f"{n_subjects:,} ({count_text(n_with_event)})",
            **horizon(records.cohort),
            "pretrained by run": config.init.run or "none",
            **({"pretraining read records": was_read} if was_read else {}),
            "kept epoch": f"{result.kept_epoch} of {len(result.history)} ({result.stop_reason})",
        },
    )
