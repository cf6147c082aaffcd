"""LoRA and its relatives: how much learns, what is refused, and that a stock peft reads what was written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import peft
import polars as pl
import pytest
import torch
from simulated import random_store
from torch import nn

from ehrtrack import plugins
from ehrtrack.data.batch import Batch, collate
from ehrtrack.models.behrt import ADAPTED_LAYERS, SIZES, Behrt, EhrModel, ModelConfig
from ehrtrack.models.code_effects import CodeEffects
from ehrtrack.models.heads import HazardHead
from ehrtrack.models.record_columns import Levels
from ehrtrack.section import Choice
from ehrtrack.strategies.base import Base, parameter_table, strategy_of
from ehrtrack.strategies.lora import Lora
from ehrtrack.strategies.settings import LoraConfig
from ehrtrack.training.checkpoint import save_tensors
from ehrtrack.training.loop import set_training_mode

N_INTERVALS = 20


def base(size: str = "tiny", vocabulary_size: int = 1000, seed: int = 0) -> EhrModel:
    torch.manual_seed(seed)
    encoder = Behrt(ModelConfig(size=size), vocabulary_size)
    return EhrModel(encoder, HazardHead(encoder.width, torch.zeros(N_INTERVALS)))


LORA = Lora(LoraConfig())


def batch() -> Batch:
    return collate(random_store(12, 40), np.arange(12), max_tokens=30)


def config_of(name: str, **settings: Any) -> Choice:
    return plugins.settings("strategies", name)(**settings)


def table_of(name: str, model: nn.Module) -> pl.DataFrame:
    return parameter_table(model, strategy_of(config_of(name)))


def apply(name: str, model: EhrModel, **settings: Any) -> nn.Module:
    return strategy_of(config_of(name, **settings)).apply(model)


def n_trainable(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def shake(model: nn.Module) -> nn.Module:
    """Move everything that learns, as training would."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


@pytest.mark.parametrize("size", list(SIZES))
def test_frozen_trains_less_than_lora_and_lora_less_than_full(size: str) -> None:
    frozen, adapted, full = (n_trainable(apply(name, base(size))) for name in ("frozen", "lora", "full"))
    assert 0 < frozen < adapted < full
    assert full == n_trainable(base(size))
    assert frozen == n_trainable(base(size).head)


def test_lora_adds_rank_times_in_plus_out_to_each_linear_layer() -> None:
    model = apply("lora", base(), rank=3)
    d, f, n_layers = SIZES["tiny"].width, SIZES["tiny"].mlp_width, SIZES["tiny"].n_layers
    readout = (d + d) + (7 * d + d) + (d + d)  # a detector for each feature, read in seven ways
    expected = 3 * (n_layers * (4 * (d + d) + 2 * (d + f)) + readout)
    table = {row["part"]: row["total"] for row in table_of("lora", model).iter_rows(named=True)}
    assert table["adapter"] == expected
    wrapped = {n.split(".lora_")[0].rsplit(".", 1)[-1] for n, _ in model.named_parameters() if "lora_" in n}
    assert wrapped == set(ADAPTED_LAYERS)


@pytest.mark.parametrize("name", ["frozen", "lora"])
def test_embeddings_learn_only_if_asked(name: str) -> None:
    for embeddings in (False, True):
        model = apply(name, base(), embeddings=embeddings)
        table = {row["part"]: row for row in table_of(name, model).iter_rows(named=True)}
        n_embedding = sum(p.numel() for p in base().encoder.embeddings.parameters())
        assert table["embedding"]["total"] == n_embedding
        assert table["embedding"]["trainable"] == (n_embedding if embeddings else 0)
        assert table["encoder"]["trainable"] == 0


@pytest.mark.parametrize(
    ("name", "settings", "is_pretrained", "reason"),
    [
        ("frozen", {}, False, "no pretrained encoder"),
        ("frozen", {"embeddings": True}, False, "no pretrained encoder"),
        ("lora", {}, False, "embeddings are frozen"),
        ("lora", {"embeddings": True}, False, None),
        ("full", {}, False, "no"),
        ("scratch", {}, True, None),
        ("lora", {"rank": 32}, True, None),
        ("lora", {"rank": 33}, True, "strategy.rank is 33 and the encoder is 32 wide.*at most 32"),
        ("lora", {"rank": 500, "embeddings": True}, False, "strategy.rank is 500"),
        ("frozen", {}, True, None),
        ("lora", {}, True, None),
        ("full", {}, True, None),
        ("scratch", {}, False, None),
    ],
)
def test_what_cannot_learn_is_refused(
    name: str, settings: dict[str, Any], is_pretrained: bool, reason: str | None
) -> None:
    answer = strategy_of(config_of(name, **settings)).refuse(is_pretrained=is_pretrained, width=32)
    assert (answer is None) if reason is None else (answer is not None and re.search(reason, answer))


def test_dropout_is_off_in_a_frozen_encoder_and_on_under_adapters() -> None:
    frozen = apply("frozen", base())
    set_training_mode(frozen)
    encoder = frozen.get_submodule("encoder")
    assert not any(module.training for module in encoder.modules() if isinstance(module, nn.Dropout))
    adapted = apply("lora", base())
    set_training_mode(adapted)
    dropouts = [module for module in adapted.modules() if isinstance(module, nn.Dropout)]
    assert dropouts
    assert all(module.training for module in dropouts)


