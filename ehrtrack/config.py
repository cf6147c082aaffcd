"""A run's configuration: the sections composed, read from TOML with dotted overrides.

What it imports takes no time to import: no torch, mlflow, Optuna, peft or scikit-learn. Sections whose code needs one
of those are in a module of their own beside it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, field_validator

from ehrtrack import plugins, renamed
from ehrtrack.baselines.settings import TunedChoice
from ehrtrack.data.config import DataConfig
from ehrtrack.data.settings import CohortConfig, PretrainingRecords
from ehrtrack.dotted import flatten, leaves, parse_value, set_dotted
from ehrtrack.errors import ConfigError
from ehrtrack.evaluation.settings import CompareConfig
from ehrtrack.home import usual_cache
from ehrtrack.models.settings import ModelConfig
from ehrtrack.objectives.settings import OutcomeSettings, PretrainingSettings
from ehrtrack.search_space import Choices, SearchConfig, SensitivityConfig
from ehrtrack.section import Choice, Mark, Section
from ehrtrack.study_file import read_study_file
from ehrtrack.study_file import to_toml as write_toml
from ehrtrack.tracking.names import why_no_model_name
from ehrtrack.training.settings import NegativeControlsConfig, TrainConfig
from ehrtrack.validation import validate

Override = tuple[str, str]
"""A dotted path and its value as typed, such as ``("strategy.rank", "8")``."""


PLUGIN_SECTIONS = {"objective": "objectives", "strategy": "strategies", "baseline": "baselines"}
"""Sections whose `name` chooses a module, and with it the settings there are."""

Kind = Literal["outcome", "pretraining"]
"""What a recipe needs the objective to be of."""
OBJECTIVES: Mapping[Kind, tuple[type[Choice], str, str]] = {
    "outcome": (OutcomeSettings, "survival", "learns the outcome of a cohort, as fine-tuning, sweeps and baselines do"),
    "pretraining": (PretrainingSettings, "mlm", "takes its targets from the records themselves, as pretraining does"),
}
"""Of each kind the class of settings, the objective where none is named, and what such an objective does."""

MAX_PROCESSES = 1024
"""Threads, or workers. OpenMP ends the process without a word where it cannot start as many as it is told to."""


class InitConfig(Section):
    """The weights that training starts from.

    Attributes
    ----------
    run : run id or registry URI of a pretrained model; ``latest`` is the last finished pretraining of the study. If
        empty, the weights are random
    embeddings : folder of code embeddings (`ehrtrack embed`). They initialise the embeddings of a transformer with
        otherwise random weights, in pretraining or from scratch, and those of the baseline mean-pool

    Examples
    --------
    >>> InitConfig(run="latest").run
    'latest'
    """

    run: str = ""
    embeddings: str = ""


class RuntimeConfig(Section):
    """Settings that may differ between machines, or where a run is resumed, without making it another experiment.

    Attributes
    ----------
    seed : the seed of everything that is random in a run
    device : ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``
    precision : precision of matrix products: ``f32``, ``bf16``, or ``auto``, which is bf16 on a GPU with units for it
        (compute capability 8.0, such as A10, L4, A100, H100) and f32 elsewhere
    threads : number of CPU threads of torch and of numpy's BLAS. 0 is the number of cores that other processes do not
        use, or torch's default where OMP_NUM_THREADS is set. A run logs the number
    cache : folder for outboxes, tokenised datasets and checkpoints. The default is the value of EHRTRACK_HOME, or else
        ``.ehrtrack`` in the working folder, or the user's data folder where the working folder is temporary
    snapshot_minutes : the longest time between two snapshots of a training; there is one after each epoch in any case
    log_batches : number of batches whose mean loss is logged as one value of ``train/step_loss``
    upload_snapshots : whether the last two snapshots are sent to the tracking server, so that another machine can
        resume the run
    storage : address of the database from which the workers of a sweep or a study take what is next, such as
        ``postgresql://ehrtrack@host:5432/ehrtrack``, whose password is read from PGPASSWORD or ``~/.pgpass``. If empty,
        it is that of EHRTRACK_STORAGE, or else ``sweeps.db`` in the cache, for workers that see the same disk
    engine : what processes the shards of the data: ``local`` or ``ray``
    workers : number of shards that are processed at the same time
    log_raw_subjects : whether predictions are logged with the subjects' own ids and dates, and not with keyed hashes

    Examples
    --------
    >>> RuntimeConfig(device="cpu", threads=2).precision
    'auto'
    """

    seed: int = Field(0, ge=0)
    device: str = "auto"
    precision: Literal["auto", "f32", "bf16"] = "auto"
    threads: int = Field(0, ge=0, le=MAX_PROCESSES)
    cache: Path = Field(default_factory=usual_cache)
    snapshot_minutes: float = Field(10, gt=0)
    log_batches: int = Field(50, ge=1)
    upload_snapshots: bool = True
    storage: Annotated[str, Mark.ADDED_LATER] = ""
    engine: str = "local"
    workers: int = Field(1, ge=1, le=MAX_PROCESSES)
    log_raw_subjects: bool = False

    @field_validator("storage")
    @classmethod
    def _has_no_password(cls, storage: str) -> str:
        if re.match(r"[^/]+://[^/@]*:[^@]*@", storage):
            raise ValueError(
                "there is a password in it, and settings are logged with every run; leave it out, and give it in "
                "PGPASSWORD or ~/.pgpass, or the whole address in EHRTRACK_STORAGE"
            )
        return storage


class RegistryConfig(Section):
    """The model of the registry under which the best run is registered.

    Attributes
    ----------
    model : its name; if empty, it is the study's

    Examples
    --------
    >>> RegistryConfig(model="mortality-1y").model
    'mortality-1y'
    """

    model: str = ""


class RunConfig(Section):
    """All settings of a run, which are logged as ``run_config.json``.

    Attributes
    ----------
    study : name of the study, under which its runs are tracked
    data, cohort : the dataset, and the cohort with its labels; pretraining needs no cohort, and with one does not read
        what came after its index dates (`DataConfig.pretraining_records`)
    model, objective, strategy, baseline, init, train : the model and its training
    search, sensitivity, negative_controls : the sweep, the sensitivity analysis and the negative controls
    compare, registry, runtime : the comparison, the registered model, and the settings of the machine

    Examples
    --------
    >>> config = parse_config({"study": "mortality", "data": {"path": "data/meds"}, "strategy": {"name": "lora"}})
    >>> config.to_params(["strategy"])["strategy.rank"]
    8
    """

    study: str = Field(min_length=1)
    data: DataConfig
    cohort: CohortConfig | None = None
    model: ModelConfig = ModelConfig()
    objective: SerializeAsAny[Choice]
    strategy: SerializeAsAny[Choice]
    baseline: SerializeAsAny[TunedChoice]
    init: InitConfig = InitConfig()
    train: TrainConfig = TrainConfig()
    search: SearchConfig = SearchConfig()
    sensitivity: SensitivityConfig = SensitivityConfig()
    compare: Annotated[CompareConfig, Mark.ADDED_LATER] = CompareConfig()
    registry: RegistryConfig = RegistryConfig()
    negative_controls: NegativeControlsConfig = NegativeControlsConfig()
    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig)

    def identity(self, *, without: Collection[str] = ()) -> dict[str, Any]:
        """As `Section.identity`, of all sections but some; each stands by its first name, so that fingerprints hold.

        Examples
        --------
        >>> identity = parse_config({"study": "mortality", "data": {"path": "meds"}}).identity(without=["study"])
        >>> "canary" in identity, "study" in identity
        (True, False)
        """
        kept = {name: value for name, value in super().identity().items() if name not in without}
        return {renamed.FORMER_SECTIONS.get(name, name): value for name, value in kept.items()}

    @property
    def pretraining_records(self) -> PretrainingRecords:
        """What a pretraining with this configuration reads of the subjects of the cohort; all if it knows of none.

        >>> parse_config({"study": "mortality", "data": {"path": "meds"}}).pretraining_records
        'whole'
        """
        return "whole" if self.cohort is None else self.data.pretraining_records

    def to_json(self) -> dict[str, Any]:
        """Plain values, the inverse of `parse_config`."""
        return self.model_dump(mode="json")

    def to_params(self, sections: Sequence[str]) -> dict[str, str | int | float | bool]:
        """Some sections as one flat table of dotted paths, for the tracking server."""
        values = self.to_json()
        return dict(flatten({name: values[name] for name in sections}))


def load_config(
    path: Path | str, overrides: Sequence[Override] = (), *, objective: str = "survival", kind: Kind | None = None
) -> RunConfig:
    r"""Read a configuration file.

    A file may name another in the same folder, ``extends = "pretrain.toml"``, and then holds only what differs.

    Parameters
    ----------
    overrides : dotted paths and values that win over the file
    objective : name of the objective where the file names none
    kind : of objective that the recipe needs; it then says which objective is the default

    Raises
    ------
    ConfigError
        If the file is missing or no TOML, a key or value is not one there is, the objective (or one that a search or a
        sensitivity analysis may take) is of another kind, or the model registry could not take the name.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     file = Path(folder) / "finetune.toml"
    ...     _ = file.write_text('study = "mortality"\ndata.path = "meds"\nstrategy = {name = "lora", rank = 8}\n')
    ...     config = load_config(file, [("strategy.rank", "16")])
    >>> config.objective.name, config.strategy.rank
    ('survival', 16)
    """
    table = read_study_file(Path(path))
    choices_first = sorted(overrides, key=lambda override: not override[0].endswith((".name", ".rule")))
    for dotted, text in choices_first:
        set_dotted(table, renamed.present_path(dotted), parse_value(text))
    config = parse_config(table, objective=objective if kind is None else OBJECTIVES[kind][1])
    if kind is not None:
        check_objective(config, kind)
    _check_model_name(config)
    return config


def check_objective(config: RunConfig, kind: Kind) -> None:
    """Refuse an objective that a recipe could do nothing with, before anything is read or trained.

    Raises
    ------
    ConfigError
        If the objective, or one that a search or a sensitivity analysis may take, is of another kind.

    Examples
    --------
    A fine-tuning with an objective of pretraining is refused before anything is read:

    >>> config = parse_config({"study": "mortality", "data": {"path": "meds"}, "objective": {"name": "mlm"}})
    >>> check_objective(config, "pretraining")
    >>> check_objective(config, "outcome")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ehrtrack.errors.ConfigError: objective.name is 'mlm', and needed is an objective that ...
    """
    needed, _, does = OBJECTIVES[kind]
    for key, name in _objectives(config):
        if not issubclass(plugins.settings("objectives", name), needed):
            raise ConfigError(
                f"{key} is {name!r}, and needed is an objective that {does}; "
                f"there are: {', '.join(plugins.names('objectives', needed))}"
            )


def _objectives(config: RunConfig) -> Iterator[tuple[str, str]]:
    """The objectives that a run, its search and its sensitivity analysis may have, each with the key that names it."""
    path = "objective.name"
    yield path, config.objective.name
    searched = config.search.parameters.get(path)
    for name in searched.choices if isinstance(searched, Choices) else ():
        yield f"a choice of search.parameters.{path!r}", str(name)
    for name in config.sensitivity.values if config.sensitivity.parameter == path else ():
        yield f"a value of sensitivity.parameter={path!r}", str(name)


def _check_model_name(config: RunConfig) -> None:
    """Refuse at the start what the registry would refuse at the end; runs of before, with such names, stay readable."""
    key, name = ("registry.model", config.registry.model) if config.registry.model else ("study", config.study)
    reason = why_no_model_name(name)
    if reason:
        instead = " ".join(re.sub(r"[^\w .,+()-]+ *", "-", name).split()).strip("-. ")[:100]
        raise ConfigError(
            f"{key} is {name!r}, and the best run is registered under that name: {reason}. Call it "
            f"{instead or 'mystudy'!r}{', or set registry.model' if key == 'study' else ''}"
        )


def parse_config(table: Mapping[str, Any], *, objective: str = "survival") -> RunConfig:
    """A configuration from plain values, such as those of ``run_config.json``.

    Examples
    --------
    >>> config = parse_config({"study": "mortality", "data": {"path": "meds"}})
    >>> config.objective.name, config.strategy.name, config.baseline.name
    ('survival', 'full', 'cox')
    """
    values = dict(table)
    defaults = {"objective": objective, "strategy": "full", "baseline": "cox"}
    for section, package in PLUGIN_SECTIONS.items():
        found = values.get(section, {})
        if not isinstance(found, Mapping):
            raise ConfigError(f"config key {section!r} is {found!r}, and a table is needed; write {section}.name")
        given = dict(found)
        if defaults[section] != "survival":  # that one stays unnamed: labels of classes settle for another
            given.setdefault("name", defaults[section])
        settings = plugins.settings(package, str(given.get("name", defaults[section])))
        values[section] = validate(settings, given, prefix=section)
    config = validate(RunConfig, values)
    assert isinstance(config, RunConfig)
    return config


def parse_run_config(table: Mapping[str, Any]) -> RunConfig:
    """The configuration that a run logged as ``run_config.json``.

    It says all that was decided. A run of before there were several rules of splitting does not say that it was split
    by the hash, one of before pretraining was cut at index dates read whole records, whatever its cohort, one of before
    heads had age and static facts has none, and sections that were renamed have their former names.

    Examples
    --------
    >>> config = parse_run_config({"study": "mortality", "data": {"path": "meds", "split": {"train": 0.6}}})
    >>> config.data.split.rule, config.data.split.train
    ('hash', 0.6)
    """
    table = renamed.present_sections(table)
    data = table.get("data")
    if isinstance(data, Mapping):
        data = {"pretraining_records": "whole", **data}
        table = {**table, "data": data}
    split = data.get("split") if isinstance(data, Mapping) else None
    if isinstance(data, Mapping) and isinstance(split, Mapping):
        table = {**table, "data": {**data, "split": {"rule": "hash", **split}}}
    objective = table.get("objective")
    if isinstance(objective, Mapping):
        settings = plugins.settings("objectives", str(objective.get("name", "survival")))
        table = {**table, "objective": {"statics": False, **objective}} if "statics" in settings.model_fields else table
    return parse_config(table)


def override(config: RunConfig, values: Mapping[str, str | int | float | bool]) -> RunConfig:
    """The configuration with some dotted paths set anew.

    Examples
    --------
    >>> config = parse_config({"study": "mortality", "data": {"path": "meds"}})
    >>> override(config, {"train.lr": 0.01}).train.lr
    0.01
    """
    table = config.model_dump(mode="json", exclude_unset=True)
    for dotted, value in values.items():
        set_dotted(table, dotted, value)
    return parse_config(table)


def to_toml(config: RunConfig) -> str:
    """The configuration as a file that `load_config` reads; what is searched or varied is left out.

    Examples
    --------
    >>> config = parse_config({"study": "mortality", "data": {"path": "meds"}, "train": {"lr": 0.01}})
    >>> to_toml(config).splitlines()[-2:]
    ['[train]', 'lr = 0.01']
    """
    values = config.model_dump(mode="json", exclude_unset=True, exclude_none=True, exclude={"search", "sensitivity"})
    return write_toml(dict(leaves(values)))
