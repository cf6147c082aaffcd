"""The command line: what a user got wrong ends with one clear line, exit code 2, and no run left RUNNING."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
import torch
from simulated import Population, write_dataset

from ehrtrack.cli import main
from ehrtrack.cli.app import SECTIONS, cli
from ehrtrack.tracking.client.queries import search_runs

torch.set_num_threads(1)

CONFIG = """
study = "simulated"
data = {{ path = "{data}", vocabulary = {{ min_subjects = 2 }} }}
model = {{ size = "tiny" }}
strategy = {{ name = "scratch" }}
train = {{ epochs = 2, batch_tokens = 512 }}
runtime = {{ device = "cpu", cache = "cache" }}

[cohort]
horizon_days = 365
index = {{ rule = "first_code", codes = ["INDEX$"] }}
outcome = {{ codes = ["OUTCOME$"] }}
"""

LORA = ("--strategy.name", "lora")  # from scratch, the base that is named is dropped

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "meds"
    write_dataset(folder, Population(n_subjects=150))
    return folder


@pytest.fixture
def folder(local_store: Path, data: Path) -> Path:
    """A working folder with a configuration and an empty tracking database."""
    (local_store / "finetune.toml").write_text(CONFIG.format(data=data))
    return local_store


@pytest.fixture
def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must fail; returns its message."""

    def run(*words: str, with_config: bool = True) -> str:
        given = (words[0], "--config", "finetune.toml", *words[1:]) if with_config else words
        with pytest.raises(SystemExit) as end:
            main(given)
        assert end.value.code == 2
        message = capsys.readouterr().err.strip()
        assert message.startswith("ehrtrack: ")
        assert "Traceback" not in message
        assert not [run for run in search_runs("simulated", status="RUNNING")]
        return message.splitlines()[-1]

    return run


def labels_file(folder: Path, data: Path, **columns: pl.Expr) -> Path:
    """Labels of every subject, with some columns made anew."""
    events = pl.read_parquet(data / "data" / "0.parquet")
    index = events.filter(pl.col("code") == "INDEX").select("subject_id", prediction_time="time")
    table = index.with_columns(
        prediction_time=pl.col("prediction_time").dt.strftime("%Y-%m-%d %H:%M:%S"),
        follow_up_days=(pl.col("subject_id") % 50 + 1).cast(pl.Float64),
        is_event=pl.col("subject_id") % 2 == 0,
    )
    table.with_columns(**columns).write_csv(folder / "labels.csv")
    text = (folder / "finetune.toml").read_text()
    (folder / "finetune.toml").write_text(text[: text.index("[cohort]")] + '[cohort]\nlabels = "labels.csv"\n')
    return folder / "labels.csv"


def test_a_missing_config_file_lists_those_there_are(refused: Refused) -> None:
    message = refused("finetune", "--config", "finetun.toml", with_config=False)
    assert "no config file finetun.toml" in message
    assert "finetune.toml" in message


def test_a_missing_dataset_is_named(refused: Refused) -> None:
    assert "nowhere is not a folder" in refused("finetune", "--data.path", "nowhere")


def test_a_missing_column_is_named_with_those_there_are(refused: Refused, folder: Path) -> None:
    (folder / "odd" / "data").mkdir(parents=True)
    pl.DataFrame({"subject_id": [1], "when": [None]}).write_parquet(folder / "odd" / "data" / "0.parquet")
    message = refused("finetune", "--data.path", "odd")
    assert "lacks the columns time, code (it has subject_id, when)" in message