@pytest.mark.parametrize("embeddings", [False, True])
def test_a_stock_peft_loads_the_adapter_on_the_base_and_predicts_the_same(tmp_path: Path, embeddings: bool) -> None:
    model = shake(apply("lora", base(), rank=4, embeddings=embeddings))
    LORA.save_adapter(model, tmp_path)
    fresh = peft.PeftModel.from_pretrained(base(), str(tmp_path)).eval()
    with torch.no_grad():
        expected, found, plain = model(batch()), fresh(batch()), base().eval()(batch())
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert (expected - plain).abs().max() > 0.01


LEVELS = Levels(torch.full((1000,), -1), torch.zeros(1000))
NOTHING = torch.zeros(CodeEffects.n_columns(LEVELS, 1), 1)


def base_with(effect: torch.Tensor) -> EhrModel:
    """A base whose head starts from the effects of codes, as `objective.lasso` makes it."""
    model = base()
    assert isinstance(model.head, HazardHead)
    model.head.codes = CodeEffects(LEVELS, torch.ones(1), effect, torch.zeros(1))
    return model.eval()


def test_a_stock_peft_refuses_a_base_that_lacks_a_part_of_the_adapters_head(tmp_path: Path) -> None:
    """It would pass over the effects of codes, and predict without them."""
    LORA.save_adapter(shake(apply("lora", base_with(NOTHING + 1), rank=4)), tmp_path)
    with pytest.raises(RuntimeError, match=r"such as head\.codes\.code, .*it lacks a part.*adapter_base"):
        peft.PeftModel.from_pretrained(base(), str(tmp_path))


def test_a_stock_peft_refuses_a_base_with_a_part_that_the_adapter_lacks(tmp_path: Path) -> None:
    LORA.save_adapter(shake(apply("lora", base(), rank=4)), tmp_path)
    with pytest.raises(KeyError, match=r"head\.codes"):
        peft.PeftModel.from_pretrained(base_with(NOTHING + 1), str(tmp_path))


@pytest.mark.parametrize(("lasso", "parts"), [(False, ["encoder", "head"]), (True, ["encoder", "head", "head.codes"])])
def test_an_adapters_configuration_says_what_its_base_is(tmp_path: Path, lasso: bool, parts: list[str]) -> None:
    made = Base("pretrained", "runs:/abc/model", "0123456789abcdef", "classification")
    LORA.save_adapter(apply("lora", base_with(NOTHING) if lasso else base(), rank=4), tmp_path, base=made)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "runs:/abc/model"
    said = {"kind": "pretrained", "fingerprint": "0123456789abcdef", "objective": "classification", "parts": parts}
    assert config["auto_mapping"]["base"] == said
    assert peft.PeftConfig.from_pretrained(str(tmp_path)).auto_mapping["base_model_class"] == "EhrModel"


def test_weights_that_no_part_takes_are_refused_even_where_a_part_of_them_would_do() -> None:
    weights = base_with(NOTHING).state_dict()
    with pytest.raises(RuntimeError, match="have no place in this model"):
        base().load_state_dict(weights, strict=False)
    with_less = {name: value for name, value in base().state_dict().items() if name.startswith("encoder.")}
    assert base().load_state_dict(with_less, strict=False).unexpected_keys == []


def test_effects_of_codes_are_kept_with_the_adapter_and_do_not_learn(tmp_path: Path) -> None:
    model = shake(apply("lora", base_with(NOTHING + 1), rank=4))
    LORA.save_adapter(model, tmp_path)
    fresh = peft.PeftModel.from_pretrained(base_with(NOTHING), str(tmp_path)).eval()
    with torch.no_grad():
        torch.testing.assert_close(fresh(batch()), model(batch()), atol=1e-6, rtol=1e-6)  # logits of a hundred
        assert (model(batch()) - apply("lora", base_with(NOTHING), rank=4)(batch())).abs().min() > 1


def test_merging_folds_a_strong_adapter_in_to_1e_5() -> None:
    model = shake(apply("lora", base(), rank=8, alpha=32))
    merged = LORA.merge(model)
    with torch.no_grad():
        torch.testing.assert_close(merged.eval()(batch()), model(batch()), atol=1e-5, rtol=0)
    assert not any("lora" in name for name, _ in merged.named_parameters())


@pytest.mark.parametrize(("size", "rank", "share"), [("small", 8, 0.20), ("large", 16, 0.08)])
def test_the_adapter_is_a_small_part_of_the_full_checkpoint(tmp_path: Path, size: str, rank: int, share: float) -> None:
    model = apply("lora", base(size), rank=rank)
    LORA.save_adapter(model, tmp_path / "adapter")
    save_tensors(tmp_path / "model.safetensors", LORA.merge(model).state_dict())
    adapter = sum(file.stat().st_size for file in (tmp_path / "adapter").glob("*.safetensors"))
    assert 0 < adapter < share * (tmp_path / "model.safetensors").stat().st_size
