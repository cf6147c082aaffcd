"""Scoring new subjects with a logged model."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from ehrtrack.data.batch import Batches
from ehrtrack.data.count_features import count_features
from ehrtrack.data.events import MedsDataset, open_dataset
from ehrtrack.data.labels import read_labels
from ehrtrack.data.store import TokenStore, build_store
from ehrtrack.data.vocabulary import UNK
from ehrtrack.errors import CheckpointError, DataError
from ehrtrack.objectives.survival import predict as predict_survival
from ehrtrack.plugins import load
from ehrtrack.recipes._model_folder import ModelFolder, read_model_folder
from ehrtrack.survival.time_grid import TimeGrid
from ehrtrack.tracking.queries import download, resolve_run

BATCH_TOKENS = 4096
MOST_UNKNOWN = 0.5
"""Share of tokens that a model may not know of the subjects that it is asked to score."""


@dataclass(frozen=True)
class Predictor:
    """A model that was read back, ready to score.

    Attributes
    ----------
    folder : the model with its vocabulary and configuration
    grid : days at which survival is given
    """

    folder: ModelFolder
    grid: TimeGrid

    def predict_events(self, events: pl.DataFrame, prediction_times: pl.DataFrame) -> pl.DataFrame:
        """Risk and survival of subjects from a frame of MEDS events.

        Parameters
        ----------
        events : subject_id, time, code and, if there are any, numeric_value, visit_id
        prediction_times : subject_id, prediction_time, a subject once; later events are not used
        """
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "data").mkdir()
            events.write_parquet(Path(folder) / "data" / "0.parquet")
            return self.predict_dataset(open_dataset(Path(folder)), prediction_times)

    def predict_dataset(self, dataset: MedsDataset, prediction_times: pl.DataFrame) -> pl.DataFrame:
        """Risk and survival of subjects of a dataset.

        Returns
        -------
        subject_id, prediction_time, risk (1 - S at the horizon), survival (list of K + 1), survival_days (the same
        for every row: the edges of the time grid), in the order of `prediction_times`.
        """
        cutoffs = prediction_times.select("subject_id", cutoff="prediction_time")
        data = self.folder.config.data
        with tempfile.TemporaryDirectory() as cache:
            store = build_store(dataset, cutoffs, self.folder.vocabulary, data.visits, Path(cache))
            _check_known(store)
            survival = self._survival(store)
        return prediction_times.select("subject_id", "prediction_time").with_columns(
            risk=pl.Series(1 - survival[:, -1]),
            survival=pl.Series(survival.tolist()),
            survival_days=pl.lit(list(self.grid.edges_days)),
        )

    def _survival(self, store: TokenStore) -> npt.NDArray[np.float64]:
        """(N, K + 1) survival at the edges of the grid."""
        config = self.folder.config
        if self.folder.baseline is not None:
            model = load("baselines", config.baseline.name).from_json(self.folder.baseline)
            features = count_features(store, self.folder.vocabulary).drop("subject_id")
            survival: npt.NDArray[np.float64] = model.survival(features, self.grid.edges_days)
            return survival
        batches = Batches(
            store, np.arange(len(store)), max(BATCH_TOKENS, config.data.max_tokens), config.data.max_tokens
        )
        return predict_survival(self.folder.survival_model(), batches, torch.device("cpu")).survival


def load_predictor(folder: Path) -> Predictor:
    """The predictor in a model folder.

    Raises
    ------
    CheckpointError
        If a file is missing or damaged, or the model predicts no survival.
    """
    model = read_model_folder(Path(folder))
    if model.grid is None:
        raise CheckpointError(f"the model in {folder} was pretrained only: it has no outcome; name a finetune run")
    return Predictor(model, model.grid)


def predict(model: str, data: Path, labels: Path, out: Path) -> pl.DataFrame:
    """Score the subjects of a file of prediction times, and write the table.

    Parameters
    ----------
    model : run id, ``models:/NAME@champion`` or ``models:/NAME/VERSION``
    data : MEDS dataset
    labels : parquet or CSV with subject_id and prediction_time; other columns are not read
    out : parquet file to write
    """
    if out.suffix != ".parquet":
        raise DataError(f"--out {out} must end in .parquet: the survival curve is a list")
    dataset = open_dataset(data)
    times = read_labels(labels, dataset, needs_outcome=False).rename({"index_date": "prediction_time"})
    with tempfile.TemporaryDirectory() as folder:
        reference = resolve_run(model)
        predictor = load_predictor(download(reference.run_id, reference.artifact_path, Path(folder)))
        scored = predictor.predict_dataset(dataset, times)
    aside = out.with_suffix(".part")
    scored.write_parquet(aside)
    aside.replace(out)
    return scored


def _check_known(store: TokenStore) -> None:
    share = float(np.mean(store.token == UNK)) if len(store.token) else 1.0
    if share > MOST_UNKNOWN:
        raise DataError(
            f"the model does not know {share:.0%} of these subjects' tokens: they were coded otherwise than the "
            "data it was trained on; map the codes first, or train on this data"
        )
