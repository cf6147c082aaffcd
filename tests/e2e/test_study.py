"""From events to a registered champion: what the runs of a whole study leave on the tracking store."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import peft
import polars as pl
import pytest
import torch
from whole_study import Study

from ehrtrack.config import load_config, parse_config
from ehrtrack.data.batch import Batches
from ehrtrack.data.cohort import build_cohort
from ehrtrack.data.events import open_dataset
from ehrtrack.objectives.survival import predict
from ehrtrack.pipeline.adapter import adapter_base
from ehrtrack.pipeline.model_folder import read_model_folder
from ehrtrack.pipeline.prepare import prepare_cohort
from ehrtrack.privacy import Privacy, read_key
from ehrtrack.tracking.client.queries import RunRecord, download, list_artifacts, metric_history, search_runs
from ehrtrack.tracking.client.registry import champion

# of mlflow's own classes when its pyfunc is imported
pytestmark = pytest.mark.filterwarnings("ignore:.*[Tt]ype hint:UserWarning")

MACHINE_DEPENDENT = (
    "cost/",
    "train/tokens_per_second",
    "train/tflops_per_second",
    "train/epoch_seconds",
    "probe/seconds",
    "train/memory_mb",
    "system/",  # sampled every half minute, so not at all of a short run
)
EPOCH_METRICS = ("train/loss", "val/loss", "train/lr", "train/tokens_per_second", "train/memory_mb")
SURVIVAL_ARTIFACTS = {
    "run_config.json",
    "environment.json",
    "cohort/attrition.csv",
    "cohort/summary.csv",
    "cohort/vocabulary_coverage.csv",
    "predictions/test.parquet",
    "predictions/validation.parquet",
    "plots/attrition.png",
    "evaluation/calibration.csv",
    "plots/calibration.png",
    "plots/kaplan_meier_by_risk.png",
    "model/run_config.json",
    "model/vocabulary.json",
    "model/time_grid.json",
    "model/fingerprints.json",
}
PUBLIC_PARAMS = {
    "data.path", "cohort.horizon_days", "model.size", "model.dropout", "strategy.name", "strategy.rank",
    "strategy.alpha", "strategy.dropout", "objective.lambda_rank", "init.run", "train.epochs", "train.batch_tokens",
    "train.lr", "train.weight_decay", "train.patience", "runtime.seed", "runtime.device",
}  # fmt: skip
PICKLE_SUFFIXES = {".pkl", ".pickle", ".bin", ".pt", ".pth", ".joblib", ".npy", ".npz"}
OF_A_WHEEL = {".py", ".txt", ".toml", ".md", ".json", ".css", ".js", ".html", ""}


def one(study: Study, kind: str) -> RunRecord:
    (record,) = study.runs([kind])[:1]
    return record


def fetch(study: Study, run_id: str, path: str, folder: Path) -> Path:
    with study.at_work():
        return download(run_id, path, folder)


def hashed(study: Study, subjects: pl.Series) -> pl.Series:
    """What the study's runs call subjects."""
    return Privacy(read_key(study.folder / "cache")).pseudonyms(subjects)


def comparable(record: RunRecord) -> dict[str, float]:
    return {k: v for k, v in record.metrics.items() if not k.startswith(MACHINE_DEPENDENT)}


def test_every_run_of_the_study_is_finished(study: Study) -> None:
    runs = study.runs(["pretrain", "finetune", "baseline", "compare"], status=None)
    assert {"pretrain", "finetune", "baseline", "compare"} <= {run.kind for run in runs}
    assert {run.status for run in runs} == {"FINISHED"}


