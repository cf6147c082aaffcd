"""Which objectives there are, and the settings of each. This module does not import torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ehrtrack import plugins
from ehrtrack.section import Choice, Mark


class OutcomeSettings(Choice):
    """Settings of an objective that learns the outcome of a cohort.

    Examples
    --------
    >>> isinstance(SurvivalConfig(), OutcomeSettings), isinstance(MaskedTokensConfig(), OutcomeSettings)
    (True, False)
    """


class PretrainingSettings(Choice):
    """Settings of an objective that takes its targets from the records themselves.

    Attributes
    ----------
    probe_epochs : when a probe tells how much the states transfer: how well a ridge regression on them foretells what
        comes next, beside one on counts of codes (`training.probe`). `end` is once, of the kept weights; a number is
        after every so many epochs, too; `never` is not at all
    select_by : what early stopping and the choice of the epoch go by: `loss`, the validation loss, or `probe`, what the
        states foretell, which is then measured after each epoch

    Examples
    --------
    >>> isinstance(SurvivalConfig(), PretrainingSettings), isinstance(MaskedTokensConfig(), PretrainingSettings)
    (False, True)
    """

    probe_epochs: Annotated[Literal["never", "end"] | Annotated[int, Field(ge=1)], Mark.ADDED_LATER] = "end"
    select_by: Annotated[Literal["loss", "probe"], Mark.ADDED_LATER] = "loss"

    @model_validator(mode="after")
    def _is_probed_where_it_counts(self) -> PretrainingSettings:
        if self.select_by == "probe" and self.probe_epochs not in ("end", 1):
            raise ValueError(f"select_by=probe needs a probe after each epoch, and probe_epochs is {self.probe_epochs}")
        return self


class HazardSettings(OutcomeSettings):
    """Settings of an objective whose head is a `HazardHead`.

    Attributes
    ----------
    lasso : strength of the lasso penalty of an offset: a regression on single codes and values is fitted beforehand and
        its logits are added to those of the head, so that the network fits the residual (`models.code_effects`). With 0
        there is no offset. Of the strengths from .15 to .5, .15 was best for 6,400 subjects and .3 for 400. Where the
        base was pretrained by time-to-event with an offset of its own, the regression may also use mixtures of the
        effects that were found there for the onsets of codes
    statics : whether age and static facts, such as sex, act on the hazard directly too. Their effects begin at a ridge
        regression on them, so that training begins at the floor of every comparison and not below it, and learn on.
        An offset by `lasso` has them already, and there are none beside it

    Examples
    --------
    ``[objective] name = "survival"`` and ``lasso = 0.15``:

    >>> SurvivalConfig(lasso=0.15).lasso
    0.15
    """

    lasso: float = Field(0.0, ge=0)
    statics: bool = True

    def identity(self) -> dict[str, Any]:
        """Without `statics` where there are none: so it was of all runs, before there was the setting."""
        return {name: value for name, value in super().identity().items() if name != "statics" or value}


class SurvivalConfig(HazardSettings):
    """Settings of the survival objective.

    Attributes
    ----------
    lambda_rank : weight of the ranking loss, which is added to the negative log-likelihood. In no data set that was
        tried did it raise the C-index (`ehrtrack sensitivity`), and in most it raised the Brier score, so that the
        default is 0
    sigma : scale of the differences of incidence in the ranking loss; below .02 its exponential overflows
    n_intervals : the most intervals of the time grid, whose edges are quantiles of the training event times
    select_by : the validation measure of early stopping. With ``c_index``, of the epochs within one standard error of
        the best C-index the one with the lowest integrated Brier score is selected, and training stops `patience`
        epochs after it, or after the best where that is later. The C-index alone is mostly noise where validation
        events are few, and may select a first epoch in which all risks are alike. With ``ibs``, both are decided by the
        integrated Brier score

    Examples
    --------
    ``[objective] name = "survival"``, ``n_intervals = 10`` and ``select_by = "ibs"``:

    >>> SurvivalConfig(n_intervals=10, select_by="ibs").lambda_rank
    0.0
    """

    name: Literal["survival"] = "survival"
    lambda_rank: float = Field(0.0, ge=0)
    sigma: float = Field(0.1, gt=0)
    n_intervals: int = Field(20, ge=1)
    select_by: Literal["c_index", "ibs"] = "c_index"


class CompetingRisksConfig(HazardSettings):
    """Settings of competing risks.

    Attributes
    ----------
    n_intervals : the most intervals of the time grid, whose edges are quantiles of the training event times of any
        cause
    select_by : as in `SurvivalConfig`; ``c_index`` is the mean over causes, and ``ibs`` the score of any cause

    Examples
    --------
    >>> CompetingRisksConfig(n_intervals=10).select_by
    'c_index'
    """

    name: Literal["competing-risks"] = "competing-risks"
    n_intervals: int = Field(20, ge=1)
    select_by: Literal["c_index", "ibs"] = "c_index"


class ClassificationConfig(HazardSettings):
    """Settings of classification at the cohort's horizon (``cohort.horizon_days``).

    Attributes
    ----------
    threshold : the risk from which a subject counts as positive in the confusion matrix; None is the share of training
        subjects who have the outcome by the horizon
    select_by : the validation measure of early stopping, as in `SurvivalConfig`: ``auroc``, the area under the ROC
        curve, or ``brier``, the Brier score at the horizon

    Examples
    --------
    ``[objective] name = "classification"`` and ``threshold = 0.3``, from which risk on a subject is called positive:

    >>> ClassificationConfig(threshold=0.3).threshold
    0.3
    """

    name: Literal["classification"] = "classification"
    threshold: float | None = Field(None, gt=0, lt=1)
    select_by: Literal["auroc", "brier"] = "auroc"


class MaskedTokensConfig(PretrainingSettings):
    """Settings of masked-token pretraining.

    Attributes
    ----------
    mask_probability : share of the tokens that are predicted. Of these, 80 % are replaced by [MASK] and 10 % by a
        random token, and 10 % stay as they are

    Examples
    --------
    ``[objective] name = "mlm"``: of 200 tokens, about 30 are to be predicted.

    >>> round(200 * MaskedTokensConfig().mask_probability)
    30
    """

    name: Literal["mlm"] = "mlm"
    mask_probability: float = Field(0.15, gt=0, lt=1)


class NextVisitConfig(PretrainingSettings):
    """Settings of next-visit pretraining.

    Attributes
    ----------
    n_cuts : how many visits of a subject are predicted in each epoch, each from an excerpt that ends before it; two
        excerpts together have about as many tokens as the record

    Examples
    --------
    >>> NextVisitConfig(n_cuts=3).n_cuts
    3
    """

    name: Literal["next-visit"] = "next-visit"
    n_cuts: int = Field(2, ge=1, le=1000)


class TimeToEventConfig(PretrainingSettings):
    """Settings of time-to-event pretraining.

    Attributes
    ----------
    n_codes : the most codes whose onsets are predicted: those with the most first occurrences after a cut of a training
        record
    n_pieces : the most pieces of the time axis, whose edges are quantiles of the times to first occurrences
    n_cuts : how many times a subject's record is cut in each epoch
    lasso : strength of the lasso penalty of an offset: for the onset of each code, a regression on single codes and
        values is fitted beforehand and the network fits the residual (`models.code_effects`). It takes seconds for each
        of `n_codes`, and a later fine-tuning with a lasso starts from its effects. With 0 there is no offset; .1 suited
        58,000 records and 190 codes

    Examples
    --------
    >>> TimeToEventConfig(n_codes=100).n_pieces
    8
    """

    name: Literal["time-to-event"] = "time-to-event"
    n_codes: int = Field(512, ge=1)
    n_pieces: int = Field(8, ge=1, le=1000)
    n_cuts: int = Field(2, ge=1, le=1000)
    lasso: float = Field(0.0, ge=0)


class ForecastConfig(PretrainingSettings):
    """Settings of pretraining by forecasts of how often codes come.

    Attributes
    ----------
    window_days : how many days after a cut are forecast; without it half of what is left of a training record at a cut,
        in the middle of all cuts: 12 hours for stays of two days
    n_cuts : how many times a subject's record is cut in each epoch

    Examples
    --------
    ``[objective] name = "forecast"`` and ``window_days = 0.5``:

    >>> ForecastConfig(window_days=0.5).n_cuts
    4
    """

    name: Literal["forecast"] = "forecast"
    window_days: float | None = Field(None, gt=0)
    n_cuts: int = Field(4, ge=1, le=1000)


class ContrastiveConfig(PretrainingSettings):
    """Settings of contrastive pretraining.

    Attributes
    ----------
    temperature : the temperature by which similarities are divided, tau of the paper
    projection : width of the space in which two views of a record are compared

    Examples
    --------
    >>> ContrastiveConfig(temperature=0.2).projection
    64
    """

    name: Literal["contrastive"] = "contrastive"
    temperature: float = Field(0.1, ge=1e-6)
    projection: int = Field(64, ge=2, le=65_536)


class MixedConfig(PretrainingSettings):
    """Settings of a sum of objectives.

    Attributes
    ----------
    weights : the weight of each part's mean loss, by the part's name. Losses differ in scale: that of masked tokens is
        in nats a token, that of the next visit in nats a visit, summed over all codes
    settings : settings of parts that differ from their defaults, by the part's name

    Examples
    --------
    ``[objective] name = "mixed"`` with the tables ``weights`` and ``settings``:

    >>> mixed = MixedConfig(weights={"mlm": 1.0, "next-visit": 0.5}, settings={"mlm": {"mask_probability": 0.3}})
    >>> [type(part).__name__ for part in mixed.parts().values()]
    ['MaskedTokensConfig', 'NextVisitConfig']
    >>> mixed.parts()["mlm"].mask_probability
    0.3
    """

    name: Literal["mixed"] = "mixed"
    weights: dict[str, float] = Field({"mlm": 1.0, "time-to-event": 0.1})
    settings: dict[str, dict[str, Any]] = Field({})

    @model_validator(mode="after")
    def _parts_are_right(self) -> MixedConfig:
        if not self.weights or min(self.weights.values()) <= 0 or self.name in self.weights:
            raise ValueError("weights needs one positive weight a part, such as {mlm = 1.0}, and no part is 'mixed'")
        if unknown := sorted(self.settings.keys() - self.weights.keys()):
            raise ValueError(f"settings of {', '.join(unknown)}, and weights names only {', '.join(self.weights)}")
        of_sum = PretrainingSettings.model_fields.keys() - Choice.model_fields.keys()
        if shared := sorted(of_sum & {key for part in self.settings.values() for key in part}):
            raise ValueError(f"{', '.join(shared)} is a setting of the sum, and not of a part")
        others = [name for name, part in self.parts().items() if not isinstance(part, PretrainingSettings)]
        if others:
            raise ValueError(f"weights names {', '.join(others)}: each part is an objective that pretrains on records")
        return self

    def parts(self) -> dict[str, Choice]:
        """The parts' own configurations, by name."""
        return {
            name: plugins.settings("objectives", name).model_validate(self.settings.get(name, {}))
            for name in self.weights
        }
