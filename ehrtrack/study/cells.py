"""A study as its cells: the runs that it consists of, each known by a key, before any of them is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ehrtrack.config import Kind, Override, RunConfig, RuntimeConfig, check_objective, load_config
from ehrtrack.data.events import fingerprint_of
from ehrtrack.errors import ConfigError, EhrtrackError
from ehrtrack.evaluation.labels import CHOSEN, SEPARATOR, label, labels_of
from ehrtrack.models.behrt import SIZES
from ehrtrack.pipeline.build import with_shape_of
from ehrtrack.pipeline.inputs import pinned
from ehrtrack.plugins import nearest
from ehrtrack.search_space import Scalar
from ehrtrack.strategies.base import strategy_of
from ehrtrack.study.keys import Inputs, cell_key
from ehrtrack.study.settings import Selection, StudySettings, Value
from ehrtrack.study.values import (
    PRETRAIN,
    SECTIONS,
    SHARED,
    Recipe,
    leaf_paths,
    products,
    scalar_at,
    section_of,
    selects,
    value_at,
    with_values,
)
from ehrtrack.study_file import read_study_file
from ehrtrack.validation import validate

OF_LABELS = ("cohort.n_labels", "cohort.labels_seed")
SEED, BASELINE_SEED = "runtime.seed", "baseline.seed"
KINDS: Mapping[Recipe, Kind] = {"pretrain": "pretraining", "finetune": "outcome", "baseline": "outcome"}


@dataclass(frozen=True)
class Cell:
    """A run of a study.

    Attributes
    ----------
    key : fingerprint of all that decides its result
    recipe : that makes it
    config : its settings; what it starts from is said by `base`
    base : key of the pretraining that it starts from, or empty
    configuration : what it is a repeat of, such as ``lora r8 · small``
    label : of itself, such as ``lora r8 · small · seed 2``
    settings : by dotted path, those that the matrix names, and what strategy or baseline it is
    repeat : values of the paths that repeat it
    """

    key: str
    recipe: Recipe
    config: RunConfig = field(repr=False)
    base: str
    configuration: str
    label: str
    settings: Mapping[str, Scalar]
    repeat: Mapping[str, Value]


@dataclass(frozen=True)
class Study:
    """A study that can be run.

    Attributes
    ----------
    file : that it was read from
    name : under which its runs are tracked
    config : the configuration that its own run is opened with
    cells : each once, pretrainings before what starts from them, and the first repeat of all before the second
    """

    file: Path
    settings: StudySettings
    name: str
    config: RunConfig = field(repr=False)
    cells: tuple[Cell, ...] = field(repr=False)

    @property
    def runtime(self) -> RuntimeConfig:
        """Settings of the machine, which all cells share."""
        return self.config.runtime

    @property
    def queue(self) -> str:
        """The name of its queue, and of what its own run is known by: of the question and all cells that answer it."""
        files = {"finetune", "baseline", "pretrain"}
        asked = {name: value for name, value in self.settings.identity().items() if name not in files}
        return f"{self.name}-{fingerprint_of(asked, sorted(cell.key for cell in self.cells))}"

    @property
    def by_key(self) -> dict[str, Cell]:
        """The cells by their keys."""
        return {cell.key: cell for cell in self.cells}


@dataclass(frozen=True)
class _Draft:
    """A cell before it has a name and a key.

    Attributes
    ----------
    chosen : values of the matrix that it has
    repeat : of the repeats
    used : paths of both that are settings of its choices
    pretraining : name of the pretraining that it starts from, or empty
    base : that pretraining
    """

    recipe: Recipe
    config: RunConfig
    chosen: Mapping[str, Value]
    repeat: Mapping[str, Value]
    used: frozenset[str]
    pretraining: str = ""
    base: _Draft | None = None


def read_study(path: Path, overrides: Sequence[Override] = ()) -> Study:
    """A study from its file and the configuration files that it names; nothing is run.

    Parameters
    ----------
    overrides : dotted paths under ``runtime``, of this machine

    Raises
    ------
    ConfigError
        If a file, a path or a value is not one there is, or no configuration is meant by a selection.
    DataError
        If the data are not there: what cells are known by is made from them, too.
    """
    settings = validate(StudySettings, read_study_file(path))
    assert isinstance(settings, StudySettings)
    refused = [name for name, _ in overrides if section_of(name) != "runtime" or name == SEED]
    if refused:
        raise ConfigError(
            f"{', '.join(refused)} belongs in {path} or in the files that it names; what may be said beside them is of "
            "the machine: runtime.*, but the seed"
        )
    try:
        files = _Files(path, settings, overrides)
        drafts = _drafts(settings, files)
        cells = _cells(settings, _selected(settings, drafts))
    except EhrtrackError as error:
        error.add_note(f"It is of the study {path}")
        raise
    first = files.finetune or files.baseline
    assert first is not None
    return Study(path, settings, first.study, first, cells)


class _Files:
    """The configurations that a study's file names, of one study and one machine."""

    def __init__(self, path: Path, settings: StudySettings, overrides: Sequence[Override]) -> None:
        def load(file: Path | None, recipe: Recipe) -> RunConfig | None:
            if file is None:
                return None
            config = load_config(path.parent / file, overrides, kind=KINDS[recipe])
            return config.model_copy(update={"study": settings.study}) if settings.study else config

        self.finetune = load(settings.finetune, "finetune")
        self.baseline = load(settings.baseline, "baseline")
        self.own: dict[Recipe, RunConfig | None] = {"baseline": self.baseline, "finetune": self.finetune}
        found = {name: load(file, "pretrain") for name, file in settings.pretrain.items()}
        self.pretrain = {name: config for name, config in found.items() if config is not None}
        every = [config for config in (self.finetune, self.baseline, *self.pretrain.values()) if config is not None]
        for name in ("study", "runtime.cache", "runtime.storage"):
            if len(said := {str(value_at(config, name)) for config in every}) > 1:
                raise ConfigError(
                    f"the configuration files of {path} differ in {name}: {', '.join(sorted(said))}. Let one extend "
                    "the other, or say the same in each"
                )


