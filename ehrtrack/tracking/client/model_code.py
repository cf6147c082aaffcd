"""The registered model as mlflow serves it: this code is stored with the model, and needs EHRTrack installed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import mlflow.models
import pandas as pd
from mlflow.pyfunc.model import PythonModel

from ehrtrack.tracking.registry import check_served

ANSWER = ("subject_id", "prediction_time", "cause", "risk", "reason")


class SurvivalModel(PythonModel):
    """Risk of the outcome within the horizon, from events of any number of subjects."""

    def load_context(self, context: Any) -> None:
        """Load the model folder that was stored beside this file, after checking that it is the registered one."""
        folder = Path(context.artifacts["model"])
        check_served(folder.parents[1])
        # By name, because recipes stand above tracking: this file runs where the model is served, not here.
        predict = importlib.import_module("ehrtrack.recipes.predict")
        self.predictor = predict.load_predictor(folder)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Score the subjects of the input at their prediction times.

        Parameters
        ----------
        model_input
            One row an event: subject_id, prediction_time, time (empty for static facts), code, numeric_value.
            Events after their prediction_time are not used.

        Returns
        -------
        One row a subject and prediction time: subject_id, prediction_time, risk, reason. Whom the model was not trained
        for has no risk, and the reason. A model that tells causes apart gives several rows with a column cause: any, 1,
        2, ...
        """
        import polars as pl

        rows = pl.from_pandas(model_input).with_columns(
            pl.col("time", "prediction_time").cast(pl.Datetime("us")), pl.col("subject_id").cast(pl.Int64)
        )
        times = rows.select("subject_id", "prediction_time").unique().sort("subject_id", "prediction_time")
        if "numeric_value" not in rows.columns:
            rows = rows.with_columns(numeric_value=pl.lit(None, dtype=pl.Float32))
        events = (
            rows.with_columns(pl.col("numeric_value").cast(pl.Float32))
            .drop("prediction_time")
            .unique(maintain_order=True)
        )
        events = events.sort("subject_id", "time", nulls_last=False, maintain_order=True)
        scored = self.predictor.predict_events(events, times, tells_causes=True)
        columns = [name for name in ANSWER if name in scored.columns]
        table: pd.DataFrame = scored.select(columns).to_pandas()
        if table["risk"].isna().any():  # as null in JSON, which knows no NaN
            table["risk"] = table["risk"].astype(object).where(table["risk"].notna(), None)
        return table


mlflow.models.set_model(SurvivalModel())
