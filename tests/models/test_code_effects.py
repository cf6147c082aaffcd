"""The regression on single codes and values that a hazard head may start from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from simulated import random_store

from ehrtrack.data.batch import Batch, collate
from ehrtrack.data.vocabulary import CLS, SPECIAL_TOKENS, Vocabulary
from ehrtrack.models.code_effects import CodeEffects
from ehrtrack.models.heads import HazardHead
from ehrtrack.models.record_columns import Groups, Levels

V = 12  # few, so that codes come again
SCALES = torch.tensor([1.0, 30.0, 365.25])


def batch_of(n_subjects: int) -> Batch:
    return collate(random_store(n_subjects, V, longest=9), np.arange(n_subjects), max_tokens=64)


def levels_of_two_codes() -> Levels:
    levels = Levels(torch.full((V,), -1), torch.zeros(V))
    levels.code[5:8], levels.level[5:8] = 1, torch.tensor([0.0, 1.0, -1.0])
    levels.code[9:11], levels.level[9:11] = 0, torch.tensor([-1.0, 1.0])
    return levels


def random_effects(levels: Levels, n_outputs: int) -> CodeEffects:
    torch.manual_seed(0)
    effect = torch.randn(CodeEffects.n_columns(levels, len(SCALES)), n_outputs)
    return CodeEffects(levels, SCALES, effect, torch.randn(n_outputs))


def test_a_code_of_a_subject_is_seen_once_with_its_count_and_its_last_time() -> None:
    batch = batch_of(6)
    expected = []
    for subject, (tokens, days) in enumerate(
        zip(batch.token.split(batch.lengths), batch.days_to_end.split(batch.lengths), strict=True)
    ):
        for code in sorted(set(tokens.tolist()) - {CLS}):
            is_code = tokens == code
            expected.append((subject, code, int(is_code.sum()), float(days[is_code][-1])))
    assert max(n_times for _, _, n_times, _ in expected) > 1
    groups = Groups.of(batch, torch.where(batch.token == CLS, -1, batch.token))
    columns = (batch.subject[groups.last], batch.token[groups.last], groups.n_places, batch.days_to_end[groups.last])
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected


def by_hand(effects: CodeEffects, batch: Batch, subject: int) -> np.ndarray:
    """(R,) the sum over one subject's columns, in double precision."""
    span = slice(sum(batch.lengths[:subject]), sum(batch.lengths[: subject + 1]) - 1)  # without [CLS]
    tokens, days, visits = batch.token[span].tolist(), batch.days_to_end[span].double().numpy(), batch.position[span]
    effect = effects.effect.double().numpy()
    of_record, of_token, of_level = np.split(effect, np.cumsum([4, V * (2 + len(SCALES))]))
    dated = days[np.isfinite(days)]
    first, last = (dated.max(), dated.min()) if len(dated) else (0, 0)
    n_visits = len(set(visits[np.isfinite(days)].tolist()))
    age = int(batch.age[span.stop])
    total = effects.intercept.double().numpy() + np.array([age, *np.log1p([n_visits, first - last, last])]) @ of_record
    for token in set(tokens):
        since = min(day for day, other in zip(days, tokens, strict=True) if other == token)
        decays = [1.0 if since == np.inf else np.exp(-since / scale) for scale in SCALES.tolist()]
        total += np.array([1.0, np.log(tokens.count(token)), *decays]) @ of_token.reshape(V, -1, 2)[token]
    code, level = effects.code.tolist(), effects.level.double().tolist()
    for number in set(code) - {-1}:
        if levels := [level[token] for token in tokens if code[token] == number]:
            since = np.array(
                [0 if day == np.inf else day for day, t in zip(days, tokens, strict=True) if code[t] == number]
            )
            lately = [np.average(levels, weights=np.exp(-since / scale)) for scale in SCALES.double().tolist()]
            summary = [levels[0], levels[-1], min(levels), max(levels), np.mean(levels), np.std(levels), *lately]
            total += np.array(summary) @ of_level.reshape(-1, 6 + len(SCALES), 2)[number]
    return total


@pytest.mark.parametrize("has_values", [True, False])
def test_effects_are_of_the_record_its_codes_their_counts_and_last_times_and_levels_of_values(has_values: bool) -> None:
    levels = levels_of_two_codes() if has_values else Levels(torch.full((V,), -1), torch.zeros(V))
    effects, batch = random_effects(levels, 2), batch_of(12)
    expected = [by_hand(effects, batch, subject) for subject in range(12)]
    np.testing.assert_allclose(effects(batch), expected, rtol=1e-4, atol=1e-4)


def test_means_of_values_that_are_long_past_are_numbers() -> None:
    levels = levels_of_two_codes()
    effects = CodeEffects(levels, torch.tensor([0.01]), torch.ones(CodeEffects.n_columns(levels, 1), 1), torch.zeros(1))
    batch = batch_of(12)
    assert float(batch.days_to_end.nan_to_num(posinf=0).max()) > 100  # whose weights are exp(-10,000)
    assert effects(batch).isfinite().all()


def test_a_head_adds_them_to_all_hazards_of_a_subject_and_no_gradient_reaches_them() -> None:
    effects, batch = random_effects(levels_of_two_codes(), 3), batch_of(5)
    torch.manual_seed(0)
    with_codes = HazardHead(6, torch.randn(4, 3), effects).eval()
    without = HazardHead(6, torch.zeros(4, 3)).eval()
    without.load_state_dict({k: v for k, v in with_codes.state_dict().items() if not k.startswith("codes.")})
    hidden = torch.randn(len(batch.token), 6)
    change = with_codes(hidden, batch, torch.zeros(0)) - without(hidden, batch, torch.zeros(0))
    torch.testing.assert_close(change.unflatten(1, (4, 3)), effects(batch)[:, None].expand(5, 4, 3))
    assert not any(name.startswith("codes.") for name, _ in with_codes.named_parameters())


def test_they_come_back_from_a_models_tensors() -> None:
    effects, batch = random_effects(levels_of_two_codes(), 2), batch_of(5)
    weights = {f"head.codes.{name}": tensor for name, tensor in effects.state_dict().items()}
    again = CodeEffects.from_weights(weights, "head.codes.")
    assert again is not None
    assert torch.equal(again(batch), effects(batch))
    assert CodeEffects.from_weights({}, "head.codes.") is None


@pytest.mark.parametrize(
    ("broken", "error"),
    [("effect", ValueError), ("intercept", ValueError), ("scales_days", ValueError), ("level", KeyError)],
)
def test_tensors_that_do_not_fit_each_other_are_refused(broken: str, error: type[Exception]) -> None:
    weights = dict(random_effects(levels_of_two_codes(), 2).state_dict())
    if broken == "level":
        del weights[broken]
    else:
        weights[broken] = weights[broken][:-1]
    with pytest.raises(error):
        CodeEffects.from_weights(weights, "")


def test_levels_are_those_of_a_vocabularys_bins() -> None:
    tokens = (*SPECIAL_TOKENS, "LAB//Q3", "DX", "LAB//Q1", "LAB", "BP//Q1", "LAB//Q2", "BP//Q2")
    vocabulary = Vocabulary(tokens, {"LAB": (1.0, 2.0), "BP": (80.0,), "NEVER": (0.0,)})
    levels = Levels.of(vocabulary)
    assert levels.code.tolist() == [-1, -1, -1, -1, 0, -1, 0, -1, 1, 0, 1]
    assert levels.level.tolist() == [0, 0, 0, 0, 1, 0, -1, 0, -1, 0, 1]
