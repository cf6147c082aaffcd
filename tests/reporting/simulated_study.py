"""The material of a report, without a run: simulated risks, scored by the evaluator as a run scores its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise

import numpy as np
import polars as pl

from ehrtrack.data.outcomes import Outcomes
from ehrtrack.evaluation.benchmark import RunRow
from ehrtrack.evaluation.contributions import summarise_contributions
from ehrtrack.evaluation.evaluate import evaluate
from ehrtrack.evaluation.repeats import Configuration, Difference, Repeat, best_configurations_first
from ehrtrack.evaluation.split import Context, EvaluationConfig, Split
from ehrtrack.evaluation.study_table import study_table
from ehrtrack.privacy import hide_in_attrition, hide_in_groups, hide_in_summary
from ehrtrack.reporting.material import ExplainedRun, Material
from ehrtrack.runlog import KEPT, TEST, named
from ehrtrack.study.settings import StudySettings
from ehrtrack.survival.resampling import Interval
from ehrtrack.survival.time_grid import TimeGrid
from ehrtrack.tracking.client.queries import RunRecord
from ehrtrack.tracking.names import PRETRAINING_RECORDS
from ehrtrack.training import sanity
from ehrtrack.training.sanity import Verdict

HORIZON_DAYS = 365.0
SEEDS = (0, 1, 2)
LABELS = (128, 512, 2048)
MODELS = {  # name -> noise of its risks at the most labels, parameters, trainable ones, megabytes, seconds
    "cox": (0.62, 96, 96, 0.0, 0.4),
    "gradient-boosting": (0.58, 4200, 4200, 0.0, 2.1),
    "frozen": (0.5, 787_456, 2580, 3.15, 4.0),
    "lora r8": (0.36, 788_000, 73_728, 3.15, 21.0),
    "full": (0.34, 787_456, 787_456, 3.15, 33.0),
    "scratch": (0.9, 787_456, 787_456, 3.15, 40.0),
}


def settings(labels: Sequence[int] = LABELS) -> StudySettings:
    matrix: dict[str, object] = {
        "strategy": ["frozen", {"name": "lora", "rank": 8}, "full", "scratch"],
        "baseline": ["cox", "gradient-boosting"],
    }
    if labels:
        matrix["cohort.n_labels"] = list(labels)
    return StudySettings.model_validate(
        {
            "question": "Does LoRA on a pretrained encoder beat Cox on code counts, and from how many labels on?",
            "study": "simulated_strategies",
            "finetune": "finetune.toml",
            "baseline": "baseline.toml",
            "pretrain": "pretrain.toml",
            "matrix": matrix,
            "repeats": {"runtime.seed": list(SEEDS)},
            "reference": {"baseline": "cox"},
            "compare": [
                {"question": "Does pretraining pay?", "this": {"strategy": "full"}, "to": {"strategy": "scratch"}}
            ],
            "price_per_hour": 2.5,
        }
    )


def material(*, labels: Sequence[int] = LABELS, n_test: int = 500, models: Sequence[str] = tuple(MODELS)) -> Material:
    """A study of six models, with several numbers of labels, or all of them where none is given."""
    made = [_configuration(model, n, n_test) for n in (labels or (None,)) for model in models]
    configurations = best_configurations_first(configuration for configuration, _ in made)
    differences = _differences(configurations)
    records = {
        repeat.row.run_id: _record(repeat, configuration.label)
        for configuration in configurations
        for repeat in configuration.repeats
    }
    return Material(
        settings=settings(labels),
        study="simulated_strategies",
        run_id="5" * 32,
        configurations=configurations,
        table=study_table(configurations, differences, price_per_hour=2.5),
        differences=differences,
        answer=(
            "With 2,048 labels lora r8 is better than cox by .051 [.032, .070], and full by .055; with 128 labels no "
            "difference to cox is shown for any of them. scratch is worse than cox at every number of labels. lora r8 "
            "trains 9 % of the parameters of full, in two thirds of its time."
        ),
        records=records,
        pages={run_id: f"http://127.0.0.1:5000/#/experiments/1/runs/{run_id}" for run_id in records},
        evaluations={configuration.label: tables for configuration, tables in made},
        learning=_learning([one.label for one, _ in made if one.is_transformer and one.repeats[0].n_train == 2048]),
        predictions={configurations[0].label: _predictions(n_test)},
        cohort={"attrition": _attrition(), "summary": _summary()},
        table_one=_table_one(),
        environment={
            "python": "3.11.2",
            "platform": "Linux-6.1.0-x86_64-with-glibc2.36",
            "cpu": "AMD EPYC 9R14",
            "n_cpus": 2,
            "torch": {"version": "2.13.0", "gpus": []},
            "packages": {"ehrtrack": "0.1.0", "torch": "2.13.0", "mlflow": "3.17.2", "numpy": "2.4.6"},
        },
        pretrainings=(replace(_run("e" * 32, "pretrain", {}), name="pretrain small"),),
        controls=(_controls(),),
        external=(_evaluation(configurations[0]),),
        explanations={configurations[0].label: _explained()},
        missing={"full · 2,048 labels · seed 4": "out of memory twice"} if labels else {},
    )


def _explained() -> ExplainedRun:
    """Of 100 subjects, half of whom have a code that raises the risk, and all one that does nothing."""
    rows = [
        (row, code, effect)
        for row in range(100)
        for code, effect in (("DX//1", 0.8), ("LAB//$2", 0.0))
        if effect == 0 or row % 2
    ]
    contributions = pl.DataFrame(rows, schema=["row", "code", "contribution"], orient="row")
    table = summarise_contributions(contributions, range(100)).with_columns(label=pl.col("code") + " · what it means")
    return ExplainedRun(table, "100 test subjects, occlusion", "log cumulative hazard")


def _evaluation(of: Configuration) -> RunRecord:
    """Of the first repeat, on another dataset."""
    interval = {"test/c_index": 0.641, "test/c_index_lower": 0.62, "test/c_index_upper": 0.66}
    ratio = {"test/observed_to_expected": 1.32, "cohort/n_test": 3914.0, "cohort/n_test_events": 957.0}
    tags = {"model_run": of.rows[0].run_id, "ehrtrack.evaluated_on": "icu_b, labels death.parquet"}
    run = _run("7" * 32, "evaluation", tags)
    return replace(run, metrics=interval | ratio)


@cache
def _evaluated(noise: float, seed: int, n: int) -> tuple[Mapping[str, float], Mapping[str, pl.DataFrame]]:
    """Metrics and tables of n test subjects, whose risks are known up to some noise."""
    rng = np.random.default_rng(7)
    linear = rng.normal(size=n)
    days = rng.exponential(500 / np.exp(linear))
    censored = np.minimum(rng.uniform(100, 800, n), HORIZON_DAYS)
    outcomes = Outcomes(np.minimum(days, censored), days <= censored)
    blurred = linear + noise * np.random.default_rng(seed).normal(size=n)
    grid = TimeGrid((0.0, 90.0, 180.0, 270.0, HORIZON_DAYS))
    survival = np.exp(-np.outer(np.exp(blurred) / 500, grid.edges_days))
    test = Split(survival, grid, outcomes, outcomes)
    sex = pl.Series((["F", "M"] * n)[:n])
    age = pl.Series(np.where(rng.random(n) < 0.03, "under 18", np.where(rng.random(n) < 0.5, "18–64", "65 and over")))
    config = EvaluationConfig(n_resamples=20)
    validation = evaluate(test, Context(config, seed))
    report = evaluate(test, Context(config, seed, test, groups={"sex": sex, "age_years": age}))
    tables = report.tables | {"subgroups": hide_in_groups(report.tables["subgroups"])}
    return named(KEPT, validation.metrics) | named(TEST, report.metrics), tables


def _configuration(model: str, n_labels: int | None, n_test: int) -> tuple[Configuration, Mapping[str, pl.DataFrame]]:
    noise, n_parameters, n_trainable, megabytes, seconds = MODELS[model]
    noise *= (2048 / (n_labels or 2048)) ** 0.25
    metrics, tables = _evaluated(round(noise, 3), 3, n_test)
    is_baseline = model in ("cox", "gradient-boosting")
    path = "baseline.name" if is_baseline else "strategy.name"
    chosen: dict[str, str | int | float | bool] = {path: model} | ({"cohort.n_labels": n_labels} if n_labels else {})
    label = model + (f" · {n_labels} labels" if n_labels else "")
    repeats = tuple(
        Repeat(
            RunRow(
                run_id=f"{sum(map(ord, label)) * 100 + seed:032x}",
                kind="baseline" if is_baseline else "finetune",
                model=model if is_baseline else "behrt",
                strategy="" if is_baseline else model,
                size="" if is_baseline else "small",
                cohort_fingerprint="c0ffee12",
                n_parameters=n_parameters,
                n_trainable=n_trainable,
                checkpoint_mb=megabytes or None,
                seconds=seconds * (1 + 0.1 * seed),
                horizon_days=f"{HORIZON_DAYS:g}",
                metrics=_shifted(metrics, 0.004 * (seed - 1))
                | {"cost/train_seconds": seconds * (1 + 0.1 * seed), "cost/total_seconds": seconds + 5}
                | ({} if is_baseline else {"cost/checkpoint_mb": megabytes})
                | ({"cost/adapter_mb": 0.295} if model.startswith("lora") else {}),
            ),
            chosen,
            seed,
            n_labels or 2048,
            n_test,
        )
        for seed in SEEDS
    )
    return Configuration(label, chosen, repeats), tables


def _learning(labels: Sequence[str]) -> pl.DataFrame:
    """Curves that rise and level, a little apart."""
    rows = [
        (label, repeat, epoch, 0.7 + 0.02 * number - 0.1 / epoch + 0.004 * repeat)
        for number, label in enumerate(labels)
        for repeat in range(len(SEEDS))
        for epoch in range(1, 9 - repeat)
    ]
    schema = {"configuration": pl.String, "repeat": pl.Int64, "epoch": pl.Int64, "value": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _predictions(n: int) -> pl.DataFrame:
    """Test subjects whose days to the event fall with their risk."""
    rng = np.random.default_rng(5)
    risk = rng.uniform(0, 1, n)
    days = rng.exponential(900 * (1.2 - risk))
    event = days <= HORIZON_DAYS
    return pl.DataFrame({"risk": risk, "follow_up_days": np.minimum(days, HORIZON_DAYS), "is_event": event})


def _shifted(metrics: Mapping[str, float], by: float) -> dict[str, float]:
    return {name: value + (by if "c_index" in name else 0.0) for name, value in metrics.items()}


def _differences(configurations: Sequence[Configuration]) -> list[Difference]:
    by_label = {one.label: one for one in configurations}

    def score(label: str) -> float:
        return by_label[label].repeats[1].row.metrics["test/c_index"]

    def difference(this: str, to: str, question: str = "") -> Difference:
        estimate = score(this) - score(to)
        interval = Interval(estimate, estimate - 0.018, estimate + 0.018)
        finding = "better" if interval.lower > 0 else "worse" if interval.upper < 0 else "no difference shown"
        p = float(np.exp(-150 * abs(estimate)))
        return Difference(
            question=question,
            this=this,
            to=to,
            metric="c_index",
            interval=interval,
            p=p,
            p_holm=min(1.0, 5 * p),
            method="paired bootstrap within the split",
            n_splits=1,
            n_seeds=3,
            margin=0.01,
            is_equivalent=False,
            finding=finding,
            sentence=f"{this} is {finding} than {to} by {estimate:+.3f} [{interval.lower:+.3f}, {interval.upper:+.3f}]",
        )

    found = []
    for label in by_label:
        model, _, rest = label.partition(" · ")
        reference = "cox" + (f" · {rest}" if rest else "")
        if label != reference:
            found.append(difference(label, reference))
        if model == "full":
            found.append(difference(label, label.replace("full", "scratch"), "Does pretraining pay?"))
    return found


def verdicts(label: str) -> list[Verdict]:
    """Of a run: the network from scratch is overfitted."""
    found = [Verdict("learned", "ok", "log-likelihood +0.210 [+0.150, +0.270] nats a validation subject")]
    found.append(Verdict("calibrated", "ok", "slope 0.97 [0.81, 1.13] (limits 0.8 to 1.25), ICI 0.021 (limit 0.05)"))
    if label.startswith("scratch"):
        found.append(Verdict("overfit", "warn", "validation loss of the kept epoch 3 is 4% over the lowest"))
    return found


def _run(run_id: str, kind: str, tags: Mapping[str, str]) -> RunRecord:
    moment = datetime(2026, 11, 29, tzinfo=UTC)
    provenance = {"ehrtrack.git_commit": "220f082" + "0" * 33, "ehrtrack.git_dirty": "false"}
    fingerprints = {"fingerprint.data": "d1d2d3d4", "fingerprint.cohort": "c0ffee12", "fingerprint.vocabulary": "0a0b"}
    return RunRecord(
        run_id=run_id,
        name=kind,
        study="simulated_strategies",
        kind=kind,
        status="FINISHED",
        params={"runtime.seed": "0", "cohort.horizon_days": "365.0", "cohort.outcome.codes": '["OUTCOME$"]'},
        metrics={"cost/train_seconds": 310.0},
        tags=dict(provenance | fingerprints | tags),
        started=moment,
        ended=moment,
        experiment_id="1",
        parent_run_id="5" * 32,
    )


def _record(repeat: Repeat, label: str) -> RunRecord:
    found = verdicts(label)
    note = {"mlflow.note.content": f"### A run\n{sanity.to_markdown(found)}"}
    read = {PRETRAINING_RECORDS: "up to the index dates"} if repeat.row.kind == "finetune" else {}
    return _run(repeat.row.run_id, repeat.row.kind, sanity.to_tags(found) | note | read)


def _controls() -> RunRecord:
    found = [
        Verdict("control_permuted", "ok", "C-index 0.508 [0.451, 0.566] with permuted labels: one half is within it"),
        Verdict("control_future", "ok", "no risk moved with another future"),
        Verdict("control_planted", "ok", "C-index 0.984 with a planted leak"),
    ]
    return _run(
        "f" * 32, "negative-controls", sanity.to_tags(found) | {"mlflow.note.content": sanity.to_markdown(found)}
    )


def _attrition() -> pl.DataFrame:
    steps = {
        "subjects in the data": 9_214,
        "index event": 4_120,
        "born and alive at the index date": 4_117,
        "18 years or older": 3_903,
        "a year of history": 3_210,
        "no outcome before the index date": 3_062,
    }
    left = list(steps.values())
    dropped = [0, *(before - after for before, after in pairwise(left))]
    return hide_in_attrition(pl.DataFrame({"step": list(steps), "n_subjects": left, "n_dropped": dropped}))


def _summary() -> pl.DataFrame:
    n, events = [2_048, 514, 500], [371, 7, 204]
    return hide_in_summary(
        pl.DataFrame(
            {
                "split": ["train", "validation", "test"],
                "n_subjects": n,
                "n_events": events,
                "event_rate": [d / m for d, m in zip(events, n, strict=True)],
                "median_follow_up_days": [301.0, 298.5, 310.0],
                "person_years": [1602.2, 402.9, 399.1],
            }
        )
    )


def _table_one() -> pl.DataFrame:
    rows = [
        ("subjects", "", "3062", "2048", "514", "500", ""),
        ("age (years)", "", "66 [54, 77]", "66 [54, 77]", "66 [55, 77]", "67 [54, 78]", "0.03"),
        ("sex", "F", "1561 (51.0)", "1044 (51.0)", "262 (51.0)", "255 (51.0)", "0.00"),
        ("sex", "M", "1501 (49.0)", "1004 (49.0)", "252 (49.0)", "245 (49.0)", ""),
        ("race", "other", "<11", "–", "–", "<11", "0.02"),
        ("visits", "", "14 [6, 31]", "14 [6, 31]", "13 [6, 30]", "14 [6, 32]", "0.01"),
    ]
    columns = ("characteristic", "level", "overall", "train", "validation", "test", "smd")
    return pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String), orient="row")
