"""``ehrtrack import``: any source's tables into a MEDS dataset, checked, counted and streamed."""

from ehrtrack.data.importing.engine import import_dataset

__all__ = ["import_dataset"]
