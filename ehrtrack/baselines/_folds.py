"""Cross-validation over training and validation subjects together: both are labels, and few labels are not divided."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Generic, cast

import numpy as np
import numpy.typing as npt
import polars as pl

from ehrtrack.arrays import Floats, Ints
from ehrtrack.baselines.base import AnyFeatures, Features, FittedBaseline, Labelled, TokenHistories, check_events
from ehrtrack.survival.ridge import check_divisible, event_folds


def together(train: Labelled[Features], validation: Labelled[Features]) -> Labelled[Features]:
    """Training and validation subjects, in this order.

    Raises
    ------
    DataError
        If no training subject has the event, or fewer than two subjects have it, or all but one.
    """
    check_events(train)
    both = Labelled(
        cast(Features, _joined(train.features, validation.features)),
        np.concatenate([train.follow_up_days, validation.follow_up_days]),
        np.concatenate([train.is_event, validation.is_event]),
        _subjects(train, validation),
        has_classes=train.has_classes,
    )
    check_divisible(both.is_event)
    return both


def _joined(first: AnyFeatures, second: AnyFeatures) -> AnyFeatures:
    if isinstance(first, TokenHistories):
        assert isinstance(second, TokenHistories)
        assert first.store is second.store
        return replace(first, rows=np.concatenate([first.rows, second.rows]))
    assert isinstance(second, pl.DataFrame)
    return pl.concat([first, second])


def _subjects(train: Labelled[Features], validation: Labelled[Features]) -> Ints | None:
    if train.subject is None or validation.subject is None:
        return None
    return np.concatenate([train.subject, validation.subject])


def folds(subjects: Labelled[Features], n_folds: int, seed: int) -> Ints:
    """(B,) the fold of each row: rows of a subject are in one, and events are spread over all.

    There are no more folds than subjects with the event, or without it.
    """
    return event_folds(subjects.is_event, subjects.subject, n_folds=n_folds, seed=seed)


def divided(subjects: Labelled[Features], fold: Ints) -> Iterator[tuple[Labelled[Features], Ints]]:
    """For each fold, the subjects of all others, and (H,) the rows that it holds out."""
    for number in range(int(fold.max()) + 1):
        yield chosen(subjects, np.flatnonzero(fold != number)), np.flatnonzero(fold == number)


def chosen(subjects: Labelled[Features], rows: Ints) -> Labelled[Features]:
    """Some of the rows."""
    return Labelled(
        cast(Features, subjects.features[rows]),
        subjects.follow_up_days[rows],
        subjects.is_event[rows],
        None if subjects.subject is None else subjects.subject[rows],
        has_classes=subjects.has_classes,
    )


def chosen_in_folds(n_folds: int, measure: str = "likelihood") -> str:
    """How a model was chosen, in words."""
    return f"{measure} in {n_folds}-fold cross-validation over training and validation subjects"


class HeldOut(Generic[Features]):
    """The models of a cross-validation, each for the subjects that it did not learn from.

    Parameters
    ----------
    n_train : of the subjects that were put `together`, how many were training subjects
    """

    def __init__(self, n_train: int) -> None:
        self._n_train = n_train
        self._parts: list[tuple[Ints, FittedBaseline[Features]]] = []

    def add(self, rows: Ints, model: FittedBaseline[Features]) -> None:
        """Note the model that these rows were held out of."""
        self._parts.append((rows, model))

    def survival(self, validation: Labelled[Features], times: npt.ArrayLike) -> Floats:
        """(B, M) of each validation subject by the model without its fold."""
        at = np.atleast_1d(np.asarray(times, dtype=np.float64))
        survival = np.empty((len(validation.features), len(at)))
        for rows, model in self._parts:
            of_validation = rows[rows >= self._n_train] - self._n_train
            survival[of_validation] = model.survival(cast(Features, validation.features[of_validation]), at)
        return survival
