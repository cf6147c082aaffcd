"""Fitting the effects of single codes: the least of the penalised loss, few and the right effects, and onsets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from simulated import random_store

from ehrtrack.data.batch import Batches
from ehrtrack.data.outcomes import Outcomes
from ehrtrack.models.behrt import Behrt, EhrModel, ModelConfig
from ehrtrack.models.code_effects import CodeEffects
from ehrtrack.models.record_columns import Levels
from ehrtrack.models.settings import READOUT_DAYS
from ehrtrack.objectives._code_effects import fit_onset_effects, read_table
from ehrtrack.objectives.base import OutcomeObjective, TrainingFacts
from ehrtrack.objectives.classification import Classification
from ehrtrack.objectives.competing_risks import CompetingRisks
from ehrtrack.objectives.survival import Survival, SurvivalConfig

N, V, DRIVER = 300, 40, 7
STORE = random_store(N, V)
HAS_DRIVER = np.array([DRIVER in STORE.token[a:b] for a, b in zip(STORE.offsets, STORE.offsets[1:], strict=False)])
LEVELS = Levels(torch.full((V,), -1), torch.zeros(V))
FIRST = CodeEffects.N_OF_RECORD
"""The column of the first token's presence."""


def facts(log_hazard: np.ndarray | None = None, onsets: CodeEffects | None = None) -> TrainingFacts:
    """With a hazard that is eight times as high for those who have one code, unless told otherwise."""
    rng = np.random.default_rng(0)
    days = rng.exponential(np.where(HAS_DRIVER, 60, 500) if log_hazard is None else 300 * np.exp(-log_hazard))
    cause = np.where(days <= 365, 1 + (rng.random(N) < 0.5), 0)
    outcomes = Outcomes(np.minimum(days, 365), days <= 365, cause)
    records = Batches(STORE, np.arange(N), 400, 64, outcomes=outcomes)
    return TrainingFacts(np.ones(V, dtype=np.int64), outcomes, 365.0, records, LEVELS, onsets=onsets)


def sizes(codes: CodeEffects) -> np.ndarray:
    """(V,) of all effects of a token together."""
    of_token = codes.effect[FIRST : FIRST + V * (CodeEffects.N_OF_TOKEN + len(codes.scales_days))]
    return of_token.abs().reshape(V, -1).sum(dim=1).numpy()  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [Survival, CompetingRisks, Classification])
def test_the_code_that_matters_has_the_largest_effect_and_most_have_none(kind: type[OutcomeObjective]) -> None:
    codes = kind(kind.Config(lasso=0.5), facts()).codes
    found = sizes(codes)
    assert found.argmax() == DRIVER
    assert (found == 0).mean() > 0.6
    assert codes.effect.shape[1] == (2 if kind is CompetingRisks else 1)


def test_a_stronger_penalty_leaves_fewer_and_smaller_effects() -> None:
    weak, strong = (sizes(Survival(SurvivalConfig(lasso=s), facts()).codes) for s in (0.1, 0.5))
    assert (strong > 0).sum() < (weak > 0).sum() / 2
    assert strong[DRIVER] < weak[DRIVER]


@pytest.mark.parametrize("strength", [0.15, 0.3])  # at the first, L-BFGS-B ends too early and has to start again
def test_no_small_change_of_an_effect_lowers_the_penalised_loss(strength: float) -> None:
    objective = Survival(SurvivalConfig(lasso=strength), facts())
    assert objective.codes is not None
    batch = next(iter(Batches(STORE, np.arange(N), 10**6, 64, outcomes=facts().outcomes)))
    entries = objective.codes.entries(batch)
    table = torch.zeros(N, len(objective.codes.effect)).index_put((entries.subject, entries.column), entries.value)
    used = (table != 0).any(dim=0)
    spread = table.std(dim=0, correction=0) + 0.01
    weight = strength * np.sqrt(np.log(int(used.sum())) / N)
    shift = objective.codes(batch).detach().requires_grad_()
    logits = shift + objective.baseline_logits()
    objective._loss(logits, facts().outcomes).backward()  # type: ignore[no-untyped-call, arg-type]
    slope = (table.T @ shift.grad / spread[:, None])[used].flatten()  # type: ignore[operator]
    effect = objective.codes.effect[used].flatten()
    assert float(shift.grad.sum().abs()) < 1e-3  # type: ignore[union-attr]
    assert float(slope.abs().max()) < 1.02 * weight  # those at 0 gain less than the penalty takes
    not_zero = effect != 0
    torch.testing.assert_close(slope[not_zero], -weight * effect[not_zero].sign(), rtol=0, atol=0.02 * weight)


