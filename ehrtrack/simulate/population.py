"""A population on disk: a MEDS dataset, labels and the truth, written block by block so that memory stays flat."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from meds.schema import CodeMetadataSchema, DataSchema, DatasetMetadataSchema

from ehrtrack.arrays import Bools, Floats, Ints
from ehrtrack.data.events import BIRTH, DEATH
from ehrtrack.errors import ConfigError, DataError
from ehrtrack.files import publish, scratch_folder
from ehrtrack.simulate.block import SUBJECTS_PER_BLOCK, Block, draw_block
from ehrtrack.simulate.dictionary import CONCEPTS, N_CONCEPTS, Dictionary
from ehrtrack.simulate.motifs import SECONDS_PER_DAY
from ehrtrack.simulate.outcome import cumulative_hazard, true_survival, truth_times
from ehrtrack.simulate.world import World

BLOCKS_PER_SHARD = 10

EVENTS_SCHEMA = pa.schema([*DataSchema.schema(), pa.field("visit_id", pa.string())])
LABELS_SCHEMA = pa.schema(
    [
        ("subject_id", pa.int64()),
        ("prediction_time", pa.timestamp("us")),
        ("follow_up_days", pa.float64()),
        ("is_event", pa.bool_()),
    ]
)
TRUTH_SCHEMA = pa.schema(
    [
        ("subject_id", pa.int64()),
        ("log_hazard", pa.float64()),
        ("risk", pa.float64()),
        ("survival", pa.list_(pa.float64())),
        ("censoring_survival", pa.list_(pa.float64())),
        ("upper_bound_risk_given_frailty", pa.float64()),
    ]
)
"""`risk` and `survival` are given the observed history, exactly: the most that any model can reach. The last column is
given what no record shows as well, so it bounds from above and cannot be reached."""


def simulate(world: World, out: Path, *, n_subjects: int, seed: int) -> None:
    """Write `n_subjects` of a world as a MEDS dataset with ``labels.parquet``, ``truth.parquet`` and ``world.json``.

    Same world, seed and number: same bytes. Subject i is the same whatever the number.

    Parameters
    ----------
    out : folder; it must be empty or not there yet, and appears whole or not at all

    Raises
    ------
    ConfigError
        If n_subjects or seed is out of range.
    DataError
        If `out` is taken.
    """
    if n_subjects < 1 or seed < 0:
        raise ConfigError(f"subjects={n_subjects}, seed={seed}; needed are at least 1 subject and a seed from 0")
    dictionary = Dictionary(world)
    with _whole_or_nothing(Path(out)) as folder:
        (folder / "data").mkdir()
        (folder / "metadata").mkdir()
        _write_blocks(dictionary, folder, n_subjects, seed)
        _write_metadata(dictionary, folder)
        description = {
            "world": world.model_dump(),
            "seed": seed,
            "n_subjects": n_subjects,
            "survival_days": truth_times(world).tolist(),
        }
        (folder / "world.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def block_tables(block: Block, dictionary: Dictionary, n_subjects: int) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Events, labels and truth of the first `n_subjects` of a block."""
    events = _events_table(block, dictionary, n_subjects)
    return events, _labels_table(block, dictionary.world, n_subjects), _truth_table(block, dictionary.world, n_subjects)


