"""Comparison: finished runs out of the tracking server, into benchmark tables and a champion."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ehrtrack import plots
from ehrtrack.config import RunConfig
from ehrtrack.data.labels import NUMBER
from ehrtrack.errors import DataError, TrackingError
from ehrtrack.evaluation.benchmark import (
    RunRow,
    benchmark_table,
    best_by_validation,
    group_by_cohort,
    metric_of_choice,
    reference_model,
    to_markdown,
)
from ehrtrack.evaluation.brief import MOST_LINES, brief
from ehrtrack.evaluation.causes import cause_table, causes_to_markdown
from ehrtrack.evaluation.metric_table import BOUNDS, LONG_NAMES, Entry, Metric, shown
from ehrtrack.evaluation.paired import differences, reference_run, unpaired
from ehrtrack.pipeline.champion import own_cohort, propose
from ehrtrack.pipeline.predictions_cache import read_test_predictions
from ehrtrack.pipeline.repeats import Family, chooser, families, log_repeats
from ehrtrack.pipeline.run import RecipeResult, Recorder, open_run
from ehrtrack.pipeline.run_rows import run_row, task_of
from ehrtrack.runlog import TEST
from ehrtrack.tracking.client.connection import ui_command
from ehrtrack.tracking.client.queries import RunRecord, get_run, search_runs
from ehrtrack.tracking.client.registry import ModelVersion, champion
from ehrtrack.tracking.client.views import with_links
from ehrtrack.tracking.names import COHORT, HORIZON

SECTIONS = ("study", "registry", "compare")


@dataclass(frozen=True)
class Comparison:
    """What a comparison came to.

    Attributes
    ----------
    run : the run that holds the tables
    markdown : the benchmark table of the cohort of the configuration; of the latest run's, where no run is of it
    champion : the version that the alias points at now, or None
    proposed : the version that is best by validation in the cohort of the configuration, or None
    left_out : run id -> why it is in no table, and how to mend it

    Examples
    --------
    >>> run = RecipeResult("0" * 32, "compare", "http://localhost:5000", {})
    >>> Comparison(run, "| model |", champion=None, proposed=None, left_out={}).run.kind
    'compare'
    """

    run: RecipeResult
    markdown: str
    champion: ModelVersion | None
    proposed: ModelVersion | None
    left_out: Mapping[str, str]


@dataclass(frozen=True)
class Benchmark:
    """The runs of one cohort that can be compared, their table, and by run id how many subjects it was tested on."""

    rows: list[RunRow]
    table: pl.DataFrame
    n_test: Mapping[str, int]

    @property
    def metric(self) -> Metric:
        """By which its runs are compared."""
        return metric_of_choice(self.rows)

    @property
    def title(self) -> str:
        """The cohort's fingerprint and the horizon."""
        horizons = sorted({row.horizon_days for row in self.rows if row.horizon_days}, key=float)
        days = f" (horizon {', '.join(horizons)} days)" if horizons else ""
        return f"cohort {self.rows[0].cohort_fingerprint}{days}"


