"""Pin and fingerprint the inputs of a sweep or a sensitivity analysis, so that it only continues with equal inputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ehrtrack.config import RunConfig
from ehrtrack.data.events import fingerprint_of
from ehrtrack.files import sha256_of
from ehrtrack.pipeline.build import download_base, latest_pretrain
from ehrtrack.pipeline.prepare import prepare_cohort
from ehrtrack.pipeline.run import MODEL_FOLDER
from ehrtrack.search_space import Choices, Scalar
from ehrtrack.tracking.client.queries import resolve_run

BASE = "init.run"


def pinned(reference: str, study: str) -> str:
    """A reference that always names the same base: ``latest`` and ``models:/NAME@champion`` become the id of a run."""
    if not reference:
        return ""
    run = resolve_run(latest_pretrain(study) if reference == "latest" else reference)
    return run.run_id if run.artifact_path == MODEL_FOLDER else reference


def pin_base(config: RunConfig) -> RunConfig:
    """The configuration with its base pinned, and also the bases that are searched or varied."""

    def pin(value: Scalar) -> Scalar:
        return pinned(str(value), config.study)

    sections: dict[str, object] = {}
    if config.init.run:
        sections["init"] = config.init.model_copy(update={"run": pinned(config.init.run, config.study)})
    searched = config.search.parameters.get(BASE)
    if isinstance(searched, Choices):
        choices = Choices(choices=tuple(pin(choice) for choice in searched.choices))
        parameters = config.search.parameters | {BASE: choices}
        sections["search"] = config.search.model_copy(update={"parameters": parameters})
    if config.sensitivity.parameter == BASE:
        values = tuple(pin(value) for value in config.sensitivity.values)
        sections["sensitivity"] = config.sensitivity.model_copy(update={"values": values})
    return config.model_copy(update=sections)


def input_fingerprints(config: RunConfig) -> dict[str, str]:
    """Fingerprints, by name, of everything but the settings that determines the results of a pinned configuration."""
    base, config = download_base(config)
    records = prepare_cohort(config, None if base is None else base.vocabulary)
    found = {name: value for name, value in records.fingerprints().items() if name != "store"}
    found |= {"seed": str(config.runtime.seed), "base": config.init.run or "none"}
    if base is not None:
        found["base_weights"] = base.fingerprints["encoder"]
    if config.init.embeddings:
        files = sorted(file for file in Path(config.init.embeddings).iterdir() if file.is_file())
        found["embeddings"] = fingerprint_of([sha256_of(file) for file in files])
    return found


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """A readable list of the differences between the inputs of two studies."""
    return ", ".join(
        f"{name} (then {then.get(name, 'none')}, now {now.get(name, 'none')})"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    )
