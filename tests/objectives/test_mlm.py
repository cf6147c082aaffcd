"""Masked-token pretraining: what is hidden, what is scored, and that learning means knowing codes that go together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from simulated import Population, random_store, study, write_dataset
from torch import Tensor, nn

from ehrtrack.data.batch import Batch, Batches, collate
from ehrtrack.data.vocabulary import CLS, MASK, PAD, SPECIAL_TOKENS
from ehrtrack.models.behrt import Behrt, EhrModel, ModelConfig
from ehrtrack.objectives import mlm
from ehrtrack.objectives.base import TrainingFacts
from ehrtrack.objectives.mlm import MaskedTokens, MaskedTokensConfig, mask_tokens
from ehrtrack.pipeline.prepare import Records, prepare_records
from ehrtrack.runlog import MemoryRunLogger
from ehrtrack.training.loop import FitResult, TrainConfig, evaluate, fit
from ehrtrack.training.ranks import join_ranks

ALONE = join_ranks("cpu")
V = 200
N_SPECIAL = len(SPECIAL_TOKENS)


@pytest.fixture(scope="module")
def big() -> Batch:
    """60,000 tokens and more."""
    return collate(random_store(2500, V, longest=30), np.arange(2500), max_tokens=100)


@pytest.fixture(scope="module")
def masked(big: Batch) -> Batch:
    return mask_tokens(big, 0.15, V, torch.Generator().manual_seed(0))


def test_the_mask_is_not_the_padding() -> None:
    assert (SPECIAL_TOKENS[MASK], SPECIAL_TOKENS[PAD]) == ("[MASK]", "[PAD]")
    assert MASK != PAD


def test_fifteen_per_cent_of_the_codes_are_targets(big: Batch, masked: Batch) -> None:
    assert masked.targets is not None
    n_codes = int((big.token >= N_SPECIAL).sum())
    assert n_codes > 60_000
    assert len(masked.targets) / n_codes == pytest.approx(0.15, abs=0.005)


def test_of_the_targets_80_per_cent_show_mask_10_a_random_code_10_themselves(masked: Batch) -> None:
    assert masked.targets is not None
    shown = masked.token[masked.target_positions]
    is_mask, is_same = shown == MASK, shown == masked.targets
    assert float(is_mask.float().mean()) == pytest.approx(0.8, abs=0.015)
    assert float(is_same.float().mean()) == pytest.approx(0.1 + 0.1 / (V - N_SPECIAL), abs=0.01)
    others = shown[~is_mask & ~is_same]
    assert len(others) / len(shown) == pytest.approx(0.1, abs=0.01)
    assert int(others.min()) == N_SPECIAL
    assert int(others.max()) == V - 1


def test_special_tokens_are_never_targets(big: Batch, masked: Batch) -> None:
    assert masked.targets is not None
    assert int(masked.targets.min()) >= N_SPECIAL
    assert torch.equal(masked.token == CLS, big.token == CLS)


def test_targets_are_the_hidden_tokens_and_nothing_else_changes(big: Batch, masked: Batch) -> None:
    assert masked.target_positions is not None
    assert torch.equal(big.token[masked.target_positions], masked.targets)
    is_target = torch.zeros(len(big.token), dtype=torch.bool)
    is_target[masked.target_positions] = True
    assert torch.equal(big.token[~is_target], masked.token[~is_target])
    for name in ("age", "segment", "position", "gap", "days_to_end"):
        assert getattr(masked, name) is getattr(big, name)


def test_masks_are_drawn_anew_at_each_pass(big: Batch) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (mask_tokens(big, 0.15, V, generator).target_positions for _ in range(2))
    assert first is not None
    assert second is not None
    assert not torch.equal(first, second)


def test_a_batch_always_has_a_target() -> None:
    batch = collate(random_store(3, V), np.array([1]), max_tokens=20)
    masked = mask_tokens(batch, 1e-9, V, torch.Generator().manual_seed(0))
    assert masked.targets is not None
    assert len(masked.targets) == 1


class Uniform(nn.Module):
    """Gives every token the same logit, and remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Batch] = []

    def forward(self, batch: Batch) -> Tensor:
        self.seen.append(batch)
        assert batch.targets is not None
        return torch.zeros(len(batch.targets), V)


def batches_of(n_subjects: int, seed: int = 0) -> Batches:
    return Batches(random_store(n_subjects, V, seed), np.arange(n_subjects), 400, 60)


def test_validation_hides_the_same_tokens_at_every_call() -> None:
    objective, model = MaskedTokens(MaskedTokensConfig(), TrainingFacts(np.ones(V, dtype=np.int64))), Uniform()
    first, second = (evaluate(model, objective, batches_of(64), ALONE) for _ in range(2))
    assert first == second
    tokens = [batch.token for batch in model.seen]
    half = len(tokens) // 2
    assert all(torch.equal(a, b) for a, b in zip(tokens[:half], tokens[half:], strict=True))


