"""Read and check the code embeddings that a run starts from, and put them into a new encoder."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ehrtrack.config import RunConfig
from ehrtrack.models.code_embeddings import CodeEmbeddings
from ehrtrack.pipeline.prepare import Records, check_unseen


def read_embeddings(config: RunConfig, records: Records) -> CodeEmbeddings | None:
    """The code embeddings of ``init.embeddings``, or None if it is empty.

    Raises
    ------
    CheckpointError
        If the folder does not hold embeddings.
    ConfigError
        If they were fitted on this dataset with another split, and so on this run's test subjects.
    """
    if not config.init.embeddings:
        return None
    embeddings = CodeEmbeddings.read(Path(config.init.embeddings))
    check_unseen(embeddings.facts, f"the code embeddings in {config.init.embeddings}", config.data, records.dataset)
    return embeddings


def start_from_embeddings(config: RunConfig, records: Records, code: nn.Embedding) -> None:
    """Put the vectors of ``init.embeddings`` into a new encoder, and print how many codes have none."""
    embeddings = read_embeddings(config, records)
    if embeddings is None:
        return
    left = embeddings.initialise(code, records.vocabulary)
    n_codes = len(records.vocabulary.known)
    examples = f" (such as {left[0]!r})" if left else ""
    print(
        f"init.embeddings: {n_codes - len(left):,} of {n_codes:,} codes start there, {len(left):,} at random{examples}"
    )
