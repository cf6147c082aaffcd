"""The report out of its material: which sections there are, in which order."""

from __future__ import annotations

from ehrtrack.reporting.comparison import answer_section, differences_section
from ehrtrack.reporting.cost import cost_section
from ehrtrack.reporting.document import Document
from ehrtrack.reporting.explanation import explanation_section
from ehrtrack.reporting.external import external_section
from ehrtrack.reporting.label_curve import label_curve_section
from ehrtrack.reporting.learning import learning_section
from ehrtrack.reporting.main_table import results_section
from ehrtrack.reporting.material import Material
from ehrtrack.reporting.provenance import provenance_section
from ehrtrack.reporting.subjects import flow_section, table_one_section
from ehrtrack.reporting.survival_by_risk import survival_section
from ehrtrack.reporting.tripod import tripod_section
from ehrtrack.reporting.validity import calibration_section, decision_section, sanity_section, subgroups_section


def assemble(material: Material) -> Document:
    """The report. A section of what a study has not is left out; the table of TRIPOD+AI says what that leaves open."""
    found = [
        answer_section(material),
        results_section(material),
        differences_section(material),
        label_curve_section(material),
        flow_section(material),
        table_one_section(material),
        calibration_section(material),
        survival_section(material),
        decision_section(material),
        subgroups_section(material),
        explanation_section(material),
        external_section(material),
        learning_section(material),
        cost_section(material),
        sanity_section(material),
    ]
    sections = [section for section in found if section is not None]
    last = provenance_section(material)
    titles = {section.key: section.title for section in (*sections, last)}
    return Document(
        material.study, material.settings.question, (*sections, tripod_section(titles.keys(), titles), last)
    )
