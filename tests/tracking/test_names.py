"""Names that the registry takes, and that can be read back out of a reference to a model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_model_name

from ehrtrack.tracking.client.registry import _REFERENCE
from ehrtrack.tracking.names import why_no_model_name


@given(st.text(st.sampled_from("aé '\"-_.,:/@%#\n\t0"), max_size=6) | st.text(max_size=300))
def test_a_name_that_is_let_through_is_a_models_name_and_found_in_its_reference(name: str) -> None:
    if why_no_model_name(name):
        return
    _validate_model_name(name)
    for suffix in ("@champion", "/3"):
        found = _REFERENCE.fullmatch(f"models:/{name}{suffix}")
        assert found is not None
        assert found["name"] == name


def test_ordinary_names_are_let_through() -> None:
    names = ("gi_bleed", "Étude décès", "icu-mortality 2", "it's", "v1.2 (final)", "x" * 256)
    assert {name: why_no_model_name(name) for name in names} == dict.fromkeys(names, "")
