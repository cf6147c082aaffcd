"""The mean of a subject's Med2Vec embeddings, one hidden layer and the discrete-time hazard head: no order, but ages
and gaps.

The embeddings of codes are fitted by skip-gram on the training subjects' histories, or were fitted before on more
records (``init.embeddings``); whether they are trained further with the head is one of the settings tried.
"""

from __future__ import annotations

from functools import cache

from ehrtrack.baselines._sequences import FittedSequenceModel, fit_sequences, from_json
from ehrtrack.baselines._settings.mean_pool import Config as Config
from ehrtrack.baselines.base import Labelled, TokenHistories, read_tokens
from ehrtrack.models.code_embeddings import CodeEmbeddings
from ehrtrack.training.skip_gram import fit_skip_gram

__all__ = ["Config", "fit", "from_json", "read"]


read = read_tokens


def fit(config: Config, train: Labelled[TokenHistories], validation: Labelled[TokenHistories]) -> FittedSequenceModel:
    """Embed the codes of the training subjects, train each candidate from there, and keep the best.

    Raises
    ------
    DataError
        If there is no training event, no comparable validation pair, or no two codes occur together.
    """
    histories = train.features

    @cache
    def embeddings(width: int) -> CodeEmbeddings:
        if histories.embeddings is not None:
            return histories.embeddings
        vectors = fit_skip_gram(
            histories.store,
            histories.rows,
            n_codes=len(histories.vocabulary),
            width=width,
            config=config.skip_gram,
            seed=config.seed,
        )
        return CodeEmbeddings(histories.vocabulary, vectors, {})

    widths = config.widths if histories.embeddings is None else (histories.embeddings.width,)
    return fit_sequences(
        config.model_copy(update={"widths": widths}),
        train,
        validation,
        embeddings=embeddings,
        more_settings={"trains_embeddings": config.trains_embeddings},
    )
