"""A dataset that is in MEDS form already: copied and sharded anew, with the same checks as every source.

`path` is the dataset's folder (``data/**/*.parquet``), or a folder of parquet files. The visit's identifier
is in the first of ``visit_id``, ``hadm_id``, ``visit_occurrence_id`` and ``encounter_id`` that is there;
descriptions and parent codes come from ``metadata/codes.parquet``, and ``metadata/subject_splits.parquet`` is kept,
where there is one. Numbers of a code that has several units in the column ``unit`` carry theirs in the code. Other
columns are not kept.
"""

from __future__ import annotations

from pathlib import Path

from ehrtrack.data.events import BIRTH, DEATH
from ehrtrack.data.sources._reader import Reader
from ehrtrack.data.sources._relation import quote_text
from ehrtrack.data.sources.base import Event, Source, SourceTable
from ehrtrack.data.sources.settings import MedsConfig
from ehrtrack.errors import DataError

_VISIT_COLUMNS = ("visit_id", "hadm_id", "visit_occurrence_id", "encounter_id")


class Meds(Source):
    """A dataset that is in MEDS form already."""

    Config = MedsConfig
    config: MedsConfig

    def tables(self, reader: Reader, path: Path) -> list[SourceTable]:
        """The one table of events."""
        folder = path / "data" if (path / "data").is_dir() else path
        files = sorted(file for file in folder.rglob("*.parquet") if not file.is_dir()) if folder.is_dir() else [path]
        if not files:
            raise DataError(f"no parquet file under {folder}; needed: a MEDS dataset with data/*.parquet")
        events = reader.files(files, "data").require("subject_id", "time", "code")
        visit = next((column for column in _VISIT_COLUMNS if events.has(column)), None)
        event = Event(
            code=_code(events.text("code"), self.config),
            time=events.time("time"),
            numeric_value=events.number("numeric_value"),
            text_value=events.text("text_value"),
            may_lack_time=True,
            result_column="numeric_value",
            unit=events.text("unit"),
        )
        table = SourceTable(
            name="data",
            relation=events,
            subject="subject_id",
            events=(event,),
            visit=visit,
            code_metadata=_code_metadata(reader, path / "metadata" / "codes.parquet"),
            splits=_splits(reader, path / "metadata" / "subject_splits.parquet"),
        )
        return [table]


def _code(code: str, config: MedsConfig) -> str:
    """SQL of the code, with births and deaths spelt as MEDS spells them."""
    if (config.birth_codes, config.death_codes) == ((BIRTH,), (DEATH,)):
        return code
    births, deaths = (", ".join(map(quote_text, codes)) for codes in (config.birth_codes, config.death_codes))
    cases = [
        f"WHEN {code} IN ({words}) THEN {quote_text(name)}"
        for words, name in ((births, BIRTH), (deaths, DEATH))
        if words
    ]
    return f"CASE {' '.join(cases)} ELSE {code} END" if cases else code


def _code_metadata(reader: Reader, path: Path) -> str | None:
    if not path.is_file():
        return None
    codes = reader.files([path], "codes")
    if not codes.has("code"):
        return None
    parents = "parent_codes" if codes.types.get("parent_codes", "").endswith("[]") else "NULL"
    return (
        f"SELECT {codes.text('code')} AS code, {codes.text('description')} AS description, "
        f"CAST({parents} AS VARCHAR[]) AS parent_codes FROM {codes.sql}"
    )


def _splits(reader: Reader, path: Path) -> str | None:
    if not path.is_file():
        return None
    splits = reader.files([path], "subject_splits").require("subject_id", "split")
    return f"SELECT {splits.identifier('subject_id')} AS source_id, {splits.text('split')} AS split FROM {splits.sql}"
