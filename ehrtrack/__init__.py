"""EHRTrack: survival models on electronic health records, with every run tracked and every claim checkable.

The recipes as functions, for notebooks and scripts::

    import ehrtrack

    config = ehrtrack.load_config("projects/gi_bleed/finetune.toml", [("strategy.rank", "8")])
    run = ehrtrack.finetune(config)
    ehrtrack.read_run(run.run_id).metrics["test/c_index"]

What is imported waits until it is used: ``import ehrtrack`` itself loads neither torch nor mlflow, and sets no
environment variable.
"""

from __future__ import annotations

import importlib
from typing import Any

from ehrtrack import renamed

_RECIPES = (
    "advise", "baseline", "compare", "demo", "describe", "embed", "evaluate", "explain", "finetune",
    "landmarks",
    "negative_controls", "predict", "pretrain", "promote", "resume", "sensitivity", "sweep", "tokenize",
)  # fmt: skip
_PLACES = {
    **{name: ("ehrtrack.recipes." + name, name) for name in _RECIPES},
    "explain_cohort": ("ehrtrack.recipes.explain", "explain_cohort"),
    "adapter_base": ("ehrtrack.pipeline.adapter", "adapter_base"),
    "init_study": ("ehrtrack.guide.init", "init_study"),
    "diff_models": ("ehrtrack.recipes.registry", "diff"),
    "list_models": ("ehrtrack.recipes.registry", "list_models"),
    "list_versions": ("ehrtrack.recipes.registry", "list_versions"),
    "plan_study": ("ehrtrack.recipes.plan", "plan"),
    "report_study": ("ehrtrack.recipes.report", "report"),
    "run_study": ("ehrtrack.recipes.study", "study"),  # ehrtrack.study is a package
    "work": ("ehrtrack.recipes.work", "work"),
    "load_config": ("ehrtrack.config", "load_config"),
    "read_run": ("ehrtrack.tracking.client.queries", "get_run"),
}

__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    """The public function of that name, imported when it is first asked for."""
    if name in renamed.SECTIONS:
        renamed.tell(f"ehrtrack.{name}", f"ehrtrack.{renamed.SECTIONS[name]}")
        name = renamed.SECTIONS[name]
    if name not in _PLACES:
        raise AttributeError(f"module 'ehrtrack' has no attribute {name!r}; there are: {', '.join(__all__)}")
    module, function = _PLACES[name]
    return getattr(importlib.import_module(module), function)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
