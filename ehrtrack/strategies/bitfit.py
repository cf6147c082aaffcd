"""BitFit (Ben Zaken et al. 2022, arXiv:2106.10199): of the encoder only the biases learn, and the head."""

from __future__ import annotations

from torch import nn

from ehrtrack.models.behrt import EhrModel
from ehrtrack.strategies.base import Strategy
from ehrtrack.strategies.settings import BitfitConfig


class Bitfit(Strategy):
    """Biases of the encoder's linear maps and norms, and the head; about one parameter in a hundred.

    Those of the readout stay as they are: as long as its last matrix is 0, as it begins, they change nothing.
    """

    Config = BitfitConfig
    config: BitfitConfig

    def refuse(self, *, is_pretrained: bool, width: int) -> str | None:
        if is_pretrained:
            return None
        return (
            "strategy bitfit has no pretrained encoder: its matrices would stay random; "
            "set init.run to a pretrain run, or use strategy.name=scratch"
        )

    def apply(self, model: EhrModel) -> nn.Module:
        for name, parameter in model.encoder.named_parameters():
            parameter.requires_grad_(name.endswith("bias") and not name.startswith("readout."))
        return model
