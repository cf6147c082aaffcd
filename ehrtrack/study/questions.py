"""Whether what a study asks can be answered by its configurations, before any of them is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ehrtrack.dotted import leaves
from ehrtrack.errors import ConfigError
from ehrtrack.evaluation.pairs import Selection, Sides, asked_pairs, beside_references, matches, sides, unlike
from ehrtrack.evaluation.repeats import Configuration
from ehrtrack.study.cells import Study
from ehrtrack.study.settings import CHOICES, Comparison
from ehrtrack.study_file import to_inline


def check_questions(study: Study) -> None:
    """Refuse a reference or a comparison that no two configurations answer, by what pairs them once they are run.

    Raises
    ------
    ConfigError
        With the settings that keep the nearest two apart, and what to write.
    """
    found = _configurations(study)
    why = {"reference": _why_no_reference(found, study.settings.reference)}
    for number, asked in enumerate(study.settings.compare, 1):
        why[f"compare {number}, {asked.question!r}"] = _why_no_pair(found, asked)
    told = [f"- {what}: {reason}" for what, reason in why.items() if reason]
    if told:
        raise ConfigError(
            "\n".join([f"{study.file} asks for a difference between configurations that it does not have:", *told])
        )


def _configurations(study: Study) -> list[Configuration]:
    """Those of a study, as they will be once there are runs of them."""
    own = {cell.configuration: cell.settings for cell in study.cells if cell.recipe != "pretrain"}
    return [Configuration(label, settings, ()) for label, settings in own.items()]


def _why_no_reference(found: Sequence[Configuration], reference: Selection) -> str:
    """Why no configuration is compared with the reference; empty where one is, or all are the reference itself."""
    others = [of for of in found if not matches(of.settings, reference)]
    beside = beside_references(found, reference)
    if not others or any(not unlike(*both, named=reference) for both in beside):
        return ""
    if not beside:
        return _why_none_is_meant(found, "reference", reference)
    (this, to), apart = _nearest(beside, reference)
    write = to_inline(_short(reference) | {path: to.settings[path] for path in apart})
    return f"{_apart(this, to, apart)}, which the reference does not name. Write reference = {write}"


def _why_no_pair(found: Sequence[Configuration], asked: Comparison) -> str:
    """Why a question asks for no pair; empty where it asks for one."""
    if asked_pairs(found, asked):
        return ""
    for side, selection in (("this", asked.this), ("to", asked.to)):
        if not any(matches(of.settings, selection) for of in found):
            return _why_none_is_meant(found, side, selection)
    both = sides(found, asked)
    if not both:
        meant = next(of.label for of in found if matches(of.settings, asked.this))
        return f"this and to mean the same configuration, {meant}; name two"
    (this, to), apart = _nearest(both, {**asked.this, **asked.to})
    write = [
        to_inline(_short(selection) | {path: of.settings[path] for path in apart})
        for selection, of in ((asked.this, this), (asked.to, to))
    ]
    return f"{_apart(this, to, apart)}, which neither side names. Write this = {write[0]} and to = {write[1]}"


def _nearest(both: Sequence[Sides], named: Selection) -> tuple[Sides, list[str]]:
    """The two that differ in the fewest settings beside those that are named, and these settings."""
    apart = [unlike(*of, named=named) for of in both]
    n = min(range(len(both)), key=lambda n: len(apart[n]))
    return both[n], apart[n]


def _apart(this: Configuration, to: Configuration, paths: Sequence[str]) -> str:
    differ = ", ".join(f"{path} ({this.settings[path]} and {to.settings[path]})" for path in paths)
    return f"the nearest two are {this.label} and {to.label}, and they differ in {differ} too"


def _why_none_is_meant(found: Sequence[Configuration], where: str, selection: Selection) -> str:
    strange = [path for path, _ in leaves(selection) if not any(path in of.settings for of in found)]
    why = f"{', '.join(strange)} is not in the matrix" if strange else "no configuration has all of these values"
    return f"{where} = {to_inline(_short(selection))} means no configuration, as {why}; name values of the matrix"


def _short(selection: Selection) -> dict[str, Any]:
    """With what is chosen by its name alone as a study's file has it.

    >>> _short({"strategy": {"name": "lora"}, "baseline": {"name": "cox", "features": "counts"}})
    {'strategy': 'lora', 'baseline': {'name': 'cox', 'features': 'counts'}}
    """
    return {
        path: value["name"] if path in CHOICES and isinstance(value, dict) and set(value) == {"name"} else value
        for path, value in selection.items()
    }
