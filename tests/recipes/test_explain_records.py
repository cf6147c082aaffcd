"""What is left out of a record, and what the model then says: on records and a network that are made by hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from simulated import study_values

from ehrtrack.config import parse_config
from ehrtrack.data.events import EVENT_SCHEMA, MedsDataset
from ehrtrack.data.vocabulary import SPECIAL_TOKENS, Vocabulary
from ehrtrack.errors import ConfigError, DataError
from ehrtrack.models.behrt import Behrt, EhrModel
from ehrtrack.models.code_effects import CodeEffects
from ehrtrack.models.heads import HazardHead
from ehrtrack.models.record_columns import Levels
from ehrtrack.models.static_effects import StaticEffects
from ehrtrack.pipeline.explain import Explanation, explain, on_scale, rest_of
from ehrtrack.pipeline.integrated_gradients import TOLERANCE
from ehrtrack.pipeline.model_folder import ModelFolder
from ehrtrack.pipeline.predictor import Predictor
from ehrtrack.pipeline.records import NO_TOKEN, STATIC, Record, as_dataset, read_records
from ehrtrack.reporting.explanation import rest_text
from ehrtrack.survival.time_grid import TimeGrid

NOW = datetime(2020, 6, 1)
GRID = TimeGrid((0.0, 100.0, 200.0, 365.0))
VOCABULARY = Vocabulary(
    tokens=(*SPECIAL_TOKENS, "SEX//F", "DX//1", "DX//2", "LAB//1//Q1", "LAB//1//Q2", "BOTH"),
    value_edges={"LAB//1": (4.0,)},
    exclude=("MEDS_BIRTH$", "MEDS_DEATH$", "BILL//"),
    groups={"RX//1": "BOTH", "RX//2": "BOTH"},
)
EVENTS = [  # day before the prediction, code, value
    (None, "SEX//F", None),
    (15_000, "MEDS_BIRTH", None),
    (400, "DX//1", None),
    (400, "LAB//1", 3.0),
    (399.5, "RX//1", None),
    (200, "LAB//1", 7.5),
    (200, "BILL//9", None),
    (100, "RX//2", None),
    (100, "DX//2", None),
    (30, "DX//77", None),
    (20, "DX//78", None),
    (-5, "DX//2", None),
]


def predictor(tmp_path: Path, *, has_effects: bool, unit: str = "day", has_classes: bool = False) -> Predictor:
    """A network of random weights that are large enough to matter."""
    torch.manual_seed(0)
    values = study_values(tmp_path / "no-data", tmp_path / "cache")
    config = parse_config(values | {"data": {"path": "no-data", "visits": {"unit": unit}}})
    effects = None
    if has_effects:
        effects = CodeEffects.nothing(Levels.of(VOCABULARY), (30.0, 365.0), 1)
        effects = effects.with_effects(0.05 * torch.randn_like(effects.effect), torch.tensor([0.1]))
    encoder = Behrt(config.model, len(VOCABULARY))
    model = EhrModel(encoder, HazardHead(encoder.width, torch.full((GRID.n_intervals,), -2.0), effects))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folder = ModelFolder(config, VOCABULARY, weights, GRID, None, {}, 64, None, has_classes=has_classes)
    return Predictor(folder, GRID)


def dataset(folder: Path, events: list[tuple[float | None, str, float | None]] = EVENTS) -> MedsDataset:
    times = [None if days is None else NOW - timedelta(days=days) for days, _, _ in events]
    columns = {"subject_id": [7] * len(events), "time": times, "code": [e[1] for e in events]}
    columns |= {"numeric_value": [e[2] for e in events], "text_value": None, "visit_id": None}
    return as_dataset(pl.DataFrame(columns, schema=EVENT_SCHEMA), folder)


def times(at: datetime = NOW) -> pl.DataFrame:
    return pl.DataFrame(
        {"subject_id": [7], "prediction_time": [at]}, schema_overrides={"prediction_time": pl.Datetime("us")}
    )


def record(of: Predictor, data: MedsDataset) -> Record:
    return read_records(of, data, times())[0]


def explained(of: Predictor, read: Record, **how: Any) -> Explanation:
    (found,) = explain(of, [read], **how)
    return found


def risk_without(of: Predictor, left_out: pl.Expr) -> float:
    """By the door that everybody takes: a frame of events without some."""
    time = [None if days is None else NOW - timedelta(days=days) for days, _, _ in EVENTS]
    values = pl.Series([e[2] for e in EVENTS], dtype=pl.Float32)
    frame = pl.DataFrame({"subject_id": 7, "time": time, "code": [e[1] for e in EVENTS], "numeric_value": values})
    frame = frame.with_columns(pl.col("subject_id").cast(pl.Int64), pl.col("time").cast(pl.Datetime("us")))
    return float(of.predict_events(frame.filter(~left_out.fill_null(False)), times())["risk"][0])


def test_bins_are_of_their_code_and_codes_of_a_group_and_those_unknown_are_one(tmp_path: Path) -> None:
    read = record(predictor(tmp_path, has_effects=False), dataset(tmp_path / "data"))
    assert set(read.codes) == {"SEX//F", "DX//1", "DX//2", "LAB//1", "BOTH", "[UNK]"}
    by_code = {name: int((read.code == place).sum()) for place, name in enumerate(read.codes)}
    assert by_code == {"SEX//F": 1, "DX//1": 1, "LAB//1": 2, "BOTH": 2, "DX//2": 1, "[UNK]": 2}
    assert "BILL//9" in read.events.filter(pl.Series(read.code == NO_TOKEN))["code"].to_list()
    assert read.events["time"].max() <= NOW


@pytest.mark.parametrize("unit", ["day", "hour", "encounter"])
def test_visits_are_numbered_as_the_tokeniser_numbers_them(tmp_path: Path, unit: str) -> None:
    of, data = predictor(tmp_path, has_effects=False, unit=unit), dataset(tmp_path / "data")
    read = record(of, data)
    cutoffs = times().rename({"prediction_time": "cutoff"})
    store = of.tokens(data, cutoffs, tmp_path / "tokens")
    tokens = {(int(v), VOCABULARY.code_of_token[t]) for v, t in zip(store.visit, store.token, strict=True)}
    is_read = read.code != NO_TOKEN
    events = {(int(v), read.codes[c]) for v, c in zip(read.visit[is_read], read.code[is_read], strict=True)}
    assert events == tokens
    assert len(read.visit_times) == store.visit.max() == (5 if unit == "day" or unit == "encounter" else 6)


@pytest.mark.parametrize("has_effects", [False, True])
def test_a_contribution_is_what_the_same_predictor_loses_without_the_events(tmp_path: Path, has_effects: bool) -> None:
    of = predictor(tmp_path, has_effects=has_effects)
    read = record(of, dataset(tmp_path / "data"))
    found = explained(of, read)
    whole = risk_without(of, pl.lit(False))
    assert found.risk == pytest.approx(whole, abs=1e-6)
    codes = {"DX//1": ["DX//1"], "BOTH": ["RX//1", "RX//2"], "LAB//1": ["LAB//1"], "[UNK]": ["DX//77", "DX//78"]}
    for name, left_out in codes.items():
        without = risk_without(of, pl.col("code").is_in(left_out))
        row = found.codes.row(by_predicate=pl.col("code") == name, named=True)
        assert row["risk_points"] == pytest.approx(100 * (whole - without), abs=1e-4)
        told = on_scale(np.array([whole, without]), has_classes=False)
        assert row["contribution"] == pytest.approx(told[0] - told[1], abs=1e-5)
    assert found.codes["contribution"].abs().is_sorted(descending=True)
    assert found.codes["contribution"].abs().min() > 1e-4  # random weights: everything matters
    first_visit = risk_without(of, (pl.col("time") < NOW - timedelta(days=399)) & (pl.col("code") != "MEDS_BIRTH"))
    assert found.visits["risk_points"][0] == pytest.approx(100 * (whole - first_visit), abs=1e-4)
    shown = found.top(2)["code"].to_list()
    rest = [code for code in (*codes, "DX//2", "SEX//F") if code not in shown]
    events = [event for code in rest for event in codes.get(code, [code])]
    assert rest_of(of, found, read, shown)[1] == pytest.approx(
        100 * (whole - risk_without(of, pl.col("code").is_in(events))), abs=1e-4
    )


def test_the_age_is_compared_with_another_unless_the_record_begins_before_it(tmp_path: Path) -> None:
    of = predictor(tmp_path, has_effects=False)
    read = record(of, dataset(tmp_path / "data"))
    assert read.age_years == pytest.approx(15_000 / 365.25)
    found = explained(of, read, reference_years=60.0)
    older = [(60 * 365.25 if code == "MEDS_BIRTH" else days, code, value) for days, code, value in EVENTS]
    older.sort(key=lambda event: -np.inf if event[0] is None else -event[0])
    other = explained(of, record(of, dataset(tmp_path / "older", older)))
    assert found.age == pytest.approx((found.total - other.total, 100 * (found.risk - other.risk)), abs=1e-4)
    assert abs(found.age[1]) > 1e-3
    young = explained(of, read, reference_years=1.0)  # younger than the record is long
    assert young.age is None
    assert explained(of, read).age is None


@pytest.mark.parametrize(("has_effects", "has_classes"), [(False, False), (True, False), (True, True)])
def test_integrated_gradients_add_up_to_the_difference(tmp_path: Path, has_effects: bool, has_classes: bool) -> None:
    of = predictor(tmp_path, has_effects=has_effects, has_classes=has_classes)
    found = explained(of, record(of, dataset(tmp_path / "data")), method="integrated-gradients")
    difference = found.total - found.base
    assert abs(difference) > 0.05
    assert found.codes["contribution"].sum() == pytest.approx(difference, abs=TOLERANCE * max(1, abs(difference)))
    assert found.total == pytest.approx(float(on_scale(np.array([found.risk]), has_classes=has_classes)[0]), abs=1e-4)
    static = found.codes.filter(pl.col("n_visits") == STATIC)["contribution"].sum()
    assert found.visits["contribution"].sum() == pytest.approx(found.codes["contribution"].sum() - static, abs=1e-5)
    assert found.codes["risk_points"].null_count() == found.codes.height


def test_gradients_of_a_regression_on_single_codes_are_what_it_adds(tmp_path: Path) -> None:
    """Where the network is silent, the log hazard of one interval moves by the regression's effects alone."""
    of = predictor(tmp_path, has_effects=True)
    weights = {
        name: torch.zeros_like(tensor) if name == "head.out.weight" else tensor
        for name, tensor in of.folder.weights.items()
    }
    weights["head.baseline"] = torch.full((GRID.n_intervals,), -8.0)  # where logits are log hazards
    folder = ModelFolder(of.folder.config, VOCABULARY, weights, GRID, None, {}, 64, None)
    silent = Predictor(folder, GRID)
    read = record(silent, dataset(tmp_path / "data"))
    gradients, occlusion = (explained(silent, read, method=method) for method in ("integrated-gradients", "occlusion"))

    def of_code(found: Explanation, code: str) -> float:
        return float(found.codes.row(by_predicate=pl.col("code") == code, named=True)["contribution"])

    for code in ("SEX//F", "DX//2", "BOTH"):  # visits stay, where they have other codes
        assert of_code(gradients, code) == pytest.approx(of_code(occlusion, code), abs=1e-2)


