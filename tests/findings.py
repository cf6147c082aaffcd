"""What all studies of the project found, side by side: tables and figure of docs/findings.md.

They are made of `projects/*/results*`.

A study is in them if its reference is a baseline and it has networks. Of several configurations with the same strategy
and number of labels, such as ranks of LoRA, the one with the best validation score stands for the strategy, and so does
the best of the other baselines: test scores choose nothing here.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator
from pages import number, table
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ehrtrack.plots.style import BLUE, GREEN, GREY, INK, ORANGE, dress
from ehrtrack.reporting.figures import with_palette

STRATEGIES = ("frozen", "lora", "full", "scratch")
SIGNS = {"better": "▲", "worse": "▼", "equivalent": "="}
FINDINGS = ("better", "equivalent", "no difference shown", "worse")
BANDS = ((0, 256), (257, 1024), (1025, math.inf))
"""Numbers of labels that are counted together."""
LABELS = re.compile(r"(\d[\d,]*) labels$")


@dataclass(frozen=True)
class Row:
    """A configuration, as the main table of its study has it."""

    values: dict[str, Any]

    @property
    def strategy(self) -> str:
        """Of a network its strategy; empty of a baseline."""
        return str(json.loads(self.values["settings"]).get("strategy.name", ""))

    @property
    def is_baseline(self) -> bool:
        return bool(self.values["kind"] == "baseline")

    @property
    def validation(self) -> float:
        """C-index of the subjects by whom models are chosen."""
        return float(self.values["val_c_index"])

    @property
    def score(self) -> str:
        """The test C-index, with a sign for how it stands to the reference."""
        sign = SIGNS.get(self.values["finding"] or "", "")
        return f"{number(self.values['test_c_index'], 3)}\u00a0{sign}".rstrip("\u00a0")

    @property
    def is_shown(self) -> bool:
        """Whether its interval says anything about the difference."""
        return self.values["finding"] in SIGNS

    @property
    def group(self) -> str:
        """By what a network was pretrained, and which head it has."""
        settings = json.loads(self.values["settings"])
        if not self.values["pretraining"]:
            return "scratch"
        solved = "solved" if settings.get("strategy.head") == "ridge" else "trained"
        return f"{self.values['pretraining']}, {self.strategy}, head {solved}"


@dataclass(frozen=True)
class Setting:
    """What one study has at one number of labels.

    Attributes
    ----------
    folder : of the study's results
    """

    folder: Path
    n_labels: int
    rows: tuple[Row, ...]

    @property
    def reference(self) -> Row:
        """The baseline that the others are compared with."""
        named = next((row.values["reference"] for row in self.rows if row.values["reference"]), "")
        return next((row for row in self.rows if row.values["configuration"] == named), self.rows[0])

    @property
    def is_compared(self) -> bool:
        """Whether networks stand beside a baseline."""
        return self.reference.is_baseline and any(not row.is_baseline for row in self.rows)

    @property
    def link(self) -> str:
        """To the study's page, with the file whose question it is."""
        study, file = self.folder.parent.name, self.folder.name.removeprefix("results")
        return f"[{study}](../projects/{study}/README.md){f', {file[1:]}' if file else ''}"

    @property
    def other_baseline(self) -> Row | None:
        """The best baseline beside the reference, by validation."""
        return _best([row for row in self.rows if row.is_baseline and row is not self.reference])

    def network(self, strategy: str) -> Row | None:
        """What stands for a strategy."""
        return _best([row for row in self.rows if row.strategy == strategy and not row.is_baseline])


def _best(rows: Sequence[Row]) -> Row | None:
    return max(rows, key=lambda row: row.validation, default=None)


def settings(projects: Path) -> list[Setting]:
    """Of all studies that compare networks with a baseline, by study and number of labels."""
    return [setting for setting in _all_settings(projects) if setting.is_compared]


def _all_settings(projects: Path) -> Iterator[Setting]:
    for file in sorted(projects.glob("*/results*/tables/main.csv")):
        found: dict[int, list[Row]] = {}
        for values in pl.read_csv(file, infer_schema_length=None).to_dicts():
            if values["test_c_index"] is not None:
                found.setdefault(round(values["n_train"]), []).append(Row(values))
        for n_labels in sorted(found):
            yield Setting(file.parents[1], n_labels, tuple(found[n_labels]))


def findings(projects: Path) -> str:
    """Test C-index by study, number of labels and strategy."""
    header = ["study", "labels", "reference", "best other baseline", *STRATEGIES]
    body = [
        [
            setting.link,
            f"{setting.n_labels:,}",
            f"{_called(setting.reference)} {setting.reference.score}",
            f"{_called(other)} {other.score}" if (other := setting.other_baseline) else "",
            *(row.score if (row := setting.network(strategy)) else "" for strategy in STRATEGIES),
        ]
        for setting in settings(projects)
    ]
    return table(header, body, right=(1,))


def _called(row: Row) -> str:
    """A baseline's name, without its number of labels.

    >>> _called(Row({"configuration": "ridge · features age-sex · 2,048 labels"}))
    'ridge on age-sex'
    """
    return LABELS.sub("", str(row.values["configuration"])).strip(" ·").replace(" · features ", " on ")


