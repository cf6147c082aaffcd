"""Low-rank adapters (Hu et al. 2022, "LoRA", eq. 3) on q, k, v, out and both MLP layers, by `peft`.

``W x + (alpha / rank) B A x`` with W frozen, A (rank, in) and B (out, rank) learned; the head always learns.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import peft
from torch import Tensor, nn

from ehrtrack.models.behrt import ADAPTED_LAYERS, EhrModel
from ehrtrack.models.code_effects import CodeEffects
from ehrtrack.models.static_effects import StaticEffects
from ehrtrack.strategies._lora_layers import compute_apart, compute_together
from ehrtrack.strategies.base import NO_BASE, Base, Strategy
from ehrtrack.strategies.settings import LoraConfig


class Lora(Strategy):
    """Adapters on the encoder's layers, and the head; where the settings say so the embeddings of codes too."""

    Config = LoraConfig
    config: LoraConfig
    adapter_prefix = "lora_"

    def refuse(self, *, is_pretrained: bool, width: int) -> str | None:
        if self.config.rank > width:
            return (
                f"strategy.rank is {self.config.rank} and the encoder is {width} wide: beyond its width an adapter has "
                f"more parameters than what it adapts and can say no more; set strategy.rank to at most {width}"
            )
        if is_pretrained or self.config.embeddings:
            return None
        return (
            "strategy lora has no pretrained base and its embeddings are frozen: codes would stay random vectors; "
            "set init.run to a pretrain run, or strategy.embeddings=true, or strategy.name=scratch"
        )

    @property
    def starts_at_solved_head(self) -> bool:
        return self.config.head == "ridge"

    def apply(self, model: EhrModel) -> nn.Module:
        adapter = peft.LoraConfig(
            r=self.config.rank,
            lora_alpha=self.config.alpha,
            lora_dropout=self.config.dropout,
            use_dora=self.config.dora,
            target_modules=list(ADAPTED_LAYERS),
            modules_to_save=["head", "embeddings"] if self.config.embeddings else ["head"],
        )
        wrapped = peft.get_peft_model(model, adapter)
        if not self.config.dora:
            compute_together(model)
        return cast(nn.Module, wrapped)

    def merge(self, model: nn.Module) -> EhrModel:
        merged = cast(EhrModel, copy.deepcopy(cast(peft.PeftModel, model)).merge_and_unload())
        if not self.config.dora:
            compute_apart(merged)
        return merged

    def save_adapter(self, model: nn.Module, folder: Path, *, base: Base = NO_BASE) -> None:
        """Write ``adapter_model.safetensors`` and ``adapter_config.json``, which a stock ``peft.PeftModel`` loads.

        The configuration's ``auto_mapping.base``, where peft allows for more than it knows, says of the base what kind
        it is and the fingerprint of its encoder's weights, which objective the head is of, and which parts a model
        needs to take this adapter.
        """
        adapted = cast(peft.PeftModel, model)
        adapted.peft_config["default"].base_model_name_or_path = base.uri
        # "auto" would look for the base's configuration on a model hub; trained embeddings are among modules_to_save.
        adapted.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink()  # peft's empty model card; the run's page says what this is
        config = folder / "adapter_config.json"
        table = json.loads(config.read_text())
        table["auto_mapping"]["base"] = {
            "kind": base.kind,
            "fingerprint": base.fingerprint,
            "objective": base.objective,
            "parts": _parts(adapted),
        }
        config.write_text(json.dumps(table, indent=2, sort_keys=True))

    def load_adapter(self, model: EhrModel, tensors: Mapping[str, Tensor]) -> nn.Module:
        adapted = cast(peft.PeftModel, self.apply(model))
        own = set(peft.get_peft_model_state_dict(adapted, save_embedding_layers=False))
        if own != set(tensors):  # peft itself passes over names that it does not know, and over those that lack
            odd = ", ".join(sorted(own ^ set(tensors))[:5])
            raise ValueError(
                f"{len(own ^ set(tensors))} tensors are of the adapter or of the model alone, such as {odd}"
            )
        peft.set_peft_model_state_dict(adapted, dict(tensors))
        return cast(nn.Module, adapted)


def _parts(adapted: peft.PeftModel) -> list[str]:
    """The encoder, the head, and what of the head not every head has."""
    model = cast(EhrModel, adapted.get_base_model())
    head = cast(nn.Module, model.head.modules_to_save["default"])  # type: ignore[index]
    return [
        "encoder",
        "head",
        *(f"head.{name}" for name, part in head.named_children() if isinstance(part, CodeEffects | StaticEffects)),
    ]
