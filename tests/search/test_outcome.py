"""What trials came to: the front of two scores, what pruning saved, and the same again from what was written down."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from ehrtrack.reporting.search_charts import search_charts
from ehrtrack.search.outcome import DRAW, SLOT, best_of, effort_of, front_of, n_without_gain
from ehrtrack.search.stored import Searched, from_json, to_json
from ehrtrack.search_space import SearchConfig

BOTH = ("maximize", "minimize")


def trials_of(
    values: Sequence[Sequence[float] | None], *, epochs: Sequence[int] = (), settings: Sequence[str] = ("x", "y")
) -> list[FrozenTrial]:
    """Trials with these scores, None of one that was pruned, which trained so many epochs."""
    study = optuna.create_study(directions=["maximize"] * max(len(of) for of in values if of))
    for number, of in enumerate(values):
        n_epochs = epochs[number] if epochs else 0
        study.add_trial(
            create_trial(
                state=TrialState.COMPLETE if of else TrialState.PRUNED,
                values=of,
                params={name: (number * 0.37 + place * 0.21) % 1 for place, name in enumerate(settings)},
                distributions={name: FloatDistribution(0, 1) for name in settings},
                intermediate_values={epoch: 0.5 + 0.01 * epoch + 0.001 * number for epoch in range(1, n_epochs + 1)},
                user_attrs={SLOT: number, DRAW: 0},
            )
        )
    return study.get_trials()


def test_the_front_holds_what_no_other_trial_beats_in_both_and_the_nearest_to_the_best_of_each_is_chosen() -> None:
    trials = trials_of([(0.70, 0.20), (0.80, 0.30), (0.79, 0.21), (0.60, 0.25), (0.79, 0.22)])
    assert [trial.number for trial in front_of(trials, BOTH)] == [0, 1, 2]
    best = best_of(trials, BOTH)
    assert (best.slot, best.values) == (2, (0.79, 0.21))
    assert n_without_gain(trials, BOTH) == 2


def test_pruning_saves_the_epochs_that_a_trial_like_the_others_would_have_trained() -> None:
    effort = effort_of(trials_of([(0.7,), None, (0.8,), None], epochs=[6, 2, 8, 3]))
    assert (effort.n_complete, effort.n_pruned, effort.n_epochs) == (2, 2, 19)
    assert effort.n_epochs_without == 6 + 8 + 7 + 7
    assert effort.saved == pytest.approx(1 - 19 / 28)


def test_a_search_that_was_written_down_is_the_same_again() -> None:
    trials = trials_of([(0.7,), None, (0.8,)], epochs=[3, 1, 3])
    searched = Searched(SearchConfig(folds=3), ("c_index",), trials, "hours are over", {1: ["a"], 3: ["b", "c"]})
    again = from_json(json.loads(json.dumps(to_json(searched))))
    assert to_json(again) == to_json(searched)
    assert (again.best, again.effort, again.of_whom) == (searched.best, searched.effort, "3-fold cross-fitted")


@pytest.mark.parametrize(
    ("values", "metrics", "names"),
    [
        ([(0.7,), (0.72,), None, (0.8,), (0.6,)], ("c_index",), "history learning importance slices parallel"),
        ([(0.7,)], ("c_index",), "history learning"),
        ([(0.7, 0.2), (0.8, 0.3)], ("c_index", "ibs"), "history learning slices parallel front"),
    ],
)
def test_each_view_of_a_search_is_a_chart_of_the_page_and_a_file(
    values: list[tuple[float, ...] | None], metrics: tuple[str, ...], names: str, tmp_path: Path
) -> None:
    trials = trials_of(values, epochs=[2] * len(values))
    charts = search_charts(Searched(SearchConfig(), metrics, trials))
    assert " ".join(chart.name for chart in charts) == names
    charts[-1].figure().savefig(tmp_path / "chart.png")
    assert all(chart.interactive is not None and chart.suffixes == ("png",) for chart in charts)


def test_settings_that_few_trials_have_are_no_part_of_a_view_of_all() -> None:
    searched = Searched(
        SearchConfig(),
        ("c_index",),
        [*trials_of([(0.7,), (0.6,), (0.8,), (0.5,)]), *trials_of([(0.9,)], settings=("z",))],
    )
    (parallel,) = [chart for chart in search_charts(searched) if chart.name == "parallel"]
    assert parallel.interactive is not None
    labels = parallel.interactive.layout.xaxis.ticktext
    assert labels == ("validation C-index", "x", "y")
