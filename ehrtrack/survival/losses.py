"""Losses of the discrete-time hazard model: likelihood, ranking, and their sum.

Throughout, logits are (B, K) hazard logits for B subjects and K intervals, and

    h_ik = sigmoid(logits_ik)            hazard: P(event in interval k | event-free before k)
    S_ik = prod_{j <= k} (1 - h_ij)      survival through the end of interval k
    F_ik = 1 - S_ik                      cumulative incidence by the end of interval k

`survived` is `TimeGrid.survived(follow_up_days, is_event)`: how many intervals the subject is known to have
survived. Its censoring rule is part of the likelihood: a subject censored inside interval k survived the
intervals before k and the share f of k that it was seen through, and so adds f log(1 - h_ik); censored
exactly at the end of k, it survived k too; followed to the horizon, all K. Counting half-seen intervals as
survived would bias the hazard down. Leaving them out biases it up: of those who enter an interval then only
those count who had the event or outlived it, and where nobody is followed to its end the optimum is 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def negative_log_likelihood(
    logits: Tensor, survived: Tensor, is_event: Tensor, *, n_subjects: int | Tensor | None = None
) -> Tensor:
    """Mean over subjects of the negative log-likelihood of discrete-time survival.

        l_i = d_i log h_{i,k_i} + sum_{j < k_i} log(1 - h_ij) + f_i log(1 - h_{i,k_i})

    with d_i = is_event and k_i + f_i = survived: a Bernoulli likelihood over the intervals in which subject i
    was at risk (Tutz & Schmid 2016, Modeling Discrete Time-to-Event Data, eq. 3.17; Gensheimer & Narasimhan
    2019, PeerJ 7:e6257), and of that in which it was censored the share f_i, as where hazards are constant
    within an interval (Kvamme & Borgan 2021, Lifetime Data Analysis 27:710-36). Without inputs the hazards
    that minimise it are those of the Kaplan-Meier curve at the edges.

    Parameters
    ----------
    logits : (B, K) float
    survived : (B,) from `TimeGrid.survived`, 0 .. K - 1 for events, 0 .. K for censored subjects
    is_event : (B,) bool
    n_subjects : of the mean, where some of the B only fill up a batch: they are censored with ``survived`` 0, which
        adds nothing; None is all of them

    Returns
    -------
    Scalar tensor, >= 0.

    Examples
    --------
    With hazards of one half, the event in the first interval and the survival of the first interval both have
    probability 1 / 2, and survival of both intervals 1 / 4: (log 2 + log 2 + log 4) / 3 = .924

    >>> survived, is_event = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([True, False, False])
    >>> round(negative_log_likelihood(torch.zeros(3, 2), survived, is_event).item(), 3)
    0.924
    """
    logits = _at_least_f32(logits)
    event = is_event.bool()
    position = torch.arange(logits.shape[1], device=logits.device)  # (K,)
    failed = ((position == survived[:, None]) & event[:, None]).to(logits.dtype)  # (B, K)
    at_risk = (survived[:, None] - position).clamp(0, 1).to(logits.dtype) + failed  # (B, K)
    # From the logits: exact where log(sigmoid(x)) would be -inf.
    total = F.binary_cross_entropy_with_logits(logits, failed, weight=at_risk, reduction="sum")
    return total / (len(logits) if n_subjects is None else n_subjects)


def ranking_loss(
    logits: Tensor, survived: Tensor, is_event: Tensor, follow_up_days: Tensor, *, sigma: float = 0.1
) -> Tensor:
    """Penalty on pairs in which the subject that failed first had the lower predicted incidence (DeepHit).

        L = 1 / |A| sum_{(i, j) in A} exp(-(F_i(t_i) - F_j(t_i)) / sigma)

    A holds the pairs in which i has the event at t_i and j is known to be event-free then: t_i < t_j, or
    t_i = t_j with j censored (the tie rule of `metrics.c_index`). F(t_i) is read at the end of the interval
    of t_i; how far into an interval j was followed is in t_j alone. This is L_2 of Lee et al. 2018 (DeepHit,
    AAAI; eta(x, y) = exp(-(x - y) / sigma), one cause), as a mean over A and not a sum, so that its weight
    does not depend on the batch size. With A empty the loss is 0 and its gradient 0.

    Parameters
    ----------
    logits : (B, K) float
    survived : (B,) from `TimeGrid.survived`
    is_event : (B,) bool
    follow_up_days : (B,) float, days
    sigma : scale of the incidence difference; below about 0.02 the exponential can overflow in 32 bits

    Returns
    -------
    Scalar tensor, >= 0.

    Examples
    --------
    Two subjects of equal incidence: exp(0) = 1 for the one pair whose earlier subject has the event.

    >>> survived, is_event, days = torch.tensor([0.0, 1.0]), torch.tensor([True, False]), torch.tensor([5.0, 20.0])
    >>> ranking_loss(torch.zeros(2, 2), survived, is_event, days).item()
    1.0

    With incidences of .73 and .27 in the first interval, the pair is ranked right and hardly counts: exp(-.46 / .1) =
    .01

    >>> ranked = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    >>> round(ranking_loss(ranked, survived, is_event, days).item(), 2)
    0.01
    """
    logits = _at_least_f32(logits)
    event = is_event.bool()
    incidence = -torch.expm1(F.logsigmoid(-logits).cumsum(dim=1))  # (B, K): F_ik
    # Only rows of subjects with the event are read, and theirs is an interval below K.
    event_interval = survived.long().clamp(max=logits.shape[1] - 1)
    incidence_of_j_at_i = incidence[:, event_interval].T  # (B, B): [i, j] = F_j(t_i)
    incidence_of_i_at_i = incidence_of_j_at_i.diagonal()[:, None]  # (B, 1): F_i(t_i)

    days_i, days_j = follow_up_days[:, None], follow_up_days[None, :]
    outlives = (days_i < days_j) | ((days_i == days_j) & ~event[None, :])
    admissible = event[:, None] & outlives  # (B, B): A
    exponent = (incidence_of_j_at_i - incidence_of_i_at_i) / sigma
    # exp(-inf) = 0 with gradient 0: a pair outside A adds nothing, and no inf * 0 can make a NaN.
    penalty = exponent.masked_fill(~admissible, float("-inf")).exp().sum()
    return penalty / admissible.sum().clamp(min=1)


def survival_loss(
    logits: Tensor,
    survived: Tensor,
    is_event: Tensor,
    follow_up_days: Tensor,
    *,
    lambda_rank: float,
    sigma: float = 0.1,
    n_subjects: int | Tensor | None = None,
) -> Tensor:
    """Negative log-likelihood + lambda_rank x ranking loss.

    The likelihood keeps the risks calibrated and the ranking loss pulls the other way: keep lambda_rank
    small.

    Parameters
    ----------
    logits, survived, is_event, follow_up_days, sigma, n_subjects : as in `negative_log_likelihood` and `ranking_loss`;
        who only fills up a batch is followed for less than 0 days, and so is in no pair
    lambda_rank : weight of the ranking loss, >= 0

    Returns
    -------
    Scalar tensor; at weight 0 the ranking is not computed.

    Examples
    --------
    >>> survived, is_event, days = torch.tensor([0.0, 1.0]), torch.tensor([True, False]), torch.tensor([5.0, 20.0])
    >>> at = {"survived": survived, "is_event": is_event, "follow_up_days": days}
    >>> round(survival_loss(torch.zeros(2, 2), **at, lambda_rank=0.0).item(), 3)
    0.693
    >>> round(survival_loss(torch.zeros(2, 2), **at, lambda_rank=0.5).item(), 3)
    1.193
    """
    nll = negative_log_likelihood(logits, survived, is_event, n_subjects=n_subjects)
    if not lambda_rank:
        return nll
    return nll + lambda_rank * ranking_loss(logits, survived, is_event, follow_up_days, sigma=sigma)


def _at_least_f32(logits: Tensor) -> Tensor:
    """Half-precision logits as float32: sums of log-probabilities lose their digits in 16 bits."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
