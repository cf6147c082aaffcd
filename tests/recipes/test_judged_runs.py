"""What recipes hand to the verdicts: which layers were to learn, and how far they went."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ehrtrack import plugins
from ehrtrack.models.behrt import ADAPTED_LAYERS, Behrt, EhrModel, ModelConfig
from ehrtrack.models.heads import HazardHead
from ehrtrack.pipeline.report import CODES, conclude, encoder_matrices, judge_encoder, learning_matrices
from ehrtrack.runlog import MemoryRunLogger
from ehrtrack.strategies.base import Strategy, strategy_of
from ehrtrack.training.sanity import Verdict


def model() -> EhrModel:
    torch.manual_seed(0)
    encoder = Behrt(ModelConfig(size="tiny"), 30)
    return EhrModel(encoder, HazardHead(encoder.width, torch.zeros(4)))


def strategy_named(name: str, **settings: Any) -> Strategy:
    return strategy_of(plugins.settings("strategies", name)(**settings))


def adapted(name: str, plain: EhrModel, **settings: Any) -> torch.nn.Module:
    return strategy_named(name, **settings).apply(plain)


def states(name: str, *, moves: tuple[str, ...] = ("",), is_pretrained: bool, **settings: Any) -> dict[str, str]:
    """Verdicts after all learning parameters whose name has one of `moves` in it took a step."""
    plain = model()
    start = encoder_matrices(plain)
    trained = adapted(name, plain, **settings)
    learning = learning_matrices(trained, strategy_named(name))
    with torch.no_grad():
        for parameter_name, p in trained.named_parameters():
            if p.requires_grad and any(part in parameter_name for part in moves):
                p.add_(0.01)
    end = strategy_named(name).merge(trained)
    return {v.check: v.state for v in judge_encoder(start, end, learning, is_pretrained=is_pretrained)}


def test_each_strategy_has_its_layers_that_are_to_learn() -> None:
    everything = set(encoder_matrices(model()))
    assert learning_matrices(adapted("frozen", model())) == set()
    assert learning_matrices(adapted("full", model())) == everything
    layers = {name for name in everything if name.split(".")[-2] in ADAPTED_LAYERS}
    assert len(layers) == 2 * 6 + 3  # two layers and the readout
    lora = strategy_named("lora")
    assert learning_matrices(adapted("lora", model(), rank=2), lora) == layers
    embedded = {name for name in everything if name.startswith("embeddings.")}
    assert learning_matrices(adapted("lora", model(), rank=2, embeddings=True), lora) == layers | embedded


def test_a_lora_whose_b_stays_zero_has_not_moved() -> None:
    assert states("lora", is_pretrained=True) == {"moved": "ok", "embeddings": "ok"}
    assert states("lora", moves=("lora_A",), is_pretrained=True)["moved"] == "fail"


def test_one_layer_of_the_adapter_that_stays_still_is_enough() -> None:
    moves = tuple(f"{layer}.lora_B" for layer in ADAPTED_LAYERS if layer != "v_proj")
    assert states("lora", moves=moves, is_pretrained=True)["moved"] == "fail"


@pytest.mark.parametrize("name", ["frozen", "lora"])
def test_frozen_random_embeddings_are_flagged_and_pretrained_ones_are_not(name: str) -> None:
    assert states(name, is_pretrained=False)["embeddings"] == "fail"
    assert states(name, is_pretrained=True)["embeddings"] == "ok"
    assert states(name, is_pretrained=False, embeddings=True)["embeddings"] == "ok"


def test_codes_are_the_embeddings_that_count() -> None:
    assert CODES in encoder_matrices(model())


def test_a_run_ends_with_its_verdict_in_description_and_tags(capsys: pytest.CaptureFixture[str]) -> None:
    logger = MemoryRunLogger()
    conclude(logger, "### Run\n", [Verdict("learned", "ok", "good"), Verdict("overfit", "warn", "a gap")])
    assert logger.tags == {"sanity.learned": "ok", "sanity.overfit": "warn", "sanity.verdict": "warn"}
    assert logger.description.startswith("### Run\n\n#### Sanity: warn")
    assert capsys.readouterr().out == "sanity  warn  overfit: a gap\n"
