"""Embeddings of codes that were fitted elsewhere, as a folder: safetensors and the vocabulary that names the rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError
from torch import nn

from ehrtrack.arrays import Float32s
from ehrtrack.data.vocabulary import SPECIAL_TOKENS, Vocabulary
from ehrtrack.errors import CheckpointError, ConfigError
from ehrtrack.files import BROKEN, parse_json

VECTORS_FILE = "embeddings.safetensors"
VOCABULARY_FILE = "vocabulary.json"
FACTS_FILE = "facts.json"


@dataclass(frozen=True)
class CodeEmbeddings:
    """One vector a token.

    Attributes
    ----------
    vectors : (V, D) float32, row for row of the vocabulary
    facts : what they were fitted on and how: at least ``data`` and ``split``, by which leakage is told
    """

    vocabulary: Vocabulary
    vectors: Float32s
    facts: Mapping[str, object]

    @property
    def width(self) -> int:
        """D."""
        return int(self.vectors.shape[1])

    def write(self, folder: Path) -> None:
        """Write the three files."""
        folder.mkdir(parents=True, exist_ok=True)
        safetensors.numpy.save_file({"code": np.ascontiguousarray(self.vectors)}, folder / VECTORS_FILE)
        (folder / VOCABULARY_FILE).write_text(self.vocabulary.to_json(), encoding="utf-8")
        (folder / FACTS_FILE).write_text(json.dumps(dict(self.facts), indent=2), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> CodeEmbeddings:
        """The embeddings back from `write`.

        Raises
        ------
        CheckpointError
            If a file is missing or damaged, or rows and vocabulary do not agree.
        """
        for file in (folder / name for name in (VECTORS_FILE, VOCABULARY_FILE, FACTS_FILE)):
            if file.exists() and not file.is_file():
                raise CheckpointError(f"{file} is a folder, a pipe or a device, and is not read")
        try:
            vectors = safetensors.numpy.load_file(folder / VECTORS_FILE)["code"]
            vocabulary = Vocabulary.from_json((folder / VOCABULARY_FILE).read_text(encoding="utf-8"))
            facts = parse_json((folder / FACTS_FILE).read_bytes())
        except (OSError, *BROKEN, SafetensorError) as error:
            raise CheckpointError(
                f"{folder} does not hold code embeddings ({error}); give a folder that `ehrtrack embed` wrote"
            ) from error
        if vectors.ndim != 2 or len(vectors) != len(vocabulary) or not np.isfinite(vectors).all():
            raise CheckpointError(
                f"{folder} holds vectors of shape {vectors.shape} for a vocabulary of {len(vocabulary)}, and each has "
                "to be finite; write it again with `ehrtrack embed`"
            )
        return cls(vocabulary, vectors, facts)

    def initialise(self, embedding: nn.Embedding, vocabulary: Vocabulary) -> list[str]:
        """Put the vectors in the rows of the tokens that both vocabularies know; returns the tokens left random.

        They are centred and scaled to the standard deviation that the embedding has: its sum with age, gap and
        position is normalised, and codes would drown the rest, or be drowned. Special tokens stay as they are.

        Raises
        ------
        ConfigError
            If the widths differ, or not one token is known.
        """
        if self.width != embedding.embedding_dim:
            raise ConfigError(
                f"code embeddings of width {self.width}, and the model's are {embedding.embedding_dim} wide; "
                f"fit them again with `ehrtrack embed --width {embedding.embedding_dim}`, or change model.size"
            )
        ours, theirs = vocabulary.known, self.vocabulary.known
        shared = [token for token in ours if token in theirs]
        if not shared:
            raise ConfigError(
                f"none of {len(ours)} codes is among the {len(theirs)} of the code embeddings (such as "
                f"{next(iter(ours), '')!r} and {next(iter(theirs), '')!r}): they are of another coding system"
            )
        known = self.vectors[[theirs[token] for token in shared]]
        scaled = (known - known.mean(axis=0)) / max(float(known.std()), 1e-12)
        weight = embedding.weight
        with torch.no_grad():
            rows = torch.tensor([ours[token] for token in shared], device=weight.device)
            weight[rows] = torch.from_numpy(scaled).to(weight) * weight.std()
        return [token for token in ours if token not in theirs and token not in SPECIAL_TOKENS]


def coding_systems(vocabulary: Vocabulary, *, at_most: int) -> Float32s:
    """(V, S) 1 where a token is of a system, of the S that name the most tokens and two at least.

    MEDS names a code ``SYSTEM//...``, such as ``ICD10CM//E11.9`` and ``RxNorm//6809``: a diagnosis and the drug for it
    go together so well that records alone hardly tell them apart.
    """
    system_of = [token.partition("//")[0] if "//" in token else "" for token in vocabulary.tokens]
    counts = Counter(system for system in system_of if system)
    systems = [name for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if count > 1]
    return np.array([[of == system for system in systems[:at_most]] for of in system_of], dtype=np.float32)


def beside(vectors: Float32s, systems: Float32s) -> Float32s:
    """(V, D + S) the vectors, with S indicators of the tokens' systems in units of the vectors' mean length."""
    length = np.sqrt((vectors**2).sum(axis=1).mean())
    return np.hstack([vectors, systems * length]).astype(np.float32)
