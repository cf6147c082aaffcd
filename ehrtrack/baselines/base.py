"""What a baseline is to the recipes, and what baselines share: reading, tuning, and checks of tables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import ClassVar, Generic, NamedTuple, Never, Protocol, cast

import numpy as np
import numpy.typing as npt
import polars as pl
from typing_extensions import TypeVar

from ehrtrack import plugins
from ehrtrack.arrays import Bools, Floats, Ints
from ehrtrack.baselines._ages import AGE, IS_AGE_UNKNOWN, age_to_fill, with_ages
from ehrtrack.baselines.settings import TunedChoice
from ehrtrack.data.count_features import count_features
from ehrtrack.data.store import TokenStore
from ehrtrack.data.timing_features import timing_features
from ehrtrack.data.value_features import value_features
from ehrtrack.data.vocabulary import Vocabulary
from ehrtrack.errors import ConfigError, DataError
from ehrtrack.models.code_embeddings import CodeEmbeddings
from ehrtrack.survival.metrics import c_index


@dataclass(frozen=True)
class TokenHistories:
    """Token histories of some subjects.

    Attributes
    ----------
    store : of these subjects and perhaps others
    rows : (B,) the subjects' rows of `store`
    max_tokens : tokens of a subject that a sequence model sees, [CLS] included; tables are made from all
    device : where a network is trained and run
    embeddings : of codes, fitted before on other records, or None
    may_lack_age : whether models are to read subjects whose age is not known
    values : summaries of recorded values by row of `store` (`value_summaries`); None where no baseline asked for them
    """

    store: TokenStore
    vocabulary: Vocabulary
    rows: Ints
    max_tokens: int
    device: str = "cpu"
    embeddings: CodeEmbeddings | None = None
    may_lack_age: bool = False
    values: pl.DataFrame | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: Ints) -> TokenHistories:
        return replace(self, rows=self.rows[chosen])


def read_counts(histories: TokenHistories) -> pl.DataFrame:
    """`count_features` of the subjects; an age is NaN where it is unknown, to be filled by `with_ages`.

    With ``data.births = "unknown"`` a column `is_age_unknown` says where.
    """
    return _of_subjects(histories, count_features(histories.store, histories.vocabulary))


def read_timing(histories: TokenHistories) -> pl.DataFrame:
    """`timing_features` of the subjects, with ages as in `read_counts`."""
    return _of_subjects(histories, timing_features(histories.store, histories.vocabulary))


def read_values(histories: TokenHistories) -> pl.DataFrame:
    """`value_features` of the subjects, with ages as in `read_counts`.

    Raises
    ------
    DataError
        If the histories come without values.
    """
    if histories.values is None:
        raise DataError("these histories have no recorded values; a baseline that needs them says so by reads_values")
    return _of_subjects(histories, value_features(histories.store, histories.vocabulary, histories.values))


def _of_subjects(histories: TokenHistories, features: pl.DataFrame) -> pl.DataFrame:
    """The rows of the subjects, with a column of whether the age is unknown where it may be."""
    rows = features.drop("subject_id")[histories.rows]
    if not histories.may_lack_age:
        return rows
    return rows.with_columns(pl.col(AGE).is_nan().cast(pl.Float32).alias(IS_AGE_UNKNOWN))


AnyFeatures = pl.DataFrame | TokenHistories
"""What a baseline reads of N subjects: a table with a row for each, or their histories."""
Features = TypeVar("Features", bound=AnyFeatures, covariant=True, default=AnyFeatures)
ReadFeatures = TypeVar("ReadFeatures", bound=AnyFeatures, contravariant=True, default=AnyFeatures)


@dataclass(frozen=True)
class Labelled(Generic[Features]):
    """Subjects as a baseline reads them, with their follow-up.

    Attributes
    ----------
    features : B rows of numeric columns (no subject_id), or B histories
    follow_up_days : (B,) days from the index date to event or censoring
    is_event : (B,) bool
    subject : (B,) whose row each is, where subjects have several prediction times; None where each is of another
    has_classes : is_event is a class that everybody's is known of; follow-up is the same for all, and means nothing
    """

    features: Features
    follow_up_days: Floats
    is_event: Bools
    subject: Ints | None = None
    has_classes: bool = False

    def __post_init__(self) -> None:
        lengths = (len(self.features), len(self.follow_up_days), len(self.is_event))
        if len(set(lengths)) != 1:
            raise DataError(
                f"{lengths[0]} rows of features, {lengths[1]} follow-ups and {lengths[2]} event flags; "
                "needed is one of each per subject, in the same order"
            )
        if isinstance(self.features, pl.DataFrame):
            _check_numeric(self.features)


Tabular = Labelled[pl.DataFrame]


def with_ages_filled(train: Tabular, validation: Tabular) -> tuple[Tabular, Tabular, float | None]:
    """Both with `age_to_fill` of the training subjects where an age is unknown, and that age, for the model to keep."""
    mean_age = age_to_fill(train.features)
    filled_train, filled = (replace(part, features=with_ages(part.features, mean_age)) for part in (train, validation))
    return filled_train, filled, mean_age


def _check_numeric(features: pl.DataFrame) -> None:
    not_numeric = [
        f"{name} ({kind})" for name, kind in features.schema.items() if not kind.is_numeric() and kind != pl.Boolean
    ]
    if not_numeric:
        raise DataError(
            f"columns that are not numbers: {', '.join(not_numeric[:5])}; encode or drop them before the fit"
        )


class FittedBaseline(Protocol[ReadFeatures]):
    """A fitted baseline. Columns of features go by name: in any order, with others beside them."""

    def survival(self, features: ReadFeatures, times: npt.ArrayLike) -> Floats:
        """(B, M) probability of no event up to each of the M `times` in days."""

    def risk(self, features: ReadFeatures, horizon_days: float) -> Floats:
        """(B,) probability of an event up to the horizon."""

    def describe(self) -> Mapping[str, float | int | str]:
        """Facts to log: at least n_features, n_parameters, n_candidates and validation_c_index (validation_auroc)."""

    def to_json(self) -> str:
        """All that predicting needs, as JSON text; `Baseline.from_json` reads it."""


class Baseline(ABC, Generic[Features]):
    """A model of the outcome that a transformer has to beat.

    A subclass says its settings as ``Config``, and narrows ``config`` to them.

    Attributes
    ----------
    title : what its runs are called; empty for the name of its settings
    """

    Config: ClassVar[type[TunedChoice]]
    title: str = ""

    def __init__(self, config: TunedChoice) -> None:
        self.config = config

    @property
    def reads_values(self) -> bool:
        """Whether `read` asks for `TokenHistories.values`."""
        return False

    @abstractmethod
    def read(self, histories: TokenHistories) -> Features:
        """What it is fitted on, of token histories: a table (`read_counts`, ...), or the histories as they are."""

    @abstractmethod
    def fit(self, train: Labelled[Features], validation: Labelled[Features]) -> FittedBaseline[Features]:
        """Try `TunedChoice.n_candidates` settings on the training subjects; the model with the best validation C-index.

        Raises
        ------
        DataError
            If there is no training event, or no comparable validation pair.
        """

    def validation_survival(
        self, model: FittedBaseline[Features], validation: Labelled[Features], times: npt.ArrayLike
    ) -> Floats:
        """(B, M) survival of the validation subjects of the last `fit`, by models that did not learn from them.

        That is what `fit` returned, unless it learns from validation subjects too.
        """
        return model.survival(validation.features, times)

    @classmethod
    def for_classes(cls) -> type[Baseline]:
        """The baseline that is fitted in this one's place where labels are classes, by the same settings.

        One whose model over a single interval of time is a classifier gives itself.

        Raises
        ------
        ConfigError
            If there is none, which is what this class says.
        """
        raise ConfigError(
            f"baseline {cls.__module__}.{cls.__qualname__} models when the outcome comes, and these labels tell "
            "whether it does: choose another baseline, give labels with follow_up_days and is_event, or, if it "
            "is your own, let for_classes name a class that models them"
        )

    @classmethod
    @abstractmethod
    def from_json(cls, text: str) -> FittedBaseline[Features]:
        """The model back from its `FittedBaseline.to_json`.

        Raises
        ------
        CheckpointError
            If the text is no such model.
        """


def baseline_class(name: str, *, has_classes: bool = False) -> type[Baseline]:
    """The baseline of a name; ``baseline_class("cox")(config)`` is one with these settings.

    Parameters
    ----------
    has_classes : labels are classes, so that it is the one that stands in its place for them

    Raises
    ------
    ConfigError
        If there is no baseline of this name, or none for classes.
    """
    found = plugins.plugin("baselines", name, Baseline)
    return found.for_classes() if has_classes else found


Model = TypeVar("Model", bound=FittedBaseline[Never])
Setting = Mapping[str, float]
"""One value of each setting that is tuned; of whole numbers and of truths, which are numbers, too."""


class Tuned(NamedTuple, Generic[Model]):
    """The best of several candidates."""

    model: Model
    setting: Setting
    score: float
    n_candidates: int
    score_name: str = "validation_c_index"

    def facts(self) -> dict[str, float]:
        """What was chosen, by which score, out of how many."""
        return {**self.setting, self.score_name: self.score, "n_candidates": self.n_candidates}


def candidates(space: Mapping[str, Sequence[float]], n: int, seed: int) -> list[dict[str, float]]:
    """At most n combinations of values: the first value of each setting together, then others drawn without repeat.

    >>> candidates({"rate": [0.1, 0.2], "leaves": [8]}, 3, seed=0)
    [{'rate': 0.1, 'leaves': 8}, {'rate': 0.2, 'leaves': 8}]
    """
    every = list(product(*space.values()))
    others = 1 + np.random.default_rng(seed).permutation(len(every) - 1)
    return [dict(zip(space, every[number], strict=True)) for number in [0, *others][:n]]


def tune(
    config: TunedChoice,
    space: Mapping[str, Sequence[float]],
    fit_one: Callable[[Setting], Model],
    validation: Labelled[Features],
) -> Tuned[Model]:
    """Fit each candidate, and keep the one whose risk at the end of follow-up ranks the validation subjects best.

    Of equals the first is kept.

    Raises
    ------
    DataError
        If no pair of validation subjects can be compared.
    """
    days, is_event = validation.follow_up_days, validation.is_event
    best: Tuned[Model] | None = None
    tried = candidates(space, config.n_candidates, config.seed)
    for setting in tried:
        model = fit_one(setting)
        reader = cast(FittedBaseline[Features], model)  # it was fitted to what the same baseline reads
        score = c_index(reader.risk(validation.features, float(days.max())), days, is_event)
        if best is None or score > best.score:
            best = Tuned(model, setting, score, len(tried), score_name(validation))
    assert best is not None
    return best


def score_name(validation: Labelled[Features]) -> str:
    """What the C-index of validation subjects is called; where all are followed for as long, it is the AUROC."""
    return "validation_auroc" if validation.has_classes else "validation_c_index"


def check_events(train: Labelled[Features]) -> None:
    """Raise DataError if there is no event to learn from."""
    if not train.is_event.any():
        raise DataError(
            f"no event among {len(train.is_event)} training subjects; a survival model needs some: "
            "check cohort.outcome and cohort.horizon_days"
        )


def seen_within(subjects: Labelled[Features], horizon_days: float) -> Labelled[Features]:
    """Subjects as far as a time grid goes: an event past the last training follow-up is a censoring there."""
    is_past = subjects.follow_up_days > horizon_days
    days = np.where(is_past, horizon_days, subjects.follow_up_days)
    return replace(subjects, follow_up_days=days, is_event=subjects.is_event & ~is_past)


def used_columns(train: Tabular, *, min_subjects: int) -> list[str]:
    """Columns that vary, and that are neither 0 nor missing in at least `min_subjects` of the training subjects.

    Raises
    ------
    DataError
        If there is none.
    """
    features = train.features
    x = matrix(features, features.columns, allows_missing=True)
    is_there = n_people_with(np.nan_to_num(x) != 0, train.subject) >= min_subjects
    # A column of NaN and one value varies too: whether it is missing is told by it.
    varies = np.array([len(np.unique(column)) > 1 for column in x.T])
    names = [name for name, used in zip(features.columns, is_there & varies, strict=True) if used]
    if not names:
        raise DataError(
            f"none of {x.shape[1]} features varies and is non-zero in at least {min_subjects} "
            "training subjects; lower baseline.min_subjects or use a larger cohort"
        )
    return names


def n_people_with(is_there: Bools, subject: Ints | None) -> Ints:
    """(D,) in how many subjects each of (B, D) is true; a subject with several rows counts once."""
    if subject is not None and len(subject):
        order = np.argsort(subject, kind="stable")
        starts = np.flatnonzero(np.diff(subject[order], prepend=subject[order[0]] - 1))
        is_there = np.logical_or.reduceat(is_there[order], starts, axis=0)
    counts: Ints = is_there.sum(axis=0)
    return counts


def matrix(features: pl.DataFrame, names: Sequence[str], *, allows_missing: bool = False) -> Floats:
    """The columns `names` as (B, D) float64.

    Raises
    ------
    DataError
        If a column is missing, or has infinite values, or missing ones where none may be.
    """
    missing = [name for name in names if name not in features.columns]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} features of the model are missing (first: {missing[0]!r}); "
            "make the features with the vocabulary of the training run"
        )
    if not names:
        return np.zeros((len(features), 0))  # polars forgets how many rows no columns have
    x = np.asarray(features.select(names).cast(pl.Float64).to_numpy(writable=True), dtype=np.float64)
    is_bad = np.isinf(x) if allows_missing else ~np.isfinite(x)
    bad = np.flatnonzero(is_bad.any(axis=0))
    if bad.size:
        raise DataError(
            f"{bad.size} of {x.shape[1]} features have missing or infinite values "
            f"(first: {names[bad[0]]!r}); fill them before the fit"
        )
    return x
