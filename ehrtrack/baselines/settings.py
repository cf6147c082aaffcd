"""Which baselines there are, and the settings of each. This module imports neither torch nor scikit-learn."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ehrtrack.data.settings import Patterns
from ehrtrack.errors import ConfigError
from ehrtrack.models.settings import READOUT_DAYS, ScalesDays
from ehrtrack.section import Choice, Mark
from ehrtrack.training.settings import SkipGramConfig

N_CANDIDATES = 8

Rates = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]
"""Step sizes to try."""
Strengths = Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)]
"""Of penalties to try."""
Shares = Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)]
Numbers = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]


class TunedChoice(Choice):
    """Settings that all baselines share.

    Attributes
    ----------
    n_candidates : how many combinations of settings are tried; the one with the best validation C-index is kept
    seed : the seed of everything that is random in the fit

    Examples
    --------
    >>> CoxConfig(n_candidates=4).n_candidates
    4
    """

    n_candidates: int = Field(N_CANDIDATES, ge=1)
    seed: int = Field(0, ge=0)

    @property
    def is_random(self) -> bool:
        """Whether another seed gives another model, so that it has to be fitted with several to know its spread.

        >>> CoxConfig().is_random, GruConfig().is_random
        (False, True)
        """
        return True


class TreeSettings(TunedChoice):
    """Settings that models made of trees share.

    Attributes
    ----------
    n_intervals : the most intervals of the time grid
    min_subjects, min_share : a column that is not 0 in fewer training subjects, or in a smaller share of them, is left
        out

    Examples
    --------
    >>> RandomSurvivalForestConfig(min_subjects=20).min_share
    0.01
    """

    n_intervals: int = Field(ge=1)
    min_subjects: int = Field(5, ge=1)
    min_share: float = Field(0.01, ge=0, lt=1)


class SequenceSettings(TunedChoice):
    """Settings of a sequence model. `n_candidates` combinations of the values in the tuples are tried.

    Attributes
    ----------
    learning_rates, weight_decays : values of the optimiser to try
    dropouts : probabilities of dropout on embeddings and states to try
    widths : widths of embeddings and states to try
    epochs : the most epochs; one is selected by the same rule as that of the transformer (`objective.select_by`)
    patience : training stops after so many epochs without progress
    batch_tokens : tokens in a batch; 0 is the number that suits the device
    lambda_rank, n_intervals : as in the survival objective (`objectives.settings.SurvivalConfig`)

    Examples
    --------
    >>> GruConfig(widths=[48]).widths
    (48,)
    """

    module: ClassVar[str] = "sequence"
    learning_rates: Rates = (2e-3, 1e-3, 5e-3)
    dropouts: Annotated[tuple[Annotated[float, Field(ge=0, lt=1)], ...], Field(min_length=1)] = (0.2, 0.1, 0.4)
    widths: Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(min_length=1)] = (96, 48)
    weight_decays: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)] = (0.01, 0.3)
    epochs: int = Field(15, ge=1)
    patience: int = Field(4, ge=1)
    batch_tokens: int = Field(0, ge=0)
    lambda_rank: float = Field(0.0, ge=0)
    n_intervals: int = Field(20, ge=1)


class CoxConfig(TunedChoice):
    """Settings of the Cox model.

    Attributes
    ----------
    penalties : penalty strengths to try. If empty, `n_candidates` falling strengths are tried, from the smallest at
        which every coefficient is 0
    min_penalty_ratio : the last of those strengths as a share of the first
    l1_ratio : share of the L1 penalty in the elastic net: 1 is the lasso, and values near 0 are ridge, which gives
        correlated codes similar coefficients
    min_subjects : a feature that is not 0 in fewer training subjects is left out
    log_counts : whether log(1 + x) of a feature of whole numbers is taken, as their distributions have long tails

    Examples
    --------
    ``[baseline] name = "cox"`` and ``l1_ratio = 1.0``, which is a lasso:

    >>> CoxConfig(l1_ratio=1.0).n_candidates
    8
    """

    name: Literal["cox"] = "cox"
    penalties: tuple[Annotated[float, Field(ge=0)], ...] = ()
    min_penalty_ratio: float = Field(0.01, gt=0, lt=1)
    l1_ratio: float = Field(0.1, gt=0, le=1)
    min_subjects: int = Field(5, ge=1)
    log_counts: bool = True

    @property
    def is_random(self) -> bool:
        """It is not: nothing is drawn, and the logistic regression of classes has one optimum, in whatever order."""
        return False


class RidgeConfig(TunedChoice):
    """Settings of the ridge regression: Cox, or logistic where labels are classes, with an L2 penalty.

    It is chosen by cross-validation over training and validation subjects and fitted to all of them, so that few labels
    are not divided further.

    Attributes
    ----------
    features : ``values`` for age, static facts, counts of codes without values, and the last, mean, lowest and highest
        value of each code and how many there are; ``age-sex`` for age and sex alone, below which no model should be
    sex : patterns of the codes that tell the sex, matched at the code's start. Age and sex bear a tenth of the penalty
    penalties : penalty strengths to try. If empty, `n_candidates` falling strengths are tried, spread over a factor of
        1,000 around the largest slope of the likelihood at coefficients of 0
    n_folds : folds of the cross-validation
    min_subjects, min_share : a column that is not there in fewer subjects, or in a smaller share of them, is left out

    Examples
    --------
    ``[baseline] name = "ridge"``, and the floor of every comparison:

    >>> RidgeConfig().n_folds, RidgeConfig(features="age-sex").features
    (5, 'age-sex')
    """

    is_lasso: ClassVar[bool] = False
    name: Literal["ridge"] = "ridge"
    features: Literal["values", "age-sex"] = "values"
    sex: Annotated[Patterns, Field(min_length=1)] = ("GENDER//", "SEX//", "FEMALE$", "MALE$")
    penalties: tuple[Annotated[float, Field(gt=0)], ...] = ()
    n_folds: int = Field(5, ge=2, le=100)
    min_subjects: int = Field(5, ge=1)
    min_share: float = Field(0.01, ge=0, lt=1)


class LassoValuesConfig(RidgeConfig):
    """Settings of the lasso on recorded values: ridge regression's, with an L1 penalty in the place of the L2 penalty.

    Examples
    --------
    >>> LassoValuesConfig().is_lasso, RidgeConfig().is_lasso
    (True, False)
    """

    module: ClassVar[str] = "ridge"
    is_lasso: ClassVar[bool] = True
    name: Literal["lasso-values"] = "lasso-values"  # type: ignore[assignment]


class LassoConfig(TunedChoice):
    """Settings of the lasso regression.

    Attributes
    ----------
    strengths : penalty strengths in units of ``sqrt(log P / N)`` for P columns and N subjects; `n_candidates` of them
        are tried
    scales_days : scales of the exponential weights of times, in days: by default a day, a month and a year. Records of
        two days of intensive care need scales of hours
    n_intervals : the most intervals of the time grid

    Examples
    --------
    In intensive care, with histories of hours: ``scales_days = [0.05, 0.5, 2.0]``.

    >>> LassoConfig(scales_days=[0.05, 0.5, 2.0]).scales_days
    (0.05, 0.5, 2.0)
    """

    name: Literal["lasso"] = "lasso"
    strengths: Strengths = (0.25, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7)
    scales_days: ScalesDays = READOUT_DAYS
    n_intervals: int = Field(20, ge=1)

    @property
    def is_random(self) -> bool:
        """Only where not all strengths are tried: which ones is drawn."""
        return self.n_candidates < len(self.strengths)


class GradientBoostingConfig(TreeSettings):
    """Settings of gradient boosting. `n_candidates` combinations of the values in the tuples are tried.

    Attributes
    ----------
    learning_rates : step sizes to try
    max_leaves : the most leaves of a tree
    min_rows : the fewest person-periods (a subject in an interval) of a leaf
    penalties : strengths of the L2 penalty on the values of leaves
    feature_shares : share of the columns that a split may choose from
    max_trees : the most trees; there are fewer where the validation loss stops falling
    n_intervals : the most intervals of the time grid; the rows and the time of the fit grow with it
    features : ``counts`` of codes and bins, or ``values`` for counts of codes and the last, mean, lowest and highest
        value of each code and how many there are
    select : with ``validation`` the settings with the best C-index of validation subjects are kept, with the number of
        trees that suits these; with ``cross-validation`` those with the best likelihood in `n_folds` folds of training
        and validation subjects together, and with ``cross-validation-ibs`` those with the best integrated Brier score
        there (of classes, Brier score); the model is then fitted to all of them
    n_folds : folds of the cross-validation
    has_timing : whether the features include the times of codes, and the first value, the last value and the trend of
        numbers, beside the counts of codes

    Examples
    --------
    >>> GradientBoostingConfig(max_trees=100).max_leaves
    (8, 4, 16)
    """

    has_timing: ClassVar[bool] = False
    name: Literal["gradient-boosting"] = "gradient-boosting"
    learning_rates: Rates = (0.06, 0.03, 0.12)
    max_leaves: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1)] = (8, 4, 16)
    min_rows: Numbers = (40, 100)
    penalties: Strengths = (1.0, 10.0)
    feature_shares: Shares = (0.3, 1.0)
    max_trees: int = Field(400, ge=1)
    n_intervals: int = Field(4, ge=1)
    features: Annotated[Literal["counts", "values"], Mark.ADDED_LATER] = "counts"
    select: Annotated[Literal["validation", "cross-validation", "cross-validation-ibs"], Mark.ADDED_LATER] = (
        "validation"
    )
    n_folds: Annotated[int, Mark.ADDED_LATER] = Field(5, ge=2, le=100)

    def model_post_init(self, _context: object) -> None:
        if self.has_timing and self.features == "values":
            raise ConfigError(
                f'baseline {self.name} reads times and bins, and baseline.features = "values" recorded values; take '
                "gradient-boosting for these"
            )


class GradientBoostingTimingConfig(GradientBoostingConfig):
    """Settings of gradient boosting with timing features.

    Whether a sequence model is worth its cost is seen in a comparison with this baseline, and not with counts of codes.

    Examples
    --------
    >>> GradientBoostingTimingConfig().has_timing, GradientBoostingConfig().has_timing
    (True, False)
    """

    module: ClassVar[str] = "gradient_boosting"
    has_timing: ClassVar[bool] = True
    name: Literal["gradient-boosting-timing"] = "gradient-boosting-timing"  # type: ignore[assignment]


class RandomSurvivalForestConfig(TreeSettings):
    """Settings of the forest. `n_candidates` combinations of the values in the tuples are tried.

    Attributes
    ----------
    n_trees : the number of trees
    min_rows : the fewest subjects of a leaf
    feature_shares : share of the columns that a split may choose from
    max_rows : the most subjects that a tree is grown on, drawn with replacement
    n_intervals : the most intervals of the time grid

    Examples
    --------
    >>> RandomSurvivalForestConfig(n_trees=50).min_rows
    (15, 8, 30, 60)
    """

    name: Literal["random-survival-forest"] = "random-survival-forest"
    n_trees: int = Field(100, ge=1)
    min_rows: Numbers = (15, 8, 30, 60)
    feature_shares: Shares = (0.05, 0.02, 0.1)
    max_rows: int = Field(5_000, ge=1)
    n_intervals: int = Field(10, ge=1)


class GruConfig(SequenceSettings):
    """Settings of a GRU (Cho et al. 2014, arXiv:1406.1078) over the visit tokens.

    Examples
    --------
    >>> GruConfig(epochs=5).patience
    4
    """

    name: Literal["gru"] = "gru"


class LstmConfig(SequenceSettings):
    """Settings of an LSTM (Hochreiter & Schmidhuber 1997, Neural Comput 9:1735-1780) over the visit tokens.

    Examples
    --------
    >>> LstmConfig(epochs=5).patience
    4
    """

    name: Literal["lstm"] = "lstm"


class MeanPoolConfig(SequenceSettings):
    """Settings of the model on the mean of a record's code embeddings.

    Attributes
    ----------
    skip_gram : settings of the code embeddings, which are fitted first where ``init.embeddings`` names none
    trains_embeddings : whether the embeddings are trained further with the head; values to try

    Examples
    --------
    >>> MeanPoolConfig(skip_gram={"epochs": 10}).skip_gram.epochs
    10
    """

    name: Literal["mean-pool"] = "mean-pool"
    skip_gram: SkipGramConfig = SkipGramConfig()
    trains_embeddings: Annotated[tuple[bool, ...], Field(min_length=1)] = (True, False)
