"""Every measure of probabilities of classes: labels that tell whether the outcome comes, and not when.

They are of the task ``classes``. There is no follow-up, so there are no days, no weights for the censored, and no
integrated score. Rows of one subject are drawn together in every interval.
"""

from __future__ import annotations

import numpy as np

from ehrtrack.errors import NotMeasurable
from ehrtrack.evaluation.measures import measure_groups
from ehrtrack.evaluation.metric_table import CLASSES
from ehrtrack.evaluation.registry import measure
from ehrtrack.evaluation.report import Found, Report, Values
from ehrtrack.evaluation.split import Context, Split
from ehrtrack.survival.bootstrap import FEWER_RESAMPLES
from ehrtrack.survival.classes import (
    Classes,
    auprc_interval,
    auroc,
    auroc_interval,
    calibration_groups,
    calibration_intercept,
    calibration_slope,
    calibration_slope_interval,
    ratio_interval,
    smooth_calibration,
)
from ehrtrack.survival.discrimination import precision_recall_table, thinned
from ehrtrack.survival.recalibration import fit_recalibration


@measure("auroc", is_of_validation=True, tasks=CLASSES)
def _auroc(split: Split, context: Context) -> Found:
    return {"auroc": auroc(_classes(split))}


@measure("auroc_interval", is_of_validation=True, tasks=CLASSES)
def _auroc_interval(split: Split, context: Context) -> Found:
    return {"auroc": auroc_interval(_classes(split), **context.resampling)}


@measure("auprc", is_of_validation=True, tasks=CLASSES)
def _auprc(split: Split, context: Context) -> Found:
    """With the prevalence, which is what risks without meaning come to."""
    classes = _classes(split)
    prevalence = ratio_interval(classes.truth, np.ones(len(classes)), classes, **context.resampling)
    return {"auprc": auprc_interval(classes, **context.resampling), "prevalence": prevalence}


@measure("brier", is_of_validation=True, tasks=CLASSES)
def _brier(split: Split, context: Context) -> Found:
    """Brier score, and 1 - it over that of the training subjects' prevalence for everybody."""
    classes = _classes(split)
    error = (classes.risk - classes.truth) ** 2
    trivial = (_prevalence(split) - classes.truth) ** 2
    score = ratio_interval(error, np.ones(len(classes)), classes, **context.resampling)
    skill: Values = {}
    if trivial.sum() > 0:
        skill = {"brier_skill": ratio_interval(trivial - error, trivial, classes, **context.resampling)}
    return {"brier": score, **skill}


@measure("precision_recall", tasks=CLASSES)
def _precision_recall(split: Split, context: Context) -> Found:
    table = precision_recall_table(split.risk, split.follow_up, horizon_days=split.horizon_days)
    return {"precision_recall": thinned(table)}


@measure("threshold", tasks=CLASSES)
def _at_threshold(split: Split, context: Context) -> Found:
    """Sensitivity, specificity and positive predictive value of calling those whose risk is the threshold or more."""
    classes = _classes(split)
    classes.require_both(least=1)
    threshold = _prevalence(split) if context.threshold is None else context.threshold
    called, truth = classes.risk >= threshold, classes.truth
    shares = {"sensitivity": (called & truth, truth), "specificity": (~called & ~truth, ~truth)}
    if called.any():
        shares["positive_predictive_value"] = (called & truth, called)
    found = {name: ratio_interval(*share, classes, **context.resampling) for name, share in shares.items()}
    return {"threshold": float(threshold), **found}


@measure("calibration_slope", tasks=CLASSES)
def _calibration_slope(split: Split, context: Context) -> Found:
    n_resamples = min(context.config.n_resamples, FEWER_RESAMPLES)
    return {
        "calibration_slope": calibration_slope_interval(_classes(split), n_resamples=n_resamples, seed=context.seed)
    }


@measure("calibration_intercept", tasks=CLASSES)
def _calibration_intercept(split: Split, context: Context) -> Found:
    return {"calibration_intercept": calibration_intercept(_classes(split))}


@measure("observed_to_expected", tasks=CLASSES)
def _observed_to_expected(split: Split, context: Context) -> Found:
    classes = _classes(split)
    return {"observed_to_expected": ratio_interval(classes.truth, classes.risk, classes, **context.resampling)}


@measure("calibration", tasks=CLASSES)
def _calibration(split: Split, context: Context) -> Found:
    """Groups of risk."""
    return {"calibration": calibration_groups(_classes(split))}


@measure("ici", tasks=CLASSES)
def _ici(split: Split, context: Context) -> Found:
    """The smooth curve, and how far it is from the predicted risks."""
    curve = smooth_calibration(_classes(split))
    table = curve.table(split.horizon_days).drop("horizon_days")
    return {"ici": curve.ici, "e50": curve.quantile(0.5), "e90": curve.quantile(0.9), "calibration_curve": table}


@measure("subgroups", tasks=CLASSES)
def _subgroups(split: Split, context: Context) -> Found:
    """AUROC by group: where everybody is followed for as long, the C-index is that."""
    report = measure_groups(split, context)
    report.tables["subgroups"] = report.tables["subgroups"].rename({"c_index": "auroc"})
    return report


@measure("recalibrated", tasks=CLASSES)
def _recalibrated(split: Split, context: Context) -> Found:
    """The measures that recalibration is to better, under names of their own: ``recalibrated_...``."""
    method, validation = context.config.recalibration, context.validation
    if method == "none" or validation is None:
        return {}
    days, event = validation.follow_up.recorded_days, validation.follow_up.is_event
    fitted = fit_recalibration(method, validation.survival, validation.grid, days, event)
    risk = 1 - fitted.apply(split.survival)[:, -1]
    after = Classes(risk, split.outcomes.is_event, split.outcomes.subject)
    report = Report()
    report.include("brier", lambda: {"brier": float(((risk - after.truth) ** 2).mean())})
    report.include("observed_to_expected", lambda: {"observed_to_expected": float(after.truth.sum() / risk.sum())})
    report.include("calibration_slope", lambda: {"calibration_slope": calibration_slope(after)})
    report.include("ici", lambda: {"ici": smooth_calibration(after).ici})
    return report.prefixed("recalibrated_")


@measure("oracle", tasks=CLASSES)
def _oracle(split: Split, context: Context) -> Found:
    if context.true_risk is None:
        return {}
    raise NotMeasurable("the true risks are of a horizon in days, and these labels are of none: leave cohort.truth out")


def _classes(split: Split) -> Classes:
    return Classes(split.risk, split.outcomes.is_event, split.outcomes.subject)


def _prevalence(split: Split) -> float:
    """Of the training subjects' labels."""
    return float(split.training.is_event.mean())
