"""Commented configuration files of a new study, from what its dataset holds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from ehrtrack.data.description import Description, describe_dataset
from ehrtrack.data.events import BIRTH, DEATH, open_dataset
from ehrtrack.data.split_rules import OF_MEDS
from ehrtrack.errors import ConfigError
from ehrtrack.files import folder_aside
from ehrtrack.tracking.names import why_no_model_name

N_CODES = 12
"""Frequent codes that are shown, to choose an index date and an outcome from."""
FEWEST = 11
"""A code that fewer subjects have is not shown."""
SIZES = {500_000: "tiny", 20_000_000: "small"}
"""The encoder for datasets of up to so many events; above, it is medium."""
MANY_MISSING = 0.01
COMMENT = re.compile(r"^(\S.*?) {2,}# (.*)$", re.MULTILINE)
"""A line with a comment at its end; comments stand below each other."""


def init_study(study: str, data: Path, *, labels: Path | None = None, folder: Path = Path("projects")) -> Path:
    """Write the configuration files of a study: of pretraining, fine-tuning, baseline, sweep, comparison and matrix.

    They run as they are. What is a guess is marked as one.

    Parameters
    ----------
    study : its name, of the folder too
    data : folder of a MEDS dataset
    labels : file or folder of labels; without it, a cohort is proposed from the most frequent codes
    folder : of all studies

    Returns
    -------
    The study's folder.

    Raises
    ------
    ConfigError
        If the name could be no model's or no folder's, labels are not there, or the folder is there already.
    DataError
        If the dataset cannot be read.
    """
    reason = why_no_model_name(study) or ("it is a path" if Path(study).name != study else "")
    if reason:
        raise ConfigError(f"the study is called {study!r}, and its folder and its model have that name: {reason}")
    if labels is not None and not labels.exists():
        raise ConfigError(f"there are no labels at {labels}; give a parquet or CSV file, or a folder of them")
    out = folder / study
    if out.exists():
        raise ConfigError(f"{out} is there already, and nothing is written over; take another name, or move it away")
    found = describe_dataset(open_dataset(data))
    folder.mkdir(parents=True, exist_ok=True)
    with folder_aside(out) as aside:
        for name, text in study_files(study, found, labels).items():
            (aside / name).write_text(text, encoding="utf-8")
    return out


def study_files(study: str, found: Description, labels: Path | None) -> Mapping[str, str]:
    """The text of each file, by its name."""
    cohort = _cohort_of_labels(labels) if labels is not None else _cohort(found)
    files = {
        "pretrain.toml": _pretrain(study, found),
        "finetune.toml": FINETUNE.format(cohort=cohort),
        "baseline.toml": BASELINE,
        "compare.toml": COMPARE.format(study=_toml(study)),
        "sweep.toml": SWEEP,
        "study.toml": STUDY.format(study=study),
        "README.md": README.format(study=study, data=found.path, n=found.n_subjects, n_events=found.n_events),
    }
    return {name: COMMENT.sub(lambda line: f"{line[1]:<38} # {line[2]}", text) for name, text in files.items()}


def _pretrain(study: str, found: Description) -> str:
    is_short = _share_under_a_month(found) > 0.5
    size = next((size for most, size in SIZES.items() if found.n_events <= most), "medium")
    lacking = 1 - found.n_births / max(1, found.n_subjects)
    births = "" if lacking <= MANY_MISSING else BIRTHS.format(share=lacking)
    return PRETRAIN.format(
        study=_toml(study),
        path=_toml(found.path.as_posix()),
        births=births,
        split=SPLIT_OF_DATASET if set(OF_MEDS) <= set(found.splits) else SPLIT_BY_HASH,
        unit="hour" if is_short else "day",
        why="most records are shorter than a month" if is_short else "records of months and years",
        size=size,
        events=found.n_events,
        readout="readout_days = [0.05, 0.3, 1.0]   # hours, as records are short\n" if is_short else "",
    )


def _share_under_a_month(found: Description) -> float:
    is_short = pl.col("label").is_in(["under a day", "under a month"])
    return int(found.lengths.filter(is_short)["n_subjects"].sum()) / max(1, found.n_subjects)


def _cohort_of_labels(labels: Path) -> str:
    return COHORT_OF_LABELS.format(labels=_toml(labels.as_posix()))


def _cohort(found: Description) -> str:
    """A proposal: death within a year of the first visit, or the most frequent code where nobody is known to die."""
    timed = found.codes.filter(~pl.col("code").is_in([BIRTH, DEATH]) & (pl.col("n_subjects") >= FEWEST))
    shown = timed.head(N_CODES).select("code", "n_subjects", "description")
    codes = "\n".join(
        f"#   {code} ({n:,} subjects{f', {text}' if text else ''})"
        for code, n, text in shown.iter_rows()
    )  # fmt: skip
    example = _pattern(shown["code"][0]) if shown.height else "CODE"
    if found.n_deaths:
        outcome = f"death = true               # or codes = [{_toml(example)}]"
    else:
        outcome = f"codes = [{_toml(example)}]   # or death = true; no subject of this dataset has a death"
    return COHORT.format(codes=codes, outcome=outcome, example=_toml(example))


def _pattern(code: str) -> str:
    """A regular expression of this code alone.

    >>> _pattern("LAB//glucose (blood)")
    'LAB//glucose \\\\(blood\\\\)$'
    """
    return re.sub(r"([.^$*+?()\[\]{}|\\])", r"\\\1", code) + "$"


def _toml(text: str) -> str:
    """A text as TOML writes it; JSON's escapes are TOML's too."""
    return json.dumps(text, ensure_ascii=False)


PRETRAIN = """\
# What an encoder learns of records without labels:
#   ehrtrack pretrain --config THIS FILE
# All settings, with their bounds and defaults: ehrtrack settings, and ehrtrack settings SECTION.
study = {study}                        # runs are tracked, and the best is registered, under this name