def _drafts(settings: StudySettings, files: _Files) -> list[_Draft]:
    """All fine-tunings and baselines of the matrix, with what they start from."""
    _check_paths(settings, files)
    found = [draft for repeat in products(settings.repeats) for draft in _of_repeat(settings, files, repeat)]
    used = {path for draft in found for path in (*draft.used, *([PRETRAIN] if draft.pretraining else []))}
    if unused := [path for path in (*settings.matrix, *settings.repeats) if path not in used]:
        raise ConfigError(
            f"{', '.join(unused)} is no setting of any configuration of the study: it belongs to none of the choices "
            "in the matrix. Correct it, or leave it out"
        )
    return found


def _of_repeat(settings: StudySettings, files: _Files, repeat: Mapping[str, Value]) -> Iterator[_Draft]:
    for recipe, config in files.own.items():
        if config is None:
            continue
        values = {path: of for path, of in settings.matrix.items() if section_of(path) in SECTIONS[recipe]}
        for chosen in products(values):
            if recipe == "baseline":
                yield _baseline(config, chosen, repeat)
            else:
                yield _finetuning(settings, files, config, chosen, repeat)


def _check_paths(settings: StudySettings, files: _Files) -> None:
    """Refuse paths that no cell could have, in the words of the study's file."""
    own = files.own
    for path in settings.matrix:
        section = section_of(path)
        of = [recipe for recipe in own if section in SECTIONS[recipe]]
        if not of:
            known = sorted({name for recipe in own for name in SECTIONS[recipe]})
            raise ConfigError(
                f"matrix.{path!r}: {section!r} cannot differ between the configurations of a study"
                f"{nearest(section, known)}; there are: {', '.join(known)}"
            )
        if all(own[recipe] is None for recipe in of):
            raise ConfigError(f"matrix.{path!r} needs the configuration file of a {of[0]} run: say {of[0]} = FILE")
    for path in settings.repeats:
        if section_of(path) not in SHARED:
            raise ConfigError(f"repeats.{path!r} is of some runs alone; what repeats all of them is in {SHARED}")
    strange = [path for path in settings.pretrain_per or () if path not in settings.matrix | settings.repeats]
    if strange:
        raise ConfigError(f"pretrain_per names {', '.join(strange)}, which is neither in the matrix nor in the repeats")
    wrong = [name for name in settings.matrix.get(PRETRAIN, ()) if name not in settings.pretrain]
    if wrong:
        raise ConfigError(f"matrix.pretrain has {wrong[0]!r}; in the study's pretrain there is: {[*settings.pretrain]}")


