"""Low-rank adapters (Hu et al. 2022, "LoRA", eq. 3) on q, k, v, out and both MLP layers, by `peft`.

``W x + (alpha / rank) B A x`` with W frozen, A (rank, in) and B (out, rank) learned; the head always learns.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import cast

import peft
from peft.tuners.lora import LoraLayer
from torch import nn

from ehrtrack.models.behrt import ADAPTED_LAYERS, EhrModel
from ehrtrack.models.dropout import Dropout
from ehrtrack.strategies._settings.lora import Config as Config


def refuse(config: Config, *, is_pretrained: bool) -> str | None:
    if is_pretrained or config.embeddings:
        return None
    return (
        "strategy lora has no pretrained base and its embeddings are frozen: codes would stay random vectors; "
        "set init.run to a pretrain run, or strategy.embeddings=true, or strategy.name=scratch"
    )


def apply(model: EhrModel, config: Config) -> nn.Module:
    adapter = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(ADAPTED_LAYERS),
        modules_to_save=["head", "embeddings"] if config.embeddings else ["head"],
    )
    adapted = peft.get_peft_model(model, adapter)
    for module in adapted.modules():
        if isinstance(module, LoraLayer) and config.dropout:
            module.lora_dropout["default"] = Dropout(config.dropout)  # the same, and a third of the step faster
    return cast(nn.Module, adapted)


def keeps_encoder(config: Config) -> bool:
    return False


def merge(model: nn.Module) -> EhrModel:
    return cast(EhrModel, copy.deepcopy(cast(peft.PeftModel, model)).merge_and_unload())


def save_adapter(model: nn.Module, folder: Path, *, base: str = "") -> None:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json``, which a stock ``peft.PeftModel`` loads.

    Parameters
    ----------
    base : where the base model is kept, such as ``runs:/ID/model``; the adapter is of no use without it
    """
    adapted = cast(peft.PeftModel, model)
    adapted.peft_config["default"].base_model_name_or_path = base
    # "auto" would look for the base's configuration on a model hub; trained embeddings are among modules_to_save.
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink()  # peft's empty model card; the run's page says what this is
