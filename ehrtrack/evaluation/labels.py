"""Short names of configurations, by the settings in which they differ: ``lora r8 · small · 512 labels``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePath

Settings = Mapping[str, str | int | float | bool]
"""Values by dotted path."""

CHOSEN = ("strategy.name", "baseline.name")
"""What a configuration is called first, whether or not others are called so too."""
TRAINING = "train"
"""The section of settings by which what is chosen is trained."""
VARIANTS = {"strategy.dora": "dora"}
"""Settings that make of what is chosen something with a name of its own, where they are true."""
RANK = "strategy.rank"
N_LABELS = "cohort.n_labels"
BASE = "init.run"
ALL = ("all", "None", "none", "")
"""How it is written that no fewer labels are taken than there are."""
SEPARATOR = " · "
_WORDS = {
    RANK: "r{}",
    "model.size": "{}",
    "objective.name": "{}",
    "pretrain": "from {}",
    N_LABELS: "{} labels",
    "runtime.seed": "seed {}",
    "data.split.seed": "split {}",
}
"""How a value is said; of another path, after the path's last word, or the words that tell it from others."""
_TRUE, _FALSE = (True, "True", "true"), (False, "False", "false")
_FILES = ("path", "labels", "embeddings", "run")


def labels_of(configurations: Sequence[Settings]) -> list[str]:
    """A name for each configuration. Settings in which those that have them do not differ are left out.

    Where numbers of labels differ, a configuration without such a number has all labels. A setting of what is chosen,
    such as ``baseline.features``, and how it is trained, as by ``train.lr``, is told where configurations that chose
    the same differ in it: a rate that is a strategy's own goes without saying beside the strategy's name.

    Examples
    --------
    >>> lora = {"strategy.name": "lora", "strategy.rank": 8, "model.size": "small"}
    >>> labels_of([lora, lora | {"strategy.rank": 16}, {"strategy.name": "frozen", "model.size": "small"}])
    ['lora r8', 'lora r16', 'frozen']
    >>> labels_of([lora | {"cohort.n_labels": 2048}, {"baseline.name": "cox"}])
    ['lora · 2,048 labels', 'cox · all labels']
    >>> features = [("ridge", "values"), ("ridge", "age-sex"), ("gradient-boosting", "counts")]
    >>> labels_of([{"baseline.name": name, "baseline.features": of} for name, of in features])
    ['ridge · features values', 'ridge · features age-sex', 'gradient-boosting']
    >>> rates = [("full", 1e-4), ("full", 1e-3), ("scratch", 1e-3)]
    >>> labels_of([{"strategy.name": name, "train.lr": rate} for name, rate in rates])
    ['full · lr 0.0001', 'full · lr 0.001', 'scratch']
    """
    differing = differing_paths(configurations)
    return [
        label(
            {N_LABELS: "all", **settings} if N_LABELS in differing else settings,
            [path for path in differing if _differs_within(path, settings, configurations)],
        )
        for settings in configurations
    ]


def _differs_within(path: str, settings: Settings, configurations: Sequence[Settings]) -> bool:
    """Whether a setting of what is chosen, or of how it is trained, differs among those that chose the same.

    True of all other settings, and of the choice itself.
    """
    section = path.partition(".")[0]
    if path in CHOSEN or (f"{section}.name" not in CHOSEN and section != TRAINING):
        return True
    chosen = [settings.get(choice) for choice in CHOSEN]
    alike = [other for other in configurations if [other.get(choice) for choice in CHOSEN] == chosen]
    return len({str(other.get(path)) for other in alike}) > 1


def differing_paths(configurations: Sequence[Settings]) -> list[str]:
    """Paths of which those configurations that have them have several values, in the order in which they are met.

    >>> differing_paths([{"strategy.name": "full", "train.lr": 0.1}, {"strategy.name": "full", "train.lr": 0.01}])
    ['train.lr']
    """
    values: dict[str, set[str]] = {}
    for settings in configurations:
        for path, value in settings.items():
            values.setdefault(path, set()).add(str(value))
    if N_LABELS in values and any(N_LABELS not in settings for settings in configurations):
        values[N_LABELS].add("all")
    return [path for path, found in values.items() if len(found) > 1]


def label(settings: Settings, paths: Collection[str]) -> str:
    """A name by these paths, as far as the configuration has them.

    Examples
    --------
    >>> label({"strategy.name": "lora", "strategy.rank": 8, "runtime.seed": 2}, ["strategy.rank", "runtime.seed"])
    'lora r8 · seed 2'
    >>> label({"strategy.name": "lora", "strategy.dora": True, "train.lr": 0.001}, ["strategy.dora", "train.lr"])
    'dora · lr 0.001'
    >>> label({"strategy.name": "scratch", "init.run": ""}, ["init.run"])  # it starts from none, as its name says
    'scratch'
    """
    variant = [name for path, name in VARIANTS.items() if path in paths and settings.get(path) in _TRUE]
    chosen = variant or [str(settings[path]) for path in CHOSEN if path in settings]
    rank = [_said(RANK, settings[RANK], paths)] if RANK in paths and RANK in settings else []
    last = [N_LABELS] if N_LABELS in paths and N_LABELS in settings else []
    others = [path for path in settings if path in paths and path not in (*CHOSEN, *VARIANTS, RANK, N_LABELS)]
    others = [path for path in others if path != BASE or settings[path]]
    first = " ".join(chosen + rank)
    return SEPARATOR.join(
        [*([first] if first else []), *(_said(path, settings[path], paths) for path in others + last)]
    )


def apart(this: str, to: str) -> tuple[str, str, str]:
    """What is each one's own of two labels, and what they share beside what was chosen.

    Examples
    --------
    >>> apart("lora r8 · 128 labels", "cox · 128 labels")
    ('lora r8', 'cox', '128 labels')
    >>> apart("frozen · head ridge · 128 labels", "frozen · head trained · 128 labels")
    ('frozen · head ridge', 'frozen · head trained', '128 labels')
    """
    parts, others = this.split(SEPARATOR), to.split(SEPARATOR)
    shared = [part for part in parts[1:] if part in others[1:]]
    mine, its = (SEPARATOR.join(part for part in of if part not in shared) for of in (parts, others))
    return mine, its, SEPARATOR.join(shared)


def _said(path: str, value: str | int | float | bool, paths: Collection[str]) -> str:
    text = str(value)
    if path == N_LABELS:
        return "all labels" if text in ALL else f"{int(text):,} labels"
    if path in _WORDS:
        return _WORDS[path].format(text)
    word = _shortest(path, paths).replace("_", " ")
    if text in _TRUE:
        return word
    if text in _FALSE:
        return f"no {word}"
    if path.rsplit(".", 1)[-1] in _FILES:
        return f"{word} {PurePath(text).stem[:12] if text else 'none'}"
    return f"{word} {value:g}" if isinstance(value, float) else f"{word} {text}"


def _shortest(path: str, paths: Collection[str]) -> str:
    """The last words of a path that no other path ends with."""
    words = path.split(".")
    for n in range(1, len(words)):
        end = ".".join(words[-n:])
        if not any(other != path and other.endswith(f".{end}") for other in paths):
            return end.replace(".", " ")
    return path.replace(".", " ")
