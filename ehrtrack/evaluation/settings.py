"""Settings of a comparison. This module imports nothing heavy."""

from __future__ import annotations

from pydantic import Field

from ehrtrack.section import Section


class CompareConfig(Section):
    """What a comparison compares with.

    Attributes
    ----------
    reference : name of a baseline or a strategy, such as ``cox`` or ``lora``, that all others are compared with; if
        empty, it is the Cox model, or of labels of classes the logistic regression
    margin : within which two configurations that were run several times count as equivalent, in units of the metric by
        which they are chosen

    Examples
    --------
    >>> CompareConfig(reference="scratch").margin
    0.01
    """

    reference: str = ""
    margin: float = Field(0.01, gt=0)
