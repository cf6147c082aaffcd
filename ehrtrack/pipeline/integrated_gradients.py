"""Integrated gradients over the codes of a record (Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks",
ICML, eq. 1), by captum.

The path leads from a record with the same visits, ages and times, in which every code's embedding is 0 and no effect of
a single code counts, to the record itself. What is integrated is the log of the cumulative hazard up to the horizon (of
a class, the log odds), so that contributions add up to its difference between the two ends.
What acts on the hazard directly (`models.static_effects`) is moved too: static facts from absent to present, which adds
to the contributions of their codes, and the age from the training subjects' mean to the subject's, which has one of its
own. The ages that the encoder reads at visits are the same at both ends.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ehrtrack.arrays import Floats, Ints
from ehrtrack.data.batch import MAX_POSITION, Batch, collate
from ehrtrack.data.vocabulary import CLS
from ehrtrack.errors import ConfigError
from ehrtrack.models.behrt import EhrModel
from ehrtrack.models.code_effects import CodeEffects
from ehrtrack.models.static_effects import StaticEffects, is_static
from ehrtrack.pipeline.predictor import BATCH_TOKENS, Predictor
from ehrtrack.pipeline.records import STATIC, Record, as_dataset
from ehrtrack.survival.competing_risks import cumulative_incidence

FEWEST_STEPS, MOST_STEPS = 32, 512
TOLERANCE = 0.01
"""How far contributions may be from adding up, as a share of the difference, or by itself where that is below 1."""


@dataclass(frozen=True)
class TokenContributions:
    """Contributions of the T tokens of a record that the model reads, [CLS] left out.

    Attributes
    ----------
    token : (T,) vocabulary indices
    visit : (T,) as `Record.visit`
    contribution : (T,)
    base, total : ends of the path
    gap : total - base, less all contributions
    age : what the age contributes by acting on the hazard directly; None where it does not
    mean_age_years : that it is compared with, of the training subjects; None likewise
    """

    token: Ints
    visit: Ints
    contribution: Floats
    base: float
    total: float
    gap: float
    age: float | None = None
    mean_age_years: float | None = None


def token_contributions(predictor: Predictor, records: Sequence[Record]) -> Iterator[TokenContributions]:
    """Contributions of the tokens of each record; steps of the integral are doubled until they add up.

    Raises
    ------
    ConfigError
        If captum is not installed, or the model is none whose codes have embeddings or effects of their own.
    """
    network, n_causes = predictor.network, predictor.n_causes
    has_codes = network is not None and (isinstance(network, EhrModel) or _effects(network) is not None)
    if network is None or not has_codes:
        what = predictor.folder.config.baseline.name if predictor.folder.baseline is not None else "of this kind"
        raise ConfigError(
            f"integrated gradients need a network, or a regression on single codes such as lasso, and this model is "
            f"{what}: take --method occlusion, which is for any model"
        )
    network = network.eval().requires_grad_(False)
    for record, batch in zip(records, _batches(predictor, records), strict=True):
        path = _Path.of(network, batch, len(record.visit_times), n_causes, has_classes=predictor.folder.has_classes)
        n_steps = FEWEST_STEPS
        found = path.integrate(n_steps)
        while abs(found.gap) > TOLERANCE * max(1.0, abs(found.total - found.base)) and n_steps < MOST_STEPS:
            n_steps *= 2
            found = path.integrate(n_steps)
        yield found


def _batches(predictor: Predictor, records: Sequence[Record]) -> Iterator[Batch]:
    """Each record as the model reads it, in a batch of its own."""
    numbered = [of.events.with_columns(subject_id=pl.lit(n, pl.Int64)) for n, of in enumerate(records)]
    at = pl.Series([record.prediction_time for record in records], dtype=pl.Datetime("us"))
    cutoffs = pl.DataFrame({"subject_id": np.arange(len(records)), "cutoff": at})
    with tempfile.TemporaryDirectory() as folder:
        dataset = as_dataset(pl.concat(numbered), Path(folder) / "records")
        store = predictor.tokens(dataset, cutoffs, None)
        for row in range(len(records)):
            yield collate(store, np.array([row]), max_tokens=predictor.folder.max_tokens)


def _effects(network: nn.Module) -> CodeEffects | None:
    """The regression on single codes in a model, or None."""
    return next((module for module in network.modules() if isinstance(module, CodeEffects)), None)


def _statics(network: nn.Module) -> StaticEffects | None:
    """What age and static facts add to the hazard in a model, or None."""
    return next((module for module in network.modules() if isinstance(module, StaticEffects)), None)


@dataclass(frozen=True)
class _Path:
    """From a record of which no code is known to the record itself.

    Attributes
    ----------
    n_visits : of the record, some of which the model may not read
    codes : gives the embeddings of codes; None of a regression, which has none
    effects : the regression on single codes in the model, or None
    embedded : (T, D) embeddings of the record's codes, or (T, 0)
    values : (E,) the columns of the regression, or (0,)
    column : (E,) which they are
    statics : what age and static facts add to the hazard, or None
    facts : (P,) its columns, or (0,)
    """

    network: nn.Module
    batch: Batch
    n_visits: int
    n_causes: int
    has_classes: bool
    codes: nn.Module | None
    effects: CodeEffects | None
    embedded: Tensor
    values: Tensor
    column: Tensor
    statics: StaticEffects | None
    facts: Tensor

    @classmethod
    def of(cls, network: nn.Module, batch: Batch, n_visits: int, n_causes: int, *, has_classes: bool) -> _Path:
        """The path of a record."""
        codes = network.encoder.embeddings.code if isinstance(network, EhrModel) else None
        effects = _effects(network)
        embedded = torch.zeros(batch.n_tokens, 0) if codes is None else codes(batch.token)
        values, column = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
        if effects is not None:
            entries = effects.entries(batch)
            values, column = entries.value, entries.column
        statics = _statics(network)
        facts = torch.zeros(0) if statics is None else statics.z(batch)[0]
        of_model = (n_causes, has_classes, codes, effects)
        return cls(network, batch, n_visits, *of_model, embedded, values, column, statics, facts)

    def integrate(self, n_steps: int) -> TokenContributions:
        """Contributions by a Gauss-Legendre sum of so many steps."""
        try:
            from captum.attr import IntegratedGradients
        except ImportError as error:
            raise ConfigError(
                "integrated gradients need captum, which is not installed: pip install 'ehrtrack[explain]', or take "
                "--method occlusion"
            ) from error
        start = self._start()
        # captum takes only what is differentiated, and that must not be empty.
        parts = [(end[None], begin[None]) for end, begin in zip(self._end(), start, strict=True) if end.numel()]
        ends, starts = (tuple(part) for part in zip(*parts, strict=True))
        at_once = max(1, BATCH_TOKENS // self.batch.n_tokens)
        found = IntegratedGradients(self._value).attribute(
            ends, baselines=starts, n_steps=n_steps, method="gausslegendre", internal_batch_size=at_once
        )
        with torch.no_grad():
            total, base = (float(self._value(*values)) for values in (ends, starts))
        of_place, age = self._of_places(found), self._of_age(found)
        is_code = (self.batch.token != CLS).numpy()
        token, contribution = self.batch.token.numpy()[is_code], of_place[is_code]
        return TokenContributions(
            token=token,
            visit=_visit_numbers(self.batch, self.n_visits)[is_code],
            contribution=contribution,
            base=base,
            total=total,
            gap=total - base - float(contribution.sum()) - (age or 0.0),
            age=age,
            mean_age_years=None if self.statics is None else float(self.statics.mean[0]),
        )

    def _end(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.embedded, self.values, self.facts

    def _start(self) -> tuple[Tensor, Tensor, Tensor]:
        """[CLS] is no code, and columns of the record itself, such as its age, stay as they are in the regression."""
        embedded = torch.where((self.batch.token == CLS)[:, None], self.embedded, torch.zeros_like(self.embedded))
        values, facts = self.values, self.facts
        if self.effects is not None:
            token, code = self.effects.owners(self.column)
            values = torch.where((token < 0) & (code < 0), values, torch.zeros_like(values))
        if self.statics is not None:  # 0 is the training subjects' mean; a fact that is absent is below it
            absent, n_facts = -self.statics.mean / self.statics.scale, len(self.statics.token)
            facts = torch.cat([torch.zeros_like(facts[: len(facts) - n_facts]), absent[len(facts) - n_facts :]])
        return embedded, values, facts

    def _value(self, *moved: Tensor) -> Tensor:
        """(n,) what is integrated, at n points of the path: embeddings (n, T, D), columns (n, E) and facts (n, P)."""
        of = dict(zip(self._moved, moved, strict=True))
        n_points = len(moved[0])
        with self._replaced(of.get("embedded"), of.get("values"), of.get("facts")):
            logits = self.network(_repeated(self.batch, n_points))
        if self.n_causes > 1:
            survival, _ = cumulative_incidence(logits.reshape(n_points, -1, self.n_causes))
            return torch.log(-torch.log(survival[:, -1]))
        hazard = F.softplus(logits).sum(dim=1)  # -log of the survival: the sum of -log(1 - h)
        return torch.log(torch.expm1(hazard)) if self.has_classes else torch.log(hazard)

    @property
    def _moved(self) -> list[str]:
        return [name for name in ("embedded", "values", "facts") if getattr(self, name).numel()]

    @contextmanager
    def _replaced(self, embedded: Tensor | None, values: Tensor | None, facts: Tensor | None) -> Iterator[None]:
        """Within, the model reads these in the place of its own embeddings, columns and facts."""

        def read_embedded(module: nn.Module, given: Any, output: Tensor) -> Tensor:
            assert embedded is not None
            return embedded.flatten(0, 1)

        def read_values(module: nn.Module, given: Any, output: Tensor) -> Tensor:
            assert values is not None
            assert self.effects is not None
            return values @ self.effects.effect[self.column] + self.effects.intercept

        def read_facts(module: nn.Module, given: Any, output: Tensor) -> Tensor:
            assert facts is not None
            assert self.statics is not None
            return facts @ self.statics.effect

        handles = []
        if embedded is not None and self.codes is not None:
            handles.append(self.codes.register_forward_hook(read_embedded))
        if values is not None and self.effects is not None:
            handles.append(self.effects.register_forward_hook(read_values))
        if facts is not None and self.statics is not None:
            handles.append(self.statics.register_forward_hook(read_facts))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _of_places(self, found: tuple[Tensor, ...]) -> Floats:
        """(T,) contributions of the places of the batch; what a column has is shared by the places that it is of."""
        of = dict(zip(self._moved, found, strict=True))
        shares = np.zeros(self.batch.n_tokens)
        if "embedded" in of:
            shares += of["embedded"][0].sum(dim=1).double().numpy()
        if "values" in of and self.effects is not None:
            of_column = of["values"][0].double()
            token, code = self.effects.owners(self.column)
            for owner, at in ((token, self.batch.token), (code, self.effects.code[self.batch.token])):
                shares += _shared(of_column, owner, at)
        if "facts" in of and self.statics is not None:
            at = torch.where(is_static(self.batch), self.batch.token, -1)
            is_here = torch.isin(self.statics.token, at)
            of_fact = of["facts"][0, -len(is_here) :].double() if len(is_here) else torch.zeros(0)
            shares += _shared(of_fact[is_here], self.statics.token[is_here], at)
        return shares

    def _of_age(self, found: tuple[Tensor, ...]) -> float | None:
        """The contribution of the age, and of whether it is known, in the columns before those of facts."""
        if self.statics is None:
            return None
        of_facts = found[self._moved.index("facts")][0]
        return float(of_facts[: len(of_facts) - len(self.statics.token)].sum())


def _shared(of_column: Tensor, owner: Tensor, at: Tensor) -> Floats:
    """(T,) contributions of columns (E,) by their owners, in equal parts to the places (T,) where the owner is."""
    of, place = owner.numpy(), at.numpy()
    n_owners = max(1, int(place.max()) + 1)
    total = np.bincount(of[of >= 0], of_column.numpy()[of >= 0], minlength=n_owners)
    n_places = np.bincount(place[place >= 0], minlength=n_owners)
    shared: Floats = np.where(place >= 0, (total / np.maximum(n_places, 1))[np.maximum(place, 0)], 0.0)
    return shared


def _repeated(batch: Batch, n: int) -> Batch:
    """A batch of one subject, n times."""
    tensors = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    repeated: dict[str, Any] = {name: of.repeat(n) for name, of in tensors.items() if isinstance(of, Tensor)}
    return replace(batch, lengths=batch.lengths * n, **repeated)


def _visit_numbers(batch: Batch, n_visits: int) -> Ints:
    """(T,) the visit of each place, of so many in the record; `STATIC` of static facts, which have no time."""
    position = batch.position.numpy()  # visits are counted back from the prediction time
    visit: Ints = np.where(position == MAX_POSITION, STATIC, n_visits + 1 - position)
    return visit