def test_validation_losses_equal_an_independent_computation() -> None:
    counts = np.random.default_rng(0).integers(0, 50, V)
    objective, model = MaskedTokens(MaskedTokensConfig(), TrainingFacts(counts)), Uniform()
    metrics = evaluate(model, objective, batches_of(64), ALONE)
    targets = np.concatenate([batch.targets.numpy() for batch in model.seen if batch.targets is not None])
    # add one to every code, and give the specials one each as well: they are never targets
    share = np.where(np.arange(V) < N_SPECIAL, 1, counts + 1) / (N_SPECIAL + (counts[N_SPECIAL:] + 1).sum())
    assert metrics["val/unigram_loss"] == pytest.approx(-np.log(share[targets]).mean(), abs=1e-5)
    assert metrics["val/mlm_loss"] == pytest.approx(np.log(V), abs=1e-5)
    assert metrics["val/loss"] == metrics["val/mlm_loss"]
    assert metrics["val/mlm_accuracy"] == np.mean(targets == 0)


def test_the_training_loss_is_the_cross_entropy_of_the_targets() -> None:
    objective, model = MaskedTokens(MaskedTokensConfig(), TrainingFacts(np.ones(V, dtype=np.int64))), Uniform()
    loss = objective.loss(model, next(iter(batches_of(16))))
    assert loss.mean == pytest.approx(np.log(V), abs=1e-5)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    folder = tmp_path_factory.mktemp("mlm")
    write_dataset(folder / "meds", Population(n_subjects=400))
    return prepare_records(study(folder / "meds", folder / "cache", objective={"name": "mlm"}))


def train(records: Records, folder: Path, epochs: int) -> FitResult:
    torch.manual_seed(0)
    objective = MaskedTokens(MaskedTokensConfig(), TrainingFacts(records.token_counts()))
    encoder = Behrt(ModelConfig(size="tiny", dropout=0.0), len(records.vocabulary))
    return fit(
        EhrModel(encoder, objective.make_head(encoder.width)),
        objective,
        training=lambda epoch: Batches(records.store, records.rows["train"], 300, 64, shuffle_seed=epoch),
        validation=Batches(records.store, records.rows["validation"], 1024, 64),
        config=TrainConfig(epochs=epochs, lr=5e-3, patience=epochs),
        ranks=ALONE,
        folder=folder,
        logger=MemoryRunLogger(),
    )


def test_codes_that_go_together_are_learned_well_below_the_unigram_loss(records: Records, tmp_path: Path) -> None:
    best = train(records, tmp_path / "as they are", epochs=8).kept
    assert best["val/mlm_loss"] < 0.7 * best["val/unigram_loss"]
    # the same codes at the same places, dealt out among subjects: what is left is what places tell of codes
    is_disease = np.array([token.startswith("DISEASE//") for token in records.vocabulary.tokens])[records.store.token]
    dealt = records.store.token.copy()
    dealt[is_disease] = np.random.default_rng(0).permutation(dealt[is_disease])
    scattered = replace(records, store=replace(records.store, token=dealt))
    without = train(scattered, tmp_path / "dealt out", epochs=8).kept
    assert best["val/mlm_loss"] < without["val/mlm_loss"] - 0.2


def test_shuffled_codes_leave_nothing_to_learn_below_the_unigram_loss(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All targets show [MASK]: where a fifth shows some code, that half of these are right can be learned."""

    def hide_all(batch: Batch, probability: float, size: int, generator: torch.Generator) -> Batch:
        masked = mask_tokens(batch, probability, size, generator)
        assert masked.target_positions is not None
        return replace(masked, token=masked.token.index_fill(0, masked.target_positions, MASK))

    monkeypatch.setattr(mlm, "mask_tokens", hide_all)
    token = np.random.default_rng(0).permutation(records.store.token)
    shuffled = replace(records, store=replace(records.store, token=token))
    best = train(shuffled, tmp_path, epochs=6).kept
    assert best["val/mlm_loss"] > best["val/unigram_loss"] - 0.03


def test_mask_probability_is_what_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def spy(batch: Batch, probability: float, size: int, generator: torch.Generator) -> Batch:
        seen.append(probability)
        return mask_tokens(batch, probability, size, generator)

    monkeypatch.setattr(mlm, "mask_tokens", spy)
    objective = MaskedTokens(MaskedTokensConfig(mask_probability=0.4), TrainingFacts(np.ones(V, dtype=np.int64)))
    batches: Iterable[Batch] = batches_of(16)
    objective.loss(Uniform(), next(iter(batches)))
    objective.score(Uniform(), next(iter(batches)))
    assert seen == [0.4, 0.4]
