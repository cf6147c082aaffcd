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
import torch
import torch.nn.functional as F
from torch import Tensor

from ehrtrack.arrays import Floats, Ints
from ehrtrack.survival.censoring import censored_after_events
from ehrtrack.survival.kaplan_meier import KaplanMeier
from ehrtrack.survival.time_grid import TimeGrid


def log_hazards(logits: Tensor) -> Tensor:
    """(B, K, 1 + R) log h of no cause and of each, from logits (B, K, R).

    Examples
    --------
    Two causes with logits 0 share the hazard with "none of them" in thirds:

    >>> log_hazards(torch.zeros(1, 1, 2)).exp().double().round(decimals=3).tolist()
    [[[0.333, 0.333, 0.333]]]
    """
    logits = logits.float() if logits.element_size() < 4 else logits
    return F.log_softmax(F.pad(logits, (1, 0)), dim=2)


@dataclass(frozen=True)
class EventWeights:
    """Weights of events within an interval, which grow with the share of subjects who were censored before them.

    Of the causes in an interval, one that comes late in it is seen less often than it came, where subjects are censored
    within the interval. With G(t) the Kaplan-Meier estimate of being followed to t, an event at t stands for 1 / G(t),
    as in Aalen and Johansen's estimate, whose steps are 1 / (N G(t)). Weights are these over their mean in the
    interval, so that all events of an interval together count as they are, and without censoring each counts for one.

    Attributes
    ----------
    followed : the estimate of not being censored, of the training subjects
    mean : (K,) mean of 1 / G over the training events of each interval

    Examples
    --------
    In the one interval, the event on day 30 comes after a censoring, when 2 / 3 of the subjects were still followed: it
    stands for 1.5, and that on day 10 for 1. Divided by their mean, 1.25, they count for 1.2 and .8:

    >>> days, cause = np.array([10.0, 20.0, 30.0, 40.0]), np.array([1, 0, 2, 0])
    >>> weights = EventWeights.of(TimeGrid((0, 40)), days, cause)
    >>> weights.weigh(days, cause).round(3).tolist()
    [0.8, 1.0, 1.2, 1.0]
    """

    grid: TimeGrid
    followed: KaplanMeier
    mean: Floats

    @classmethod
    def of(cls, grid: TimeGrid, follow_up_days: Floats, cause: Ints) -> EventWeights:
        """Weights on the grid that was fitted to these training subjects."""
        event = cause > 0
        followed = KaplanMeier.of(censored_after_events(follow_up_days, event), ~event)
        days, interval = follow_up_days[event], grid.interval_of(follow_up_days, event)[event]
        n_events = np.bincount(interval, minlength=grid.n_intervals)
        total = np.bincount(interval, 1 / followed.at(days), grid.n_intervals)
        mean = np.divide(total, n_events, out=np.ones_like(total), where=n_events > 0)
        return cls(grid, followed, mean)

    def weigh(self, follow_up_days: Floats, cause: Ints) -> Floats:
        """(B,) weights of events; 1 for the censored, where it is not used."""
        event = cause > 0
        days, interval = follow_up_days[event], self.grid.interval_of(follow_up_days, event)[event]
        least = self.followed.survival[self.followed.survival > 0].min()  # an event after all training follow-up
        weights = np.ones(len(event))
        weights[event] = 1 / np.maximum(self.followed.at(days), least) / self.mean[interval]
        return weights


def cause_likelihood(logits: Tensor, survived: Tensor, cause: Tensor, weight: Tensor | None = None) -> Tensor:
    """The negative log-likelihood (B,) of each subject; the censored contribute the intervals that they passed.

    Parameters
    ----------
    logits : (B, K, R)
    survived : (B,) from `TimeGrid.survived` with ``cause > 0`` as the event
    cause : (B,) int64, 0 for the censored
    weight : (B,) of the events, from `EventWeights`; None where each counts for one

    Examples
    --------
    With all hazards a third: an event in the first interval has probability 1 / 3; of being free of all causes through
    two intervals it is 1 / 9:

    >>> logits, survived, cause = torch.zeros(2, 2, 2), torch.tensor([0.0, 2.0]), torch.tensor([1, 0])
    >>> cause_likelihood(logits, survived, cause).neg().exp().double().round(decimals=3).tolist()
    [0.333, 0.111]
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
    """S (B, K + 1) and F (B, R, K + 1) at the edges of the grid, from logits (B, K, R). They add up to 1.

    Examples
    --------
    With all hazards a third, a third is free of all causes after one interval, and a ninth after two:

    >>> survival, incidence = cumulative_incidence(torch.zeros(1, 2, 2))
    >>> survival.double().round(decimals=3).tolist()
    [[1.0, 0.333, 0.111]]
    >>> incidence.double().round(decimals=3).tolist()
    [[[0.0, 0.333, 0.444], [0.0, 0.333, 0.444]]]
    """
    log_h = log_hazards(logits)
    survival = F.pad(log_h[:, :, 0].cumsum(dim=1), (1, 0)).exp()  # (B, K + 1)
    parts = log_h[:, :, 1:].exp() * survival[:, :-1, None]  # (B, K, R)
    return survival, F.pad(parts.cumsum(dim=1), (0, 0, 1, 0)).transpose(1, 2)


def marginal_logits(
    survived: Ints | Floats,
    cause: Ints,
    *,
    n_intervals: int,
    n_causes: int,
    weight: Floats | None = None,
) -> Floats:
    """(K, R) logits of a model without inputs: the maximum of the likelihood, h_rk = d_rk / (d_k + n_k).

    Here d_rk are weighted events and n_k is how many passed the interval, with the shares of it that the censored were
    seen through. Its incidence is Aalen and Johansen's at the edges, on the clock and with the weights of the same
    subjects. A cause without an event in an interval has a hazard of 0, which has no logit: it is given a thousandth of
    an event. Where nobody passes, one of .999 in all stands for 1.

    Parameters
    ----------
    survived, cause, weight : (B,) as in `cause_likelihood`, of the training subjects

    Examples
    --------
    Of four subjects one has cause 1, one cause 2, and two pass the interval: hazards of a quarter, and logits of
    log(1 / 2):

    >>> logits = marginal_logits(np.array([0, 0, 1, 1]), np.array([1, 2, 0, 0]), n_intervals=1, n_causes=2)
    >>> logits.round(3).tolist()
    [[-0.693, -0.693]]
    """
    of_events = np.ones(len(cause)) if weight is None else weight
    events = np.zeros((n_intervals, n_causes))
    is_event = cause > 0
    np.add.at(events, (survived[is_event].astype(np.int64), cause[is_event] - 1), of_events[is_event])
    n_passed = np.array([np.clip(survived - k, 0, 1).sum() for k in range(n_intervals)])
    least = np.maximum(events.sum(axis=1), 1.0) / 999
    logits: Floats = np.log(np.maximum(events, 1e-3)) - np.log(np.maximum(n_passed, least))[:, None]
    return logits
