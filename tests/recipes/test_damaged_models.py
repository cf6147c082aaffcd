"""Whatever is done to a model's files, checksums and all, predictions are finite or an error says what is wrong."""

from __future__ import annotations

import base64
import copy
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import safetensors.torch
import torch
from simulated import HORIZON_DAYS, Population, study, write_dataset

from ehrtrack import plugins
from ehrtrack.baselines.base import Labelled, TokenHistories, baseline_class
from ehrtrack.errors import CheckpointError, EhrtrackError
from ehrtrack.models.behrt import Behrt, EhrModel
from ehrtrack.models.code_effects import CodeEffects
from ehrtrack.models.heads import HazardHead
from ehrtrack.models.record_columns import Levels
from ehrtrack.pipeline.model_folder import write_checksums, write_model_folder
from ehrtrack.pipeline.predictor import load_predictor
from ehrtrack.pipeline.prepare import CohortRecords, prepare_cohort
from ehrtrack.survival.time_grid import TimeGrid

GRID = TimeGrid((0.0, 100.0, HORIZON_DAYS))
QUICK = {  # one of each kind of file
    "cox": {"n_candidates": 2},
    "gradient-boosting": {"n_candidates": 1, "max_trees": 5},
    "random-survival-forest": {"n_candidates": 1, "n_trees": 5},
    "gru": {"n_candidates": 1, "epochs": 1, "widths": [8]},
    "lasso": {"n_candidates": 1},
}
N_DAMAGES = 60
DEEP = "[" * 100_000
LONG = "1" * 4_301
VALUES: list[Any] = [
    *(None, True, "", "x", "\ud800", -1, 0, 1, 2**63, 10**400, 0.5, -1e308, 1e308, float("nan"), float("inf")),
    *([], {}, [1], [[0.5]], {"a": 1}, [None], ["[CLS]"] * 5),
]  # fmt: skip


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> CohortRecords:
    folder = tmp_path_factory.mktemp("damaged")
    write_dataset(folder / "meds", Population(n_subjects=120))
    return prepare_cohort(study(folder / "meds", folder / "cache"))