def _baseline(config: RunConfig, chosen: Mapping[str, Value], repeat: Mapping[str, Value]) -> _Draft:
    """A baseline. Its own seed goes with the run's; one without anything random is the same for every seed."""
    made, used = with_values(config, {**chosen, **repeat})
    has_own_seed = BASELINE_SEED in used or any(BASELINE_SEED in leaf_paths(*of) for of in chosen.items())
    if SEED in repeat and not made.baseline.is_random:
        repeat = {path: value for path, value in repeat.items() if path != SEED}
        made, _ = with_values(config, {**chosen, **repeat})
    elif SEED in repeat and not has_own_seed:
        made, _ = with_values(made, {BASELINE_SEED: made.runtime.seed})
    check_objective(made, "outcome")
    return _Draft("baseline", made, chosen, repeat, used)


def _finetuning(
    settings: StudySettings,
    files: _Files,
    config: RunConfig,
    chosen: Mapping[str, Value],
    repeat: Mapping[str, Value],
) -> _Draft:
    """A fine-tuning, with the pretraining that it starts from unless it starts from random weights."""
    given = {path: value for path, value in {**chosen, **repeat}.items() if path != PRETRAIN}
    made, used = with_values(config, given)
    draft = _Draft("finetune", made, chosen, repeat, used, str(chosen.get(PRETRAIN, "")))
    if _is_excluded(settings, draft):  # it may be one that could not be run
        return draft
    check_objective(made, "outcome")
    strategy = strategy_of(made.strategy)
    pretraining, base = "", None
    if strategy.starts_anew:
        made = _from_run(made, "")
    elif files.pretrain:
        pretraining = _pretraining_of(settings, chosen)
        base = _pretraining(settings, files.pretrain[pretraining], pretraining, given, made)
        _check_split(base.config, made, pretraining)
        made = _from_run(made, "").model_copy(
            update={"model": with_shape_of(base.config.model, made.model, f"of the pretraining {pretraining!r}")}
        )
        if made.init.embeddings:
            raise ConfigError("init.embeddings belong to the pretraining of a study, whose fine-tunings start from it")
    else:
        made = _from_run(made, pinned(made.init.run, made.study))
    is_pretrained = base is not None or bool(made.init.run)
    if reason := strategy.refuse(is_pretrained=is_pretrained, width=SIZES[made.model.size].width):
        raise ConfigError(reason)
    return _Draft("finetune", made, chosen, repeat, used, pretraining, base)


def _check_split(base: RunConfig, made: RunConfig, name: str) -> None:
    """Refuse a pretraining that would read subjects whom a fine-tuning from it tests."""
    then, now = base.data.split.identity(), made.data.split.identity()
    if base.data.path == made.data.path and then != now:
        raise ConfigError(
            f"the pretraining {name!r} splits {base.data.path} by {then}, and a fine-tuning that starts from it by "
            f"{now}: it would be tested on subjects whom the pretraining read; name the paths of data.split in "
            "pretrain_per"
        )


def _from_run(config: RunConfig, run_id: str) -> RunConfig:
    return config.model_copy(update={"init": config.init.model_copy(update={"run": run_id})})


def _pretraining_of(settings: StudySettings, chosen: Mapping[str, Value]) -> str:
    if PRETRAIN not in chosen and len(settings.pretrain) > 1:
        raise ConfigError(
            f"there are several pretrainings, {', '.join(settings.pretrain)}: the matrix has to say by the path "
            '"pretrain" which ones configurations start from'
        )
    return str(chosen.get(PRETRAIN, next(iter(settings.pretrain))))


def _pretraining(
    settings: StudySettings, config: RunConfig, name: str, given: Mapping[str, Value], finetuning: RunConfig
) -> _Draft:
    """A pretraining with the values by which pretrainings differ, and on equal data the cohort, with all its labels."""
    per = settings.pretrain_per
    if per is None:
        per = tuple(path for path in given if section_of(path) in ("data", "model", "runtime"))
    made, used = with_values(config, {path: given[path] for path in per if path in given})
    check_objective(made, "pretraining")
    if made.cohort is None and finetuning.cohort is not None and made.data.path == finetuning.data.path:
        made = made.model_copy(update={"cohort": finetuning.cohort.with_all_labels()})
    if made.pretraining_records != "whole":
        per += tuple(path for path in given if section_of(path) == "cohort" and path not in OF_LABELS)
    repeat = {path: given[path] for path in per if path in settings.repeats}
    chosen = {path: given[path] for path in per if path in settings.matrix and path in given}
    return _Draft("pretrain", made, chosen, repeat, used, name)


