"""The encoder's states that a frozen run trains on are those that the encoder computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from simulated import Population, study, write_dataset

from ehrtrack.config import override
from ehrtrack.data.batch import Batches
from ehrtrack.models.behrt import Behrt, EhrModel
from ehrtrack.models.heads import HazardHead
from ehrtrack.pipeline.fit import Feed, with_features
from ehrtrack.pipeline.prepare import prepare_cohort
from ehrtrack.training.ranks import join_ranks


def test_states_computed_once_equal_those_computed_anew_in_other_company(tmp_path: Path) -> None:
    write_dataset(tmp_path / "meds", Population(n_subjects=120))
    config = study(tmp_path / "meds", tmp_path / "cache")
    records = prepare_cohort(config)
    torch.manual_seed(0)
    encoder = Behrt(config.model, len(records.vocabulary))
    model = EhrModel(encoder, HazardHead(encoder.width, torch.zeros(4))).eval()
    plain = Feed(config, records, batch_tokens=200)
    cached = with_features(plain, model, join_ranks("cpu"))
    batches: Batches = cached.epoch(1)
    with torch.no_grad():
        for of_states, of_tokens in zip(batches, plain.epoch(1), strict=True):
            assert of_states.lengths == of_tokens.lengths
            assert of_states.hidden is not None
            torch.testing.assert_close(of_states.hidden, model.hidden(of_tokens), atol=1e-6, rtol=0)
            torch.testing.assert_close(model(of_states), model(of_tokens), atol=1e-6, rtol=0)


@pytest.mark.parametrize("change", ["weights", "precision", "longest"])
def test_states_are_kept_by_all_that_they_depend_on(change: str, tmp_path: Path) -> None:
    write_dataset(tmp_path / "meds", Population(n_subjects=80))
    config = study(tmp_path / "meds", tmp_path / "cache")
    records = prepare_cohort(config)
    encoder = Behrt(config.model, len(records.vocabulary))
    model = EhrModel(encoder, HazardHead(encoder.width, torch.zeros(4)))
    with_features(Feed(config, records, batch_tokens=200), model, join_ranks("cpu"))
    if change == "weights":
        torch.nn.init.normal_(encoder.norm.weight)
    model.is_bf16 = change == "precision"
    if change == "longest":
        config = override(config, {"data.max_tokens": 12})
    for budget in (200, 12):  # on which they do not depend
        with_features(Feed(config, records, batch_tokens=budget), model, join_ranks("cpu"))
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 2
