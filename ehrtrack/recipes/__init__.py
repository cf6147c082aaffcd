"""Recipes: each reads like a methods section, and is the one place where its whole way is seen.

In a notebook::

    from ehrtrack.recipes import finetune, load_config
    run = finetune(load_config("projects/gi_bleed/finetune.toml", [("strategy.rank", "8")]))
"""

from ehrtrack.config import load_config
from ehrtrack.pipeline.adapter import adapter_base
from ehrtrack.pipeline.run import RecipeResult
from ehrtrack.recipes.baseline import baseline
from ehrtrack.recipes.compare import compare
from ehrtrack.recipes.demo import demo
from ehrtrack.recipes.finetune import finetune
from ehrtrack.recipes.predict import predict
from ehrtrack.recipes.pretrain import pretrain
from ehrtrack.recipes.sweep import sweep

__all__ = [
    "RecipeResult",
    "adapter_base",
    "baseline",
    "compare",
    "demo",
    "finetune",
    "load_config",
    "predict",
    "pretrain",
    "sweep",
]
