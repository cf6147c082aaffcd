"""Charts of a search by optuna.visualization: in plotly for the page, in matplotlib for the files."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import optuna
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna import visualization
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from ehrtrack.reporting.document import Chart
from ehrtrack.search.stored import Searched

_LEAST_FOR_IMPORTANCE = 4
"""Complete trials."""


def search_charts(searched: Searched) -> list[Chart]:
    """History, learning curves, importance, slices and parallel coordinates; of two scores the front too.

    A chart that these trials are too few for is left out.
    """
    study = _study(searched)
    title = f"{searched.of_whom} {searched.scored_by[0].title}"
    of_score = {"target": _first_value, "target_name": title}
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    varied = _varied(complete)
    charts = []
    if complete:
        charts.append(
            _chart(
                "history",
                f"{title} of each trial, and the best until then. Charts number trials from 0.",
                "optimization_history",
                study,
                **of_score,
            )
        )
    if any(trial.intermediate_values for trial in study.trials):
        charts.append(
            _chart(
                "learning",
                f"{title} after each epoch; trials that end early were pruned.",
                "intermediate_values",
                study,
            )
        )
    shared = _shared(complete, varied)
    if len(shared) > 1 and len(_with_all(complete, shared)) >= _LEAST_FOR_IMPORTANCE:
        evaluator = FanovaImportanceEvaluator(seed=0)
        caption = (
            f"How much of the variance of {title} each setting explains by itself (fANOVA over "
            f"{len(_with_all(complete, shared))} trials that have all of them)."
        )
        of_those = _study(searched, _with_all(complete, shared))
        charts.append(
            _chart("importance", caption, "param_importances", of_those, evaluator=evaluator, params=shared, **of_score)
        )
    if varied:
        charts.append(_chart("slices", f"{title} by each setting.", "slice", study, params=varied, **of_score))
    if len(shared) > 1:
        charts.append(
            _chart(
                "parallel",
                "All settings of each trial: a line a trial.",
                "parallel_coordinate",
                study,
                params=shared,
                **of_score,
            )
        )
    if len(searched.metrics) > 1 and complete:
        names = [metric.title for metric in searched.scored_by]
        caption = f"{' and '.join(names)}: in red the trials that no other beats in both."
        charts.append(_chart("front", caption, "pareto_front", study, target_names=names))
    return charts


def _first_value(trial: FrozenTrial) -> float:
    return float(trial.values[0])


def _study(searched: Searched, trials: Sequence[FrozenTrial] | None = None) -> optuna.Study:
    """The trials that ended as a study in memory."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(directions=list(searched.directions))
        ended = (TrialState.COMPLETE, TrialState.PRUNED)
        study.add_trials(trials if trials is not None else [t for t in searched.trials if t.state in ended])
    finally:
        optuna.logging.set_verbosity(verbosity)
    return study


def _varied(trials: Sequence[FrozenTrial]) -> list[str]:
    """Settings that have several values."""
    values: dict[str, set[Any]] = {}
    for trial in trials:
        for name, value in trial.params.items():
            values.setdefault(name, set()).add(value)
    return sorted(name for name, found in values.items() if len(found) > 1)


def _shared(trials: Sequence[FrozenTrial], names: Sequence[str]) -> list[str]:
    """Settings that most trials have, so that a view of several of them shows most trials."""
    return [name for name in names if 2 * sum(name in trial.params for trial in trials) > len(trials)]


def _with_all(trials: Sequence[FrozenTrial], names: Sequence[str]) -> list[FrozenTrial]:
    return [trial for trial in trials if all(name in trial.params for name in names)]


def _chart(name: str, caption: str, plot: str, study: optuna.Study, **options: Any) -> Chart:
    with _quiet():
        interactive = _plain(getattr(visualization, f"plot_{plot}")(study, **options))
    return Chart(
        name,
        caption,
        _figure(plot, study, options),
        interactive,
        height=max(420, interactive.layout.height or 0),
        suffixes=("png",),
    )


def _plain(figure: go.Figure) -> go.Figure:
    """Without colours and a title of its own: the page has those."""
    figure.update_layout(title=None, template=None, margin={"t": 30})
    return figure


def _figure(plot: str, study: optuna.Study, options: dict[str, Any]) -> Callable[[], Figure]:
    def draw() -> Figure:
        with _quiet(), matplotlib.rc_context():
            made: Axes | Sequence[Axes] = getattr(visualization.matplotlib, f"plot_{plot}")(study, **options)
        axes = made if isinstance(made, Axes) else next(iter(_flat(made)))
        figure = axes.get_figure()
        assert isinstance(figure, Figure)
        figure.set_size_inches(max(9.0, figure.get_size_inches()[0]), figure.get_size_inches()[1])
        _forget(figure)
        return figure

    return draw


def _flat(made: Any) -> Iterator[Axes]:
    for one in made:
        yield from _flat(one) if not isinstance(one, Axes) else [one]


def _forget(figure: Figure) -> None:
    """Have pyplot, with which Optuna draws, keep no figure open."""
    from matplotlib import pyplot

    pyplot.close(figure)


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's pictures in matplotlib are experimental by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