@pytest.mark.parametrize("kind", [Survival, CompetingRisks, Classification])
def test_where_no_code_is_let_in_the_intercept_does_not_move_the_population(kind: type[OutcomeObjective]) -> None:
    """The baseline is where the likelihood is greatest, with staggered entry and half of the subjects censored too."""
    plain = facts()
    assert plain.outcomes is not None
    rng, came = np.random.default_rng(1), plain.outcomes.follow_up_days
    end = np.minimum(rng.uniform(1, 800, N), 365)
    is_event = plain.outcomes.is_event & (came <= end)
    outcomes = Outcomes(np.minimum(came, end), is_event, np.where(is_event, plain.outcomes.cause, 0))
    records = replace(plain.records, outcomes=outcomes)  # type: ignore[type-var]
    codes = kind(kind.Config(lasso=100.0), replace(plain, outcomes=outcomes, records=records)).codes
    assert not codes.effect.any()
    np.testing.assert_allclose(codes.intercept.numpy(), 0, atol=2e-3)


def test_without_a_strength_the_head_has_none_and_with_one_it_predicts_with_them_from_the_start() -> None:
    torch.manual_seed(0)
    encoder = Behrt(ModelConfig(size="tiny"), V)
    plain, fitted = (Survival(SurvivalConfig(lasso=s), facts()) for s in (0.0, 0.3))
    assert plain.make_head(encoder.width).codes is None  # type: ignore[attr-defined]
    batch = next(iter(Batches(STORE, np.arange(N), 10**6, 64)))
    with torch.no_grad():
        logits = EhrModel(encoder, fitted.make_head(encoder.width)).eval()(batch)
        expected = fitted.codes(batch) + fitted.baseline_logits()  # type: ignore[misc]
    torch.testing.assert_close(logits, expected, rtol=0, atol=0.15)
    assert expected.std(dim=0).min() > 0.3


def table_of(codes: CodeEffects) -> torch.Tensor:
    """(N, P)"""
    entries = codes.entries(next(iter(Batches(STORE, np.arange(N), 10**6, 64))))
    return torch.zeros(N, len(codes.effect)).index_put((entries.subject, entries.column), entries.value)


def onsets_with(effect: torch.Tensor) -> CodeEffects:
    return CodeEffects.nothing(LEVELS, READOUT_DAYS, effect.shape[1]).with_effects(effect, torch.zeros(effect.shape[1]))


def test_an_outcome_that_follows_what_an_onset_follows_is_found_by_few_subjects() -> None:
    """Thirty small effects are too many for 300 subjects, unless pretraining knows how they lie to each other."""
    torch.manual_seed(1)
    n_scales = len(READOUT_DAYS)
    presence = FIRST + torch.arange(5, 35) * (CodeEffects.N_OF_TOKEN + n_scales)
    effect = torch.zeros(CodeEffects.n_columns(LEVELS, n_scales), 12)
    effect[presence] = torch.randn(30, 12)  # the first onset is followed, the others are of no use
    onsets = onsets_with(effect)
    truth = (table_of(onsets) @ effect[:, 0]).numpy()
    truth = (truth - truth.mean()) / truth.std()

    def agreement(known: CodeEffects | None) -> float:
        codes = Survival(SurvivalConfig(lasso=0.3), facts(truth, known)).codes
        assert codes is not None
        assert codes.effect.shape == (len(effect), 1)  # nothing of the onsets is needed to predict
        return float(np.corrcoef((table_of(codes) @ codes.effect)[:, 0].numpy(), truth)[0, 1])

    assert agreement(onsets) > 0.92  # .94 to .96 with four seeds
    assert agreement(None) < 0.9  # .82 to .88


