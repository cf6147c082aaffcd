"""Checks of a simulated population against its own truth, from what lies on disk alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from lifelines import KaplanMeierFitter
from lifelines.utils import concordance_index

from ehrtrack.arrays import Bools, Float32s, Floats, Ints
from ehrtrack.data.events import BIRTH, MedsDataset, open_dataset
from ehrtrack.data.tables import read_table
from ehrtrack.errors import DataError
from ehrtrack.simulate.dictionary import CONCEPTS
from ehrtrack.simulate.life import DAYS_PER_YEAR
from ehrtrack.simulate.motifs import log_hazard, summarise_history
from ehrtrack.simulate.recording import NOISE
from ehrtrack.simulate.world import World

N_GROUPS = 10
MIN_SUBJECTS = 500
TOLERATED_Z = 4.0
"""Standard errors a group's observed risk may lie off: of 20 groups, chance alone does so once in 800 populations."""


@dataclass(frozen=True)
class TruthReport:
    """What `check_truth` found.

    Attributes
    ----------
    oracle_c_index : C of the true risk given the observed history: what can be attained
    upper_bound_c_index : C of the risk given the unseen frailty as well; nobody can attain it
    calibration, censoring : group, n_subjects, predicted, observed, standard_error; by tenths of the true risk of an
        event, and of censoring, by the horizon
    max_log_hazard_error : largest difference between the log hazard in truth.parquet and that computed from the
        written records up to the index date
    """

    n_subjects: int
    event_rate: float
    oracle_c_index: float
    upper_bound_c_index: float
    calibration: pl.DataFrame
    censoring: pl.DataFrame
    max_log_hazard_error: float

    def to_text(self) -> str:
        """The report as lines to be printed."""
        return "\n".join(
            [
                f"{self.n_subjects:,} subjects, {self.event_rate:.1%} with the event by the horizon",
                f"oracle C-index {self.oracle_c_index:.3f} (upper bound, frailty seen: {self.upper_bound_c_index:.3f})",
                f"log hazard from the written history alone: equal within {self.max_log_hazard_error:.1e}",
                "true risk -> observed (Kaplan-Meier):  " + _pairs(self.calibration),
                "true censoring -> observed:            " + _pairs(self.censoring),
            ]
        )


def check_truth(folder: Path) -> TruthReport:
    """Compare the truth of a simulated population with its labels and records.

    Raises
    ------
    DataError
        If the oracle is not calibrated, censoring is not as stated, or the truth is no function of the records up to
        the index date; or there are fewer than 500 subjects to tell.
    """
    labels, truth = (
        read_table(folder / f"{name}.parquet", ("subject_id",), "the check") for name in ("labels", "truth")
    )
    if labels.height < MIN_SUBJECTS:
        raise DataError(f"{folder} has {labels.height} subjects; a check of calibration needs {MIN_SUBJECTS} or more")
    days, event = labels["follow_up_days"].to_numpy(), labels["is_event"].to_numpy()
    world, _ = read_world(folder)
    risk = truth["risk"].to_numpy()
    censoring_risk = 1 - truth["censoring_survival"].list.last().to_numpy()
    is_censored = ~event & (days < world.horizon_days)
    report = TruthReport(
        n_subjects=labels.height,
        event_rate=float(event.mean()),
        oracle_c_index=concordance_index(days, -risk, event),
        upper_bound_c_index=concordance_index(days, -truth["upper_bound_risk_given_frailty"].to_numpy(), event),
        calibration=_calibration(risk, days, event, world.horizon_days),
        censoring=_calibration(censoring_risk, days, is_censored, world.horizon_days),
        max_log_hazard_error=float(np.abs(log_hazard_from_records(folder) - truth["log_hazard"].to_numpy()).max()),
    )
    _require_truth(report)
    return report


def read_world(folder: Path) -> tuple[World, Floats]:
    """The dials of a simulated population, and the days of its true survival curves."""
    path = folder / "world.json"
    if not path.is_file():
        raise DataError(f"{path} not found; needed: a folder that `ehrtrack simulate` wrote")
    description = json.loads(path.read_text(encoding="utf-8"))
    return World.model_validate(description["world"]), np.array(description["survival_days"])


def log_hazard_from_records(folder: Path) -> Floats:
    """(n,) the true log hazard computed again from the events up to the index date, in the order of the labels.

    That it can be computed is what makes the oracle attainable: it knows no more than a model is given.
    """
    world, _ = read_world(folder)
    labels = pl.read_parquet(folder / "labels.parquet").with_row_index("row")
    events = _coded_events(open_dataset(folder)).join(
        labels.lazy().select("subject_id", "row", "prediction_time"), on="subject_id", maintain_order="left"
    )
    seconds = (pl.col("time") - pl.col("prediction_time")).dt.total_seconds()
    known = (
        events.filter(pl.col("time").is_null() | (pl.col("time") <= pl.col("prediction_time")))
        .select(pl.col("row").cast(pl.Int64), "code", "concept", "numeric_value", seconds=seconds)
        .collect()
    )
    history = summarise_history(
        *_arrays(known.filter(pl.col("code") != BIRTH, pl.col("seconds").is_not_null())), n_subjects=labels.height
    )
    births = known.filter(pl.col("code") == BIRTH).sort("row")
    age_years = -births["seconds"].to_numpy() / 86_400 / DAYS_PER_YEAR
    is_male = known.filter(pl.col("code").str.starts_with("GENDER//")).sort("row")["code"].to_numpy() == "GENDER//M"
    return log_hazard(history, age_years, is_male, world)


