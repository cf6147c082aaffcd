"""Scoring new subjects with a logged model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import polars as pl
import torch

from ehrtrack.data.eligibility import REASON
from ehrtrack.data.engines import Engine, open_engine
from ehrtrack.data.events import MedsDataset, open_dataset
from ehrtrack.data.histories import damage_named
from ehrtrack.data.labels import CAUSE, read_labels
from ehrtrack.errors import DataError
from ehrtrack.pipeline.model_folder import make_whole
from ehrtrack.pipeline.prediction_parts import (
    events_of,
    part_file,
    parts_folder,
    with_days,
    write_part,
    write_together,
)
from ehrtrack.pipeline.predictor import Predictor, Scored, load_predictor
from ehrtrack.tracking.client.queries import fetch_model
from ehrtrack.training.threads import use_threads

DRIFT_METADATA = "ehrtrack.drift"
"""The entry of the parquet file's metadata with the counts of `Drift`, as JSON."""


def predict(
    model: str,
    data: Path,
    labels: Path,
    out: Path,
    *,
    days: Sequence[float] = (),
    engine: str = "local",
    n_workers: int = 1,
) -> pl.LazyFrame:
    """Score the subjects of a file of prediction times, of which a subject may have several, and write the table.

    Subjects are scored shard by shard, so that any engine and any number of workers write the same bytes, and no more
    than the shards at work are in memory. Shards that were finished when it was cut off are not scored again. The
    closing lines count who has no risk and why, and the drift of codes and values against training, which the file's
    metadata keep too.

    Parameters
    ----------
    model : run id, ``models:/NAME@champion`` or ``models:/NAME/VERSION``
    data : MEDS dataset
    labels : parquet or CSV, or a folder of them, with subject_id and prediction_time; other columns are not read
    out : parquet file to write; on a cluster its folder is shared by all nodes, for the model is put beside it
    days : within the horizon, at which risks are told in columns ``risk_30``, beside that at the horizon
    engine : ``local`` or ``ray``
    n_workers : shards that are worked on at the same time

    Returns
    -------
    The file, as a frame that is read when it is collected.
    """
    if out.suffix != ".parquet":
        raise DataError(f"--out {out} must end in .parquet: the survival curve is a list")
    dataset = open_dataset(data)
    times = read_labels(labels, dataset, needs_outcome=False).rename({"index_date": "prediction_time"})
    with (
        open_engine(engine, n_workers) as opened,
        tempfile.TemporaryDirectory(dir=out.parent, prefix=".predict-") as folder,
    ):
        model_folder = fetch_model(model, Path(folder)).folder.resolve()
        make_whole(model_folder)  # workers elsewhere know no server
        scored = write_scores(model_folder, dataset, times, opened, out, days=days)
    print("\n".join([*scored.to_lines(), f"-> {out}"]), flush=True)
    return pl.scan_parquet(out)


def score_shards(model_folder: Path, dataset: MedsDataset, times: pl.DataFrame, engine: Engine) -> Scored:
    """As `Predictor.score_dataset`, with each shard's subjects scored by a worker that reads the model itself."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "risks.parquet"
        return replace(write_scores(model_folder, dataset, times, engine, out), table=pl.read_parquet(out))


def write_scores(
    model_folder: Path,
    dataset: MedsDataset,
    times: pl.DataFrame,
    engine: Engine,
    out: Path,
    *,
    days: Sequence[float] = (),
) -> Scored:
    """Write the table of `score_shards`; the one that is returned tells only who was scored, and why others were not.

    Raises
    ------
    DataError
        If a day is past the model's horizon, a subject is in two shards, or the model knows too few of the events.
    """
    predictor = load_predictor(model_folder)  # a folder that cannot be used is told before any work
    past = [day for day in days if not 0 < day <= predictor.grid.horizon_days]
    if past:
        raise DataError(
            f"risks at {past} days were asked for, and the model's are of up to {predictor.grid.horizon_days:g}"
        )
    numbered = times.select("subject_id", "prediction_time").with_row_index("row")
    parts = parts_folder(out, model_folder, times.select("subject_id", "prediction_time"), days)
    parts.mkdir(exist_ok=True)
    function = partial(_predict_shard, model_folder, dataset.path.resolve(), numbered, parts.resolve(), tuple(days))
    files = engine.map(function, [(n, shard.resolve()) for n, shard in enumerate(dataset.shards)], "predictions")
    drift = predictor.drift_of(events_of(files))

    def nowhere(absent: pl.DataFrame) -> pl.DataFrame:
        return with_days(predictor.table(absent, np.zeros(0, dtype=np.int64), None), predictor.grid, days)

    write_together(files, numbered, nowhere, out, {DRIFT_METADATA: drift.to_json()})
    shutil.rmtree(parts)
    told = [name for name in ("subject_id", CAUSE, "risk", REASON) if name in pl.read_parquet_schema(out)]
    return Scored(pl.read_parquet(out, columns=told), drift)


def _predict_shard(
    model_folder: Path,
    data: Path,
    times: pl.DataFrame,
    parts: Path,
    days: tuple[float, ...],
    numbered: tuple[int, Path],
) -> Path:
    """The file with the predictions of a shard, which is made if it is not there."""
    number, shard = numbered
    file = part_file(parts, number, shard)
    if file.is_file():
        return file
    with damage_named((shard,)):
        subjects = pl.scan_parquet(shard).select(pl.col("subject_id").cast(pl.Int64)).unique().collect()
    held = times.join(subjects, on="subject_id", how="semi", maintain_order="left")
    # The order in which threads add up shows in the last digits; one thread has one order.
    n_threads = torch.get_num_threads()
    use_threads(1)
    try:
        predictor = _predictor_in(model_folder)
        table, n_events = predictor.score(MedsDataset(data, (shard,)), held)
        write_part(file, with_days(table, predictor.grid, days), n_events)
    finally:
        use_threads(n_threads)
    return file


@lru_cache(maxsize=1)
def _predictor_in(model_folder: Path) -> Predictor:
    """The predictor of a folder, read once a worker."""
    return load_predictor(model_folder)
