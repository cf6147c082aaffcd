"""Ridge regression of hazards by the likelihood of an objective, with penalties chosen by cross-validation.

    logit_k(x) = baseline_k + c + x u      (of each of R causes)

The penalty is the one with the least loss of subjects that were held out (Verweij & van Houwelingen 1993, Stat Med
12:2305-2314, by the likelihood likewise), each by the regression without its fold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from ehrtrack.arrays import Floats, Ints
from ehrtrack.data.outcomes import Outcomes
from ehrtrack.survival.ridge import Axes, Loss, Regression, event_folds

N_FOLDS, N_CANDIDATES = 5, 8
MOST_STEPS = 200
LEAST_SLOPE = 1e-9
"""Where no column varies, for a penalty has to be above 0."""


class Hazards(Protocol):
    """What a regression needs from an objective: the population's logits, and the likelihood to maximise.

    Examples
    --------
    Of a single interval, in which half have the event:

    >>> class Coin:
    ...     def baseline_logits(self):
    ...         return torch.zeros(1)
    ...     def likelihood(self, logits, outcomes):
    ...         came = torch.from_numpy(outcomes.is_event).double()
    ...         return torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], came)
    >>> two = Outcomes(np.array([1.0, 1.0]), np.array([True, False]))
    >>> round(Coin().likelihood(Coin().baseline_logits().double().expand(2, 1), two).item(), 3)
    0.693
    """

    def baseline_logits(self) -> Tensor:
        """(K,) or (K, R) of the population."""

    def likelihood(self, logits: Tensor, outcomes: Outcomes) -> Tensor:
        """Mean loss of logits (N, K R)."""


def loss_of_shift(hazards: Hazards, outcomes: Outcomes) -> Loss:
    """The mean loss of N subjects by what is added to the population's logits, the same in each interval.

    Examples
    --------
    With the hazards of a coin (`Hazards`), a subject with the event gains from a higher one:

    >>> class Coin:
    ...     def baseline_logits(self):
    ...         return torch.zeros(1)
    ...     def likelihood(self, logits, outcomes):
    ...         came = torch.from_numpy(outcomes.is_event).double()
    ...         return torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], came)
    >>> loss = loss_of_shift(Coin(), Outcomes(np.array([1.0, 1.0]), np.array([True, False])))
    >>> mean, slope = loss(np.zeros((2, 1)))
    >>> round(mean, 3), slope.tolist()
    (0.693, [[-0.25], [0.25]])
    """
    baseline = hazards.baseline_logits()
    n_outputs = baseline[0].numel()

    def loss(shift: Floats) -> tuple[float, Floats]:
        of_subject = torch.from_numpy(shift).requires_grad_()
        logits = of_subject[:, None] + baseline.double().reshape(1, -1, n_outputs)  # (N, K, R)
        mean = hazards.likelihood(logits.flatten(1), outcomes)
        (slope,) = torch.autograd.grad(mean, of_subject)
        return mean.item(), slope.numpy()

    return loss


@dataclass(frozen=True)
class HazardRegression:
    """Regressions of the hazards of N subjects.

    Attributes
    ----------
    fold : (N,) of the cross-validation

    Examples
    --------
    A column that tells the event, in hazards of a coin (`Hazards`):

    >>> class Coin:
    ...     def baseline_logits(self):
    ...         return torch.zeros(1)
    ...     def likelihood(self, logits, outcomes):
    ...         came = torch.from_numpy(outcomes.is_event).double()
    ...         return torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], came)
    >>> is_event = np.tile([True, False, False], 20)
    >>> regression = HazardRegression.of(Coin(), Outcomes(np.ones(60), is_event))
    >>> x = np.where(is_event, 1.0, -1.0)[:, None]
    >>> penalty = regression.chosen(x, [np.array([strength]) for strength in (10.0, 0.1)])
    >>> effect, intercept = regression.fit(x, penalty, np.arange(60))
    >>> float(penalty[0]), bool(effect[0, 0] > 1)
    (0.1, True)
    """

    hazards: Hazards
    outcomes: Outcomes
    fold: Ints

    @classmethod
    def of(cls, hazards: Hazards, outcomes: Outcomes) -> HazardRegression:
        """With as many folds as events allow, five at most.

        Raises
        ------
        DataError
            If fewer than two of the subjects have the event, or have it not.
        """
        return cls(hazards, outcomes, event_folds(outcomes.is_event, outcomes.subject, n_folds=N_FOLDS, seed=0))

    @property
    def n_outputs(self) -> int:
        """R."""
        return int(self.hazards.baseline_logits()[0].numel())

    def without(self, number: int) -> Ints:
        """The subjects that are in another fold."""
        return np.flatnonzero(self.fold != number)

    def fit(self, x: Floats, penalty: Floats, rows: Ints) -> Regression:
        """The regression of some of the subjects on their columns, of x (N, P), at penalties (P,)."""
        return self._fit(Axes(x[rows], penalty), 1.0, rows)

    def _fit(self, axes: Axes, strength: float, rows: Ints) -> Regression:
        outcomes = self.outcomes[rows]
        loss, curvature = loss_of_shift(self.hazards, outcomes), float(outcomes.is_event.mean())
        return axes.fit(loss, curvature=curvature, n_outputs=self.n_outputs, strength=strength)

    def tried(self, x: Floats, strongest: float, weakest: float) -> list[float]:
        """Falling penalties, in equal ratios over a range in units of the largest slope at effects of 0."""
        _, slope = loss_of_shift(self.hazards, self.outcomes)(np.zeros((len(x), self.n_outputs)))
        steepest = max(float(np.abs(x.T @ slope).max(initial=0)), LEAST_SLOPE)
        return [float(share) * steepest for share in np.geomspace(strongest, weakest, N_CANDIDATES)]

    def chosen(self, x: Floats, penalties: Sequence[Floats]) -> Floats:
        """Of several penalties (P,) the one with the least loss of the subjects that were held out; the first of
        equals."""
        total = np.zeros(len(penalties))
        for number in range(int(self.fold.max()) + 1):
            held_out, rows = np.flatnonzero(self.fold == number), self.without(number)
            loss = loss_of_shift(self.hazards, self.outcomes[held_out])
            axes = Axes(x[rows], penalties[0])
            for place, penalty in enumerate(penalties):
                strength = axes.strength(penalty)
                if strength is None:
                    axes, strength = Axes(x[rows], penalty), 1.0
                said = self._fit(axes, strength, rows).at(x[held_out])
                total[place] += loss(said)[0] * len(held_out)
        return penalties[int(np.argmin(total))]

    def baseline_beside(self, shift: Floats, rows: Ints) -> Tensor:
        """The baseline (K,) or (K, R) of the greatest likelihood of some subjects, where (N, R) is added to it.

        The population's hazards with an intercept are not enough: those at high risk leave first, so that later hazards
        are of others.
        """
        start, outcomes = self.hazards.baseline_logits(), self.outcomes[rows]
        of_subject = torch.from_numpy(shift[rows])[:, None]

        def value_and_slope(flat: Floats) -> tuple[float, Floats]:
            baseline = torch.from_numpy(flat).requires_grad_()
            logits = of_subject + baseline.reshape(1, len(start), -1)  # (N, K, R)
            mean = self.hazards.likelihood(logits.flatten(1), outcomes)
            (slope,) = torch.autograd.grad(mean, baseline)
            return mean.item(), slope.numpy()

        options = {"maxiter": MOST_STEPS, "gtol": 1e-7, "ftol": 0.0}
        first = start.double().numpy().ravel()
        found = minimize(value_and_slope, first, jac=True, method="L-BFGS-B", options=options).x
        return torch.from_numpy(found).float().reshape(start.shape)
