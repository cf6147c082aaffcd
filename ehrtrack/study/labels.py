"""Short names of configurations, by the settings in which they differ: ``lora r8 · small · seed 2``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ehrtrack.search_space import Scalar

Settings = Mapping[str, Scalar]
"""Values by dotted path."""

CHOSEN = ("strategy.name", "baseline.name")
"""What a configuration is called first, whether or not others are called so too."""
SEPARATOR = " · "
_WORDS = {
    "strategy.rank": "r{}",
    "model.size": "{}",
    "objective.name": "{}",
    "pretrain": "from {}",
    "cohort.n_labels": "{} labels",
    "runtime.seed": "seed {}",
    "data.split.seed": "split {}",
}
"""How a value is said; of another path, after the path's last word, or the words that tell it from others."""


def labels_of(configurations: Sequence[Settings]) -> list[str]:
    """A name for each configuration. Settings in which those that have them do not differ are left out.

    >>> lora = {"strategy.name": "lora", "strategy.rank": 8, "model.size": "small"}
    >>> labels_of([lora, lora | {"strategy.rank": 16}, {"strategy.name": "frozen", "model.size": "small"}])
    ['lora r8', 'lora r16', 'frozen']
    >>> labels_of([lora, lora | {"model.size": "tiny"}, {"baseline.name": "cox"}])
    ['lora · small', 'lora · tiny', 'cox']
    """
    differing = [path for path in _paths(configurations) if _differs(path, configurations)]
    return [label(settings, differing) for settings in configurations]


def label(settings: Settings, paths: Sequence[str]) -> str:
    """A name by these paths, as far as the configuration has them.

    >>> label({"strategy.name": "lora", "strategy.rank": 8, "runtime.seed": 2}, ["strategy.rank", "runtime.seed"])
    'lora r8 · seed 2'
    """
    chosen = [str(settings[path]) for path in CHOSEN if path in settings]
    rank = [_said(path, settings[path], paths) for path in ("strategy.rank",) if path in paths and path in settings]
    others = [path for path in paths if path in settings and path not in (*CHOSEN, "strategy.rank")]
    first = " ".join(chosen + rank)
    return SEPARATOR.join([*([first] if first else []), *(_said(path, settings[path], paths) for path in others)])


def _paths(configurations: Sequence[Settings]) -> list[str]:
    """All paths, in the order of those configurations that have the most of them."""
    fullest_first = sorted(configurations, key=len, reverse=True)
    return list(dict.fromkeys(path for settings in fullest_first for path in settings))


def _differs(path: str, configurations: Sequence[Settings]) -> bool:
    return len({repr(settings[path]) for settings in configurations if path in settings}) > 1


def _said(path: str, value: Scalar, paths: Sequence[str]) -> str:
    if path in _WORDS:
        return _WORDS[path].format(f"{value:,}" if path == "cohort.n_labels" and isinstance(value, int) else value)
    word = _shortest(path, paths).replace("_", " ")
    if isinstance(value, bool):
        return word if value else f"no {word}"
    return f"{word} {value:g}" if isinstance(value, float) else f"{word} {value}"


def _shortest(path: str, paths: Sequence[str]) -> str:
    """The last words of a path that no other path ends with."""
    words = path.split(".")
    for n in range(1, len(words)):
        end = ".".join(words[-n:])
        if not any(other != path and other.endswith(f".{end}") for other in paths):
            return end.replace(".", " ")
    return path.replace(".", " ")
