"""Recipes: each reads like a methods section, and is the one place where its whole way is seen.

In a notebook they are called by `ehrtrack`, which imports each when it is first asked for::

    import ehrtrack
    run = ehrtrack.finetune(ehrtrack.load_config("projects/gi_bleed/finetune.toml", [("strategy.rank", "8")]))
"""
