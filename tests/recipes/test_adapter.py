"""An adapter outside the project: a stock peft on the documented base predicts as the run's own model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from simulated import Population, random_store, study, write_dataset

from ehrtrack.data.batch import Batch, collate
from ehrtrack.errors import CheckpointError
from ehrtrack.models.behrt import EhrModel
from ehrtrack.models.heads import HazardHead
from ehrtrack.pipeline.adapter import adapter_base
from ehrtrack.pipeline.model_folder import ModelFolder, read_model_folder
from ehrtrack.recipes.finetune import finetune
from ehrtrack.recipes.pretrain import pretrain
from ehrtrack.tracking.client.queries import download

pytestmark = pytest.mark.usefixtures("undrawn_figures")


@dataclass(frozen=True)
class Adapted:
    """Folders of a run with strategy lora and a lasso, and of its base."""

    base: Path
    adapter: Path
    model: ModelFolder

    def says(self, **said: str) -> None:
        """Change what the adapter's configuration says of its base."""
        file = self.adapter / "adapter_config.json"
        table = json.loads(file.read_text())
        table["auto_mapping"]["base"] = {**table["auto_mapping"]["base"], **said} if said else {}
        file.write_text(json.dumps(table))


@pytest.fixture
def adapted(local_store: Path) -> Adapted:
    dataset = write_dataset(local_store / "meds", Population(n_subjects=200, hazard_ratio=4.0))
    settings = (dataset.path, local_store / "cache")
    train = {"epochs": 1, "batch_tokens": 512, "lr": 1e-2}
    base = pretrain(study(*settings, objective={"name": "mlm"}, train=train))
    config = study(
        *settings,
        strategy={"name": "lora", "rank": 4},
        objective={"name": "survival", "lasso": 0.3},
        init={"run": base.run_id},
        train=train,
    )
    run = finetune(config)
    return Adapted(
        download(base.run_id, "model", local_store / "base"),
        download(run.run_id, "adapter", local_store / "run"),
        read_model_folder(download(run.run_id, "model", local_store / "run")),
    )


def test_on_its_documented_base_it_predicts_as_the_runs_model_and_on_others_it_is_refused(
    adapted: Adapted, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = batch_for(adapted.model)
    expected = adapted.model.survival_model()
    base = adapter_base(adapted.base, adapted.adapter)
    found = peft.PeftModel.from_pretrained(base, str(adapted.adapter)).eval()
    with torch.no_grad():
        torch.testing.assert_close(found(batch), expected(batch), atol=1e-5, rtol=0)  # merged: other sums
        assert expected.head.codes(batch).std() > 0.01

    plain = EhrModel(base.encoder, HazardHead(base.encoder.width, torch.zeros(20)))
    with pytest.raises(RuntimeError, match=r"lacks a part of the one that they are of.*adapter_base"):
        peft.PeftModel.from_pretrained(plain, str(adapted.adapter))

    capsys.readouterr()
    adapted.says(fingerprint="0" * 16)
    with pytest.raises(CheckpointError, match=r"trained on a base with the fingerprint 0{16}, and the encoder"):
        adapter_base(adapted.base, adapted.adapter)
    adapted.says(kind="random")
    with pytest.raises(CheckpointError, match="random weights, which no run keeps: load the whole model"):
        adapter_base(adapted.base, adapted.adapter)
    adapted.says()  # as adapters of before
    adapter_base(adapted.base, adapted.adapter)
    assert "is not checked" in capsys.readouterr().out
    (adapted.adapter / "adapter_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json is no configuration of an adapter"):
        adapter_base(adapted.base, adapted.adapter)


def batch_for(model: ModelFolder) -> Batch:
    """Records of random tokens of the model's vocabulary."""
    return collate(random_store(20, len(model.vocabulary)), np.arange(20), max_tokens=30)
