"""Groups of codes that records use alike, such as those that different hospitals write for one thing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans

from ehrtrack.data.vocabulary import SPECIAL_TOKENS
from ehrtrack.errors import DataError


def group_codes(vectors: npt.NDArray[np.float32], n_groups: int, *, seed: int = 0) -> npt.NDArray[np.int64]:
    """(V,) the token that stands for each token's group: its most frequent. Specials stand for themselves.

    Spherical k-means: on the directions of the vectors, as a rare code's is shorter than a frequent one's of the same
    meaning (Dhillon and Modha 2001, "Concept Decompositions for Large Sparse Text Data", Mach Learn 42).

    Parameters
    ----------
    vectors : (V, D) of the tokens of a vocabulary, which is ordered by falling count after its specials

    Raises
    ------
    DataError
        If there are fewer codes than groups.
    """
    n_special = len(SPECIAL_TOKENS)
    codes = vectors[n_special:]
    if n_groups > len(codes):
        raise DataError(f"{n_groups} groups of {len(codes)} codes: ask for fewer groups")
    directions = codes / np.maximum(np.linalg.norm(codes, axis=1, keepdims=True), 1e-12)
    group = KMeans(n_groups, n_init=4, random_state=seed).fit(directions).labels_
    _, first = np.unique(group, return_index=True)
    return np.concatenate([np.arange(n_special), n_special + first[group]])
