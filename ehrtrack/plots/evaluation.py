"""Figures of the tables of `evaluation.measures`; if a run lacks a table, its panel says so."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ehrtrack.plots.style import BLUE, GREEN, GREY, ORANGE, PALE, dress, panels

Tables = Mapping[str, pl.DataFrame]


def discrimination_plot(tables: Tables, metrics: Mapping[str, float], *, horizon_days: float) -> Figure:
    """ROC and precision by recall at the horizon, and AUC by day.

    Parameters
    ----------
    tables : any of roc, precision_recall, auc
    metrics : auc_horizon, average_precision and auc_mean, for the titles
    """
    figure, (roc, recall, by_day) = panels(3, width=13.2, height=4.2)
    if _has(roc, tables, "roc", f"ROC at {horizon_days:g} days"):
        _draw_roc(roc, tables["roc"])
        _note(roc, "AUC", metrics, "auc_horizon", x=0.97, y=0.06)
    if _has(recall, tables, "precision_recall", f"Precision and recall at {horizon_days:g} days"):
        _draw_precision(recall, tables["precision_recall"], "recall (share of events found)")
        _note(recall, "average precision", metrics, "average_precision", x=0.97, y=0.92)
    if _has(by_day, tables, "auc", "AUC by day"):
        by_day.axhline(0.5, color=GREY, linestyle="--", linewidth=1.2)
        by_day.plot(tables["auc"]["day"], tables["auc"]["auc"], color=BLUE, linewidth=1.8)
        low = float(np.asarray(tables["auc"]["auc"]).min())
        by_day.set(ylim=(min(0.45, low - 0.03), 1.0), xlabel="days since the index date", ylabel="AUC")
        _note(by_day, "mean", metrics, "auc_mean", x=0.97, y=0.92)
    return figure


def class_discrimination_plot(tables: Tables, metrics: Mapping[str, float]) -> Figure:
    """ROC and precision by recall of labels of classes.

    Parameters
    ----------
    tables : any of roc, precision_recall
    metrics : auroc and auprc, for the notes
    """
    figure, (roc, recall) = panels(2, width=9.0, height=4.2)
    if _has(roc, tables, "roc", "ROC"):
        _draw_roc(roc, tables["roc"])
        _note(roc, "AUROC", metrics, "auroc", x=0.97, y=0.06)
    if _has(recall, tables, "precision_recall", "Precision and recall"):
        _draw_precision(recall, tables["precision_recall"], "recall (share of the true labels found)")
        _note(recall, "AUPRC", metrics, "auprc", x=0.97, y=0.92)
    return figure


def class_calibration_plot(tables: Tables, metrics: Mapping[str, float]) -> Figure:
    """Share of true labels against predicted probability: groups with their intervals, and the smooth curve.

    Parameters
    ----------
    tables : calibration and, where it could be fitted, calibration_curve
    metrics : ici, calibration_slope and observed_to_expected, for the note
    """
    figure, (ax,) = panels(1, width=5.6, height=5.4)
    groups = tables["calibration"]
    predicted, observed = groups["predicted"].to_numpy(), groups["observed"].to_numpy()
    reach = np.maximum([observed - groups["lower"].to_numpy(), groups["upper"].to_numpy() - observed], 0)
    end = min(1.0, 1.08 * max(predicted.max(), groups["upper"].to_numpy().max()))
    ax.plot([0, end], [0, end], color=GREY, linestyle="--", linewidth=1.2, label="perfect calibration")
    ax.errorbar(predicted, observed, yerr=reach, fmt="o", color=BLUE, markersize=6, capsize=3, label="groups (95 %)")
    if "calibration_curve" in tables:
        curve = tables["calibration_curve"].sort("predicted")
        ax.plot(curve["predicted"], curve["observed"], color=ORANGE, linewidth=1.8, label="smooth")
    lines = [f"{label} {metrics[name]:.3f}" for label, name in _CALIBRATION_NOTES if name in metrics]
    ax.text(0.97, 0.05, "\n".join(lines), transform=ax.transAxes, ha="right", fontsize=9)
    ax.set(xlim=(0, end), ylim=(0, end), aspect="equal")
    ax.set(xlabel="predicted probability", ylabel="share of true labels")
    dress(ax, "Calibration")
    ax.legend(frameon=False, loc="upper left", fontsize=9)
    return figure


def _draw_roc(ax: Axes, curve: pl.DataFrame) -> None:
    ax.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1.2)
    ax.step(curve["false_positive_rate"], curve["true_positive_rate"], where="post", color=BLUE, linewidth=1.8)
    ax.set(xlim=(0, 1), ylim=(0, 1.01), xlabel="false positive rate", ylabel="true positive rate")


def _draw_precision(ax: Axes, curve: pl.DataFrame, recall: str) -> None:
    share = curve["precision"][0]  # at the lowest threshold all are called
    ax.axhline(share, color=GREY, linestyle="--", linewidth=1.2)
    ax.step(curve["recall"], curve["precision"], where="post", color=BLUE, linewidth=1.8)
    ax.set(xlim=(0, 1), ylim=(0, 1.01), xlabel=recall, ylabel="precision")
    ax.text(0.01, share - 0.045, "everybody called", fontsize=8.5, color=GREY)


def calibration_curves(tables: Tables, metrics: Mapping[str, float]) -> Figure:
    """Observed against predicted risk along a smooth curve at each day, and shares of subjects by S at their own day.

    Parameters
    ----------
    tables : any of calibration_curve, calibration, d_calibration
    metrics : ici, calibration_slope and d_calibration_p, for the notes
    """
    figure, (smooth, bins) = panels(2, width=11.2, height=5.0)
    if _has(smooth, tables, "calibration_curve", "Calibration along the risk"):
        _draw_curves(smooth, tables["calibration_curve"], tables.get("calibration"))
        lines = [f"{label} {metrics[name]:.3f}" for label, name in _CALIBRATION_NOTES if name in metrics]
        smooth.text(0.97, 0.05, "\n".join(lines), transform=smooth.transAxes, ha="right", fontsize=9)
    if _has(bins, tables, "d_calibration", "D-calibration: is S at the subjects' own days uniform?"):
        table = tables["d_calibration"]
        width = table["survival_to"] - table["survival_from"]
        bins.bar(table["survival_from"], table["share"], width=width * 0.92, align="edge", color=BLUE, alpha=0.85)
        bins.axhline(1 / table.height, color=GREY, linestyle="--", linewidth=1.2)
        top = 1.25 * max(float(np.asarray(table["share"]).max()), 1 / table.height)
        bins.set(xlim=(0, 1), ylim=(0, top), xlabel="predicted survival at the own day", ylabel="share of subjects")
        _note(bins, "p =", metrics, "d_calibration_p", x=0.97, y=0.92)
    return figure


_CALIBRATION_NOTES = (
    ("slope", "calibration_slope"),
    ("ICI", "ici"),
    ("observed / expected", "observed_to_expected"),
)


def _draw_curves(ax: Axes, curves: pl.DataFrame, groups: pl.DataFrame | None) -> None:
    end = 1.05 * float(np.asarray(curves.select(pl.max_horizontal("predicted", "observed").max())).item())
    if groups is not None:
        end = max(end, 1.05 * float(np.asarray(groups["upper"]).max()))
    end = min(1.0, end)
    ax.plot([0, end], [0, end], color=GREY, linestyle="--", linewidth=1.2)
    days = curves["horizon_days"].unique(maintain_order=True).to_list()
    for day, colour in zip(days, (GREEN, ORANGE, BLUE)[-len(days) :], strict=True):
        curve = curves.filter(pl.col("horizon_days") == day).sort("predicted")
        ax.plot(curve["predicted"], curve["observed"], color=colour, linewidth=1.8, label=f"{day:g} days")
        if groups is not None:
            points = groups.filter(pl.col("horizon_days") == day)
            observed = points["observed"].to_numpy()
            reach = np.maximum([observed - points["lower"].to_numpy(), points["upper"].to_numpy() - observed], 0)
            ax.errorbar(points["predicted"], observed, yerr=reach, fmt="o", color=colour, markersize=4, elinewidth=0.8)
    ax.set(xlim=(0, end), ylim=(0, end), aspect="equal")
    ax.set(xlabel="predicted risk", ylabel="observed risk")
    ax.legend(frameon=False, loc="upper left", fontsize=9)


def decision_curve_plot(table: pl.DataFrame, *, horizon_days: float | None = None) -> Figure:
    """Net benefit by threshold of risk, against acting on everybody and on nobody.

    Parameters
    ----------
    table : from `survival.decision.decision_curve`
    horizon_days : that the risks are of; None where they are probabilities of a class
    """
    what = "this probability" if horizon_days is None else f"this risk of an event within {horizon_days:g} days"
    figure, (ax,) = panels(1, width=7.0, height=4.4)
    ax.plot(table["threshold"], table["treat_all"], color=GREY, linestyle="--", linewidth=1.4, label="act on everybody")
    ax.axhline(0, color=GREY, linewidth=1.2, label="act on nobody")
    ax.plot(table["threshold"], table["net_benefit"], color=BLUE, linewidth=2, label="act on predicted risk")
    top = float(np.asarray(table.select(pl.max_horizontal("net_benefit", "treat_all").max())).item())
    ax.set(xlim=(0, float(table["threshold"][-1])), ylim=(-0.25 * top, 1.1 * top))
    benefit = "net benefit (true labels a label)" if horizon_days is None else "net benefit (events a subject)"
    ax.set(xlabel=f"act above {what}", ylabel=benefit)
    dress(ax, "Decision curve")
    ax.legend(frameon=False, loc="best", fontsize=9)
    return figure


def _has(ax: Axes, tables: Tables, name: str, title: str) -> bool:
    dress(ax, title)
    if name in tables:
        return True
    ax.text(0.5, 0.5, "too few events", ha="center", va="center", transform=ax.transAxes, color=GREY)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_color(PALE)
    return False


def _note(ax: Axes, label: str, metrics: Mapping[str, float], name: str, *, x: float, y: float) -> None:
    if name not in metrics:
        return
    text = f"{label} {metrics[name]:.3f}"
    if f"{name}_lower" in metrics:
        text += f" [{metrics[f'{name}_lower']:.3f}, {metrics[f'{name}_upper']:.3f}]"
    ax.text(x, y, text, transform=ax.transAxes, ha="right", fontsize=9)
