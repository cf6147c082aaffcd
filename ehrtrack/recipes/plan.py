"""What a study takes before it is started: its cells, which of them are done, and time, disk and money for the rest."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import optuna

from ehrtrack.config import Override
from ehrtrack.errors import EhrtrackError
from ehrtrack.pipeline.cost import Cost, measure, measure_adaptation
from ehrtrack.pipeline.fit import feed, set_up
from ehrtrack.pipeline.prepare import prepare_cohort, prepare_records, settle
from ehrtrack.recipes.advise import duration
from ehrtrack.recipes.pretrain import untrained
from ehrtrack.search.storage import shared_storage, storage_place
from ehrtrack.study.cells import Cell, Study, read_study
from ehrtrack.study.progress import SIGNS, by_configuration, counts_text, standings
from ehrtrack.study.questions import check_questions
from ehrtrack.study.queue import Queue, Standing
from ehrtrack.study.results import finished_cells
from ehrtrack.tracking.client.queries import RunRecord
from ehrtrack.training.ranks import join_ranks

MEGABYTES_PER_PARAMETER = 4e-6
SECONDS = 1.0
"""For which the steps of a configuration are measured."""


@dataclass(frozen=True)
class Estimate:
    """What one cell of a configuration takes.

    Attributes
    ----------
    hours : None where it is not known
    megabytes : of weights, on the tracking server; None where it is not known
    source : of the number: runs that are done, or steps that were measured
    is_measured : whether by steps
    """

    hours: float | None = None
    megabytes: float | None = None
    source: str = "not known before the first is done"
    is_measured: bool = False


def plan(path: Path, overrides: Sequence[Override] = (), *, measures: bool = True) -> str:
    """The plan of a study, as text; nothing is begun.

    Parameters
    ----------
    overrides : dotted paths under ``runtime``, of this machine
    measures : train each configuration that is not known yet for a second, to know its speed here

    Raises
    ------
    EhrtrackError
        If the study, the data or the tracking server cannot be used.
    """
    study = read_study(path, overrides)
    check_questions(study)
    records = finished_cells(study)
    standing = standings(study, records, _in_queue(study))
    beside = _seconds_beside_training(records.values())
    estimates = {
        name: _estimate(cells, records, beside, measures=measures) for name, cells in by_configuration(study).items()
    }
    lines = _lines(study, standing, estimates)
    if beside is None and any(estimate.is_measured for estimate in estimates.values()):
        lines[-1] += "; scoring and logging, some seconds a cell, are not in it before the first is done"
    return "\n".join(lines)


def _in_queue(study: Study) -> dict[str, Standing]:
    """How the cells stand in the queue, if there is one; none is made for a plan."""
    runtime = study.runtime
    place = storage_place(runtime.storage, runtime.cache)
    if isinstance(place, Path) and not place.is_file():
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = shared_storage(runtime.storage, runtime.cache)
    if study.queue not in {summary.study_name for summary in optuna.get_all_study_summaries(storage)}:
        return {}
    return Queue(study, storage).standing()


def _seconds_beside_training(done: Iterable[RunRecord]) -> float | None:
    """That a run is scored, explained and logged for, by those that are done; None where none is."""
    costs = [{name: run.metrics.get(f"cost/{name}_seconds") for name in ("total", "train")} for run in done]
    beside = [of["total"] - of["train"] for of in costs if of["total"] is not None and of["train"] is not None]
    return statistics.fmean(beside) if beside else None


def _estimate(
    cells: Sequence[Cell], records: Mapping[str, RunRecord], beside: float | None, *, measures: bool
) -> Estimate:
    """By the runs of the same configuration that are done, or else by some steps of it.

    Parameters
    ----------
    beside : seconds that a run of this study takes beside its training, where that is known
    """
    done = [records[cell.key] for cell in cells if cell.key in records]
    seconds = [run.metrics["cost/total_seconds"] for run in done if "cost/total_seconds" in run.metrics]
    if seconds:
        sizes = [run.metrics["cost/checkpoint_mb"] for run in done if "cost/checkpoint_mb" in run.metrics]
        source = f"mean of {len(seconds)} done"
        return Estimate(statistics.fmean(seconds) / 3600, statistics.fmean(sizes) if sizes else 0.0, source)
    if not measures or cells[0].recipe == "baseline":
        return Estimate()
    try:
        with redirect_stdout(StringIO()):  # what it says of the data is said when the cell runs
            n_parameters, cost = _measured(cells[0])
    except EhrtrackError as error:
        return Estimate(source=f"not measured: {error}")
    hours = cost.hours + (beside or 0.0) / 3600
    return Estimate(hours, n_parameters * MEGABYTES_PER_PARAMETER, f"measured; {cost.of_what}", is_measured=True)


def _measured(cell: Cell) -> tuple[int, Cost]:
    """Number of parameters, and what some steps cost; they start from random weights, which cost as much."""
    config = settle(cell.config)
    config = config.model_copy(update={"init": config.init.model_copy(update={"run": "", "embeddings": ""})})
    ranks = join_ranks(config.runtime.device)
    if cell.recipe == "pretrain":
        records = prepare_records(config)
        of_codes, plain = untrained(config, records)
        model = set_up(plain, config, ranks)
        batches = feed(config, records, model, of_codes, ranks).epoch(1)
        epochs = config.train.epochs
        cost = measure(model, of_codes, batches, ranks.device, encoder=None, epochs=epochs, seconds=SECONDS)
        return sum(parameter.numel() for parameter in model.parameters()), cost
    adapted, cost = measure_adaptation(config, prepare_cohort(config), ranks, seconds=SECONDS)
    return sum(parameter.numel() for parameter in adapted.model.parameters()), cost


def _lines(study: Study, standing: Mapping[str, Standing], estimates: Mapping[str, Estimate]) -> list[str]:
    groups = by_configuration(study)
    counts = counts_text(one.state for one in standing.values())
    width = max(map(len, groups))
    lines = [
        study.settings.question,
        f"{study.name}: {len(study.cells)} cells of {len(groups)} configurations: {counts}",
        "",
    ]
    for name, cells in groups.items():
        signs = " ".join(SIGNS[standing[cell.key].state] for cell in cells)
        lines.append(f"{name:<{width}}  {len(cells):>3}  {_each(estimates[name]):<56}  {signs}")
    return [*lines, "", *_totals(study, standing, estimates)]


def _each(estimate: Estimate) -> str:
    if estimate.hours is None:
        return f"time {estimate.source}"
    size = f", {estimate.megabytes:,.1f} MB" if estimate.megabytes else ""
    return f"{duration(estimate.hours)}{size} each ({estimate.source})"


def _totals(study: Study, standing: Mapping[str, Standing], estimates: Mapping[str, Estimate]) -> list[str]:
    """Time, disk and money of all that is not done."""
    left = [cell for cell in study.cells if standing[cell.key].state != "done"]
    known = [estimates[cell.configuration] for cell in left if estimates[cell.configuration].hours is not None]
    if left and not known:
        return [f"left: {len(left)} cells of unknown time"]
    hours = sum(estimate.hours or 0 for estimate in known)
    megabytes = sum(estimate.megabytes or 0 for estimate in known)
    price = study.settings.price_per_hour
    money = "" if price is None else f", {hours * price:,.2f} {study.settings.currency}"
    unknown = f"; {len(left) - len(known)} cells of unknown time come on top" if len(left) > len(known) else ""
    return [
        f"left: {len(left)} cells, {duration(hours)} of one worker{money}, {megabytes:,.0f} MB on the tracking "
        f"server{unknown}"
    ]
