"""Figures of training by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ehrtrack.errors import DataError
from ehrtrack.evaluation.metric_table import AUROC, BRIER, C_INDEX, IBS
from ehrtrack.plots.style import BLUE, GREEN, GREY, ORANGE, dress, panels
from ehrtrack.runlog import TRAINING, VALIDATION, VALIDATION_LOSS

History = Sequence[Mapping[str, float]]
"""One mapping of metric names to values an epoch, in order, as the training loop returns it."""


def loss_curves(history: History, *, kept_epoch: int | None = None) -> Figure:
    """Training and validation loss by epoch.

    Parameters
    ----------
    history : with ``train/loss`` and ``val/loss``
    kept_epoch : epoch (from 1) whose weights were kept; marked
    """
    figure, axes = panels(1, width=6.4, height=4.0)
    _draw_metric(axes[0], history, f"{TRAINING}/loss", "training", BLUE)
    _draw_metric(axes[0], history, VALIDATION_LOSS, "validation", ORANGE)
    _finish_epochs(axes[0], "Loss by epoch", "loss", kept_epoch)
    return figure


def losses_beside_trivial(history: History, trivial: Mapping[str, str], *, kept_epoch: int | None = None) -> Figure:
    """Validation losses of a pretraining objective, each with that of a trivial predictor on the same targets.

    Parameters
    ----------
    trivial : metric of a loss -> metric of the trivial predictor's; one panel each
    kept_epoch : epoch (from 1) whose weights were kept; marked
    """
    figure, axes = panels(len(trivial), width=max(5.0 * len(trivial), 6.4), height=4.0)
    for ax, (loss, other) in zip(axes, trivial.items(), strict=True):
        _draw_metric(ax, history, loss, "model", BLUE)
        _draw_metric(ax, history, other, _words(other), GREY, style="--")
        _finish_epochs(ax, f"{_words(loss)}, validation", "loss (nats)", kept_epoch)
    return figure


def _words(metric: str) -> str:
    """``val/unigram_loss`` as words."""
    return metric.rsplit("/", 1)[-1].replace("_", " ")


def metric_curves(history: History, *, kept_epoch: int | None = None) -> Figure:
    """Validation C-index and integrated Brier score by epoch; of classes, which are of no time, AUROC and Brier score.

    Parameters
    ----------
    history : with ``val/c_index`` and ``val/ibs``, or ``val/auroc`` and ``val/brier``
    kept_epoch : epoch (from 1) whose weights were kept; marked
    """
    has_days = any({IBS.named(VALIDATION), C_INDEX.named(VALIDATION)} & set(row) for row in history)
    metrics = (C_INDEX, IBS) if has_days else (AUROC, BRIER)
    figure, axes = panels(2, width=10.0, height=4.0)
    for ax, metric in zip(axes, metrics, strict=True):
        _draw_metric(ax, history, metric.named(VALIDATION), "model", BLUE)
        name = metric.long_title or metric.title
        title = f"{name[0].upper()}{name[1:]}, validation ({metric.better} is better)"
        if metric.chooses:
            ax.axhline(0.5, color=GREY, linestyle="--", linewidth=1.2, label="chance")
        _finish_epochs(ax, title, name, kept_epoch, is_legend=metric.chooses)
    return figure


def _draw_metric(ax: Axes, history: History, metric: str, label: str, colour: str, *, style: str = "-") -> None:
    """Draw a metric by epoch. Epochs without it are skipped; a history without it at all is a mistake."""
    points = [(epoch, row[metric]) for epoch, row in enumerate(history, start=1) if metric in row]
    if not points:
        found = sorted({name for row in history for name in row})
        raise DataError(f"no epoch has the metric {metric!r}; there are: {', '.join(found) or 'no metrics'}")
    epochs, values = zip(*points, strict=True)
    ax.plot(epochs, values, style, color=colour, linewidth=1.8, marker="o", markersize=3.5, label=label)


def _finish_epochs(ax: Axes, title: str, quantity: str, kept_epoch: int | None, *, is_legend: bool = True) -> None:
    if kept_epoch is not None:
        ax.axvline(kept_epoch, color=GREEN, linestyle=":", linewidth=1.5, label=f"kept: epoch {kept_epoch}")
    ax.set_xlabel("epoch")
    ax.set_ylabel(quantity)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    dress(ax, title)
    if is_legend or kept_epoch is not None:
        ax.legend(frameon=False, loc="best", fontsize=9)