@pytest.mark.parametrize("kind", ["pretrain", "finetune", "baseline"])
def test_a_database_and_a_server_hold_the_same_run(study: Study, server_study: Study, kind: str) -> None:
    local, remote = one(study, kind), one(server_study, kind)
    assert comparable(remote) == pytest.approx(comparable(local), abs=1e-9)
    assert len(comparable(local)) > 5
    paths = {"data.path", "runtime.cache", "init.run"}
    assert {k: v for k, v in remote.params.items() if k not in paths} == {
        k: v for k, v in local.params.items() if k not in paths
    }
    fingerprints = [{k: v for k, v in r.tags.items() if k.startswith("fingerprint.")} for r in (local, remote)]
    assert fingerprints[0] == fingerprints[1]
    with study.at_work():
        artifacts = [a for a in list_artifacts(local.run_id) if not a.startswith("registered/")]
    with server_study.at_work():
        assert [a for a in list_artifacts(remote.run_id) if not a.startswith("registered/")] == artifacts


@pytest.mark.parametrize("kind", ["pretrain", "finetune", "baseline"])
def test_a_run_that_was_told_no_number_of_threads_logs_the_one_it_took(study: Study, kind: str) -> None:
    assert one(study, kind).params["runtime.threads"] == "1"  # which is what these tests give torch


def test_a_finetune_run_has_every_artifact(study: Study) -> None:
    run = one(study, "finetune")
    with study.at_work():
        there = set(list_artifacts(run.run_id))
    more = {"model/model.safetensors", "plots/loss.png", "plots/metrics.png", "parameters.csv"}
    assert there >= SURVIVAL_ARTIFACTS | more
    assert {"adapter/adapter_model.safetensors", "adapter/adapter_config.json"} <= there


def test_runs_log_what_they_cost_and_how_many_events_they_learnt_from(study: Study) -> None:
    costs = {"cost/train_seconds", "cost/total_seconds", "cost/peak_memory_mb"}
    for kind, more in (
        ("pretrain", set()),
        ("finetune", {"cost/adapter_mb", "cost/checkpoint_mb"}),
        ("baseline", set()),
    ):
        metrics = one(study, kind).metrics
        speed = set() if kind == "baseline" else {"cost/tokens_per_second"}
        events = set() if kind == "pretrain" else {"cohort/n_train_events"}
        wanted = costs | more | speed | events
        assert wanted <= metrics.keys()
        assert all(metrics[name] > 0 for name in wanted)


def test_a_baseline_run_is_evaluated_like_a_finetune_run(study: Study) -> None:
    run = one(study, "baseline")
    with study.at_work():
        assert set(list_artifacts(run.run_id)) >= SURVIVAL_ARTIFACTS | {"model/baseline.json"}
    scores = {"test/c_index", "test/c_index_lower", "test/c_index_upper", "test/ibs", "kept/c_index", "kept/ibs"}
    assert scores <= run.metrics.keys()


def test_every_run_tells_its_settings_code_machine_and_data(study: Study) -> None:
    for kind in ("pretrain", "finetune", "baseline"):
        run = one(study, kind)
        assert {"ehrtrack.git_commit", "ehrtrack.git_dirty", "ehrtrack.study", "ehrtrack.kind"} <= run.tags.keys()
        wanted = {"data", "vocabulary"} | ({"cohort"} if kind != "pretrain" else set())
        assert all(len(run.tags[f"fingerprint.{name}"]) == 16 for name in wanted)
        assert run.tags["mlflow.note.content"].startswith("### ")
    assert one(study, "finetune").params.keys() >= PUBLIC_PARAMS
    assert one(study, "finetune").params["cohort.index.rule"] == "first_code"


def test_every_run_ends_with_a_verdict_of_its_sanity(study: Study) -> None:
    checks = {
        "pretrain": {"learned", "overfit", "moved", "embeddings", "verdict"},
        "finetune": {"learned", "overfit", "moved", "embeddings", "calibrated", "measured", "base", "verdict"},
        "baseline": {"learned", "calibrated", "measured", "verdict"},
    }
    for kind, names in checks.items():
        run = one(study, kind)
        states = {k.removeprefix("sanity."): v for k, v in run.tags.items() if k.startswith("sanity.")}
        assert states.keys() == names
        assert set(states.values()) <= {"ok", "warn", "fail"}
        assert f"#### Sanity: {states['verdict']}" in run.tags["mlflow.note.content"]
    assert one(study, "pretrain").metrics["val/cooccurrence_loss"] > 0
    assert one(study, "finetune").tags["sanity.moved"] == "ok"
    assert one(study, "finetune").tags["sanity.embeddings"] == "ok"


