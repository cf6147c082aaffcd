"""A study's file as cells: hand-worked matrices, keys, and what is refused before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ehrtrack.config import override, parse_config
from ehrtrack.errors import ConfigError, EhrtrackError
from ehrtrack.study.cells import Study, read_study
from ehrtrack.study.keys import cell_key

WriteStudy = Callable[..., Path]

HEAD = """
question = "Is LoRA better than Cox?"
finetune = "finetune.toml"
baseline = "baseline.toml"
pretrain = "pretrain.toml"
reference = { baseline = "cox" }
"""
SMALL = (
    HEAD
    + """
[matrix]
strategy = ["frozen", { name = "lora", rank = 4 }, { name = "lora", rank = 16 }, "scratch"]
baseline = ["cox", "gradient-boosting"]
[repeats]
"runtime.seed" = [0, 1]
"""
)


def labels(study: Study) -> list[str]:
    return [cell.label for cell in study.cells]


def test_a_matrix_is_its_combinations_with_one_pretraining_a_seed_and_one_cox_for_all_seeds(
    write_study: WriteStudy,
) -> None:
    study = read_study(write_study(SMALL))
    assert labels(study) == [
        "cox",
        "gradient-boosting · seed 0",
        "pretrain · seed 0",
        "frozen · seed 0",
        "lora r4 · seed 0",
        "lora r16 · seed 0",
        "scratch · seed 0",
        "gradient-boosting · seed 1",
        "pretrain · seed 1",
        "frozen · seed 1",
        "lora r4 · seed 1",
        "lora r16 · seed 1",
        "scratch · seed 1",
    ]
    by_label = {cell.label: cell for cell in study.cells}
    pretraining = by_label["pretrain · seed 1"]
    assert pretraining.base == ""
    assert pretraining.config.runtime.seed == 1
    assert {label for label, cell in by_label.items() if cell.base == pretraining.key} == {
        "frozen · seed 1",
        "lora r4 · seed 1",
        "lora r16 · seed 1",
    }
    assert by_label["scratch · seed 1"].base == ""
    lora = by_label["lora r4 · seed 0"]
    assert lora.settings == {"strategy.name": "lora", "strategy.rank": 4}
    assert (lora.configuration, lora.recipe) == ("lora r4", "finetune")
    assert lora.config.strategy.model_dump()["alpha"] == 32  # of the file, which chooses lora too
    assert by_label["frozen · seed 0"].settings == {"strategy.name": "frozen"}
    assert by_label["gradient-boosting · seed 1"].config.baseline.seed == 1


def test_paths_of_both_kinds_multiply_both_and_others_only_their_own(write_study: WriteStudy) -> None:
    study = read_study(
        write_study(
            HEAD
            + """
            [matrix]
            "strategy.name" = ["scratch", "full"]
            "model.size" = ["tiny", "small"]
            "cohort.n_labels" = [64, "all"]
            """
        )
    )
    assert [cell.label for cell in study.cells if cell.recipe == "baseline"] == ["cox · 64 labels", "cox · all labels"]
    pretrainings = [cell for cell in study.cells if cell.recipe == "pretrain"]
    assert [(cell.label, cell.config.model.size) for cell in pretrainings] == [
        ("pretrain · tiny", "tiny"),
        ("pretrain · small", "small"),
    ]
    finetunings = [cell for cell in study.cells if cell.recipe == "finetune"]
    assert len(finetunings) == 8
    assert finetunings[0].label == "scratch · tiny · 64 labels"
    of_all = [cell for cell in finetunings if cell.settings["cohort.n_labels"] == "all"]
    assert [cell.config.cohort.n_labels for cell in of_all if cell.config.cohort] == [None] * 4


def test_pretrainings_know_the_cohort_of_what_starts_from_them_but_not_how_many_labels(write_study: WriteStudy) -> None:
    matrix = '[matrix]\nstrategy = ["full"]\n"cohort.n_labels" = [64, "all"]\n"cohort.landmark_days" = [0, 30]\n'
    cells = read_study(write_study(HEAD + matrix)).cells
    pretrainings = {cell.label: cell for cell in cells if cell.recipe == "pretrain"}
    assert set(pretrainings) == {"pretrain · landmark days 0", "pretrain · landmark days 30"}
    cohorts = [cell.config.cohort for cell in pretrainings.values()]
    assert [(cohort.n_labels, cohort.landmark_days) for cohort in cohorts if cohort] == [(None, 0), (None, 30)]
    of = {cell.label: cell.base for cell in cells if cell.recipe == "finetune"}
    assert len(of) == 4
    assert {base for label, base in of.items() if "landmark days 30" in label} == {
        pretrainings["pretrain · landmark days 30"].key
    }


def test_a_pretraining_that_reads_whole_records_is_known_as_before_there_was_another(write_study: WriteStudy) -> None:
    file = write_study(HEAD + '[matrix]\nstrategy = ["full"]\n')
    (cut,) = (cell for cell in read_study(file).cells if cell.recipe == "pretrain")
    plain = cut.config.model_copy(update={"cohort": None})
    data = cut.config.data.model_copy(update={"pretraining_records": "whole"})
    whole = cut.config.model_copy(update={"data": data})
    keys = [cell_key("pretrain", config, inputs={"data": "1f"}, base="") for config in (plain, whole, cut.config)]
    assert keys[0] == keys[1] != keys[2]


def test_a_setting_that_a_choice_does_not_have_is_left_out_and_equal_cells_are_one(write_study: WriteStudy) -> None:
    study = read_study(
        write_study(
            HEAD
            + """
            [matrix]
            strategy = ["frozen", "lora"]
            "strategy.rank" = [4, 8]
            """
        )
    )
    assert labels(study) == ["cox", "pretrain", "frozen", "lora r4", "lora r8"]


def test_what_could_not_be_run_may_be_excluded(write_study: WriteStudy, tmp_path: Path) -> None:
    folder = tmp_path / "embeddings"
    folder.mkdir()
    (folder / "vocabulary.json").write_text("{}")
    matrix = SMALL.replace("[matrix]", f'[matrix]\n"init.embeddings" = ["", "{folder}"]').replace(
        '"frozen", { name = "lora", rank = 4 }, { name = "lora", rank = 16 }, "scratch"', '"full", "scratch"'
    )
    with pytest.raises(ConfigError, match=r"init\.embeddings belong to the pretraining"):
        read_study(write_study(matrix))
    excluded = f'exclude = [{{ strategy = "full", "init.embeddings" = "{folder}" }}]\n[matrix]'
    study = read_study(write_study(matrix.replace("[matrix]", excluded)))
    finetunings = [cell.config for cell in study.cells if cell.recipe == "finetune" and cell.config.runtime.seed == 0]
    assert [(config.strategy.name, config.init.embeddings) for config in finetunings] == [
        ("full", ""),
        ("scratch", ""),
        ("scratch", str(folder)),
    ]


def test_what_is_excluded_is_not_there_nor_the_pretraining_that_nothing_starts_from(write_study: WriteStudy) -> None:
    excluded = SMALL.replace("[matrix]", 'exclude = [{ strategy = "frozen" }, { "strategy" = "lora" }]\n[matrix]')
    study = read_study(write_study(excluded))
    assert labels(study) == [
        "cox",
        "gradient-boosting · seed 0",
        "scratch · seed 0",
        "gradient-boosting · seed 1",
        "scratch · seed 1",
    ]


def test_the_matrix_says_which_of_several_pretrainings_a_cell_starts_from(write_study: WriteStudy) -> None:
    study = read_study(
        write_study(
            HEAD.replace('pretrain = "pretrain.toml"', 'pretrain = { masked = "pretrain.toml", times = "times.toml" }')
            + """
            pretrain_per = ["data.split.seed"]
            [matrix]
            strategy = ["full", "scratch"]
            pretrain = ["masked", "times"]
            [repeats]
            "runtime.seed" = [0, 1]
            "data.split.seed" = [7]
            """,
            times='extends = "pretrain.toml"\n[objective]\nname = "next-visit"\n',
        )
    )
    assert labels(study) == [
        "cox",
        "pretrain masked",
        "full · from masked · seed 0",
        "pretrain times",
        "full · from times · seed 0",
        "scratch · seed 0",
        "full · from masked · seed 1",
        "full · from times · seed 1",
        "scratch · seed 1",
    ]
    by_label = {cell.label: cell for cell in study.cells}
    assert by_label["full · from times · seed 1"].base == by_label["pretrain times"].key
    assert by_label["pretrain times"].config.objective.name == "next-visit"
    assert {getattr(cell.config.data.split, "seed", None) for cell in study.cells} == {7}


def test_keys_are_the_same_wherever_the_files_lie_and_whatever_machine_runs_them(
    write_study: WriteStudy, tmp_path: Path, simulated_meds: Path
) -> None:
    here = read_study(write_study(SMALL))
    (tmp_path / "elsewhere").symlink_to(simulated_meds)
    file = write_study(SMALL)
    text = (tmp_path / "pretrain.toml").read_text()
    (tmp_path / "pretrain.toml").write_text(
        text.replace(str(simulated_meds), str(tmp_path / "elsewhere")).replace('".ehrtrack"', '"cache"')
        + "workers = 2\nupload_snapshots = false\n"
    )
    there = read_study(file, [("runtime.device", "auto"), ("runtime.threads", "3")])
    assert [cell.key for cell in there.cells] == [cell.key for cell in here.cells]
    assert there.queue == here.queue
    assert len({cell.key for cell in here.cells}) == 13


def test_keys_stay_as_they_are() -> None:
    """If they change, studies that were begun before make all of their runs again.

    A head of before had no age and static facts beside the encoder's states, and runs of one that has are others.
    """
    config = parse_config(
        {
            "study": "sim",
            "data": {"path": "meds"},
            "cohort": {"labels": "labels.parquet"},
            "strategy": {"name": "lora", "rank": 4},
            "objective": {"statics": False},
            "runtime": {"seed": 3},
        }
    )
    with_statics = override(config, {"objective.statics": True})
    assert cell_key("finetune", with_statics, inputs={}, base="") != cell_key("finetune", config, inputs={}, base="")
    pretraining = parse_config({"study": "sim", "data": {"path": "meds"}}, objective="mlm")
    inputs = {"data": "1f", "labels": "2e"}
    assert [
        cell_key("pretrain", pretraining, inputs={"data": "1f"}, base=""),
        cell_key("finetune", config, inputs=inputs, base="3d"),
        cell_key("baseline", config, inputs=inputs, base=""),
    ] == ["c4fe9150d3cf5c03", "db2627b90e50089b", "36955548568cc808"]


@pytest.mark.parametrize(
    ("path", "value", "moved"),
    [
        ("train.lr", 1e-2, {"pretrain", "frozen", "lora r4", "scratch"}),
        ("data.max_tokens", 32, {"cox", "pretrain", "frozen", "lora r4", "scratch"}),
        ("cohort.horizon_days", 300.0, {"pretrain", "cox", "frozen", "lora r4", "scratch"}),
        ("strategy.alpha", 8, {"lora r4"}),
        ("baseline.n_candidates", 4, {"cox"}),
        ("objective.n_intervals", 7, {"frozen", "lora r4", "scratch"}),
        ("runtime.precision", '"f32"', set()),
        ("registry.model", '"other"', set()),
        ("search.n_trials", 3, set()),
    ],
)
def test_a_key_changes_with_what_the_result_depends_on_and_with_nothing_else(
    write_study: WriteStudy, tmp_path: Path, path: str, value: object, moved: set[str]
) -> None:
    text = HEAD + '[matrix]\nstrategy = ["frozen", { name = "lora", rank = 4 }, "scratch"]\nbaseline = ["cox"]\n'
    before = {cell.configuration: cell.key for cell in read_study(write_study(text)).cells}
    section = path.partition(".")[0]
    name = "pretrain" if section in ("train", "data", "runtime", "registry", "search") else "finetune"
    file = tmp_path / f"{name}.toml"
    table, _, key = path.rpartition(".")
    written = file.read_text()
    line = f"{key} = {value}\n"
    kept = "".join(old for old in written.splitlines(keepends=True) if not old.startswith(f"{key} ="))
    file.write_text(
        kept.replace(f"[{table}]\n", f"[{table}]\n{line}") if f"[{table}]" in kept else f"{kept}[{table}]\n{line}"
    )
    after = {cell.configuration: cell.key for cell in read_study(tmp_path / "study.toml").cells}
    assert {name for name, key in after.items() if before[name] != key} == {
        {"lora r4": "lora"}.get(label, label) for label in moved
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"runtime.seed" = [0, 1]', '"strategy.rank" = [0, 1]'), "repeats.'strategy.rank' is of some runs alone"),
        (('"runtime.seed" = [0, 1]', '"runtime.sed" = [0, 1]'), "unknown config key 'runtime.sed'"),
        (("[matrix]", '[matrix]\n"train.lrr" = [1]'), "unknown config key 'train.lrr'"),
        (("[matrix]", '[matrix]\n"strategy.rnk" = [1]'), "strategy.rnk is no setting of any configuration"),
        (("[matrix]", '[matrix]\n"train.lr" = [-1.0]'), "train.lr"),
        (("[matrix]", '[matrix]\n"search.n_trials" = [1]'), "'search' cannot differ between the configurations"),
        (("[matrix]", '[matrix]\npretrain = ["other"]'), r"matrix.pretrain has 'other'"),
        (("[matrix]", 'exclude = [{ "strategy.rank" = 99 }]\n[matrix]'), "exclude .* leaves out none"),
        (("[matrix]", 'exclude = [{ baseline = "cox" }]\n[matrix]'), "reference is .* none of the study's"),
        (('baseline = "cox" }', 'baseline = "lasso" }'), "reference is .* none of the study's"),
        (("[matrix]", 'pretrain_per = ["train.lr"]\n[matrix]'), "pretrain_per names train.lr"),
        (('"finetune.toml"', '"finetuning.toml"'), "no config file"),
        (('baseline = "baseline.toml"', ""), "'baseline' needs the configuration file of a baseline run"),
        (('pretrain = "pretrain.toml"', ""), "frozen"),
        (("[matrix]", "margin = 0\n[matrix]"), "margin"),
        (("[matrix]", "[matrix]\nmodle = 1"), "matrix.modle"),
        (
            (
                "[matrix]",
                'compare = [{ question = "?", this = { strategy = "full" }, to = { strategy = "lora" } }]\n[matrix]',
            ),
            "compare 1, this is .* none of the study's",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_starts(
    write_study: WriteStudy, change: tuple[str, str], message: str
) -> None:
    assert change[0] in SMALL
    with pytest.raises(EhrtrackError, match=message):
        read_study(write_study(SMALL.replace(*change, 1)))


def test_a_pretraining_that_would_read_test_subjects_is_refused(write_study: WriteStudy) -> None:
    two_splits = SMALL.replace('"runtime.seed" = [0, 1]', '"data.split.seed" = [0, 1]', 1)
    assert two_splits != SMALL
    made = read_study(write_study(two_splits))  # of each split a pretraining of its own
    assert len([cell for cell in made.cells if cell.recipe == "pretrain"]) == 2
    with pytest.raises(ConfigError, match=r"tested on subjects whom the pretraining read; .* in pretrain_per"):
        read_study(write_study(two_splits.replace("[matrix]", "pretrain_per = []\n[matrix]", 1)))


def test_settings_of_the_machine_alone_are_said_beside_the_file(write_study: WriteStudy) -> None:
    study = read_study(write_study(SMALL), [("runtime.cache", "/elsewhere")])
    assert {str(cell.config.runtime.cache) for cell in study.cells} == {"/elsewhere"}
    for refused in ("runtime.seed", "train.lr"):
        with pytest.raises(ConfigError, match=f"{refused} belongs in"):
            read_study(write_study(SMALL), [(refused, "1")])


def test_another_question_over_the_same_cells_has_a_queue_of_its_own(write_study: WriteStudy) -> None:
    before, after = (read_study(write_study(SMALL.replace("better", word))) for word in ("better", "cheaper"))
    assert [cell.key for cell in before.cells] == [cell.key for cell in after.cells]
    assert before.queue != after.queue
