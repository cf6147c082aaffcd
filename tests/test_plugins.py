"""One module is one choice."""

from __future__ import annotations

import pytest

from ehrtrack import plugins
from ehrtrack.errors import ConfigError


@pytest.mark.parametrize(
    ("package", "expected"),
    [
        ("strategies", {"frozen", "full", "lora", "scratch"}),
        ("objectives", {"mlm", "survival"}),
        ("baselines", {"cox"}),
        ("data.sources", {"meds", "omop", "synthea", "mimic-iv", "events-csv"}),
    ],
)
def test_every_public_module_is_a_choice_and_no_private_one_is(package: str, expected: set[str]) -> None:
    names = plugins.names(package)
    assert expected <= set(names)
    assert names == sorted(names)
    assert not any(name.startswith("_") for name in names)


@pytest.mark.parametrize("package", ["strategies", "objectives", "baselines", "data.sources"])
def test_every_choice_has_one_class_with_its_settings(package: str) -> None:
    for name in plugins.names(package):
        chosen, settings = plugins.plugin(package, name, object), plugins.settings(package, name)
        assert issubclass(settings, chosen.Config)  # type: ignore[attr-defined]
        assert settings.model_fields["name"].default == name


@pytest.mark.parametrize(
    ("package", "word", "message"),
    [
        (
            "strategies",
            "lorra",
            r"unknown strategy 'lorra' \(did you mean 'lora'\?\); there are: bitfit, frozen, full, lora",
        ),
        ("data.sources", "mimic", r"unknown source 'mimic' \(did you mean 'mimic-iv'\?\)"),
        ("baselines", "coxs", r"unknown baseline 'coxs' \(did you mean 'cox'\?\)"),
        (
            "objectives",
            "zzz",
            "unknown objective 'zzz'; there are: "
            "classification, competing-risks, contrastive, forecast, mixed, mlm, next-visit, survival, time-to-event",
        ),
        ("strategies", "base", "unknown strategy 'base'"),
        ("strategies", "_cuts", "unknown strategy '_cuts'"),
    ],
)
def test_an_unknown_name_lists_the_choices_and_the_nearest(package: str, word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plugins.load(package, word)


def test_a_dash_in_a_name_is_an_underscore_in_its_module() -> None:
    assert plugins.load("data.sources", "mimic-iv").__name__ == "ehrtrack.data.sources.mimic_iv"
