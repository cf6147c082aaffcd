"""Groups of codes that records use alike, such as those that different hospitals write for one thing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans

from ehrtrack.errors import DataError


def group_codes(
    codes: Sequence[str], counts: npt.ArrayLike, vectors: npt.NDArray[np.float32], n_groups: int, *, seed: int = 0
) -> dict[str, str]:
    """The group of each code, which has the name of its most frequent one.

    Spherical k-means: on the directions of the vectors, as a rare code's is shorter than a frequent one's of the same
    meaning (Dhillon and Modha 2001, "Concept Decompositions for Large Sparse Text Data", Mach Learn 42). A code whose
    values are cut into bins has the mean of its tokens' vectors: what is grouped are codes, whose bins stay bins, since
    a group of single bins would not know any more which values are high.

    Parameters
    ----------
    codes : of each of V tokens
    counts : (V,) how often each token was written
    vectors : (V, D)

    Raises
    ------
    DataError
        If there are fewer codes than groups.
    """
    names, code = np.unique(np.asarray(codes), return_inverse=True)
    weight = np.asarray(counts, dtype=np.float64)
    if n_groups > len(names):
        raise DataError(f"{n_groups} groups of {len(names)} codes: ask for fewer groups")
    total = np.zeros((len(names), vectors.shape[1]))
    np.add.at(total, code, vectors * weight[:, None])
    n_written = np.bincount(code, weights=weight)
    directions = total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)
    group = KMeans(n_groups, n_init=4, random_state=seed).fit(directions).labels_
    by_falling_count = np.argsort(-n_written, kind="stable")
    _, first = np.unique(group[by_falling_count], return_index=True)
    return dict(zip(names.tolist(), names[by_falling_count[first]][group].tolist(), strict=True))