def test_onsets_that_say_nothing_are_passed_over() -> None:
    torch.manual_seed(0)
    noise = onsets_with(torch.randn(CodeEffects.n_columns(LEVELS, len(READOUT_DAYS)), 3) * 0.01)
    with_noise, without = (Survival(SurvivalConfig(lasso=0.5), facts(onsets=o)).codes for o in (noise, None))
    assert with_noise is not None
    assert without is not None
    torch.testing.assert_close(with_noise.effect, without.effect, rtol=0, atol=0.02)
    assert sizes(with_noise).argmax() == DRIVER


def onset_of(came: np.ndarray, expected: np.ndarray, strength: float) -> CodeEffects:
    histories = Batches(STORE, np.arange(N), 400, 64)
    return fit_onset_effects(strength, facts(), histories, expected, came)


def test_a_regression_of_an_onset_agrees_with_poisson_regression() -> None:
    """The library's penalty is another one, so both go without: few columns, and many more subjects than columns."""
    from sklearn.linear_model import PoissonRegressor

    store = random_store(4000, 6, longest=6)
    rng = np.random.default_rng(0)
    reader = CodeEffects.nothing(Levels(torch.full((6,), -1), torch.zeros(6)), (30.0,), 1)
    histories = list(Batches(store, np.arange(4000), 100_000, 64))
    table = read_table(reader, histories)
    expected = rng.uniform(0.1, 2.0, (4000, 1))
    came = (rng.random((4000, 1)) < np.minimum(expected * np.exp(table[:, [4]].toarray() - 1), 1)).astype(float)
    known = TrainingFacts(np.ones(6, dtype=np.int64), levels=Levels(reader.code, reader.level), scales_days=(30.0,))
    effects = fit_onset_effects(1e-6, known, histories, expected, came)
    used = np.flatnonzero(np.diff(table.tocsc().indptr))
    library = PoissonRegressor(alpha=0, tol=1e-8, max_iter=5000).fit(
        table[:, used].toarray(), (came / expected)[:, 0], sample_weight=expected[:, 0]
    )
    ours = table @ effects.effect.double().numpy() + effects.intercept.double().numpy()
    np.testing.assert_allclose(ours[:, 0], table[:, used] @ library.coef_ + library.intercept_, atol=0.05)


def test_the_code_that_an_onset_follows_is_found_and_a_rare_onset_needs_no_other_strength() -> None:
    rng = np.random.default_rng(0)
    rates = np.where(HAS_DRIVER[:, None], [0.6, 0.12], [0.06, 0.004])
    came = (rng.random((N, 2)) < rates).astype(float)
    assert came.sum(axis=0).min() < 20
    effects = onset_of(came, np.full((N, 2), 0.05), strength=0.6)
    for number in range(2):
        found = sizes(effects.with_effects(effects.effect[:, [number]], effects.intercept[[number]]))
        assert found.argmax() == DRIVER
        assert (found < 1e-3).mean() > 0.6


def test_without_a_code_that_tells_it_an_onset_has_the_populations_hazard() -> None:
    came = np.zeros((N, 1))
    came[::10] = 1
    effects = onset_of(came, np.full((N, 1), 0.5), strength=50.0)
    assert int(effects.effect.count_nonzero()) == 0
    assert float(effects.intercept[0]) == pytest.approx(np.log(0.1 / 0.5), abs=1e-3)


def test_an_onset_that_never_came_has_no_effects() -> None:
    effects = onset_of(np.zeros((N, 1)), np.full((N, 1), 0.5), strength=0.1)
    assert int(effects.effect.count_nonzero()) == 0
    assert int(effects.intercept.count_nonzero()) == 0
