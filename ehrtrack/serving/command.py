"""``ehrtrack serve``: load models, answer until SIGTERM or Ctrl-C, and finish what was asked by then."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

import uvicorn

from ehrtrack.errors import ConfigError, TrackingError
from ehrtrack.pipeline.adapted import Bases
from ehrtrack.serving.app import make_app
from ehrtrack.serving.batching import Batcher
from ehrtrack.serving.models import Models, Watch, load
from ehrtrack.tracking.client.connection import check_reachable
from ehrtrack.training.threads import use_threads

TOKEN = "EHRTRACK_SERVE_TOKEN"
"""The variable with what a caller has to know."""
LEAST_CHARACTERS = 16
MOST_CONNECTIONS = 1_000
"""More are answered with 503 at once; the queue for the model is shorter (`batching.MOST_WAITING`)."""
DRAIN_SECONDS = 30
"""For what is in flight when the command is to end."""


@dataclass(frozen=True)
class ServeSettings:
    """What is served, and where.

    Attributes
    ----------
    models : each a run id, ``models:/NAME@champion`` or ``models:/NAME/VERSION``, with ``NAME=`` before it where
        requests are to call it otherwise than by its registered name or its run. The first answers who names none
    port : 0 takes a free one
    poll_seconds : between two looks at a champion that may have moved
    n_threads : that compute a batch
    """

    models: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    poll_seconds: float = 5.0
    n_threads: int = 1


def serve(settings: ServeSettings, tell: Callable[[str], object]) -> None:
    """Serve a model; says when it is ready, and whenever another version takes its place.

    Raises
    ------
    ConfigError
        If others could reach it and there is no token, or two models have one name.
    TrackingError, CheckpointError
        If a model cannot be fetched, or predicts no outcome; or the port is taken.
    """
    token = _token(settings.host)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    with _listening(settings) as listener:
        check_reachable()
        use_threads(settings.n_threads)
        models, bases = Models(), Bases()
        watches = [_put(models, bases, model, settings.poll_seconds, tell) for model in settings.models]
        batcher = Batcher(models)
        app = make_app(
            models,
            batcher,
            token=token,
            host=settings.host,
            registry=lambda: "; ".join(watch.state for watch in watches),
        )
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        ready = f"ready: http://{host}:{listener.getsockname()[1]} answers with {_told(models)}"
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            lifespan="off",
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
        try:
            _Server(config, lambda: tell(ready)).run([listener])
        finally:
            for watch in watches:
                watch.close()
            batcher.close()


class _Server(uvicorn.Server):
    """uvicorn, which tells when it listens. After a signal it answers what is in flight, and then raises the signal."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], object]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()


def _put(models: Models, bases: Bases, named: str, poll_seconds: float, tell: Callable[[str], object]) -> Watch:
    """Load a model and serve it; the watch of its alias.

    Raises
    ------
    ConfigError
        If there is a model of this name.
    """
    name, _, reference = ("", "", named) if named.startswith(("models:/", "runs:/")) else named.rpartition("=")
    served = load(reference, bases, name=name)
    if served.named.name in models.now():
        raise ConfigError(f"two models are called {served.named.name!r}; give one another name: NAME={reference}")
    models.put(served)
    return Watch(models, reference, bases, name=served.named.name, seconds=poll_seconds, tell=tell)


def _told(models: Models) -> str:
    """Which models these are, for people."""
    named = [served.named for served in models.now().values()]
    return ", ".join(f"{one.name} (version {one.version})" if one.version else f"run {one.run_id}" for one in named)


def _token(host: str) -> str:
    """What callers have to know; empty where this machine alone can call.

    Raises
    ------
    ConfigError
        If others can, and there is none, or one that can be guessed.
    """
    token = os.environ.get(TOKEN, "").strip()
    if not token and not _is_loopback(host):
        raise ConfigError(
            f"--host {host}: whoever reaches the port could ask the model; set {TOKEN} (`openssl rand -hex 32`), put "
            "TLS in front, or listen on 127.0.0.1"
        )
    if token and len(token) < LEAST_CHARACTERS:
        raise ConfigError(
            f"{TOKEN} has {len(token)} characters, and needed are {LEAST_CHARACTERS} or more: `openssl rand -hex 32`"
        )
    return token


def _listening(settings: ServeSettings) -> socket.socket:
    """A socket that listens, before a model is fetched in vain.

    Raises
    ------
    TrackingError
        If the port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio sends at once where it is told that this is TCP: else an answer waits 40 ms for an acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise TrackingError(
            f"port {settings.port} on {settings.host} is taken, or not this machine's ({error.strerror}); end what "
            "listens there, or choose another with --port"
        ) from None
    return listener


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
