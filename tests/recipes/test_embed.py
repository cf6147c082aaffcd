from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from simulated import Population, study, write_dataset

from ehrtrack.config import RunConfig, override, to_toml
from ehrtrack.data.fitting import read_groups
from ehrtrack.data.splits import assign_splits
from ehrtrack.errors import ConfigError, DataError
from ehrtrack.models.behrt import Behrt
from ehrtrack.models.code_embeddings import CodeEmbeddings
from ehrtrack.pipeline.embeddings import read_embeddings, start_from_embeddings
from ehrtrack.pipeline.prepare import prepare_records
from ehrtrack.recipes.embed import GROUPS, embed
from ehrtrack.recipes.finetune import finetune
from ehrtrack.training.settings import SkipGramConfig


@pytest.fixture(scope="module", params=["cooccurrence", "skip-gram"])
def settings(request: pytest.FixtureRequest) -> SkipGramConfig | None:
    return SkipGramConfig() if request.param == "skip-gram" else None


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, settings: SkipGramConfig | None) -> RunConfig:
    folder = tmp_path_factory.mktemp("embed")
    write_dataset(folder / "meds", Population(n_subjects=150))
    config = study(folder / "meds", folder / "cache")
    embed(config, folder / "codes", settings)
    return override(config, {"init.embeddings": str(folder / "codes")})


def test_codes_of_one_disease_lie_near_each_other(config: RunConfig) -> None:
    """The population writes two codes of one disease at each visit."""
    embeddings = CodeEmbeddings.read(Path(config.init.embeddings))
    index = embeddings.vocabulary.index
    vectors = embeddings.vectors - embeddings.vectors.mean(axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    first, same, other = (vectors[index[f"DISEASE//{d}//{k}"]] for d, k in ((0, 0), (0, 1), (1, 0)))
    assert first @ same > first @ other + 0.3


def test_groups_put_the_codes_of_a_disease_into_one_token(config: RunConfig, tmp_path: Path) -> None:
    """The population writes each disease by two codes."""
    embed(config, tmp_path / "codes", n_groups=6)
    table = pl.read_parquet(tmp_path / "codes" / GROUPS)
    group = dict(table.iter_rows())
    diseases = {code.rsplit("//", 1)[0] for code in group if code.startswith("DISEASE")}
    together = [group[f"{disease}//0"] == group[f"{disease}//1"] for disease in diseases]
    assert sum(together) >= len(diseases) - 1
    grouped = override(config, {"data.vocabulary.groups": str(tmp_path / "codes" / GROUPS), "init.embeddings": ""})
    vocabulary = prepare_records(grouped).vocabulary
    assert set(vocabulary.known) == set(group.values())
    assert len(vocabulary.known) == 6


def test_more_groups_than_codes_are_refused(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1000 groups of"):
        embed(config, tmp_path / "codes", n_groups=1000)
    assert not (tmp_path / "codes").exists()


def test_groups_of_groups_are_refused(config: RunConfig, tmp_path: Path) -> None:
    grouped = override(config, {"data.vocabulary.groups": tmp_path / GROUPS})
    with pytest.raises(ConfigError, match="groups are found among codes; leave"):
        embed(grouped, tmp_path / "codes", n_groups=4)


def test_records_of_test_subjects_change_nothing(
    config: RunConfig, settings: SkipGramConfig | None, tmp_path: Path
) -> None:
    events = pl.read_parquet(config.data.path / "data" / "*.parquet")
    split = assign_splits(events["subject_id"], config.data.split)
    (tmp_path / "meds" / "data").mkdir(parents=True)
    is_test = pl.Series(split) == "test"
    assert 0 < is_test.sum() < len(events)
    changed = events.with_columns(
        code=pl.when(is_test & events["code"].str.starts_with("DISEASE"))
        .then(pl.lit("DISEASE//0//0"))
        .otherwise("code")
    )
    changed.write_parquet(tmp_path / "meds" / "data" / "0.parquet")
    embed(study(tmp_path / "meds", tmp_path / "cache"), tmp_path / "codes", settings)
    ours, again = (CodeEmbeddings.read(folder) for folder in (Path(config.init.embeddings), tmp_path / "codes"))
    assert ours.vocabulary.tokens == again.vocabulary.tokens
    np.testing.assert_array_equal(ours.vectors, again.vectors)


def test_an_encoder_starts_from_them_and_codes_that_are_missing_are_counted(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    records = prepare_records(config)
    encoder = Behrt(config.model, len(records.vocabulary))
    before = encoder.embeddings.code.weight.detach().clone()
    start_from_embeddings(config, records, encoder.embeddings.code)
    n_codes = len(records.vocabulary.known)
    assert f"{n_codes} of {n_codes} codes start there, 0 at random" in capsys.readouterr().out
    moved = (encoder.embeddings.code.weight.detach() != before).any(dim=1)
    assert moved[4:].all()
    assert not moved[:4].any()


def test_without_a_folder_nothing_moves(config: RunConfig) -> None:
    records = prepare_records(config)
    encoder = Behrt(config.model, len(records.vocabulary))
    before = encoder.embeddings.code.weight.detach().clone()
    start_from_embeddings(override(config, {"init.embeddings": ""}), records, encoder.embeddings.code)
    assert torch.equal(encoder.embeddings.code.weight, before)


def test_embeddings_that_saw_test_subjects_are_refused(config: RunConfig) -> None:
    other = override(config, {"data.split.seed": 7})
    with pytest.raises(ConfigError, match="they have seen test subjects"):
        read_embeddings(other, prepare_records(other))


def test_groups_that_saw_test_subjects_are_refused(config: RunConfig, tmp_path: Path) -> None:
    embed(config, tmp_path / "codes", n_groups=4)
    grouped = override(config, {"data.vocabulary.groups": tmp_path / "codes" / GROUPS})
    assert len(prepare_records(grouped).vocabulary) < len(prepare_records(config).vocabulary)
    with pytest.raises(ConfigError, match=r"the groups of codes in .* have seen test subjects"):
        prepare_records(override(grouped, {"data.split.seed": 7}))


def test_a_pretrained_encoder_takes_no_other_embeddings(config: RunConfig) -> None:
    with pytest.raises(ConfigError, match="a pretrained encoder has embeddings of its own"):
        finetune(override(config, {"init.run": "0" * 32}))


def test_the_command_writes_a_folder_that_can_be_read(config: RunConfig, tmp_path: Path) -> None:
    from ehrtrack.cli import main

    (tmp_path / "pretrain.toml").write_text(to_toml(config))
    words = ["embed", "--config", str(tmp_path / "pretrain.toml"), "--out", str(tmp_path / "codes")]
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--width", "12", "--groups", "4"])
    assert stopped.value.code == 0
    assert CodeEmbeddings.read(tmp_path / "codes").width == 12
    assert len(set(read_groups(tmp_path / "codes" / GROUPS).values())) <= 4
