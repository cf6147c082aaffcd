"""The models that are served, by name, and the watch for a champion that moves."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from types import MappingProxyType

from ehrtrack.data.vocabulary import SPECIAL_TOKENS
from ehrtrack.errors import EhrtrackError, TrackingError
from ehrtrack.pipeline.adapted import Bases
from ehrtrack.pipeline.model_card import measures_of
from ehrtrack.pipeline.predictor import Predictor, load_predictor
from ehrtrack.serving.messages import Event, Facts, ModelNamed, Request, Subject, read_stamp
from ehrtrack.serving.scoring import Served, answer
from ehrtrack.tracking.client.connection import check_reachable
from ehrtrack.tracking.client.queries import fetch_model, get_run
from ehrtrack.tracking.client.registry import find_version

_log = logging.getLogger(__name__)


class Models:
    """Name -> model. A model is exchanged for another at once; who looked before goes on with the one that was there.

    What puts models here need not be a registry: an adapter on a base that another entry has too is one more entry.
    """

    def __init__(self) -> None:
        self._table: Mapping[str, Served] = MappingProxyType({})

    def now(self) -> Mapping[str, Served]:
        """The models as they are, the first one first; later changes do not show in it."""
        return self._table

    def put(self, served: Served) -> None:
        """Serve a model under its name, in the place of the one that had it."""
        self._table = MappingProxyType({**self._table, served.named.name: served})


def load(reference: str, bases: Bases, *, name: str = "") -> Served:
    """Fetch and read a model, and let it score once, so that its first request is as quick as the others.

    Parameters
    ----------
    reference : run id, ``models:/NAME@champion`` or ``models:/NAME/VERSION``
    bases : shared by all models that are adapters, so that each more of one base takes the memory of the adapter
    name : that requests call it by; empty for that of the registered model, or the run's id

    Raises
    ------
    TrackingError
        If there is no such model, or it cannot be fetched.
    CheckpointError
        If it is damaged, or predicts no outcome.
    """
    version = find_version(reference) if reference.startswith("models:/") else None
    with tempfile.TemporaryDirectory(prefix="ehrtrack-serve-") as folder:
        fetched = fetch_model(version.uri if version else reference, Path(folder))
        predictor = load_predictor(fetched.folder, shared=bases)
    named = ModelNamed(
        name=name or (version.name if version else fetched.run_id),
        version=version.version if version else None,
        run_id=fetched.run_id,
        horizon_days=predictor.grid.horizon_days,
    )
    served = Served(predictor, _facts(predictor, named))
    predictor.make_ready()
    answer(served, [_warming_up(predictor)])
    return served


def _facts(predictor: Predictor, named: ModelNamed) -> Facts:
    folder, measures = predictor.folder, {}
    try:
        measures = measures_of(get_run(named.run_id))
    except TrackingError as error:  # of a version whose run was deleted
        _log.warning("the measures of run %s are not known: %s", named.run_id, error)
    horizon = f"the outcome within {named.horizon_days:g} days of the prediction time"
    return Facts(
        model=named,
        outcome="the label's class" if folder.has_classes else horizon,
        n_causes=predictor.n_causes,
        cohort=folder.fingerprints.get("cohort"),
        max_tokens=folder.max_tokens,
        measures=measures,
    )


def _warming_up(predictor: Predictor) -> Request:
    """A made-up subject in codes that the model knows."""
    codes = list(dict.fromkeys(predictor.folder.vocabulary.code_of_token[len(SPECIAL_TOKENS) :]))[:3]
    time, asked = read_stamp("2020-01-01"), read_stamp("2020-01-02")
    events = [Event.model_construct(code=code, time=time) for code in codes]
    born = read_stamp("1960-01-01")
    subject = Subject.model_construct(subject_id=1, events=events, birth=born, prediction_times=[asked])
    return Request.model_construct(subjects=[subject])


class Watch:
    """Looks every few seconds whether an alias stands for another version; loads that beside the one that answers.

    While the registry is away, or the new version cannot be read, what is served stays, and `state` says so.

    Parameters
    ----------
    reference : such as ``models:/NAME@champion``; a run or a version never moves, and is not watched
    seconds : between two looks
    tell : told of every exchange
    """

    def __init__(
        self, models: Models, reference: str, bases: Bases, *, name: str, seconds: float, tell: Callable[[str], object]
    ) -> None:
        self._bases, self._models, self._reference, self._name, self._seconds, self._tell = (
            bases,
            models,
            reference,
            name,
            seconds,
            tell,
        )
        self._seen, self._problem = time.monotonic(), ""
        self._stop = threading.Event()
        self._is_moving = "@" in reference
        if self._is_moving:
            # A daemon, as a look at a registry that went away may take minutes, and SIGTERM does not wait for it.
            threading.Thread(target=self._watch, name="watch", daemon=True).start()

    @property
    def state(self) -> str:
        """For people: whether a move would be noticed."""
        if not self._is_moving:
            return f"{self._reference} never moves"
        seconds = time.monotonic() - self._seen
        if self._problem:
            return self._problem
        return f"{self._reference} was looked up {seconds:.0f} s ago, and is every {self._seconds:g} s"

    def close(self) -> None:
        """Look no more."""
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                self._look()
            except EhrtrackError as error:
                since = datetime.now().astimezone().isoformat(timespec="seconds")
                if not self._problem:
                    self._problem = (
                        f"{self._reference} could not be looked up or read since {since}; what is served stays"
                    )
                    self._tell(f"{self._problem}: {error}")
            else:
                self._seen, self._problem = time.monotonic(), ""

    def _look(self) -> None:
        check_reachable()  # which gives up within seconds, where mlflow's client goes on for minutes
        there = self._models.now()[self._name].named
        if find_version(self._reference).version != there.version:
            served = load(self._reference, self._bases, name=self._name)
            self._models.put(served)
            self._tell(f"{self._name}: version {served.named.version} answers now, in the place of {there.version}")
