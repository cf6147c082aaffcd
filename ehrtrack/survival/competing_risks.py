"""Several causes that end a follow-up, in discrete time: which comes first, and when.

In interval k a subject that is still free of all R causes has cause r with hazard h_rk, or none with h_0k:

    (h_0k, h_1k, ..., h_Rk) = softmax(0, logits_1k, ..., logits_Rk)
    S_k = prod_{j <= k} h_0j                       free of all causes through the end of interval k
    F_rk = sum_{j <= k} h_rj S_(j-1)               cumulative incidence of cause r

the multinomial logit model of discrete competing risks (Tutz & Schmid 2016, Modeling Discrete Time-to-Event Data,
section 8.1), with a network for its predictor as in DeepHit (Lee et al. 2018, AAAI) and nnet-survival (Gensheimer &
Narasimhan 2019, PeerJ 7:e6257). With one cause it is the model of `losses`. Causes are numbered from 1; 0 is censored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ehrtrack.survival.bootstrap import Interval, c_index_interval, resampled_c_index
from ehrtrack.survival.censoring import censored_after_events
from ehrtrack.survival.kaplan_meier import KaplanMeier
from ehrtrack.survival.metrics import c_index
from ehrtrack.survival.time_grid import TimeGrid

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def log_hazards(logits: Tensor) -> Tensor:
    """(B, K, 1 + R) log h of no cause and of each, from logits (B, K, R)."""
    logits = logits.float() if logits.element_size() < 4 else logits
    return F.log_softmax(F.pad(logits, (1, 0)), dim=2)


@dataclass(frozen=True)
class EventWeights:
    """What an event counts for within its interval: more, the more subjects had been censored before it.

    Of the causes in an interval, one that comes late in it is seen less often than it came, where subjects are censored
    within the interval. With G(t) the Kaplan-Meier estimate of being followed to t, an event at t stands for 1 / G(t),
    as in Aalen and Johansen's estimate, whose steps are 1 / (N G(t)). Weights are these over their mean in the
    interval, so that all events of an interval together count as they are, and without censoring each counts for one.

    Attributes
    ----------
    followed : the estimate of not being censored, of the training subjects
    mean : (K,) mean of 1 / G over the training events of each interval
    """

    grid: TimeGrid
    followed: KaplanMeier
    mean: FloatArray

    @classmethod
    def of(cls, grid: TimeGrid, follow_up_days: FloatArray, cause: IntArray) -> EventWeights:
        """Weights on the grid that was fitted to these training subjects."""
        event = cause > 0
        followed = KaplanMeier.of(censored_after_events(follow_up_days, event), ~event)
        days, interval = follow_up_days[event], grid.interval_of(follow_up_days, event)[event]
        n_events = np.bincount(interval, minlength=grid.n_intervals)
        total = np.bincount(interval, 1 / followed.at(days), grid.n_intervals)
        mean = np.divide(total, n_events, out=np.ones_like(total), where=n_events > 0)
        return cls(grid, followed, mean)

    def weigh(self, follow_up_days: FloatArray, cause: IntArray) -> FloatArray:
        """(B,) weights of events; 1 for the censored, where it is not used."""
        event = cause > 0
        days, interval = follow_up_days[event], self.grid.interval_of(follow_up_days, event)[event]
        least = self.followed.survival[self.followed.survival > 0].min()  # an event after all training follow-up
        weights = np.ones(len(event))
        weights[event] = 1 / np.maximum(self.followed.at(days), least) / self.mean[interval]
        return weights


def cause_likelihood(logits: Tensor, survived: Tensor, cause: Tensor, weight: Tensor | None = None) -> Tensor:
    """(B,) negative log-likelihood of each subject; the censored count for what they are known to have passed.

    Parameters
    ----------
    logits : (B, K, R)
    survived : (B,) from `TimeGrid.survived` with ``cause > 0`` as the event
    cause : (B,) int64, 0 for the censored
    weight : (B,) of the events, from `EventWeights`; None where each counts for one
    """
    log_h = log_hazards(logits)
    n_intervals = logits.shape[1]
    position = torch.arange(n_intervals, device=logits.device)
    passed = (survived[:, None] - position).clamp(0, 1).to(log_h.dtype)  # (B, K)
    free = (passed * log_h[:, :, 0]).sum(dim=1)
    at_event = log_h[torch.arange(len(logits)), survived.long().clamp(max=n_intervals - 1), cause]
    weighted = at_event if weight is None else at_event * weight
    return -(free + torch.where(cause > 0, weighted, 0.0))


def cumulative_incidence(logits: Tensor) -> tuple[Tensor, Tensor]:
    """S (B, K + 1) and F (B, R, K + 1) at the edges of the grid, from logits (B, K, R). They add up to 1."""
    log_h = log_hazards(logits)
    survival = F.pad(log_h[:, :, 0].cumsum(dim=1), (1, 0)).exp()  # (B, K + 1)
    parts = log_h[:, :, 1:].exp() * survival[:, :-1, None]  # (B, K, R)
    return survival, F.pad(parts.cumsum(dim=1), (0, 0, 1, 0)).transpose(1, 2)


def marginal_logits(
    survived: npt.NDArray[np.int64] | FloatArray,
    cause: IntArray,
    *,
    n_intervals: int,
    n_causes: int,
    weight: FloatArray | None = None,
) -> FloatArray:
    """(K, R) logits of a model without inputs: the maximum of the likelihood, h_rk = d_rk / (d_k + n_k).

    Here d_rk are weighted events and n_k is how many passed the interval, with the shares of it that the censored were
    seen through. Its incidence is Aalen and Johansen's at the edges, on the clock and with the weights of the same
    subjects. A cause without an event in an interval has a hazard of 0, which has no logit: it is given a thousandth of
    an event. Where nobody passes, one of .999 in all stands for 1.

    Parameters
    ----------
    survived, cause, weight : (B,) as in `cause_likelihood`, of the training subjects
    """
    of_events = np.ones(len(cause)) if weight is None else weight
    events = np.zeros((n_intervals, n_causes))
    is_event = cause > 0
    np.add.at(events, (survived[is_event].astype(np.int64), cause[is_event] - 1), of_events[is_event])
    n_passed = np.array([np.clip(survived - k, 0, 1).sum() for k in range(n_intervals)])
    least = np.maximum(events.sum(axis=1), 1.0) / 999
    logits: FloatArray = np.log(np.maximum(events, 1e-3)) - np.log(np.maximum(n_passed, least))[:, None]
    return logits


def cause_c_index(incidence: npt.ArrayLike, follow_up_days: FloatArray, cause: IntArray, *, of: int) -> float:
    """C-index of the cumulative incidence of one cause at the horizon (Wolbers et al. 2014, Biostatistics 15:526-39).

    Who has another cause will never have this one, and so ought to have a lower incidence than those who do: its
    follow-up is without end. The censored count as in `metrics.c_index`.

    Parameters
    ----------
    incidence : (B,) F of the cause at the horizon
    of : number of the cause

    Raises
    ------
    NotMeasurable
        If there is no comparable pair.
    """
    return c_index(incidence, _days_without_end(follow_up_days, cause, of), cause == of)


def cause_c_index_interval(
    incidence: npt.ArrayLike,
    follow_up_days: FloatArray,
    cause: IntArray,
    *,
    of: int,
    seed: int = 0,
    subject: IntArray | None = None,
) -> Interval:
    """`cause_c_index` with its percentile interval over resampled subjects; `subject` as in `c_index_interval`."""
    days = _days_without_end(follow_up_days, cause, of)
    return c_index_interval(incidence, days, cause == of, seed=seed, subject=subject)


def resampled_cause_c_index(
    incidence: npt.ArrayLike,
    follow_up_days: FloatArray,
    cause: IntArray,
    *,
    of: int,
    n_resamples: int,
    seed: int,
    subject: IntArray | None = None,
) -> FloatArray:
    """(S,) `cause_c_index` in each of S resamples of subjects, NaN without a comparable pair."""
    days = _days_without_end(follow_up_days, cause, of)
    return resampled_c_index(incidence, days, cause == of, n_resamples=n_resamples, seed=seed, subject=subject)


def aalen_johansen(follow_up_days: FloatArray, cause: IntArray, *, of: int, by_day: float) -> float:
    """Observed cumulative incidence of a cause by a day (Aalen & Johansen 1978, Scand J Stat 5:141-50).

    Where an event and a censoring fall on one day, the event came first.
    """
    days = np.unique(follow_up_days[(cause > 0) & (follow_up_days <= by_day)])
    ordered = np.sort(follow_up_days)
    n_at_risk = len(ordered) - np.searchsorted(ordered, days, side="left")
    n_any, n_of = (_count_by_day(follow_up_days[which], days) for which in (cause > 0, cause == of))
    free_before = np.concatenate([[1.0], np.cumprod(1 - n_any / n_at_risk)[:-1]]) if len(days) else np.empty(0)
    return float((free_before * n_of / n_at_risk).sum())


def _count_by_day(event_days: FloatArray, days: FloatArray) -> IntArray:
    ordered = np.sort(event_days)
    counts: IntArray = np.searchsorted(ordered, days, side="right") - np.searchsorted(ordered, days, side="left")
    return counts


def _days_without_end(follow_up_days: FloatArray, cause: IntArray, of: int) -> FloatArray:
    is_other = (cause > 0) & (cause != of)
    return np.where(is_other, float(follow_up_days.max()) + 1, follow_up_days)
