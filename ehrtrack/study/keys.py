"""What a cell is known by: the fingerprint of all that decides its result."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ehrtrack.config import RunConfig
from ehrtrack.data.events import MedsDataset, fingerprint_of, open_dataset
from ehrtrack.data.split_rules import settle_split, table_fingerprint
from ehrtrack.errors import DataError
from ehrtrack.files import sha256_of
from ehrtrack.study.values import SECTIONS, Recipe

ELSEWHERE = ("runtime", "pretrain")
"""Sections that say where a cell runs, or what is known of otherwise; the seed counts all the same."""
FILES = ("data.path", "data.split.path", "data.vocabulary.groups", "cohort.labels", "init.embeddings")
"""Settings that name files: what these hold counts, wherever they lie."""


class Inputs:
    """Fingerprints of what cells are made from; each file is read once, however many cells are made from it."""

    def __init__(self) -> None:
        self._dataset = cache(open_dataset)
        self._hash = cache(_hash)
        self._tables: dict[tuple[Path, str], str] = {}

    def of(self, config: RunConfig, recipe: Recipe) -> dict[str, str]:
        """Of the dataset, the labels and other files that a cell of this kind reads, by name.

        Raises
        ------
        DataError
            If one of them is missing or cannot be read.
        """
        dataset = self._dataset(config.data.path)
        found = {"data": dataset.fingerprint()}
        if table := self._split_table(dataset, config):
            found["split_table"] = table
        files = {"groups": config.data.vocabulary.groups}
        if config.cohort is not None and (recipe != "pretrain" or config.pretraining_records != "whole"):
            files["labels"] = config.cohort.labels
        if config.init.embeddings:
            files["embeddings"] = Path(config.init.embeddings)
        return found | {name: self._hash(path) for name, path in files.items() if path is not None}

    def _split_table(self, dataset: MedsDataset, config: RunConfig) -> str:
        """Of the table that says who is in which split, if one does."""
        split, path = config.data.split, config.data.path
        asked = (path, split.model_dump_json(exclude_unset=True))
        if asked not in self._tables:
            self._tables[asked] = table_fingerprint(dataset, settle_split(split, path))
        return self._tables[asked]


def _hash(path: Path) -> str:
    """Of a file, or of all files in a folder."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise DataError(f"{path} is neither a file nor a folder of files; see that the path is right")
    return fingerprint_of([sha256_of(file) for file in files])


def cell_key(recipe: Recipe, config: RunConfig, *, inputs: Mapping[str, str], base: str) -> str:
    """The fingerprint of a cell's settings and inputs, and of what it starts from.

    What does not change its result is no part of it: where files lie, and what a machine is told.

    Parameters
    ----------
    inputs : as `Inputs` has them
    base : key of the pretraining that it starts from, id of the run, or empty

    Examples
    --------
    >>> from ehrtrack.config import parse_config
    >>> here, there = ({"study": "icu", "data": {"path": path}} for path in ("a", "b"))
    >>> keys = {cell_key("finetune", parse_config(one), inputs={"data": "1f"}, base="") for one in (here, there)}
    >>> len(keys)
    1
    """
    identity = config.identity()
    settings = {name: identity[name] for name in SECTIONS[recipe] if name not in ELSEWHERE}
    if recipe == "baseline":
        settings["init"] = identity["init"]
    if recipe == "pretrain" and config.pretraining_records != "whole":
        settings |= {"cohort": identity["cohort"], "pretraining_records": config.pretraining_records}
    for path in (*FILES, "init.run"):
        _drop(settings, path)
    return fingerprint_of("cell", recipe, settings, config.runtime.seed, dict(inputs), base)


def _drop(settings: Mapping[str, Any], path: str) -> None:
    *parents, key = path.split(".")
    table: Any = settings
    for parent in parents:
        table = table.get(parent) if isinstance(table, Mapping) else None
    if isinstance(table, dict):
        table.pop(key, None)
