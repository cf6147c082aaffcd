"""Whether a run is sane: from the numbers of a training to verdicts that anybody can read.

Every threshold stands here once, with its reason. A verdict is `ok`, `warn` (look at it) or `fail` (do not use it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ehrtrack.arrays import Floats
from ehrtrack.runlog import PROBE, VALIDATION
from ehrtrack.survival.resampling import Interval

State = Literal["ok", "warn", "fail"]
STATES: tuple[State, ...] = ("ok", "warn", "fail")

LEAST_GAIN = 0.02
"""Share by which a pretraining loss is under a trivial predictor's. Seeds of the same training differ by some .5 %."""
COUNTING = {
    f"{VALIDATION}/mlm_loss": f"{VALIDATION}/cooccurrence_loss",
    f"{VALIDATION}/onset_loss": f"{VALIDATION}/regression_loss",
}
"""Losses, and what counting pairs of codes, or a regression on single codes, comes to on the same targets."""
OF_COUNTS = 0.7
"""Share of what a regression on counts foretells that one on the states must. Of 24 pretrainings of a simulated site
that were fine-tuned frozen on 256 labels, all 13 below a lasso on counts lay under it, and 6 of the 11 others; the five
over it had a C-index .016 higher on average than those under it (docs/decisions.md)."""
PROBE_ERRORS = 2.0
"""Standard errors by which the states must foretell less to be called worse."""
LEAST_FORETOLD = 0.01
"""Share of the variance that a regression on counts must foretell for the probe to say anything."""
RISEN, FAR_RISEN = 0.02, 0.10
"""Share by which the validation loss of the kept weights may lie over the lowest of all epochs. Within 2 % epochs
differ by chance; 10 % over it, weights were kept for their order of risks and their risks are no longer right."""
WIDE_GAP = 0.25
"""Share of the validation loss by which the training loss may be lower, if that gap still grows."""
TREND_EPOCHS = 5
"""Epochs up to the kept one over which the gap's trend is fitted."""
LEAST_CHANGE = 1e-4
"""Change of a layer's weights relative to their norm at the start, under which it has not learned. One step of AdamW at
lr 1e-4 on weights of scale .02 changes them by 5e-3."""
SLOPE_LIMITS = (0.8, 1.25)
"""Calibration slopes that are read as right; outside, risks are a quarter too extreme or too timid on the log scale."""
OF_GROUPS = "subgroup "
"""Begins the names of measures of some of the test subjects (`evaluation.measures`)."""
ICI_LIMIT = 0.05
"""Mean difference between predicted and observed risk: five in a hundred."""
CHANCE = 0.5
"""C-index, or AUROC, of a model that knows nothing."""
SURE = 0.999
"""Coverage of the interval that fails a run. One run in twenty has chance outside of its 95 % interval: that warns."""
PLANTED_C_INDEX = 0.95
"""What a model scores at least that reads the outcome off a code. A lower one means that the twin, and so perhaps the
run, cannot learn what is plain."""
TOLERATED_DIFFERENCE = 1e-6
"""Between risks of the same tokens: one and the same number on a CPU, the last digits on a GPU."""


@dataclass(frozen=True)
class Verdict:
    """What a check came to.

    Attributes
    ----------
    check : its name, such as ``learned``; the run's tag is ``sanity.learned``
    reason : a sentence with the numbers
    """

    check: str
    state: State
    reason: str


def worst(states: Sequence[State]) -> State:
    """The worst of some states; ok without any."""
    return max(states, key=STATES.index, default="ok")