def test_damaged_parquet_is_named(refused: Refused, folder: Path, data: Path) -> None:
    (folder / "cut" / "data").mkdir(parents=True)
    content = (data / "data" / "0.parquet").read_bytes()
    (folder / "cut" / "data" / "0.parquet").write_bytes(content[: len(content) // 2])
    assert "0.parquet cannot be read as parquet" in refused("pretrain", "--data.path", "cut")


def test_unreadable_dates_are_named_by_row(refused: Refused, folder: Path, data: Path) -> None:
    labels_file(folder, data, prediction_time=pl.lit("31.12.2015"))
    message = refused("finetune")
    assert "31.12.2015" in message
    assert "a date such as 2020-01-31" in message


def test_a_label_file_without_a_needed_column_is_named(refused: Refused, folder: Path, data: Path) -> None:
    pl.read_csv(labels_file(folder, data)).drop("is_event").write_csv(folder / "labels.csv")
    assert "lacks is_event (it has subject_id, prediction_time, follow_up_days)" in refused("finetune")


def test_a_missing_label_file_is_named(refused: Refused, folder: Path, data: Path) -> None:
    labels_file(folder, data).unlink()
    assert "the file labels.csv does not exist; cohort.labels needs" in refused("baseline")


def test_a_subject_twice_in_the_labels_is_named(refused: Refused, folder: Path, data: Path) -> None:
    labels = pl.read_csv(labels_file(folder, data))
    pl.concat([labels, labels[:1]]).write_csv(folder / "labels.csv")
    assert "1 pairs of subject_id and prediction_time appear more than once (first: subject 1 at " in refused(
        "finetune"
    )


def test_an_empty_cohort_names_the_step_that_lost_the_last(refused: Refused) -> None:
    message = refused("finetune", "--cohort.index.codes", '["NOTHING"]')
    assert "the cohort is empty: the step 'has an index date' dropped the last 150 subjects" in message


def test_a_cohort_without_events_is_refused(refused: Refused) -> None:
    assert "all 150 subjects of the cohort are censored" in refused("finetune", "--cohort.outcome.codes", '["NEVER"]')


def test_a_split_without_events_is_named(refused: Refused, folder: Path, data: Path) -> None:
    from ehrtrack.data.split_settings import SplitConfig
    from ehrtrack.data.splits import assign_splits

    subjects = pl.Series("subject_id", range(1, 151))
    training = subjects.filter(assign_splits(subjects, SplitConfig()) == "train").to_list()
    labels_file(folder, data, is_event=pl.col("subject_id").is_in(training))
    assert "the validation split has no events" in refused("finetune")


@pytest.mark.parametrize("recipe", ["pretrain", "finetune", "baseline", "sweep", "compare"])
def test_an_unknown_key_names_the_nearest(refused: Refused, recipe: str) -> None:
    assert "unknown config key 'train.epoch' (did you mean 'epochs'?)" in refused(recipe, "--train.epoch", "3")


def test_an_unknown_strategy_names_the_nearest(refused: Refused) -> None:
    assert "unknown strategy 'frosen' (did you mean 'frozen'?)" in refused("finetune", "--strategy.name", "frosen")


def test_an_override_without_a_value_is_refused(refused: Refused) -> None:
    assert "override --train.epochs has no value" in refused("finetune", "--train.epochs")


def test_a_word_that_is_no_override_is_refused(refused: Refused) -> None:
    assert "unexpected argument 'train.epochs=3'" in refused("finetune", "train.epochs=3")


def test_epochs_of_embeddings_that_have_none_are_refused(refused: Refused) -> None:
    assert "--epochs 3 is of --method skip-gram" in refused("embed", "--out", "codes", "--epochs", "3")


@pytest.mark.parametrize("name", ["frozen", "lora", "full"])
def test_a_strategy_that_needs_a_pretrained_base_says_so(refused: Refused, name: str) -> None:
    message = refused("finetune", "--strategy.name", name)
    assert f"strategy {name} " in message
    assert "init.run" in message


def test_the_latest_pretrain_run_of_a_study_without_one_is_refused(refused: Refused) -> None:
    assert "study 'simulated' has no finished pretrain run" in refused("finetune", "--init.run", "latest", *LORA)


def test_a_run_that_is_not_there_is_named(refused: Refused) -> None:
    assert "there is no run" in refused("finetune", "--init.run", "0123456789abcdef" * 2, *LORA)


def test_a_comparison_without_runs_is_refused(refused: Refused) -> None:
    assert "study 'simulated' has no finished finetune or baseline run" in refused("compare")


def test_a_champion_that_is_not_there_is_named(refused: Refused) -> None:
    message = refused("best", "nobody", with_config=False)
    assert "there is no models:/nobody@champion" in message
    assert "models there are: none" in message


def test_a_loss_that_is_no_number_stops_with_its_step_and_ends_the_run(refused: Refused, folder: Path) -> None:
    message = refused("finetune", "--train.lr", "1e25", "--train.clip_norm", "1e30")
    assert "at step" in message
    assert "of epoch" in message
    assert "train.lr" in message
    (run,) = search_runs("simulated", status=None)
    assert run.status == "FAILED"
    assert "became" in run.tags["ehrtrack.error"]


def test_a_base_model_of_another_vocabulary_is_refused(refused: Refused, folder: Path) -> None:
    write_dataset(folder / "other", Population(n_subjects=150, prefix="OTHER//"))
    whole = ("--data.pretraining_records", "whole")  # nobody there is in the cohort
    with pytest.raises(SystemExit) as end:
        main(["pretrain", "--config", "finetune.toml", "--objective.name", "mlm", "--data.path", "other", *whole])
    assert not end.value.code
    message = refused("finetune", "--init.run", "latest", "--strategy.name", "lora")
    assert "the vocabulary knows" in message
    assert "the base model was pretrained on other codes" in message
    assert [run.status for run in search_runs("simulated", status=None)] == ["FINISHED"]


def test_a_server_that_does_not_answer_is_named_before_any_work(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(SystemExit) as end:
            main(["finetune", "--config", "finetune.toml"])
    assert end.value.code == 2
    told = capsys.readouterr()
    assert f"the tracking server {address} cannot be reached" in told.err
    assert told.out == ""
    assert not (folder / "cache").exists()


def test_an_import_that_fails_leaves_no_dataset(refused: Refused, folder: Path) -> None:
    (folder / "source").mkdir()
    (folder / "source" / "person.csv").write_text("person_id,gender_concept_id\n1,8507\n")
    assert refused("import", "omop", "source", "out", with_config=False)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name != "mlruns") == ["source"]


def test_an_import_source_that_is_unknown_names_the_nearest(refused: Refused) -> None:
    message = refused("import", "sinthea", ".", "out", with_config=False)
    assert "unknown source 'sinthea' (did you mean 'synthea'?)" in message


def test_predictions_are_whole_or_not_there(refused: Refused, folder: Path, data: Path) -> None:
    labels = labels_file(folder, data)
    words = ("--data", str(data), "--labels", str(labels))
    assert "must end in .parquet" in refused("predict", "--model", "x", *words, "--out", "o.csv", with_config=False)
    assert "names no run" in refused("predict", "--model", "x", *words, "--out", "o.parquet", with_config=False)
    assert not list(folder.glob("o.*"))


def test_a_real_process_ends_with_code_2_and_one_line(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ehrtrack", "finetune", "--config", "finetune.toml", "--strategy.rnak", "3"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("ehrtrack: unknown config key 'strategy.rnak'")


def test_a_quiet_command_says_nothing_but_what_went_wrong(folder: Path) -> None:
    def quiet(*overrides: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "ehrtrack", "-q", "finetune", "--config", "finetune.toml", *overrides]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(words, capture_output=True, text=True, env=environment, check=False)

    done = quiet("--train.epochs", "1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    wrong = quiet("--train.epochs", "0")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("ehrtrack: ")


@pytest.mark.parametrize("equals", [True, False])
def test_overrides_can_be_written_with_a_space_or_an_equals_sign(folder: Path, equals: bool) -> None:
    words = ["--train.epochs=1"] if equals else ["--train.epochs", "1"]
    with pytest.raises(SystemExit) as end:
        main(["finetune", "--config", "finetune.toml", *words])
    assert not end.value.code
    (run,) = search_runs("simulated")
    assert (run.status, run.params["train.epochs"]) == ("FINISHED", "1")
    assert (run.ended or run.started) - run.started > timedelta(0)


def test_every_command_is_listed_once() -> None:
    listed = [name for names in SECTIONS.values() for name in names]
    assert sorted(listed) == sorted(cli.commands)


@pytest.mark.parametrize(
    "command", ["pretrain", "finetune", "baseline", "sweep", "compare", "import", "best", "predict", "demo"]
)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert not end.value.code
    shown = capsys.readouterr().out
    assert f"Usage: ehrtrack {command}" in shown
    assert len(shown.splitlines()) > 4


@pytest.mark.parametrize("command", ["finetune", "tokenize", "sweep", "negative-controls", "baseline"])
@pytest.mark.parametrize("cache", ["/dev/null", "c" * 300, "finetune.toml", "finetune.toml/below"])
def test_a_cache_where_nothing_can_be_written_is_told(refused: Refused, command: str, cache: str) -> None:
    message = refused(command, "--runtime.cache", cache)
    assert message.startswith(f"ehrtrack: runtime.cache is '{cache[:200]}")
    assert message.endswith("set it to a folder that you may write to")


def test_a_full_disk_is_told_and_a_bug_is_not_hidden(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(error: OSError) -> Callable[..., None]:
        def fail(*_: object, **__: object) -> None:
            raise error

        return fail

    monkeypatch.setattr("ehrtrack.cli.app.cli", fails(OSError(errno.ENOSPC, "No space left on device", "tokens.npy")))
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "No space left on device: 'tokens.npy'; see that the disk has room" in capsys.readouterr().err
    monkeypatch.setattr("ehrtrack.cli.app.cli", fails(FileNotFoundError(errno.ENOENT, "no such file", "x")))
    with pytest.raises(FileNotFoundError):
        main([])
