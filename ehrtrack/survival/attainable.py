"""How much of what can be attained a model attains, where the true risk is known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ehrtrack.errors import NotMeasurable
from ehrtrack.survival.bootstrap import N_RESAMPLES
from ehrtrack.survival.metrics import c_index
from ehrtrack.survival.resampling import Interval, percentile_interval, resampled_c_index

CHANCE = 0.5


def share_of_attainable(c_index: float, oracle_c_index: float) -> float:
    """How much of the C-index that can be attained a model attains: (C - 0.5) / (C of the oracle - 0.5).

    0 is chance, and 1 is the C-index of the true risk on the same subjects.

    Parameters
    ----------
    c_index, oracle_c_index : of the model and of the true risk, both on the same subjects

    Raises
    ------
    NotMeasurable
        If the oracle itself is not better than chance, so that there is nothing to attain.

    Examples
    --------
    A C-index of .65 is three quarters of the way from chance, .5, to the oracle's .7:

    >>> round(share_of_attainable(0.65, 0.7), 3)
    0.75
    """
    if not oracle_c_index > CHANCE:
        raise NotMeasurable(
            f"the oracle's C-index is {oracle_c_index:.3f} on these subjects, no better than chance: there is nothing "
            "to attain; simulate a world with signal above 0, or score more subjects"
        )
    return (c_index - CHANCE) / (oracle_c_index - CHANCE)


def attainable_interval(
    risk: npt.ArrayLike,
    true_risk: npt.ArrayLike,
    follow_up_days: npt.ArrayLike,
    is_event: npt.ArrayLike,
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    subject: npt.ArrayLike | None = None,
) -> Interval:
    """Share of the attainable, with its percentile interval over resampled subjects.

    Model and oracle are scored on the same resamples, so that the sampling error that they share cancels.

    Parameters
    ----------
    risk, true_risk : (B,) predicted risk, and the risk of the simulation
    follow_up_days, is_event : (B,) days from the index date to the event or the censoring, and which of them it is
    n_resamples : number of bootstrap samples
    seed : the same seed draws the same subjects
    subject : (B,) the subject of each row; None where each row is of another subject

    Raises
    ------
    NotMeasurable
        If the true risk is not better than chance, or there are too few events for an interval.

    Examples
    --------
    A model that ranks subjects as the true risk does attains all of it, in every resample:

    >>> true_risk = np.arange(40)[::-1] / 40
    >>> days = np.roll(np.arange(1, 41), 5)
    >>> print(attainable_interval(true_risk / 2, true_risk, days, [True] * 40, n_resamples=50))
    1.000 [1.000, 1.000]
    """
    of_model, of_oracle = (
        resampled_c_index(values, follow_up_days, is_event, n_resamples=n_resamples, seed=seed, subject=subject)
        for values in (risk, true_risk)
    )
    share = share_of_attainable(c_index(risk, follow_up_days, is_event), c_index(true_risk, follow_up_days, is_event))
    attainable = of_oracle - CHANCE
    shares = np.divide(of_model - CHANCE, attainable, out=np.full(len(attainable), np.nan), where=attainable > 0)
    return percentile_interval(share, shares)
