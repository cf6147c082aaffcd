"""A predictor of hidden codes by counting which codes go together: what masked pretraining has to beat.

A transformer below the unigram predictor may know no more than that a drug goes with its disease. Counting pairs tells
that for nothing, so a pretraining run is scored beside a naive Bayes predictor as well. Of a record whose shown codes
c are counted by x_c, n in all,

    log P(t | shown) = log u_t + w sum_c x_c / n log(P(t | c) / u_t) + constant
    P(t | c) = (n_ct + a u_t) / (n_c + a),      n_ct = sum over training records x_c (x_t - [c = t]) / (n - 1)

with u the unigram shares and a = `PRIOR`; dividing by n - 1 lets each code of a record count once, however long the
record. Codes of a record do not speak independently, as plain naive Bayes (w = n) has it: it is overconfident to the
point of being worse than the unigrams. So w is the best of `WEIGHTS` on training records that were not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from scipy import sparse
from scipy.special import log_softmax
from torch import Tensor

from ehrtrack.arrays import Bools, Floats, Ints
from ehrtrack.data.batch import Batch
from ehrtrack.data.vocabulary import SPECIAL_TOKENS

N_SINGLE = 2_000
"""Codes that are counted one by one: 16 MB of pairs. All rarer ones are one class, within which their shares decide."""
PRIOR = 20.0
"""Weight of the unigram shares in P(t | c), in codes seen beside c."""
WEIGHTS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)
EVERY = 20
"""Every twentieth training record of a batch is not counted, and has a say in the weight."""
SHARE_HIDDEN = 0.15


class CoOccurrence:
    """Pair counts of the training subjects' records.

    Parameters
    ----------
    records : batches of training records
    log_unigram : (V,) log shares of the tokens among the training subjects' tokens

    Attributes
    ----------
    weight : w above
    """

    def __init__(self, records: Iterable[Batch], log_unigram: Tensor) -> None:
        unigram = np.exp(log_unigram.double().numpy())
        single = np.argsort(-unigram, kind="stable")[:N_SINGLE]
        self.class_of = np.full(len(unigram), len(single), dtype=np.int64)  # (V,) the last class holds all others
        self.class_of[single] = np.arange(len(single))
        share = np.bincount(self.class_of, unigram, len(single) + 1)
        share = np.maximum(share, np.finfo(float).tiny)  # the last class can be empty
        self.log_share = np.log(share)  # (C,)
        self.log_within = np.log(unigram) - self.log_share[self.class_of]  # (V,) of a token in its class
        counts, held_out = [], []
        generator = np.random.default_rng(0)
        for batch in records:
            is_held = _row_of_token(batch) % EVERY == EVERY - 1
            counts.append(self._counts(batch, ~is_held))
            is_hidden = is_held & (generator.random(batch.n_tokens) < SHARE_HIDDEN) & _is_code(batch)
            held_out.append(self._question(batch, is_hidden))
        pairs = _pairs(sparse.vstack(counts))
        conditional = (pairs + PRIOR * share) / (pairs.sum(axis=1, keepdims=True) + PRIOR)
        # (C, C) row by row in memory: scipy would copy it at every product otherwise
        self.log_lift = np.ascontiguousarray(np.log(conditional) - self.log_share, dtype=np.float32)
        self.weight = self._best_weight(held_out)

    def loss(self, batch: Batch, targets: Tensor) -> float:
        """Negative log-probability of the targets of a batch, summed.

        Parameters
        ----------
        batch : with codes hidden at ``target_positions``; what is shown there instead is not looked at
        targets : (M,) the tokens that were there
        """
        assert batch.target_positions is not None
        is_hidden = np.zeros(batch.n_tokens, dtype=bool)
        is_hidden[batch.target_positions.cpu().numpy()] = True
        return self._loss(*self._question(batch, is_hidden, targets.cpu().numpy()), self.weight)

    def _question(
        self, batch: Batch, is_hidden: Bools, hidden: Ints | None = None
    ) -> tuple[sparse.csr_array, Ints, Ints]:
        """What is shown of the records with something hidden (R, C); of each hidden code which record, and the code."""
        row = _row_of_token(batch)
        asked, row_of_hidden = np.unique(row[is_hidden], return_inverse=True)
        shown = self._counts(batch, ~is_hidden)[asked]
        return shown, row_of_hidden, batch.token.numpy()[is_hidden] if hidden is None else hidden

    def _loss(self, shown: sparse.csr_array, row: Ints, hidden: Ints, weight: float) -> float:
        of_record = (shown @ self.log_lift) / np.maximum(shown.sum(axis=1), 1)[:, None]  # (R, C)
        log_probability = log_softmax(self.log_share + weight * of_record, axis=1)
        return -float((log_probability[row, self.class_of[hidden]] + self.log_within[hidden]).sum())

    def _best_weight(self, held_out: Sequence[tuple[sparse.csr_array, Ints, Ints]]) -> float:
        """The weight with the lowest loss on the codes hidden in these records."""
        losses = [sum(self._loss(*question, weight) for question in held_out) for weight in WEIGHTS]
        return WEIGHTS[int(np.argmin(losses))]

    def _counts(self, batch: Batch, is_counted: Bools) -> sparse.csr_array:
        """(B, C) how many codes of each class each record shows."""
        kept, token = is_counted & _is_code(batch), batch.token.cpu().numpy()
        cells = (np.ones(kept.sum(), dtype=np.float32), (_row_of_token(batch)[kept], self.class_of[token[kept]]))
        return sparse.coo_array(cells, shape=(len(batch.lengths), len(self.log_share))).tocsr()


def _row_of_token(batch: Batch) -> Ints:
    return np.repeat(np.arange(len(batch.lengths)), batch.lengths)


def _is_code(batch: Batch) -> Bools:
    is_code: Bools = batch.token.cpu().numpy() >= len(SPECIAL_TOKENS)
    return is_code


def _pairs(counts: sparse.csr_array) -> Floats:
    """(C, C) pairs of different places of a record, out of (N, C) counts; each place has a weight of 1 in all."""
    n_codes = counts.sum(axis=1)
    weight = np.divide(1, n_codes - 1, out=np.zeros_like(n_codes), where=n_codes > 1)
    weighted = counts.multiply(weight[:, None]).tocsr()
    pairs: Floats = (weighted.T @ counts).toarray().astype(np.float64)
    itself = np.arange(len(pairs))
    pairs[itself, itself] -= weighted.sum(axis=0)
    return np.maximum(pairs, 0)  # of rounding alone