def concept_counts(folder: Path) -> pl.DataFrame:
    """How often each way of writing each concept occurs: concept, code, n_events, share (within the concept)."""
    return (
        _coded_events(open_dataset(folder))
        .filter(pl.col("concept") != NOISE)
        .group_by("concept", "code")
        .agg(n_events=pl.len())
        .with_columns(share=pl.col("n_events") / pl.col("n_events").sum().over("concept"))
        .sort("concept", "code")
        .collect()
    )


def coding_distance(one: Path, other: Path) -> float:
    """Mean over concepts of the total variation between two populations' shares of synonyms: 0 equal, 1 disjoint."""
    both = concept_counts(one).join(concept_counts(other), on=["concept", "code"], how="full", coalesce=True)
    differences = (
        both.with_columns(pl.col("share", "share_right").fill_null(0))
        .group_by("concept")
        .agg(distance=(pl.col("share") - pl.col("share_right")).abs().sum() / 2)
    )
    return float(differences["distance"].to_numpy().mean())


def _coded_events(dataset: MedsDataset) -> pl.LazyFrame:
    """All events in their order, with the column `concept` (NOISE for what has none)."""
    concepts = pl.LazyFrame({"parent": [f"CONCEPT//{name}" for name, _ in CONCEPTS], "concept": range(len(CONCEPTS))})
    codes = pl.scan_parquet(dataset.path / "metadata" / "codes.parquet").select(
        "code", parent=pl.col("parent_codes").list.first()
    )
    known = codes.join(concepts, on="parent").select("code", pl.col("concept").cast(pl.Int64))
    return (
        dataset.scan()
        .join(known, on="code", how="left", maintain_order="left")
        .with_columns(pl.col("concept").fill_null(NOISE))
    )


def _arrays(
    events: pl.DataFrame,
) -> tuple[Ints, Ints, Ints, Float32s]:
    return (
        events["row"].to_numpy(),
        events["seconds"].to_numpy(),
        events["concept"].to_numpy(),
        events["numeric_value"].to_numpy(),
    )


def _calibration(risk: Floats, days: Floats, is_event: Bools, horizon_days: float) -> pl.DataFrame:
    """Mean true risk and Kaplan-Meier's, with Greenwood's standard error, by tenths of the true risk."""
    rank = np.argsort(np.argsort(risk, kind="stable"), kind="stable")
    group = rank * N_GROUPS // len(risk)
    rows = []
    for number in range(N_GROUPS):
        chosen = group == number
        observed, error = _observed_risk(days[chosen], is_event[chosen], horizon_days)
        rows.append((number + 1, int(chosen.sum()), float(risk[chosen].mean()), observed, error))
    columns = ["group", "n_subjects", "predicted", "observed", "standard_error"]
    return pl.DataFrame(rows, schema=columns, orient="row")


def _observed_risk(days: Floats, is_event: Bools, horizon_days: float) -> tuple[float, float]:
    curve = KaplanMeierFitter().fit(days, is_event)
    survival = float(curve.predict(horizon_days))
    table = curve.event_table
    at_risk, events = table["at_risk"].to_numpy(), table["observed"].to_numpy()
    left = at_risk - events
    variance = np.sum(events[left > 0] / (at_risk[left > 0] * left[left > 0]))
    return 1 - survival, float(survival * np.sqrt(variance))


def _require_truth(report: TruthReport) -> None:
    if report.max_log_hazard_error > 1e-9:
        raise DataError(
            f"truth.parquet's log hazard differs by up to {report.max_log_hazard_error:.2g} from that of the "
            "records up to the index date; the records or the truth were changed: simulate again"
        )
    for name, table in (("risk", report.calibration), ("censoring", report.censoring)):
        predicted, n = table["predicted"].to_numpy(), table["n_subjects"].to_numpy()
        # Without an event Greenwood's error is 0; the binomial error of the prediction is the floor.
        error = np.maximum(table["standard_error"].to_numpy(), np.sqrt(predicted * (1 - predicted) / n))
        z = np.abs(predicted - table["observed"].to_numpy()) / np.maximum(error, 1e-12)
        if z.max() > TOLERATED_Z:
            worst = int(z.argmax())
            raise DataError(
                f"the true {name} is not calibrated: in group {worst + 1} of {len(z)} it is {predicted[worst]:.3f}, "
                f"observed is {table['observed'][worst]:.3f} ({z[worst]:.1f} standard errors); "
                "labels or truth were changed: simulate again"
            )


def _pairs(table: pl.DataFrame) -> str:
    return "  ".join(f"{row['predicted']:.2f}->{row['observed']:.2f}" for row in table.iter_rows(named=True))