def to_markdown(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as a list under a heading, for a run's description."""
    lines = [f"- {v.check}: **{v.state}** — {v.reason}\n" for v in verdicts]
    return f"\n#### Sanity: {worst([v.state for v in verdicts])}\n\n{''.join(lines)}"


def to_tags(verdicts: Sequence[Verdict]) -> dict[str, str]:
    """``sanity.CHECK`` of each, and ``sanity.verdict``, the worst of them."""
    tags: dict[str, str] = {f"sanity.{v.check}": v.state for v in verdicts}
    return tags | {"sanity.verdict": worst([v.state for v in verdicts])}


def failed_checks(tags: Mapping[str, str]) -> tuple[str, ...]:
    """The checks that a run failed, by its tags (`to_tags`)."""
    named = {name.removeprefix("sanity."): state for name, state in tags.items() if name.startswith("sanity.")}
    return tuple(sorted(check for check, state in named.items() if state == "fail" and check != "verdict"))


def unlearned(run_id: str, checks: Sequence[str]) -> str:
    """What is to be said where a model that failed checks of its sanity is built on."""
    return (
        f"the base, run {run_id}, failed its sanity checks: {', '.join(checks)} (the reasons are on its page). What is "
        "built on it may be no better than from scratch: pretrain again, or compare with strategy.name=scratch"
    )


def based(run_id: str, checks: Sequence[str]) -> Verdict:
    """Whether the model that a run starts from was sane."""
    return (
        Verdict("base", "warn", unlearned(run_id, checks))
        if checks
        else Verdict("base", "ok", f"run {run_id} was sane")
    )


def learned_codes(metrics: Mapping[str, float], trivial: Mapping[str, str]) -> Verdict:
    """Whether pretraining knows more than predictors that only count, and its states as much as counts.

    Fail if it is not under the trivial predictor; warn if not under the one that counts, where there is one: pairs of
    codes, or what single codes say of an onset, from which the network starts. Fail too if the states were probed and
    foretell clearly less than counts do.

    Parameters
    ----------
    metrics : validation metrics of the kept weights, and those of a probe where there was one
    trivial : metric of a loss -> metric of the trivial predictor's on the same targets
    """
    states: list[State] = []
    parts = []
    for loss, other in trivial.items():
        gain = 1 - metrics[loss] / metrics[other]
        states.append("ok" if gain > LEAST_GAIN else "fail")
        parts.append(f"{_words(loss)} {metrics[loss]:.3f} is {_under(gain)} the {_words(other)} {metrics[other]:.3f}")
    for loss, counting in COUNTING.items():
        if counting in metrics:
            gain = 1 - metrics[loss] / metrics[counting]
            states.append("ok" if gain > 0 else "warn")
            parts.append(f"{_under(gain)} the {_words(counting)} {metrics[counting]:.3f}")
    said = f"{', '.join(parts)} (at least {LEAST_GAIN:.0%} under trivial losses)"
    if f"{PROBE}/states_r2" not in metrics:
        return Verdict("learned", worst(states), said)
    state, of_probe = _transfers(
        *(metrics[f"{PROBE}/{name}"] for name in ("states_r2", "counts_r2", "difference_error"))
    )
    return Verdict("learned", worst([*states, state]), f"{said}; {of_probe}")


def foretold(states: float, counts: float) -> str:
    """What a probe found, in words.

    Parameters
    ----------
    states, counts : R^2 of a ridge regression on the frozen states, and of one on counts of codes
    """
    return (
        f"a ridge on its states foretells {states:.3f} of the variance of what comes next, one on counts {counts:.3f}"
    )


def _transfers(states: float, counts: float, error: float) -> tuple[State, str]:
    """Fail if states foretell clearly less than counts and less than `OF_COUNTS` of it, warn if one of these."""
    said = foretold(states, counts)
    if counts < LEAST_FORETOLD:
        return "ok", f"{said}: nothing comes that counts foretell, and the probe tells nothing"
    is_sure, is_far = counts - states > PROBE_ERRORS * error, states < OF_COUNTS * counts
    told = f"(standard error of the difference {error:.3f})"
    if is_sure:
        return "fail" if is_far else "warn", f"{said} {told}: states know less than counts"
    if is_far:
        return "warn", f"{said} {told}: states may know less than counts"
    is_more = states - counts > PROBE_ERRORS * error
    return "ok", f"{said}: states know more than counts" if is_more else f"{said}: states do not know less than counts"


def learned_risk(gain: Interval, *, than: str = "the Kaplan-Meier curve") -> Verdict:
    """Whether risks are better than one risk for everybody, by likelihood on validation subjects.

    Parameters
    ----------
    gain : mean log-likelihood over that of one risk for everybody, in nats a subject, with its interval
    than : what that risk is
    """
    state: State = "ok" if gain.lower > 0 else "fail" if gain.upper < 0 else "warn"
    said = {
        "ok": f"more than {than} knows",
        "warn": f"not shown to be more than {than}",
        "fail": f"worse than {than} for everybody",
    }[state]
    interval = f"{gain.estimate:+.3f} [{gain.lower:+.3f}, {gain.upper:+.3f}]"
    return Verdict("learned", state, f"log-likelihood {interval} nats a validation subject: {said}")


def overfit(training: Sequence[float], validation: Sequence[float], kept_epoch: int) -> Verdict:
    """Whether the kept weights know their training subjects by heart.

    Parameters
    ----------
    training, validation : losses by epoch
    kept_epoch : whose weights were kept, from 1
    """
    kept = validation[kept_epoch - 1]
    risen = kept / min(validation) - 1
    gaps = (np.subtract(validation, training) / np.abs(validation))[:kept_epoch]
    last = gaps[-TREND_EPOCHS:]
    trend = float(np.polyfit(np.arange(len(last)), last, 1)[0]) if len(last) > 1 else 0.0
    is_opening = gaps[-1] > WIDE_GAP and trend > 0
    state: State = "fail" if risen > FAR_RISEN else "warn" if risen > RISEN or is_opening else "ok"
    lowest = f"{risen:.0%} over the lowest ({min(validation):.3f})" if risen > 0 else "the lowest"
    trends = f"{trend:+.1%} an epoch" if len(last) > 1 else "one epoch, no trend"
    return Verdict(
        "overfit",
        state,
        f"validation loss of the kept epoch {kept_epoch} {kept:.3f} is {lowest}; training loss "
        f"{training[kept_epoch - 1]:.3f}, a gap of {gaps[-1]:.0%} ({trends})",
    )


def moved(changes: Mapping[str, float]) -> Verdict:
    """Whether every layer that was to learn has: an adapter whose B stayed zero has changed nothing.

    Parameters
    ----------
    changes : layer that was to learn -> norm of the change of its weights, relative to their norm at the start
    """
    still = sorted(name for name, change in changes.items() if change == 0)
    weak = sorted(name for name, change in changes.items() if 0 < change < LEAST_CHANGE)
    values = list(changes.values())
    state: State = "fail" if still else "warn" if weak else "ok"
    text = f"{len(changes) - len(still)} of {len(changes)} layers moved, by {np.median(values):.2%} in the middle"
    if still or weak:
        text += f"; not or hardly: {', '.join((still + weak)[:3])}"
    return Verdict("moved", state, f"{text} (at least {LEAST_CHANGE:.2%} each)")


def embeddings(change: float, *, is_pretrained: bool) -> Verdict:
    """Whether codes mean something: vectors that are random and never learn are noise to every layer above.

    Parameters
    ----------
    change : norm of the change of the code embeddings, relative to their norm at the start
    is_pretrained : whether they began as a pretrained model's
    """
    if is_pretrained:
        return Verdict("embeddings", "ok", f"code embeddings are a pretrained model's, changed by {change:.2%}")
    state: State = "fail" if change == 0 else "warn" if change < LEAST_CHANGE else "ok"
    said = "random and frozen: codes mean nothing" if change == 0 else f"began at random and changed by {change:.2%}"
    return Verdict("embeddings", state, f"code embeddings {said}")


def calibrated(slope: Interval | None, ici: float | None) -> Verdict:
    """Whether predicted risks are those observed on test subjects: ok by slope and ICI, warn by one of them.

    Parameters
    ----------
    slope : calibration slope at the horizon with its interval; within limits if the interval reaches them. None where
        there are too few events to tell
    ici : integrated calibration index at the horizon
    """
    low, high = SLOPE_LIMITS
    parts, is_within = [], []
    if slope is not None:
        is_within.append(slope.lower <= high and slope.upper >= low)
        parts.append(f"slope {slope} (limits {low:g} to {high:g})")
    if ici is not None:
        is_within.append(ici <= ICI_LIMIT)
        parts.append(f"ICI {ici:.3f} (limit {ICI_LIMIT:g})")
    if not parts:
        return Verdict("calibrated", "warn", "too few events on test subjects to tell")
    state: State = "ok" if all(is_within) else "warn" if any(is_within) else "fail"
    return Verdict("calibrated", state, ", ".join(parts))


def measured(left_out: Mapping[str, str], *, score: str = "a C-index") -> Verdict:
    """Whether the test subjects are enough, and followed for long enough, for every measure.

    Warn where a measure of all test subjects has no value; groups may be too small. Reasons, in which small numbers of
    subjects are, are not repeated.

    Parameters
    ----------
    left_out : measure -> why it has no value; those of a group begin with `OF_GROUPS`
    score : that groups are too small for
    """
    of_all = [name for name in left_out if not name.startswith(OF_GROUPS)]
    n_groups = len(left_out) - len(of_all)
    groups = f"; {n_groups} groups are too small for {score}" if n_groups else ""
    if not of_all:
        return Verdict("measured", "ok", f"every measure of all test subjects has a value{groups}")
    few = "too few events, or too few followed for long enough (evaluation/left_out.csv)"
    return Verdict("measured", "warn", f"no value of {', '.join(of_all)}: {few}{groups}")


def unjudged(reason: str) -> Verdict:
    """That test subjects are too few to say whether the model is any good.

    Parameters
    ----------
    reason : why the C-index, or its interval, has no value
    """
    return Verdict("judged", "warn", f"not enough events to judge: {reason}")


def _words(metric: str) -> str:
    return metric.rsplit("/", 1)[-1].replace("_", " ")


def _under(gain: float) -> str:
    return f"{gain:.1%} under" if gain >= 0 else f"{-gain:.1%} over"


def permuted_labels(interval: Interval, sure: Interval, metric: str = "C-index") -> Verdict:
    """Labels dealt out among the subjects of each split: nothing is left to learn, and C is one half.

    Parameters
    ----------
    interval, sure : test score with its 95 % interval, and with that of coverage `SURE`
    metric : what it is, of which one half is chance
    """
    state: State = "ok"
    if not interval.lower <= CHANCE <= interval.upper:
        state = "warn" if sure.lower <= CHANCE <= sure.upper else "fail"
    said = {
        "ok": "chance, as it has to be",
        "warn": f"chance only within the {SURE:.1%} interval, as in one run of twenty",
        "fail": "the outcome reaches the model by another way than its record",
    }[state]
    return Verdict("control_permuted", state, f"test {metric} with permuted labels {interval}: {said}")


def scrambled_future(risk: Floats, risk_of_twin: Floats | None, *, n_changed: int) -> Verdict:
    """Everything after the index date scrambled: no risk may move.

    Parameters
    ----------
    risk, risk_of_twin : (B,) by the same weights, from either dataset; None where the vocabulary, fitted to the twin,
        is another, so that its tokens mean something else
    n_changed : events after the index dates, which were taken away or dealt out
    """
    changed = f"{n_changed:,} events after the index dates taken away or dealt out, and codes planted there"
    if risk_of_twin is None:
        return Verdict("control_future", "fail", f"{changed}: the vocabulary is another, so it knows the future")
    difference = np.abs(risk - risk_of_twin)
    n_moved = int((difference > TOLERATED_DIFFERENCE).sum())
    said = f"{n_moved} of {len(risk)} test risks moved, by {difference.max():.3f} at most"
    return Verdict("control_future", "fail" if n_moved else "ok", f"{changed}: {said}")


def planted_leak(interval: Interval, metric: str = "C-index") -> Verdict:
    """The outcome written down before the index date: a pipeline that can learn at all scores near 1."""
    state: State = "ok" if interval.estimate > PLANTED_C_INDEX else "fail"
    said = "the leak is seen" if state == "ok" else "a plain leak is not seen, so no leak would be"
    return Verdict(
        "control_planted", state, f"test {metric} with a planted leak {interval} (above {PLANTED_C_INDEX:g}): {said}"
    )
