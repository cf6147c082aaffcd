"""What a comparison logs of configurations that were run several times: their table, differences and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from ehrtrack import plots
from ehrtrack.evaluation.answer import answer
from ehrtrack.evaluation.benchmark import reference_model
from ehrtrack.evaluation.brief import MOST_LINES
from ehrtrack.evaluation.differences import differences_over_repeats, differences_table
from ehrtrack.evaluation.labels import CHOSEN, RANK
from ehrtrack.evaluation.pairs import Questions
from ehrtrack.evaluation.repeats import Configuration
from ehrtrack.evaluation.settings import CompareConfig
from ehrtrack.evaluation.study_table import study_markdown, study_table
from ehrtrack.pipeline.repeats import Family
from ehrtrack.runlog import RunLogger
from ehrtrack.survival.bootstrap import N_RESAMPLES

MANY_RUNS = 500
"""Of more runs fewer resamples are scored: of 5,000 they would take minutes."""


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
    differences = differences_over_repeats(family.found, predictions, questions, n_resamples=n_resamples)
    table = study_table(family.found, differences)
    told = [answer(differences, family.found), study_markdown(table)]
    if family.replaced:
        told.append(f"Made again with the same seed on the same split, and left out: {', '.join(family.replaced)}.")
    text = "\n\n".join(told) + "\n"
    name = f"benchmark/repeats_{family.name}"
    logger.log_table(table, f"{name}.csv")
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
