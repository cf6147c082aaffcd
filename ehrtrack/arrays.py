"""Names of numpy arrays in annotations; shapes are said where a value is described."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
"""Numbers in double precision: days, risks, weights."""

Float32s = npt.NDArray[np.float32]
"""Numbers in single precision: what models are given and store."""

Ints = npt.NDArray[np.int64]
"""Counts, row numbers, ids of subjects, microseconds."""

Int32s = npt.NDArray[np.int32]
"""Counts and places that are stored by the million."""

Bools = npt.NDArray[np.bool_]
"""One truth value a row: masks, and whether follow-up ended in an event."""
