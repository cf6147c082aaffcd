"""What the registry holds: models with their champions, versions with their scores, and how two of them differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ehrtrack.errors import DataError, TrackingError
from ehrtrack.evaluation.benchmark import aligned, metric_of_choice, verdict_of
from ehrtrack.evaluation.metric_table import interval_text, number_text, shown, with_bounds
from ehrtrack.evaluation.paired import differences_to
from ehrtrack.pipeline.predictions_cache import read_validation_predictions
from ehrtrack.pipeline.run_rows import run_row, task_of
from ehrtrack.runlog import TEST
from ehrtrack.tracking.client.moves import is_pinned, moves_of
from ehrtrack.tracking.client.queries import RunRecord, get_run, resolve_run
from ehrtrack.tracking.client.registry import ModelVersion, registered_models, versions_of
from ehrtrack.tracking.names import COHORT, GIT_COMMIT, HORIZON, ROLLED_BACK

_FACTS = {COHORT: "cohort", HORIZON: "horizon (days)", "fingerprint.data": "data", "fingerprint.base": "base"}
_FACTS |= {"fingerprint.vocabulary": "vocabulary", GIT_COMMIT: "git commit"}
_COSTS = {"parameters/total": ",.0f", "parameters/trainable": ",.0f", "cost/train_seconds": ",.1f"}
_NOT_OF_THE_MODEL = ("runtime.",)


def list_models() -> str:
    """A line for each registered model: its champion, the one before, how many versions, and whether it is pinned."""
    models = registered_models()
    if not models:
        return "no registered models; `ehrtrack compare` or `ehrtrack promote RUN` makes one"
    rows = []
    for name, aliases in models.items():
        champion, previous = (aliases.get(alias, "") for alias in ("champion", "previous"))
        rows.append((name, champion, previous, str(len(versions_of(name))), "yes" if is_pinned(name) else ""))
    titles = ("model", "champion", "previous", "versions", "pinned")
    return _table(titles, rows)


def list_versions(name: str) -> str:
    """A line for each version of a model, the last first, and the moves of its champion."""
    models = registered_models()
    if name not in models:
        raise TrackingError(f"there is no registered model {name!r}; there are: {', '.join(sorted(models)) or 'none'}")
    alias_of: dict[str, list[str]] = {}
    for alias, number in models[name].items():
        alias_of.setdefault(number, []).append(alias)
    rows = []
    for version in sorted(versions_of(name), key=lambda found: -int(found.version)):
        said = sorted(alias_of.get(version.version, []))
        said += ["rolled back"] * (ROLLED_BACK in version.tags) + ["adapter"] * version.is_adapter
        rows.append((version.version, ", ".join(said), *_of_run(version)))
    titles = ("version", "", "model", "cohort", "horizon (days)", "validation", "test (95 % interval)", "run")
    text = _table(titles, rows)
    pinned = f"\npinned: `ehrtrack pin {name} --off` lets the champion move" if is_pinned(name) else ""
    moves = "".join(f"\n{move}" for move in moves_of(name))
    return f"{text}{pinned}" + (f"\nmoves of the champion:{moves}" if moves else "")


def _of_run(version: ModelVersion) -> tuple[str, ...]:
    """Model, cohort, horizon, validation and test score of the version's run, as far as it is there."""
    cohort, horizon = (version.tags.get(name, "") for name in (COHORT, HORIZON))
    try:
        row = run_row(get_run(version.run_id))
    except (TrackingError, DataError):  # a run that is gone, or of an earlier version: what the version says is left
        return "", cohort, horizon, "", "", version.run_id[:8]
    metric = metric_of_choice([row])
    test = interval_text(row.metrics, *with_bounds(metric.named(TEST)), form=metric.form)
    kept = number_text(row.score(metric), metric.form)
    return row.label, row.cohort_fingerprint, row.horizon_days, kept, test, row.run_id[:8]


@dataclass(frozen=True)
class _Side:
    reference: str
    record: RunRecord


def diff(a: str, b: str) -> str:
    """How two models differ: what they are made from, their settings, their scores, and the paired difference.

    Parameters
    ----------
    a, b : run ids, ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``
    """
    sides = [_Side(reference, get_run(resolve_run(reference).run_id)) for reference in (a, b)]
    rows = [*_facts(sides), *_settings(sides), *_scores(sides)]
    text = _table(("", a, b), rows) if rows else "they are of equal data, settings and scores\n"
    return f"{text}{_paired(sides)}"


def _facts(sides: list[_Side]) -> list[tuple[str, ...]]:
    found = [("run", *(side.record.run_id for side in sides)), ("kind", *(side.record.kind for side in sides))]
    found += [(title, *(side.record.tags.get(tag, "") for side in sides)) for tag, title in _FACTS.items()]
    return [row for row in found if row[1] != row[2]]


def _settings(sides: list[_Side]) -> list[tuple[str, ...]]:
    one, other = (side.record.params for side in sides)
    return [
        (path, one.get(path, "not set"), other.get(path, "not set"))
        for path in sorted(one.keys() | other.keys())
        if one.get(path) != other.get(path) and not path.startswith(_NOT_OF_THE_MODEL)
    ]


def _scores(sides: list[_Side]) -> list[tuple[str, ...]]:
    """The metrics of a run's last line, and what training cost."""
    tasks = {task_of(side.record) for side in sides}
    metrics = [side.record.metrics for side in sides]
    rows = [
        (entry.title(), *(interval_text(of, *entry.names, form=entry.metric.form) for of in metrics))
        for entry in shown("headline", tasks)
    ]
    rows += [(name, *(number_text(of.get(name), form) for of in metrics)) for name, form in _COSTS.items()]
    return [row for row in rows if any(row[1:])]


def _paired(sides: list[_Side]) -> str:
    """The difference of the second to the first on the validation subjects, or why there is none."""
    if sides[0].record.run_id == sides[1].record.run_id:
        return ""
    try:
        one, other = rows = [run_row(side.record) for side in sides]
        found = differences_to(one.run_id, rows, read_validation_predictions(rows)).get(other.run_id)
    except (DataError, TrackingError) as reason:
        return f"no paired difference: {reason}"
    if found is None:
        return "no paired difference: too few events among the validation subjects"
    metric = metric_of_choice(rows)
    of = f"{found.estimate:+.4f} [{found.lower:+.4f}, {found.upper:+.4f}]"
    return f"validation {metric.title} of the second minus that of the first (paired, 95 %): {of}: {verdict_of(found)}"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return aligned([(title, False, [row[number] for row in rows]) for number, title in enumerate(titles)])