def test_what_is_named_kept_is_of_the_kept_epoch(study: Study) -> None:
    run = one(study, "finetune")
    kept = int(run.metrics["kept/epoch"])
    with study.at_work():
        for name in ("c_index", "ibs"):
            of_epoch = metric_history(run.run_id, f"val/{name}")[kept]
            assert run.metrics[f"kept/{name}"] == pytest.approx(of_epoch, abs=1e-6)
    assert not [name for name in run.metrics if name.startswith("best/")]


def test_the_base_of_a_finetune_run_is_named_by_run_and_by_weights(study: Study, tmp_path: Path) -> None:
    base, run = one(study, "pretrain"), one(study, "finetune")
    assert run.params["init.run"] == base.run_id
    folder = read_model_folder(fetch(study, base.run_id, "model", tmp_path))
    assert run.tags["fingerprint.base"] == folder.fingerprints["encoder"]
    assert run.tags["fingerprint.vocabulary"] == base.tags["fingerprint.vocabulary"]


def test_every_epoch_is_logged(study: Study) -> None:
    base, run = one(study, "pretrain"), one(study, "finetune")
    with study.at_work():
        for record, more in (
            (base, ("val/mlm_loss", "val/unigram_loss", "val/mlm_accuracy")),
            (run, ("val/c_index", "val/ibs")),
        ):
            for name in EPOCH_METRICS + more:
                assert list(metric_history(record.run_id, name)) == [1, 2, 3], name


def test_parameters_of_the_run_are_those_of_the_adapter_and_the_head(study: Study, tmp_path: Path) -> None:
    run = one(study, "finetune")
    table = pl.read_csv(fetch(study, run.run_id, "parameters.csv", tmp_path))
    trainable = dict(zip(table["part"], table["trainable"], strict=True))
    total = dict(zip(table["part"], table["total"], strict=True))
    assert trainable == {
        "embedding": 0, "encoder": 0, "adapter": total["adapter"], "head": total["head"],
        "all": total["adapter"] + total["head"],
    }  # fmt: skip
    assert run.metrics["parameters/total"] == total["all"]
    assert run.metrics["parameters/trainable"] == trainable["all"]


def test_run_config_json_is_the_whole_configuration(study: Study, tmp_path: Path) -> None:
    run = one(study, "finetune")
    values = json.loads(fetch(study, run.run_id, "run_config.json", tmp_path).read_text())
    config = parse_config(values)
    assert config.to_json() == values
    assert (config.strategy.name, config.model.size) == ("lora", "tiny")
    assert run.params["strategy.rank"] == "4"


def test_the_logged_test_scores_are_those_of_the_logged_predictions(study: Study, tmp_path: Path) -> None:
    from lifelines.utils import concordance_index

    for kind in ("finetune", "baseline"):
        run = one(study, kind)
        table = pl.read_parquet(fetch(study, run.run_id, "predictions/test.parquet", tmp_path / kind))
        assert table.columns == ["subject_id", "follow_up_days", "is_event", "risk", "survival"]
        expected = concordance_index(table["follow_up_days"], -table["risk"].to_numpy(), table["is_event"])
        assert run.metrics["test/c_index"] == pytest.approx(expected, abs=1e-9)
        assert run.metrics["test/c_index_lower"] < expected < run.metrics["test/c_index_upper"]
        last = table["survival"].list.last().to_numpy()
        np.testing.assert_allclose(table["risk"].to_numpy(), 1 - last, atol=1e-12)


