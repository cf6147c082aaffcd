"""Groups of codes that records use alike, such as those that different hospitals write for one thing."""

from __future__ import annotations

import numpy as np
from sklearn.cluster import KMeans

from ehrtrack.arrays import Float32s, Floats, Ints
from ehrtrack.data.vocabulary import SPECIAL_TOKENS, Vocabulary
from ehrtrack.errors import DataError


def group_codes(vocabulary: Vocabulary, vectors: Float32s, n_groups: int, *, seed: int = 0) -> dict[str, str]:
    """The group of each code, which has the name of its most frequent one.

    Spherical k-means: on the directions of the vectors, as a rare code's is shorter than a frequent one's of the same
    meaning (Dhillon and Modha 2001, "Concept Decompositions for Large Sparse Text Data", Mach Learn 42). Whole codes
    are grouped, by what their low values are near to, and their high ones, so that bins stay bins: a group of single
    bins would not know any more which values are high.

    Parameters
    ----------
    vectors : (V, D) of the tokens of a vocabulary with counts

    Raises
    ------
    DataError
        If there are fewer codes than groups.
    """
    n_special = len(SPECIAL_TOKENS)
    names, code = np.unique(vocabulary.code_of_token[n_special:], return_inverse=True)
    if n_groups > len(names):
        raise DataError(f"{n_groups} groups of {len(names)} codes: ask for fewer groups")
    counts = np.asarray(vocabulary.counts[n_special:], dtype=np.float64)
    levels = np.where(vocabulary.bins.code >= 0, vocabulary.bins.level, np.nan)[n_special:]
    directions = _directions(code, levels, vectors[n_special:] * counts[:, None])
    group = KMeans(n_groups, n_init=4, random_state=seed).fit(directions).labels_
    by_falling_count = np.argsort(-np.bincount(code, weights=counts), kind="stable")
    _, first = np.unique(group[by_falling_count], return_index=True)
    return dict(zip(names.tolist(), names[by_falling_count[first]][group].tolist(), strict=True))


def _directions(code: Ints, level: Floats, vectors: Floats) -> Floats:
    """(C, S D) of each code, one beside the other, the directions of its lowest values to its highest, in S steps.

    A token without a value, of level NaN, is in all of its code's.
    """
    has_level = ~np.isnan(level)
    steps = np.unique(level[has_level])
    n_codes, width = int(code.max()) + 1, vectors.shape[1]
    parts = []
    for step in steps if len(steps) else [0.0]:
        distance = np.abs(level - step)
        nearest = np.full(n_codes, np.inf)
        np.minimum.at(nearest, code[has_level], distance[has_level])
        is_here = ~has_level | (distance <= nearest[code])
        total = np.zeros((n_codes, width))
        np.add.at(total, code[is_here], vectors[is_here])
        parts.append(total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12))
    return np.hstack(parts)
