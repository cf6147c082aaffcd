"""Finished runs as repeats of configurations, which differ by seed and split alone, and what is found of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import polars as pl

from ehrtrack import plots
from ehrtrack.data.events import fingerprint_of
from ehrtrack.errors import DataError
from ehrtrack.evaluation.answer import findings
from ehrtrack.evaluation.benchmark import RunRow, metric_of_choice, reference_model
from ehrtrack.evaluation.brief import MOST_LINES
from ehrtrack.evaluation.differences import differences_table
from ehrtrack.evaluation.labels import CHOSEN, N_LABELS, RANK
from ehrtrack.evaluation.pairs import Questions
from ehrtrack.evaluation.repeats import (
    N_TEST,
    N_TRAIN,
    Configuration,
    Repeat,
    best_configurations_first,
    configurations,
    median_first,
)
from ehrtrack.evaluation.settings import CompareConfig
from ehrtrack.runlog import RunLogger
from ehrtrack.survival.bootstrap import N_RESAMPLES
from ehrtrack.tracking.client.queries import RunRecord

SEED, SPLIT_SEED = "runtime.seed", "data.split.seed"
BASE, PRETRAINED = "init.run", "pretrain."
_ELSEWHERE = ("study", "runtime.")
_PLACES = ("data.path", "cohort.labels", "init.embeddings")
"""Paths of files, which differ between machines; fingerprints identify their contents."""
_POPULATION = ("cohort.", "data.split.")
MANY_RUNS = 500
"""Of more runs fewer resamples are scored: of 5,000 they would take minutes."""


@dataclass(frozen=True)
class Family:
    """Runs on one dataset whose cohorts have equal settings, except for the number of labels and the seed of the split.

    Attributes
    ----------
    name : identifies the family
    found : its configurations, the best by mean validation score first
    replaced : of runs that were made again with the same seed on the same split, the earlier ones
    """

    name: str
    found: list[Configuration]
    replaced: list[str]

    @property
    def has_repeats(self) -> bool:
        """Whether any configuration was run more than once."""
        return any(len(of.repeats) > 1 for of in self.found)

    @property
    def cohorts(self) -> set[str]:
        """Fingerprints of its cohorts: one a split and number of labels."""
        return {row.cohort_fingerprint for of in self.found for row in of.rows}


def families(
    records: Sequence[RunRecord],
    rows: Sequence[RunRow],
    n_test: Mapping[str, int],
    pretrainings: Sequence[RunRecord] = (),
) -> list[Family]:
    """The runs of a study, as repeats of configurations.

    Two runs are repeats of one configuration if their settings are equal except for ``runtime.seed`` and
    ``data.split.seed``. Pretrained weights are compared by the settings of their pretraining, except for the same two.

    Parameters
    ----------
    records : finished runs, oldest first
    rows : those of them that can be compared
    n_test : test subjects by run id, of the runs that did not log it
    pretrainings : of the study
    """
    row_of = {row.run_id: row for row in rows}
    bases = {record.run_id: _settings(record.params, bases={}) for record in pretrainings}
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        if record.run_id in row_of:
            groups.setdefault(_population(record, row_of[record.run_id]), []).append(record)
    return [
        _family(name, [(record, row_of[record.run_id]) for record in of_one], n_test, bases)
        for name, of_one in groups.items()
    ]


def _population(record: RunRecord, row: RunRow) -> str:
    told = {
        path: value
        for path, value in record.params.items()
        if path.startswith(_POPULATION) and path not in (SPLIT_SEED, N_LABELS, "cohort.labels_seed", *_PLACES)
    }
    labels = record.params.get("cohort.labels", "").rsplit("/", 1)[-1]
    return fingerprint_of("family", record.tags.get("fingerprint.data", ""), row.task, told, labels)


def _family(
    name: str,
    runs: Sequence[tuple[RunRecord, RunRow]],
    n_test: Mapping[str, int],
    bases: Mapping[str, Mapping[str, str]],
) -> Family:
    latest: dict[object, Repeat] = {}
    replaced = []
    for record, row in runs:
        settings = _settings(record.params, bases) | _chosen(record, row)
        if row.kind == "baseline":  # which starts from no base, whatever its file names for networks
            settings = {path: value for path, value in settings.items() if not path.startswith((BASE, PRETRAINED))}
        key = (row.kind, row.cohort_fingerprint, record.params.get(SEED), tuple(sorted(settings.items())))
        if key in latest:
            replaced.append(latest[key].row.run_id)
        latest[key] = _repeat(record, row, settings, n_test)
    return Family(name, best_configurations_first(configurations(list(latest.values()))), replaced)


def _chosen(record: RunRecord, row: RunRow) -> dict[str, str]:
    of_strategy, of_baseline = CHOSEN
    return {of_baseline: row.model} if row.kind == "baseline" else {of_strategy: record.params[of_strategy]}


def _settings(params: Mapping[str, str], bases: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The settings that define a configuration: all of a run except seeds, paths and the machine."""
    told = {
        path: value
        for path, value in params.items()
        if not path.startswith(_ELSEWHERE) and path not in (SPLIT_SEED, BASE, *_PLACES)
    }
    base = params.get(BASE, "")
    return told | (
        {f"{PRETRAINED}{path}": value for path, value in bases[base].items()} if base in bases else {BASE: base}
    )