def test_no_test_subject_was_trained_on(study: Study, tmp_path: Path) -> None:
    run = one(study, "finetune")
    names = ("predictions/test.parquet", "predictions/validation.parquet")
    test, validation = (
        set(pl.read_parquet(fetch(study, run.run_id, name, tmp_path / str(n)))["subject_id"])
        for n, name in enumerate(names)
    )
    summary = pl.read_csv(fetch(study, run.run_id, "cohort/summary.csv", tmp_path))
    sizes = dict(zip(summary["split"], summary["n_subjects"], strict=True))
    assert (len(test), len(validation)) == (sizes["test"], sizes["validation"])
    assert not test & validation


def test_a_stock_peft_loads_the_logged_adapter_on_the_logged_base(study: Study, tmp_path: Path) -> None:
    run = one(study, "finetune")
    base = fetch(study, run.params["init.run"], "model", tmp_path / "base")
    folder = read_model_folder(fetch(study, run.run_id, "model", tmp_path))
    adapter = fetch(study, run.run_id, "adapter", tmp_path)
    model = peft.PeftModel.from_pretrained(adapter_base(base, adapter), str(adapter)).eval()
    records = prepare_cohort(folder.config, folder.vocabulary)
    batches = Batches(records.store, records.rows["test"], 512, folder.config.data.max_tokens)
    logged = pl.read_parquet(fetch(study, run.run_id, "predictions/test.parquet", tmp_path))
    risk = predict(model, batches, torch.device("cpu")).risk
    subjects = hashed(study, records.cohort.subjects[records.rows["test"]]["subject_id"])
    by_subject = pl.DataFrame({"subject_id": subjects, "risk": risk}).sort("subject_id")
    np.testing.assert_allclose(by_subject["risk"], logged["risk"], atol=1e-6, rtol=0)


def test_the_comparison_is_a_run_with_a_table_of_all_models(study: Study, tmp_path: Path) -> None:
    (run,) = study.runs(["compare"])[:1]
    cohort = one(study, "finetune").tags["fingerprint.cohort"]
    table = pl.read_csv(fetch(study, run.run_id, f"benchmark/{cohort}.csv", tmp_path))
    assert set(table["model"]) == {"behrt", "cox"}
    lora = table.row(by_predicate=pl.col("model") == "behrt", named=True)
    record = one(study, "finetune")
    assert (lora["strategy"], lora["size"], lora["run_id"]) == ("lora r4", "tiny", record.run_id)
    assert lora["test_c_index"] == pytest.approx(record.metrics["test/c_index"])
    assert lora["n_trainable"] == record.metrics["parameters/trainable"]
    markdown = fetch(study, run.run_id, f"benchmark/{cohort}.md", tmp_path).read_text()
    described = run.tags["mlflow.note.content"]
    assert (
        re.sub(r"\[(\w+)\]\(\S+?\)", r"\1", described).count(markdown) == 1
    )  # where ids of runs are links to their pages
    assert f"runs/{record.run_id}" in described


