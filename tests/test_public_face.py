"""What a notebook imports: every recipe as a function, and nothing heavy until one is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import ehrtrack
from ehrtrack.tracking.client.queries import get_run


def test_every_public_name_is_a_function() -> None:
    assert {"finetune", "load_config", "predict", "read_run"} <= set(ehrtrack.__all__)
    assert all(callable(getattr(ehrtrack, name)) for name in ehrtrack.__all__)
    assert ehrtrack.read_run is get_run


def test_every_recipe_is_public() -> None:
    import pkgutil

    from ehrtrack import recipes

    modules = {module.name for module in pkgutil.iter_modules(recipes.__path__) if not module.name.startswith("_")}
    assert modules <= {module.rpartition(".")[2] for module, _ in ehrtrack._PLACES.values()}


def test_a_name_that_there_is_not_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'fintune'; there are: adapter_base, advise"):
        ehrtrack.fintune  # noqa: B018


@pytest.mark.parametrize(
    ("module", "heavy"), [("ehrtrack", ["torch", "mlflow", "polars"]), ("ehrtrack.recipes.compare", ["torch"])]
)
def test_importing_loads_only_what_is_needed(module: str, heavy: list[str]) -> None:
    program = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