def _write_blocks(dictionary: Dictionary, folder: Path, n_subjects: int, seed: int) -> None:
    n_blocks = -(-n_subjects // SUBJECTS_PER_BLOCK)
    with ExitStack() as stack:
        labels = stack.enter_context(pq.ParquetWriter(folder / "labels.parquet", LABELS_SCHEMA))
        truth = stack.enter_context(pq.ParquetWriter(folder / "truth.parquet", TRUTH_SCHEMA))
        for first in range(0, n_blocks, BLOCKS_PER_SHARD):
            shard = folder / "data" / f"{first // BLOCKS_PER_SHARD:05d}.parquet"
            with pq.ParquetWriter(shard, EVENTS_SCHEMA, compression="zstd") as data:
                for number in range(first, min(first + BLOCKS_PER_SHARD, n_blocks)):
                    n = min(SUBJECTS_PER_BLOCK, n_subjects - number * SUBJECTS_PER_BLOCK)
                    tables = block_tables(draw_block(dictionary, seed, number), dictionary, n)
                    for writer, table in zip((data, labels, truth), tables, strict=True):
                        writer.write_table(table)


def _events_table(block: Block, dictionary: Dictionary, n: int) -> pa.Table:
    """All that is written of the first n subjects, sorted by subject and time, static facts first."""
    people, events, outcomes = block.people, block.events, block.outcomes
    code_names = [*dictionary.code_names, "GENDER//F", "GENDER//M", BIRTH, DEATH]
    female, birth, death = dictionary.n_codes, dictionary.n_codes + 2, dictionary.n_codes + 3
    everyone, dead = np.arange(n), np.flatnonzero(outcomes.is_death[:n])
    keep = events.row < n
    row = np.concatenate([everyone, everyone, events.row[keep], dead])
    code = np.concatenate(
        [female + people.is_male[:n], np.full(n, birth), events.code[keep], np.full(len(dead), death)]
    )
    seconds = np.concatenate(
        [
            np.zeros(n, int),
            -people.age_days[:n] * SECONDS_PER_DAY,
            events.seconds[keep],
            outcomes.record_end_seconds[dead],
        ]
    )
    value = np.concatenate([np.full(2 * n, np.nan), events.value[keep], np.full(len(dead), np.nan)]).astype(np.float32)
    step = np.concatenate([np.zeros(n), np.ones(n), np.full(keep.sum(), 2), np.full(len(dead), 3)])
    # Events are sorted already, and the sort is stable: within a subject only the parts have to be put in order.
    order = np.lexsort((step, row))
    row, code, seconds, value, step = row[order], code[order], seconds[order], value[order], step[order]
    time = _microseconds(people.index_time[row] + seconds.astype("timedelta64[s]"))
    return pa.table(
        [
            pa.array(_subject_ids(block, dictionary.world, row)),
            pa.array(time, mask=step == 0),
            pa.array(code_names, pa.string()).take(pa.array(code)),
            pa.array(value, mask=np.isnan(value)),
            pa.nulls(len(row), pa.string()),
            _visit_ids(_subject_ids(block, dictionary.world, row), seconds, is_visit=step == 2),
        ],
        schema=EVENTS_SCHEMA,
    )


def _visit_ids(subject: Ints, seconds: Ints, *, is_visit: Bools) -> pa.Array:
    """`subject-k` for the k-th moment of a subject's record; null for what belongs to no visit."""
    starts = np.ones(len(subject), dtype=bool)
    starts[1:] = (np.diff(subject) != 0) | (np.diff(seconds) != 0)
    number = starts.cumsum() - 1
    is_first = np.ones(len(subject), dtype=bool)
    is_first[1:] = np.diff(subject) != 0
    base = number[is_first][is_first.cumsum() - 1]
    names = [f"{i}-{k}" for i, k in zip(subject[starts].tolist(), (number - base)[starts].tolist(), strict=True)]
    return pa.array(names, pa.string()).take(pa.array(number, mask=~is_visit))


def _labels_table(block: Block, world: World, n: int) -> pa.Table:
    rows = np.arange(n)
    return pa.table(
        [
            _subject_ids(block, world, rows),
            _microseconds(block.people.index_time[:n]),
            block.outcomes.follow_up_seconds[:n] / SECONDS_PER_DAY,
            block.outcomes.is_event[:n],
        ],
        schema=LABELS_SCHEMA,
    )


def _truth_table(block: Block, world: World, n: int) -> pa.Table:
    times = truth_times(world)
    eta = block.eta[:n]
    survival = true_survival(eta, times, world)
    censoring = np.exp(-block.censoring_rate[:n, None] * times)
    at_horizon = cumulative_hazard(world.horizon_days, world) * np.exp(eta) * block.outcomes.gamma[:n]
    return pa.table(
        [
            pa.array(_subject_ids(block, world, np.arange(n))),
            pa.array(eta),
            pa.array(1 - survival[:, -1]),
            _lists(survival),
            _lists(censoring),
            pa.array(1 - np.exp(-at_horizon)),
        ],
        schema=TRUTH_SCHEMA,
    )


def _subject_ids(block: Block, world: World, row: Ints) -> Ints:
    return block.subject_ids[row] + world.first_subject_id


def _microseconds(times: npt.NDArray[np.datetime64]) -> npt.NDArray[np.datetime64]:
    return times.astype("datetime64[us]")


def _lists(table: Floats) -> pa.Array:
    offsets = np.arange(len(table) + 1, dtype=np.int32) * table.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(table.ravel()))


def _write_metadata(dictionary: Dictionary, folder: Path) -> None:
    """The codes with what they mean, each code's concept its parent; and what made the dataset, without a time."""
    parents = dictionary.parents
    descriptions = [
        f"{parent.removeprefix('CONCEPT//')}, way {code % dictionary.world.n_synonyms + 1} of writing it"
        if parent
        else "noise: nothing drives it"
        for code, parent in enumerate(parents)
    ]
    codes = pa.table(
        [
            [*dictionary.code_names, *(f"CONCEPT//{name}" for name, _ in CONCEPTS)],
            [*descriptions, *(f"the concept {name}" for name, _ in CONCEPTS)],
            [*([parent] if parent else None for parent in parents), *[None] * N_CONCEPTS],
        ],
        schema=CodeMetadataSchema.schema(),
    )
    CodeMetadataSchema.validate(codes)
    pq.write_table(codes, folder / "metadata" / "codes.parquet")
    description = {
        "dataset_name": f"simulated {dictionary.world.name}",
        "etl_name": "ehrtrack simulate",
        "etl_version": version("ehrtrack"),
        "meds_version": version("meds"),
        "raw_source_id_columns": ["visit_id"],
    }
    DatasetMetadataSchema.validate(description)
    (folder / "metadata" / "dataset.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _whole_or_nothing(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` that takes its place if all goes well, and is gone if not."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and is not an empty folder; choose another output or remove it first")
    with ExitStack() as opened:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            staging = opened.enter_context(scratch_folder(out.parent, f".{out.name}-simulating-"))
        except OSError as error:
            raise DataError(f"{out} cannot be written: {error.strerror}; choose another output") from error
        yield staging
        publish(staging, out)