def test_the_champion_is_the_best_by_validation(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    with study.at_work():
        version = champion("simulated")
    runs = [one(study, "finetune"), one(study, "baseline")]
    assert version.run_id == max(runs, key=lambda run: run.metrics["kept/c_index"]).run_id
    assert study.run("best", "simulated") == 0
    shown = capsys.readouterr().out
    assert "models:/simulated@champion" in shown
    assert version.run_id in shown


@pytest.fixture(scope="module")
def labels(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Subjects and prediction times of the test set, as a user would give them."""
    folder = tmp_path_factory.mktemp("labels")
    config = load_config(study.folder / "finetune.toml")
    cutoffs = build_cohort(open_dataset(study.data), config.cohort, config.data.split).cutoffs  # type: ignore[arg-type]
    test = cutoffs.filter(pl.col("split") == "test").select("subject_id", prediction_time="cutoff")
    test.write_csv(folder / "labels.csv")
    return folder / "labels.csv"


@pytest.mark.parametrize("kind", ["finetune", "baseline"])
def test_predict_gives_the_logged_predictions_of_the_test_subjects(
    study: Study, labels: Path, tmp_path: Path, kind: str
) -> None:
    run, out = one(study, kind), tmp_path / "scored.parquet"
    words = ("--model", run.run_id, "--data", str(study.data), "--labels", str(labels), "--out", str(out))
    assert study.run("predict", *words) == 0
    scored = pl.read_parquet(out)
    logged = pl.read_parquet(fetch(study, run.run_id, "predictions/test.parquet", tmp_path))
    assert scored["subject_id"].to_list() == pl.read_csv(labels)["subject_id"].to_list()  # raw, for it stays here
    scored = scored.with_columns(hashed(study, scored["subject_id"])).sort("subject_id")
    assert scored["subject_id"].equals(logged["subject_id"])
    np.testing.assert_allclose(scored["risk"], logged["risk"], atol=1e-5, rtol=0)
    survival = np.array(scored["survival"].to_list())
    np.testing.assert_allclose(survival, np.array(logged["survival"].to_list()), atol=1e-5, rtol=0)
    assert (survival[:, 0] == 1).all()
    assert (np.diff(survival, axis=1) <= 0).all()
    days = np.array(scored["survival_days"].to_list())
    assert days.shape == survival.shape
    assert days[0, [0, -1]].tolist() == [0.0, 365.0]


def test_the_champion_predicts_by_its_registry_name_and_as_a_pyfunc(study: Study, labels: Path, tmp_path: Path) -> None:
    out = tmp_path / "scored.parquet"
    words = ("--data", str(study.data), "--labels", str(labels), "--out", str(out))
    assert study.run("predict", "--model", "models:/simulated@champion", *words) == 0
    scored = pl.read_parquet(out)
    events = pl.read_parquet(study.data / "data" / "0.parquet")
    frame = events.join(scored.select("subject_id", "prediction_time"), on="subject_id").to_pandas()
    with study.at_work():
        import mlflow

        model = mlflow.pyfunc.load_model("models:/simulated@champion")
        served = model.predict(frame)
    np.testing.assert_array_equal(served["subject_id"], scored["subject_id"])
    np.testing.assert_allclose(served["risk"], scored["risk"], atol=1e-6)


def is_pickle(content: bytes) -> bool:
    return content[:1] == b"\x80" and content[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")


def test_the_search_for_pickles_finds_one(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "zip")
    assert zipfile.is_zipfile(tmp_path / "zip")
    assert is_pickle(pickle.dumps({"a": 1}))


def test_no_run_holds_a_pickle(study: Study) -> None:
    with study.at_work():
        named = {name for run in search_runs("simulated", status=None) for name in list_artifacts(run.run_id)}
    files = [file for file in (study.folder / "mlruns").rglob("*") if file.is_file()]
    assert len(named) > 30
    assert {Path(name).name for name in named} <= {file.name for file in files}
    for file in files:
        assert file.suffix not in PICKLE_SUFFIXES, file
        assert not is_pickle(file.read_bytes()), file
        if file.suffix == ".whl":  # the package itself, beside a registered version
            assert {Path(name).suffix for name in zipfile.ZipFile(file).namelist()} <= OF_A_WHEEL, file
        else:
            assert not zipfile.is_zipfile(file), file  # torch.save makes a zip of pickles


def test_nothing_is_left_behind_in_the_cache_but_token_stores(study: Study) -> None:
    assert not list((study.folder / "cache" / "runs").glob("*"))
    assert {path.name for path in study.folder.iterdir()} <= {
        "cache", "mlflow.db", "mlruns", "mlartifacts", "pretrain.toml", "finetune.toml", "sweep.toml",
    }  # fmt: skip