[data]
path = {path}
max_tokens = 512                       # of a longer history the most recent tokens are read
{births}
# Nobody is in two splits; fine-tuning has to be split as this is. Others: ehrtrack settings data.split
{split}
[data.visits]
unit = "{unit}"                           # {why}

[data.vocabulary]
min_subjects = 5                       # a code that fewer training subjects have is unknown to the model

[model]
size = "{size}"                          # tiny, small, medium or large; the dataset has {events:,} events
{readout}
# [objective]                          # masked tokens (mlm) unless another is named here: ehrtrack settings objective

[train]
epochs = 20
lr = 2e-3
patience = 3
"""
BIRTHS = """\
births = "unknown"                     # {share:.0%} of the subjects have no birth: with "left_out" they are not read
"""
SPLIT_OF_DATASET = """\
[data.split]
rule = "dataset"                       # metadata/subject_splits.parquet
"""
SPLIT_BY_HASH = """\
[data.split]
rule = "hash"
seed = 0
train = 0.7
validation = 0.15                      # the other subjects test
"""
FINETUNE = """\
# Adapts the encoder to an outcome:
#   ehrtrack finetune --config THIS FILE --strategy.name full
extends = "pretrain.toml"

{cohort}
[init]
run = "latest"                         # the last finished pretraining of this study

[strategy]
name = "lora"                          # or frozen, full, scratch, bitfit, lp-ft
rank = 8
# head = "ridge"                       # solved for: of frozen all there is, of lora and full a start

# [objective]                          # survival; of labels that tell whether and not when, classification

[train]
epochs = 20
lr = 2e-3
patience = 5
"""
COHORT_OF_LABELS = """\
# subject_id and prediction_time, with follow_up_days and is_event, or with boolean_value (as ACES and MEDS-DEV write).
[cohort]
labels = {labels}
# horizon_days = 365                   # by default the longest that enough training subjects are followed to
"""
COHORT = """\
# A GUESS to begin with: change it before you believe a number. The most frequent codes of the dataset:
{codes}
[cohort]
horizon_days = 365

[cohort.index]                         # when the model is asked: what came later is never read
rule = "visit"                         # at the end of the first visit; or rule = "first_code", codes = [{example}]
number = 1

[cohort.outcome]                       # what is foretold, strictly after the index date
{outcome}
"""
BASELINE = """\
# What a transformer has to beat:
#   ehrtrack baseline --config THIS FILE --baseline.name ridge
extends = "finetune.toml"

[baseline]
name = "cox"                           # of labels that tell whether and not when, it is a logistic regression
"""
COMPARE = """\
# All runs of the study side by side; the best by validation becomes champion:
#   ehrtrack compare --config THIS FILE
extends = "finetune.toml"

[registry]
model = {study}
"""
SWEEP = """\
# A search over settings; start it again to go on, or several times at once:
#   ehrtrack sweep --config THIS FILE
extends = "finetune.toml"

[search]
n_trials = 20

[search.parameters]
"strategy.rank" = { choices = [2, 4, 8, 16] }
"train.lr" = { low = 1e-4, high = 1e-2, log = true }
"""
STUDY = """\
# The question of {study}, over strategies, seeds and splits:
#   ehrtrack study plan THIS FILE      what it takes
#   ehrtrack study run  THIS FILE      and its report
question = "Does a pretrained transformer foretell the outcome better than a ridge regression on codes and values?"
finetune = "finetune.toml"
baseline = "baseline.toml"
pretrain = "pretrain.toml"
margin = 0.01                          # within which two configurations are equivalent

[matrix]                               # every combination is a configuration
strategy = [                           # a head that is solved for: of frozen all there is, of lora and full a start
  {{ name = "frozen", head = "ridge" }},
  {{ name = "lora", rank = 8, head = "ridge" }},
  {{ name = "full", head = "ridge" }},
  "scratch",
]
baseline = ["ridge", "cox", "gradient-boosting"]

[repeats]                              # of each configuration
"runtime.seed" = [0, 1, 2]

[reference]
baseline = "ridge"                     # the hardest to beat in most of this project's own studies

[[compare]]
question = "Does pretraining pay?"
this = {{ strategy = "full" }}
to = {{ strategy = "scratch" }}
"""
README = """\
# {study}

**Question.**

**Data.** `{data}`: {n:,} subjects, {n_events:,} events.

**Cohort.** Index, outcome, horizon; how many subjects and events; who is left out.

**To know before reading results**

**Decisions**
"""