@pytest.fixture(scope="module")
def models(records: CohortRecords, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model by name, made once."""
    folder = tmp_path_factory.mktemp("models")

    def model(name: str) -> Path:
        if not (folder / name).exists():
            what = network(records) if name == "network" else {"baseline": fitted(records, name)}
            baseline = {} if name == "network" else {"baseline": {"name": name} | QUICK[name]}
            write_model_folder(
                folder / name,
                config=study(folder / "meds", folder / "cache", **baseline),
                vocabulary=records.vocabulary,
                fingerprints={"data": "d"},
                grid=GRID,
                **what,
            )
        return folder / name

    return model


def network(records: CohortRecords) -> dict[str, Any]:
    torch.manual_seed(0)
    levels = Levels.of(records.vocabulary)
    scales = torch.tensor([1.0, 30.0, 365.25])
    codes = CodeEffects(levels, scales, torch.randn(CodeEffects.n_columns(levels, 3), 1) / 9, torch.zeros(1))
    encoder = Behrt(study(Path(), Path()).model, len(records.vocabulary))
    return {"model": EhrModel(encoder, HazardHead(encoder.width, torch.zeros(GRID.n_intervals), codes))}


def fitted(records: CohortRecords, name: str) -> str:
    chosen = baseline_class(name)(plugins.settings("baselines", name).model_validate({"name": name} | QUICK[name]))
    histories = TokenHistories(records.store, records.vocabulary, np.arange(len(records.store)), 64)
    train, validation = (
        Labelled(
            chosen.read(histories)[records.rows[split]],
            records.outcomes[records.rows[split]].follow_up_days,
            records.outcomes[records.rows[split]].is_event,
        )
        for split in ("train", "validation")
    )
    return str(chosen.fit(train, validation).to_json())


def predicted(folder: Path, records: CohortRecords) -> str:
    """The outcome of predicting: finite, or an error of ours; anything else is raised."""
    times = records.cohort.cutoffs.select("subject_id", prediction_time="cutoff")
    try:
        with np.errstate(all="ignore"):  # a hazard ratio of e^999 is a survival of 0
            scored, _ = load_predictor(folder).score(records.dataset, times)
    except EhrtrackError as error:
        return type(error).__name__
    assert scored.height == len(records.store)
    with_risk = scored.filter(pl.col("reason").is_null())  # settings may be damaged so that nobody is eligible
    survival = np.array(with_risk["survival"].to_list(), dtype=np.float64)
    assert np.isfinite(survival).all()
    assert ((survival > -1e-5) & (survival < 1 + 1e-5)).all()
    return "finite"


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of a JSON value's parts; of a long list some."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:5]) if isinstance(value, list) else ()
    return [path] * bool(path) + [leaf for key, inner in items for leaf in leaves(inner, (*path, key))]


def with_another_part(value: Any, rng: random.Random) -> Any:
    """The value with one of its parts replaced, left out or twice."""
    value = copy.deepcopy(value)
    *way, key = rng.choice(leaves(value))
    inside = value
    for step in way:
        inside = inside[step]
    kind = rng.random()
    if kind < 0.15:
        del inside[key]
    elif kind < 0.25 and isinstance(inside, list):
        inside.append(inside[key])
    else:
        inside[key] = rng.choice(VALUES)
    return value


def damaged_bytes(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    kind = rng.randrange(5)
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :]
    if kind == 2:
        return content[:place] + b"\xff\xfe\xc3" + content[place:]
    return [DEEP.encode(), b'{"edges_days": [0, ' + LONG.encode() + b"]}", b"null"][rng.randrange(3)]


def damaged_tensors(content: bytes, rng: random.Random) -> bytes:
    tensors = safetensors.torch.load(content)
    name = rng.choice(sorted(tensors))
    tensor = tensors[name]
    changes: list[Callable[[], torch.Tensor]] = [
        *(lambda t=t: tensor.to(t) for t in (torch.float64, torch.bfloat16, torch.int64, torch.int32, torch.bool)),
        *(lambda f=f: torch.full_like(tensor.float(), f) for f in (float("nan"), float("inf"), 3e38)),
        lambda: tensor.flatten()[:-1].contiguous() if tensor.numel() else tensor,
        lambda: tensor[None].contiguous(),
        lambda: -tensor - 2,
        lambda: torch.zeros_like(tensor),
    ]
    tensors[name] = rng.choice(changes)()
    if rng.random() < 0.1:
        del tensors[name]
    return safetensors.torch.save(tensors)


def damage(folder: Path, rng: random.Random) -> str:
    """Change a file of the folder as somebody might who can write the checksums too."""
    file = rng.choice([file for file in sorted(folder.iterdir()) if file.name != "sha256sums.txt"])
    content = file.read_bytes()
    if file.suffix == ".safetensors":
        content = damaged_tensors(content, rng) if rng.random() < 0.8 else damaged_bytes(content, rng)
    elif rng.random() < 0.75:
        fields = json.loads(content)
        if "weights" in fields and rng.random() < 0.6:
            inner = damaged_tensors(base64.b64decode(fields["weights"]), rng)
            content = json.dumps(fields | {"weights": base64.b64encode(inner).decode()}).encode()
        else:
            content = json.dumps(with_another_part(fields, rng)).encode()
    else:
        content = damaged_bytes(content, rng)
    file.write_bytes(content)
    write_checksums(folder)
    return file.name


@pytest.mark.parametrize("name", ["network", *QUICK])
def test_a_damaged_model_predicts_finite_risks_or_says_that_it_cannot(
    models: Callable[[str], Path], records: CohortRecords, name: str, tmp_path: Path
) -> None:
    whole = models(name)
    assert predicted(whole, records) == "finite"
    outcomes = []
    for seed in range(N_DAMAGES):
        folder = tmp_path / str(seed)
        shutil.copytree(whole, folder)
        changed = damage(folder, random.Random(seed))
        try:
            outcomes.append(predicted(folder, records))
        except Exception as error:
            error.add_note(f"damage {seed}, of {changed}")
            raise
        shutil.rmtree(folder)
    assert outcomes.count("CheckpointError") > N_DAMAGES // 3


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.float64, torch.bfloat16, torch.float16])
def test_weights_of_another_type_are_refused(models: Callable[[str], Path], kind: torch.dtype, tmp_path: Path) -> None:
    shutil.copytree(models("network"), tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = safetensors.torch.load(file.read_bytes())
    file.write_bytes(safetensors.torch.save(tensors | {"head.baseline": tensors["head.baseline"].to(kind)}))
    write_checksums(tmp_path / "model")
    with pytest.raises(CheckpointError, match=rf"head\.baseline is {kind}, and torch\.float32 is needed"):
        load_predictor(tmp_path / "model")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(models: Callable[[str], Path], value: float, tmp_path: Path) -> None:
    shutil.copytree(models("network"), tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = safetensors.torch.load(file.read_bytes())
    tensors["encoder.norm.weight"][3] = value
    file.write_bytes(safetensors.torch.save(tensors))
    write_checksums(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"encoder\.norm\.weight holds numbers that are not finite"):
        load_predictor(tmp_path / "model")


@pytest.mark.parametrize("text", [DEEP, LONG, '{"a": "\xff"}'], ids=["deep", "long number", "no UTF-8"])
@pytest.mark.parametrize("file", ["run_config.json", "vocabulary.json", "time_grid.json", "fingerprints.json"])
def test_a_text_that_json_cannot_hold_is_refused(
    models: Callable[[str], Path], file: str, text: str, tmp_path: Path
) -> None:
    shutil.copytree(models("network"), tmp_path / "model")
    (tmp_path / "model" / file).write_text(text, encoding="latin-1")
    write_checksums(tmp_path / "model")
    with pytest.raises(CheckpointError):
        load_predictor(tmp_path / "model")