def counts(projects: Path) -> str:
    """How networks stand to the references, by what they were pretrained by and by the number of labels."""
    found: dict[str, dict[tuple[float, float], Counter[str]]] = {}
    for setting in settings(projects):
        band = next(band for band in BANDS if band[0] <= setting.n_labels <= band[1])
        for row in setting.rows:
            if not row.is_baseline:
                found.setdefault(row.group, {of: Counter() for of in BANDS})[band][row.values["finding"]] += 1
    header = ["pretrained by, strategy, head", *(f"{_band_text(band)} labels" for band in BANDS)]
    body = [[group, *(_count_text(of_band) for of_band in found[group].values())] for group in sorted(found)]
    return table(header, body)


def _band_text(band: tuple[float, float]) -> str:
    low, high = band
    if math.isinf(high):
        return f"over {low - 1:,}"
    return f"up to {high:,}" if not low else f"{low:,} to {high:,}"


def _count_text(count: Counter[str]) -> str:
    return ", ".join(f"{count[finding]} {finding}" for finding in FINDINGS if count[finding])


def costs(projects: Path) -> str:
    """What training took with the most labels of each study: seconds, and megabytes that are kept of a run."""
    most: dict[Path, Setting] = {}
    for setting in settings(projects):
        most[setting.folder] = setting
    header = ["study", "labels", "seconds: reference", *STRATEGIES, "MB: LoRA's adapter", "a whole model"]
    body = []
    for setting in most.values():
        networks = [setting.network(strategy) for strategy in STRATEGIES]
        sizes = [row.values[name] for row in networks if row for name in ("adapter_mb", "checkpoint_mb")]
        adapter, whole = sizes[::2], sizes[1::2]
        body.append(
            [
                setting.link,
                f"{setting.n_labels:,}",
                *(_seconds(row) for row in (setting.reference, *networks)),
                next((number(size, 2) for size in adapter if size), ""),
                next((number(size, 1) for size in reversed(whole) if size), ""),
            ]
        )
    return table(header, body, right=range(1, len(header)))


def _seconds(row: Row | None) -> str:
    seconds = None if row is None else row.values["seconds"]
    return "" if seconds is None else f"{seconds:,.{1 if seconds < 10 else 0}f}"


PICTURE = Path("docs") / "pictures" / "findings.png"
COLOURS = {"forecast": GREEN, "time-to-event": BLUE, "mlm": ORANGE, "": GREY}
MARKERS = {"frozen": "o", "lora": "^", "full": "s", "scratch": "X"}
MADE_OF = "made-of"
"""What a picture says of the values that it shows."""


def digest(projects: Path) -> str:
    """Of the values that the picture shows."""
    return hashlib.sha256(json.dumps(_points(projects)).encode()).hexdigest()


def _points(projects: Path) -> list[tuple[int, float, str, str, bool]]:
    """Number of labels, difference to the reference, pretraining, strategy, and whether it was shown."""
    return [
        (setting.n_labels, row.values["difference"], row.values["pretraining"] or "", strategy, row.is_shown)
        for setting in settings(projects)
        for strategy in STRATEGIES
        if (row := setting.network(strategy)) is not None and row.values["difference"] is not None
    ]


def picture(projects: Path) -> bytes:
    """Differences to the reference by the number of labels: the figure of the page, as PNG."""
    figure = Figure(figsize=(9.6, 5.2), dpi=160, layout="constrained")
    ax = figure.subplots()
    ax.axhline(0, color=GREY, linestyle="--", linewidth=1.2)
    for n_labels, difference, pretraining, strategy, is_shown in _points(projects):
        colour = COLOURS[pretraining]
        ax.plot(
            n_labels * 1.06 ** (STRATEGIES.index(strategy) - 1.5),  # beside each other
            difference,
            MARKERS[strategy],
            color=colour,
            markerfacecolor=colour if is_shown else "white",
            markersize=7,
            alpha=0.9,
        )
    ax.set_xscale("log")
    ax.set_xticks([64, 128, 256, 512, 1024, 2048, 4096])
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlabel="labelled training subjects", ylabel="difference in test C-index to the reference baseline")
    dress(ax, "Networks beside the baseline of their study (filled: shown by an interval, after Holm)")
    kinds = [Line2D([], [], color=INK, marker=of, linestyle="", label=name) for name, of in MARKERS.items()]
    kinds += [
        Line2D([], [], color=of, linewidth=4, label=f"pretrained by {name}" if name else "not pretrained")
        for name, of in COLOURS.items()
    ]
    ax.legend(handles=kinds, frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    said = PngInfo()
    said.add_text(MADE_OF, digest(projects))
    with Image.open(io.BytesIO(with_palette(drawn))) as small:
        written = io.BytesIO()
        small.save(written, format="png", optimize=True, pnginfo=said)
    return written.getvalue()


def is_of(file: Path, projects: Path) -> bool:
    """Whether a picture shows what the results say now."""
    if not file.exists():
        return False
    with Image.open(file) as opened:
        return bool(opened.info.get(MADE_OF) == digest(projects))