def compare(config: RunConfig) -> Comparison:
    """Compare the finished fine-tuning and baseline runs of a study, and propose the best by validation as champion.

    Each cohort has a table of its own. The best run of the configuration's cohort is registered. It becomes champion
    where there is none, or one of the same cohort that a comparison chose; see `registry.why_champion_stays`.

    Runs of equal settings with several seeds, or on several splits, are repeats: there is then one table of
    configurations over all of their cohorts, and of the best configuration the median run is proposed.

    A run that cannot be compared is left out of the tables, with the reason.

    Raises
    ------
    DataError
        If the study has no finished run that can be compared.
    """
    records = search_runs(config.study, kinds=["finetune", "baseline"])
    if not records:
        raise DataError(
            f"study {config.study!r} has no finished finetune or baseline run on this tracking server; "
            "run `ehrtrack finetune` and `ehrtrack baseline` first, or set MLFLOW_TRACKING_URI to where they were run"
        )
    with open_run(config, kind="compare", sections=SECTIONS, name="compare") as run:
        benchmarks, left_out = _benchmarks(records, config.compare.reference, config.runtime.cache)
        if not benchmarks:
            raise DataError(
                f"none of {len(records)} runs of study {config.study!r} can be compared. {_listed(left_out)}"
            )
        repeated = _log_repeats(run, records, benchmarks)
        texts = {}
        for cohort, benchmark in benchmarks.items():
            by_id = {row.run_id: row for row in benchmark.rows}
            of_causes = cause_table(by_id[run_id] for run_id in benchmark.table["run_id"] if run_id)
            texts[cohort] = to_markdown(
                benchmark.table,
                reference=config.compare.reference or reference_model(benchmark.rows),
                has_causes=not of_causes.is_empty(),
                metric=benchmark.metric,
            )
            if not of_causes.is_empty():
                texts[cohort] += f"\n{causes_to_markdown(of_causes)}"
                run.logger.log_table(of_causes, f"benchmark/{cohort}_causes.csv")
            run.logger.log_table(benchmark.table, f"benchmark/{cohort}.csv")
            run.logger.log_text(texts[cohort], f"benchmark/{cohort}.md")
            whole = f"benchmark/{cohort}.md"
            texts[cohort] = brief(texts[cohort], whole=whole, keep=reference_model(benchmark.rows))
            forest = _forest_rows(benchmark)[:MOST_LINES]
            if forest:
                figure = plots.comparison_plot(forest, quantity=f"test {benchmark.metric.title}")
                run.logger.log_figure(figure, f"benchmark/{cohort}.png")
            if cohort in repeated:
                texts[cohort] = repeated[cohort].text
            else:
                print(f"\n{benchmark.title}\n\n{texts[cohort]}", flush=True)
        if left_out:
            columns = {"run_id": list(left_out), "reason": list(left_out.values())}
            run.logger.log_table(pl.DataFrame(columns), "benchmark/left_out.csv")
            print(f"{_listed(left_out)}\n", flush=True)
        latest = _latest_first(records, benchmarks)
        own = own_cohort(config, latest)
        choose = chooser(repeated[own].family, own) if own in repeated else best_by_validation
        rows = [] if own is None else benchmarks[own].rows
        decision = propose(config.registry.model or config.study, rows, choose)
        run.logger.set_tags(decision.to_tags())
        print(f"{decision.text}\n", flush=True)
        shown = own or next(iter(latest))
        summary = _summary(texts, shown, benchmarks[shown].title, decision.text, left_out)
        best = [run_id for run_id in benchmarks[shown].table["run_id"][:MOST_LINES] if run_id]
        run.logger.set_description(with_links(summary, shortened=best))
        return Comparison(run.finished({}), texts[shown], decision.champion, decision.proposed, left_out)


@dataclass(frozen=True)
class _Repeated:
    """A family of configurations that were run several times, and what was logged of it."""

    family: Family
    text: str


def _log_repeats(
    run: Recorder, records: Sequence[RunRecord], benchmarks: Mapping[str, Benchmark]
) -> dict[str, _Repeated]:
    """By cohort, what is told of the configurations that were run several times; other cohorts are not there."""
    rows = [row for benchmark in benchmarks.values() for row in benchmark.rows]
    n_test = {run_id: n for benchmark in benchmarks.values() for run_id, n in benchmark.n_test.items()}
    found: dict[str, _Repeated] = {}
    for family in families(records, rows, n_test, _bases(run.config.study, records)):
        if not family.has_repeats:
            continue
        predictions, _ = read_test_predictions(
            [row for of in family.found for row in of.rows], cache=run.config.runtime.cache
        )
        told = _Repeated(family, log_repeats(run.logger, family, predictions, run.config.compare))
        print(f"\n{told.text}", flush=True)
        found |= dict.fromkeys(family.cohorts, told)
    return found


def _bases(study: str, records: Sequence[RunRecord]) -> list[RunRecord]:
    """The pretrainings that runs started from, as far as the server has them; those of other studies are asked for."""
    found = {record.run_id: record for record in search_runs(study, kinds=["pretrain"])}
    for run_id in sorted({record.params.get("init.run", "") for record in records} - found.keys()):
        if re.fullmatch("[0-9a-f]{32}", run_id):
            try:
                found[run_id] = get_run(run_id)
            except TrackingError as reason:
                print(f"runs that start from {run_id} are repeats of no others: {reason}", flush=True)
    return list(found.values())


def _benchmarks(
    records: Sequence[RunRecord], reference: str, cache: Path
) -> tuple[dict[str, Benchmark], dict[str, str]]:
    """A table for each cohort; and of the runs that are in none, why, by run id."""
    rows, left_out = [], {}
    for record in records:
        try:
            rows.append(run_row(record))
        except DataError as reason:
            left_out[record.run_id] = str(reason)
    benchmarks = {}
    for cohort, group in group_by_cohort(rows).items():
        older = judged_otherwise(group)
        group = [row for row in group if row.run_id not in older]
        predictions, missing = read_test_predictions(group, cache=cache)
        left_out |= older | missing | strangers(group, predictions, reference)
        kept = [row for row in group if row.run_id not in left_out]
        if not kept:
            continue
        paired = {row.run_id: predictions[row.run_id] for row in kept}
        found = differences(kept, paired, reference=reference)
        base = reference_run(kept, paired, reference=reference)
        n_test = {run_id: table["subject_id"].n_unique() for run_id, table in paired.items()}
        benchmarks[cohort] = Benchmark(kept, benchmark_table(kept, found), n_test)
        if base is None and reference:
            print(
                f"no run of cohort {cohort} is of compare.reference = {reference!r}; there are no differences",
                flush=True,
            )
        without = [row.run_id for row in kept if base is not None and row.run_id not in (*found, base.run_id)]
        if without:
            print(f"too few events for an interval of the difference: {', '.join(without)}", flush=True)
    return benchmarks, left_out


