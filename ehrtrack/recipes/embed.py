"""Code embeddings: fit them on a study's training subjects, and start a model from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from ehrtrack.config import RunConfig
from ehrtrack.errors import ConfigError
from ehrtrack.models.behrt import SIZES
from ehrtrack.models.code_embeddings import CodeEmbeddings, beside, coding_systems
from ehrtrack.pipeline.prepare import prepare_records, settle
from ehrtrack.training.code_groups import group_codes
from ehrtrack.training.cooccurrence import fit_cooccurrence
from ehrtrack.training.settings import SkipGramConfig
from ehrtrack.training.skip_gram import fit_skip_gram

GROUPS = "groups.parquet"


def embed(
    config: RunConfig, out: Path, skip_gram: SkipGramConfig | None = None, *, width: int = 0, n_groups: int = 0
) -> None:
    """Fit code embeddings on the whole records of the training subjects, and write them to a folder.

    Parameters
    ----------
    skip_gram : settings of skip-gram over visits, after Med2Vec; without them, which codes share records is factorised
    width : D; 0 takes that of `model.size`
    n_groups : write groups.parquet beside them, a table for `data.vocabulary.groups`, which puts codes that records use
        alike into this many groups; 0 writes none

    Raises
    ------
    EhrtrackError
        If the data cannot be used, or no two codes occur together.
    """
    if n_groups and config.data.vocabulary.groups:
        raise ConfigError(
            f"data.vocabulary.groups={config.data.vocabulary.groups} and --groups {n_groups}: groups are found among "
            "codes; leave data.vocabulary.groups out, or ask for no groups"
        )
    config = settle(config)
    records = prepare_records(config)
    width = width or SIZES[config.model.size].width
    systems = coding_systems(records.vocabulary, at_most=width // 12)
    fitted: dict[str, Any] = {
        "rows": records.rows["train"],
        "n_codes": len(records.vocabulary),
        "width": width - systems.shape[1],
        "seed": config.runtime.seed,
    }
    if skip_gram is None:
        vectors = fit_cooccurrence(records.store, **fitted)
    else:
        vectors = fit_skip_gram(records.store, config=skip_gram, **fitted)
    vectors = beside(vectors, systems)
    groups = group_codes(records.vocabulary, vectors, n_groups, seed=config.runtime.seed) if n_groups else None
    facts = {
        **records.fingerprints(),
        "split": config.data.split.identity(),
        "method": "cooccurrence" if skip_gram is None else "skip-gram",
        "skip_gram": None if skip_gram is None else skip_gram.model_dump(mode="json"),
        "n_training_subjects": len(records.rows["train"]),
    }
    CodeEmbeddings(records.vocabulary, vectors, facts).write(out)
    print(
        f"{len(vectors):,} tokens, {vectors.shape[1]} wide, of {len(records.rows['train']):,} training subjects: {out}"
    )
    if groups is not None:
        pl.DataFrame({"code": list(groups), "group": list(groups.values())}).write_parquet(out / GROUPS)
        print(f"{n_groups:,} groups of codes: --data.vocabulary.groups {out / GROUPS}")
