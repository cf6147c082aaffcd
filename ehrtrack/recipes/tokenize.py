"""Preparing a dataset ahead of training, on one machine or on many that share a file system."""

from __future__ import annotations

from typing import Literal

from ehrtrack.config import RunConfig
from ehrtrack.data.shards import ShardSlice
from ehrtrack.pipeline.prepare import tokenise_cohort, tokenise_records


def tokenize(
    config: RunConfig, *, recipe: Literal["pretrain", "finetune"] = "pretrain", part: ShardSlice = (1, 1)
) -> bool:
    """Make the token store that a recipe will open, or one slice of it.

    Machines with the slices 1 to n may run at the same time or one after another, in any order, and be killed and
    started again: every file is written aside and renamed, and the last one to finish joins the parts.

    Parameters
    ----------
    recipe : ``pretrain`` for whole records, ``finetune`` for the cohort's histories with a vocabulary of their own
    part : (i, n), the i-th of n slices of the shards

    Returns
    -------
    whether the store is complete
    """
    store = tokenise_records(config, part) if recipe == "pretrain" else tokenise_cohort(config, part)
    i, n = part
    if store is None:
        print(f"slice {i} of {n} is done; the store is joined when the other slices are", flush=True)
        return False
    print(f"store {store.fingerprint}: {len(store):,} subjects, {len(store.token):,} tokens", flush=True)
    return True