def _is_of(selection: Selection, draft: _Draft) -> bool:
    return selects(selection, draft.recipe, draft.config, draft.pretraining)


def _is_excluded(settings: StudySettings, draft: _Draft) -> bool:
    return any(_is_of(selection, draft) for selection in settings.exclude)


def _selected(settings: StudySettings, drafts: Sequence[_Draft]) -> list[_Draft]:
    """What is not excluded; refuses a selection that means none of the configurations, or one that is left out."""
    for excluded in settings.exclude:
        if not any(_is_of(excluded, draft) for draft in drafts):
            raise ConfigError(f"exclude {excluded} leaves out none of the study's configurations; correct it")
    left = [draft for draft in drafts if not _is_excluded(settings, draft)]
    asked = {"reference": settings.reference}
    for number, comparison in enumerate(settings.compare, 1):
        asked |= {f"compare {number}, this": comparison.this, f"compare {number}, to": comparison.to}
    for where, selection in asked.items():
        if not any(_is_of(selection, draft) for draft in left):
            raise ConfigError(
                f"{where} is {selection}, and none of the study's configurations is so; name values of the matrix"
            )
    return left


def _cells(settings: StudySettings, drafts: Sequence[_Draft]) -> tuple[Cell, ...]:
    """The drafts with names and keys, each once, and each after what it starts from."""
    named = _Names(settings, drafts)
    inputs, cells = Inputs(), dict[str, Cell]()

    def add(draft: _Draft) -> str:
        base = add(draft.base) if draft.base is not None else draft.config.init.run
        key = cell_key(draft.recipe, draft.config, inputs=inputs.of(draft.config, draft.recipe), base=base)
        if key not in cells:
            of = named.settings(draft)
            configuration, own = named.configuration(draft), named.cell(draft)
            base_key = base if draft.base is not None else ""
            cells[key] = Cell(key, draft.recipe, draft.config, base_key, configuration, own, of, draft.repeat)
        return key

    for draft in drafts:
        add(draft)
    return tuple(cells.values())


class _Names:
    """What configurations and cells of a study are called."""

    def __init__(self, settings: StudySettings, drafts: Sequence[_Draft]) -> None:
        self._study = settings
        touched = [leaf for path, of in settings.matrix.items() for value in of for leaf in leaf_paths(path, value)]
        self._paths = tuple(dict.fromkeys([*CHOSEN, *touched]))
        self._repeats = [path for path, of in settings.repeats.items() if len(of) > 1]
        every = [dict(self.settings(draft)) for draft in drafts]
        self._labels = dict(zip(map(_hashable, every), labels_of(every), strict=True))

    def settings(self, draft: _Draft) -> dict[str, Scalar]:
        """The settings of a draft that the matrix names, as far as they mean something to it."""
        here, own = SECTIONS[draft.recipe], draft.chosen
        known = [path for path in self._paths if path != PRETRAIN and (path in own or section_of(path) in here)]
        found = {path: value for path in known if (value := scalar_at(draft.config, path)) is not None}
        return found | ({PRETRAIN: draft.pretraining} if draft.pretraining and PRETRAIN in self._paths else {})

    def configuration(self, draft: _Draft) -> str:
        if draft.recipe != "pretrain":
            return self._labels[_hashable(self.settings(draft))]
        differing = [path for path in draft.chosen if len(self._study.matrix[path]) > 1]
        name = PRETRAIN if draft.pretraining == PRETRAIN else f"{PRETRAIN} {draft.pretraining}"
        return SEPARATOR.join(filter(None, [name, label(self.settings(draft), differing)]))

    def cell(self, draft: _Draft) -> str:
        repeat = {path: value for path, value in draft.repeat.items() if not isinstance(value, dict)}
        return SEPARATOR.join(filter(None, [self.configuration(draft), label(repeat, self._repeats)]))


def _hashable(settings: Mapping[str, Scalar]) -> tuple[tuple[str, str], ...]:
    return tuple((path, repr(value)) for path, value in settings.items())
