"""What a study finds: its configurations, the differences between them, one table, and the answer in words."""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl

from ehrtrack.evaluation.answer import answer
from ehrtrack.evaluation.differences import differences_over_repeats
from ehrtrack.evaluation.repeats import Configuration, Difference, best_configurations_first, configurations
from ehrtrack.evaluation.study_table import study_markdown, study_table
from ehrtrack.study.results import StudyResults


@dataclass(frozen=True)
class Findings:
    """What may be said of a study's finished runs.

    Attributes
    ----------
    configurations : the best by mean validation score first
    differences : of each to the reference, and those that were asked about
    table : a line a configuration, as `evaluation.study_table.study_table`
    answer : a short paragraph; empty where no run is finished
    currency : in which costs are
    """

    configurations: tuple[Configuration, ...] = field(repr=False)
    differences: tuple[Difference, ...] = field(repr=False)
    table: pl.DataFrame = field(repr=False)
    answer: str
    currency: str

    @property
    def markdown(self) -> str:
        """The answer and the table, for a page or a terminal."""
        if not self.configurations:
            return "No cell of this study is finished."
        return f"{self.answer}\n\n{study_markdown(self.table, currency=self.currency)}"


def findings(results: StudyResults) -> Findings:
    """Put a study's finished runs together; the same runs give the same findings."""
    settings = results.settings
    found = best_configurations_first(configurations(results.repeats))
    differences = differences_over_repeats(found, results.predictions, settings) if found else []
    price, currency = settings.price_per_hour, settings.currency
    return Findings(
        configurations=tuple(found),
        differences=tuple(differences),
        table=study_table(found, differences, price_per_hour=price),
        answer=answer(differences, found, price_per_hour=price, currency=currency) if found else "",
        currency=currency,
    )