def test_gradients_tell_what_age_and_static_facts_add_to_the_hazard(tmp_path: Path) -> None:
    """Where the network is silent, the log hazard is linear in them: contributions are effects times differences."""
    of = predictor(tmp_path, has_effects=False)
    sex = VOCABULARY.tokens.index("SEX//F")
    scales, effects = torch.tensor([10.0, 0.5, 0.5]), torch.tensor([[0.3], [0.2], [9.0]])
    means = torch.tensor([50.0, 0.4, 0.1])
    statics = StaticEffects(torch.tensor([sex, sex + 1]), means, scales, effects)  # of the second there is none here
    encoder = Behrt(of.folder.config.model, len(VOCABULARY))
    head = HazardHead(encoder.width, torch.full((GRID.n_intervals,), -8.0), statics=statics)
    torch.nn.init.zeros_(head.out.weight)
    weights = EhrModel(encoder, head).state_dict()
    silent = Predictor(replace(of.folder, weights=dict(weights)), GRID)
    read = record(silent, dataset(tmp_path / "data"))
    found = explained(silent, read, method="integrated-gradients")
    of_sex = found.codes.row(by_predicate=pl.col("code") == "SEX//F", named=True)["contribution"]
    assert of_sex == pytest.approx(0.2 / 0.5, abs=1e-2)
    assert found.age is not None
    assert found.age[0] == pytest.approx(0.3 * (15_000 / 365.25 - 50) / 10, abs=1e-2)
    assert (found.age[1], found.reference_years) == (None, 50.0)
    assert found.codes["contribution"].sum() + found.age[0] == pytest.approx(found.total - found.base, abs=TOLERANCE)
    assert "Age 41, compared with 50 (the training mean), as it acts on the hazard directly: -0.270." in rest_text(
        found, (0, 0.0, 0.0)
    )


def test_a_record_of_which_nothing_is_read_has_nothing_to_explain(tmp_path: Path) -> None:
    of = predictor(tmp_path, has_effects=False)
    bare = record(of, dataset(tmp_path / "data", [(15_000, "MEDS_BIRTH", None), (3, "BILL//1", None)]))
    with pytest.raises(DataError, match="no event by 2020-06-01 that the model reads"):
        explained(of, bare)


def test_without_captum_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "captum.attr", None)
    of = predictor(tmp_path, has_effects=False)
    with pytest.raises(ConfigError, match=r"pip install 'ehrtrack\[explain\]'"):
        explained(of, record(of, dataset(tmp_path / "data")), method="integrated-gradients")
