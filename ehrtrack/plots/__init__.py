"""Figures of a run and of a comparison: arrays and tables in, matplotlib Figures out.

Figures are made without pyplot, so that nothing is global, no window opens, and a figure is freed with its
last reference.
"""

from ehrtrack.plots.cohort import attrition_flow
from ehrtrack.plots.evaluation import (
    Tables,
    calibration_curves,
    class_calibration_plot,
    class_discrimination_plot,
    decision_curve_plot,
    discrimination_plot,
)
from ehrtrack.plots.explain import contributions_plot, timeline_plot
from ehrtrack.plots.forest import ForestRow, comparison_plot, subgroup_forest
from ehrtrack.plots.landmarks import landmark_plot
from ehrtrack.plots.sensitivity import sensitivity_plot
from ehrtrack.plots.study import (
    calibration_panels,
    differences_plot,
    kaplan_meier_panels,
    label_curve_plot,
    learning_curves,
    pareto_front,
    performance_plot,
)
from ehrtrack.plots.survival import calibration_plot, group_labels, kaplan_meier_by_risk
from ehrtrack.plots.training import History, loss_curves, losses_beside_trivial, metric_curves

__all__ = [
    "ForestRow",
    "History",
    "Tables",
    "attrition_flow",
    "calibration_curves",
    "calibration_panels",
    "calibration_plot",
    "class_calibration_plot",
    "class_discrimination_plot",
    "comparison_plot",
    "contributions_plot",
    "decision_curve_plot",
    "differences_plot",
    "discrimination_plot",
    "group_labels",
    "kaplan_meier_by_risk",
    "kaplan_meier_panels",
    "label_curve_plot",
    "landmark_plot",
    "learning_curves",
    "loss_curves",
    "losses_beside_trivial",
    "metric_curves",
    "pareto_front",
    "performance_plot",
    "sensitivity_plot",
    "subgroup_forest",
    "timeline_plot",
]
