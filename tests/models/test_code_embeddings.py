from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ehrtrack.data.vocabulary import SPECIAL_TOKENS, Vocabulary
from ehrtrack.errors import CheckpointError, ConfigError
from ehrtrack.models.code_embeddings import VECTORS_FILE, CodeEmbeddings, beside, coding_systems

THEIRS = Vocabulary((*SPECIAL_TOKENS, "A", "B", "C"), {})
OURS = Vocabulary((*SPECIAL_TOKENS, "C", "NEW", "A"), {})


def embeddings(width: int = 6) -> CodeEmbeddings:
    vectors = np.random.default_rng(0).normal(3.0, 5.0, (len(THEIRS), width)).astype(np.float32)
    return CodeEmbeddings(THEIRS, vectors, {"data": "abc", "split": {"seed": 0}})


def test_a_folder_brings_back_the_same_embeddings(tmp_path: Path) -> None:
    embeddings().write(tmp_path / "codes")
    again = CodeEmbeddings.read(tmp_path / "codes")
    np.testing.assert_array_equal(again.vectors, embeddings().vectors)
    assert (again.vocabulary, again.facts) == (THEIRS, embeddings().facts)


def test_codes_known_to_both_start_from_their_vectors_and_the_rest_stay_random() -> None:
    torch.manual_seed(0)
    layer = nn.Embedding(len(OURS), 6)
    before = layer.weight.detach().clone()
    left = embeddings().initialise(layer, OURS)
    assert left == ["NEW"]
    after = layer.weight.detach()
    untouched = [0, 1, 2, 3, OURS.index["NEW"]]
    torch.testing.assert_close(after[untouched], before[untouched], rtol=0, atol=0)
    known = embeddings().vectors[[THEIRS.index["C"], THEIRS.index["A"]]]
    expected = (known - known.mean(axis=0)) / known.std() * float(before.std())
    rows = after[[OURS.index["C"], OURS.index["A"]]].numpy()
    np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-6)


def test_vectors_of_another_width_are_refused_with_the_width_that_is_needed() -> None:
    with pytest.raises(ConfigError, match="ehrtrack embed --width 6"):
        embeddings(width=4).initialise(nn.Embedding(len(OURS), 6), OURS)


def test_vectors_of_another_coding_system_are_refused() -> None:
    other = Vocabulary((*SPECIAL_TOKENS, "X"), {})
    with pytest.raises(ConfigError, match="none of 1 codes is among the 3"):
        embeddings().initialise(nn.Embedding(len(other), 6), other)


def test_a_folder_with_rows_that_are_not_the_vocabularys_is_refused(tmp_path: Path) -> None:
    CodeEmbeddings(THEIRS, embeddings().vectors[:-1], {}).write(tmp_path)
    with pytest.raises(CheckpointError, match=r"shape \(6, 6\) for a vocabulary of 7"):
        CodeEmbeddings.read(tmp_path)


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_folder_is_refused(tmp_path: Path, damage: str) -> None:
    embeddings().write(tmp_path)
    file = tmp_path / VECTORS_FILE
    file.unlink() if damage == "missing" else file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(CheckpointError, match="does not hold code embeddings"):
        CodeEmbeddings.read(tmp_path)


def test_systems_are_what_codes_are_named_after_and_those_of_one_token_are_none() -> None:
    names = ("RX//1", "RX//2", "DX//1", "DX//2", "DX//3", "LAB//1//[1,2)", "LAB//1//[2,3)", "GENDER//M", "AGE")
    vocabulary = Vocabulary((*SPECIAL_TOKENS, *names), {})
    systems = coding_systems(vocabulary, at_most=8)
    n_special = len(SPECIAL_TOKENS)
    assert not systems[:n_special].any()
    dx, lab, rx = systems[n_special:].T  # by how many tokens they have, then by name
    assert dx.tolist() == [0, 0, 1, 1, 1, 0, 0, 0, 0]
    assert lab.tolist() == [0, 0, 0, 0, 0, 1, 1, 0, 0]
    assert rx.tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert coding_systems(vocabulary, at_most=1).shape == (len(vocabulary), 1)
    assert coding_systems(THEIRS, at_most=8).shape == (len(THEIRS), 0)


def test_a_system_weighs_as_much_as_a_vector_does_on_average() -> None:
    vectors = embeddings().vectors
    system = np.zeros((len(THEIRS), 1), dtype=np.float32)
    system[5] = 1
    both = beside(vectors, system)
    np.testing.assert_array_equal(both[:, :6], vectors)
    assert both[5, 6] == pytest.approx(np.sqrt((vectors**2).sum() / len(THEIRS)), rel=1e-6)
    assert np.count_nonzero(both[:, 6]) == 1