def _repeat(record: RunRecord, row: RunRow, settings: Mapping[str, str], n_test: Mapping[str, int]) -> Repeat:
    """The run as a repeat. If it logged no number of training subjects, the shares of its split give one."""
    tested = record.metrics.get(N_TEST, n_test.get(row.run_id, 1))
    trained = record.metrics.get(N_TRAIN)
    if trained is None:
        shares = [float(record.params.get(f"data.split.{name}") or 0) for name in ("train", "validation")]
        share_of_test = 1 - sum(shares)
        trained = tested * shares[0] / share_of_test if shares[0] and share_of_test > 0 else tested
    return Repeat(row, settings, int(record.params.get(SEED, 0)), max(1, round(trained)), round(tested))


def chooser(family: Family, cohort: str) -> Callable[[Sequence[RunRow]], RunRow]:
    """A function that chooses the run of a cohort that is proposed as champion.

    The run belongs to the configuration with the best mean validation score over the splits that all configurations of
    the cohort were run on. Of its runs on the cohort's own split the median is chosen (the worse of two in the middle),
    so that no lucky seed wins.
    """
    own = [of for of in family.found if cohort in {row.cohort_fingerprint for row in of.rows}]
    shared = set.intersection(*({row.cohort_fingerprint for row in of.rows} for of in own))
    fair = [replace(of, repeats=tuple(one for one in of.repeats if one.row.cohort_fingerprint in shared)) for of in own]
    order = [
        row
        for of in best_configurations_first(fair)
        for row in median_first([row for row in of.rows if row.cohort_fingerprint == cohort])
    ]

    def choose(rows: Sequence[RunRow]) -> RunRow:
        metric = metric_of_choice(rows)
        there = {row.run_id for row in rows}
        for row in order:
            if row.run_id in there and row.score(metric) is not None and row.is_judged(metric):
                return row
        raise DataError(f"none of {len(rows)} runs could be judged: too few test events; widen the cohort or the split")

    return choose


def log_repeats(
    logger: RunLogger, family: Family, predictions: Mapping[str, pl.DataFrame], asked: CompareConfig
) -> str:
    """Log table, differences and forest of a family of configurations, under ``benchmark/repeats_NAME``.

    Parameters
    ----------
    predictions : for test subjects, by run id
    asked : the reference and the margin of equivalence

    Returns
    -------
    The answer in words with the table, as Markdown.
    """
    questions = Questions(reference_selection(family.found, asked.reference), margin=asked.margin)
    n_resamples = N_RESAMPLES if len(predictions) > MANY_RUNS else 4 * N_RESAMPLES
    told = findings(family.found, predictions, questions, n_resamples=n_resamples)
    text, differences = f"{told.markdown}\n", told.differences
    if family.replaced:
        text += f"\nMade again with the same seed on the same split, and left out: {', '.join(family.replaced)}.\n"
    name = f"benchmark/repeats_{family.name}"
    logger.log_table(told.table, f"{name}.csv")
    logger.log_text(text, f"{name}.md")
    if differences:
        logger.log_table(differences_table(differences), f"{name}_differences.csv")
        shown = [one for one in differences if one.metric == differences[0].metric]
        logger.log_figure(plots.differences_plot(shown[:MOST_LINES]), f"{name}_differences.png")  # the best, as a table
    return text


def reference_selection(found: Sequence[Configuration], reference: str) -> dict[str, str]:
    """The configurations that a name of a baseline or a strategy stands for, such as ``cox`` or ``lora r8``.

    Parameters
    ----------
    reference : the task's own reference if empty
    """
    wanted = reference or reference_model([row for of in found for row in of.rows])
    of_strategy, of_baseline = CHOSEN
    if any(of.settings.get(of_baseline) == wanted for of in found):
        return {of_baseline: wanted}
    name, _, rank = wanted.partition(" r")
    return {of_strategy: name} | ({RANK: rank} if rank else {})