def judged_otherwise(rows: Sequence[RunRow]) -> dict[str, str]:
    """Runs that judged labels of classes as survival, from before classes had measures of their own, beside others."""
    others = [row for row in rows if row.task != "classes"]
    if not others or len(others) == len(rows):
        return {}
    reason = "it is from before labels of classes were judged by AUROC; make it again and delete this one"
    return {row.run_id: reason for row in others}


def strangers(rows: Sequence[RunRow], predictions: Mapping[str, pl.DataFrame], reference: str = "") -> dict[str, str]:
    """Runs that cannot be paired with most others of their cohort: run id -> why, and how to mend it.

    The others are those who agree on the subjects, what they are called and what came of them; of two such parties of
    one size, that of the reference. Without a reference there are no pairs, and no strangers.
    """
    base = reference_run(rows, predictions, reference=reference)
    if base is None:
        return {}
    parties: dict[object, list[RunRow]] = {}
    for row in rows:
        if row.run_id in predictions:
            parties.setdefault(_subjects_of(row, predictions[row.run_id]), []).append(row)
    most = max(parties.values(), key=lambda party: (len(party), base in party))
    return unpaired(most[0], rows, predictions)


def _subjects_of(row: RunRow, table: pl.DataFrame) -> tuple[object, ...]:
    """Equal for runs that have the same subjects and outcomes, in whatever order."""
    names = {"subject_id", NUMBER, "follow_up_days", "follow_up_rank", "is_event"}
    outcomes = table.select(sorted(names & set(table.columns)))
    return row.subject_key, *outcomes.columns, table.height, outcomes.hash_rows().sum()


def _latest_first(records: Sequence[RunRecord], benchmarks: Mapping[str, Benchmark]) -> dict[str, str]:
    """Cohort -> the id of its latest run, the cohort that was run last first."""
    cohort_of = {row.run_id: cohort for cohort, benchmark in benchmarks.items() for row in benchmark.rows}
    found: dict[str, str] = {}
    for record in reversed(records):  # which are by time
        if record.run_id in cohort_of:
            found.setdefault(cohort_of[record.run_id], record.run_id)
    return found


def _listed(left_out: Mapping[str, str]) -> str:
    return "\n".join(["Left out:", *(f"- run {run_id}: {reason}" for run_id, reason in left_out.items())])


def describe_champion(name: str) -> str:
    """The champion of a registered model with its scores, as text for a terminal."""
    version = champion(name)
    record = get_run(version.run_id)
    metrics = record.metrics
    scores = [
        f"{label:<24}{metrics[name]:.4f}"
        for entry in shown("headline", {task_of(record)})
        for name, label in _labels(entry).items()
        if name in metrics
    ]
    scores += [
        f"{label:<24}{record.tags[tag]}"
        for label, tag in (("cohort", COHORT), ("horizon (days)", HORIZON))
        if tag in record.tags
    ]
    page = ui_command(record.experiment_id, run_id=record.run_id)
    return "\n".join(
        [
            f"models:/{name}@champion  (version {version.version})",
            f"run {record.run_id}  {record.name}",
            *scores,
            str(page),
        ]
    )


def _labels(entry: Entry) -> dict[str, str]:
    """Name under which runs log a metric, or a bound of its interval -> what it is called in a list for a terminal."""
    title = f"{LONG_NAMES[entry.split]} {entry.metric.title}"
    bounds = (f"  {bound.removeprefix('_')} (95 %)" for bound in BOUNDS)
    return dict(zip(entry.names, (title, *bounds), strict=False))


def _forest_rows(benchmark: Benchmark) -> list[plots.ForestRow]:
    """A line for each run whose test score has an interval, the best by validation first."""
    estimate, lower, upper = Entry(benchmark.metric, TEST).columns
    judged = benchmark.table.drop_nulls([estimate, lower, upper])
    return [
        plots.ForestRow(
            " · ".join(part for part in (row["model"], row["strategy"], row["size"]) if part),
            row[estimate],
            row[lower],
            row[upper],
            is_highlighted=number == 0,
        )
        for number, row in enumerate(judged.iter_rows(named=True))
    ]


def _summary(texts: Mapping[str, str], shown: str, title: str, champion: str, left_out: Mapping[str, str]) -> str:
    others = len(texts) - 1
    more = f"\n\n{others} more cohort{'s' * (others > 1)}: see the artifacts under `benchmark/`." if others else ""
    return (
        f"### Benchmark of {title}\n\n{texts[shown]}\n{champion}\n\nThe verdict is that of a paired bootstrap interval "
        f"of the difference on the same test subjects.{more}" + (f"\n\n{_listed(left_out)}" if left_out else "")
    )
