"""``ehrtrack server``: run the services of docker/compose.yaml as processes of this machine, with the same settings."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

from ehrtrack.errors import ConfigError, TrackingError
from ehrtrack.server import logins, postgres
from ehrtrack.server.processes import MLFLOW_SERVER, end, end_orphans, is_free, start, tail, wait_until

START_SECONDS = 300
# What a model version may be made from: what the server itself keeps. Else it reads, with its own keys, whatever
# bucket a user names. docker/compose.yaml has the same.
MODEL_SOURCES = {"MLFLOW_CREATE_MODEL_VERSION_SOURCE_VALIDATION_REGEX": "^(runs|models|mlflow-artifacts):/"}


@dataclass(frozen=True)
class ServerSettings:
    """The settings of the server.

    Attributes
    ----------
    address
        Address that pods use, such as ``https://runs.example.org``; if None, the address that it listens on.
    store
        Where runs are kept: auto (PostgreSQL if this machine can), postgresql or sqlite.
    allowed_hosts
        Host names (with ports) it answers to besides its own; none are mlflow's default, localhost and private ones.
    """

    folder: Path
    host: str = "127.0.0.1"
    port: int = 5000
    address: str | None = None
    store: str = "auto"
    has_auth: bool = True
    users: tuple[str, ...] = ("pod",)
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    artifacts: str | None = None
    workers: int = 1

    @property
    def local_address(self) -> str:
        """The address by which this machine reaches the server."""
        is_any = self.host in ("0.0.0.0", "::")
        host = f"[{self.host}]" if ":" in self.host and not is_any else self.host
        return f"http://{'127.0.0.1' if is_any else host}:{self.port}"

    @property
    def public_address(self) -> str:
        """The address by which pods reach the server."""
        return (self.address or self.local_address).rstrip("/")


def serve(settings: ServerSettings, tell: Callable[[str], object]) -> None:
    """Start the server, print when it is ready, and end all its processes on SIGTERM or Ctrl-C.

    Raises
    ------
    ConfigError
        If the settings contradict each other.
    TrackingError
        If something it needs is missing, a process fails, or the folder is in use.
    """
    _check(settings)
    folder = settings.folder.absolute()
    # Passable but not listable: PostgreSQL's own account has to get to its folder. Files are for the owner alone.
    folder.mkdir(mode=0o711, parents=True, exist_ok=True)
    with contextlib.ExitStack() as cleanup:
        stop = cleanup.enter_context(_stop_signals())
        cleanup.enter_context(_only_server_of(folder))
        logins.write_private(folder / ".gitignore", "*\n")  # passwords and records, in whatever repository it lies
        end_orphans(folder, tell)
        _check_port(settings)
        secrets = logins.load_secrets(folder, settings.users if settings.has_auth else ())
        runs_uri, logins_uri, cluster = _start_store(settings, folder, secrets, tell, cleanup)
        if stop.is_set():
            return
        server = _start_mlflow(settings, folder, runs_uri, logins_uri, secrets)
        cleanup.callback(end, server)
        log = folder / "server.log"
        wait_until(lambda: stop.is_set() or _is_healthy(settings), server, seconds=START_SECONDS, log=log)
        if stop.is_set():
            return
        if settings.has_auth:
            _make_logins(settings, secrets, logins_uri)
        _tell_how_to_use(settings, folder, secrets, cluster, tell)
        watched = {"mlflow server": (server, log)}
        if cluster is not None and cluster.process is not None:
            watched["PostgreSQL"] = (cluster.process, cluster.log)
        _watch(stop, watched)
        tell("ending: runs that are being written keep their journals; `ehrtrack sync` sends the rest")


def _check(settings: ServerSettings) -> None:
    if not settings.has_auth and not _is_loopback(settings.host):
        raise ConfigError(
            f"--no-auth with --host {settings.host}: whoever reaches port {settings.port} could read and delete "
            "every run; listen on 127.0.0.1, or leave the login on"
        )
    for user in settings.users:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", user) or user == logins.ADMIN:
            raise ConfigError(f"--user {user!r}: a name has letters, digits, _ and -, and is not {logins.ADMIN!r}")
    if settings.store == "postgresql" and (lack := postgres.why_not()):
        raise TrackingError(f"--store postgresql: {lack}; or take --store sqlite")


def _check_port(settings: ServerSettings) -> None:
    if not is_free(settings.host, settings.port):
        raise TrackingError(
            f"port {settings.port} on {settings.host} is taken, or not this machine's; end what listens there, "
            "or choose another with --port"
        )


@contextlib.contextmanager
def _only_server_of(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrackingError(
                f"another server uses {folder}; end it, or choose another folder with --folder"
            ) from None
        yield


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set, instead of interrupting a start that is not complete."""
    stop = threading.Event()

    def set_stop(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {which: signal.signal(which, set_stop) for which in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


def _start_store(
    settings: ServerSettings,
    folder: Path,
    secrets: logins.Secrets,
    tell: Callable[[str], object],
    cleanup: contextlib.ExitStack,
) -> tuple[str, str, postgres.PostgresCluster | None]:
    """The addresses of the databases of runs and of logins, and their PostgreSQL cluster, if there is one."""
    cluster_folder, file = folder / "postgres", folder / "mlflow.db"
    lack = postgres.why_not()
    # auto stays with the store that has the folder's runs
    store = settings.store
    if store == "auto":
        store = "postgresql" if cluster_folder.exists() or not (lack or file.exists()) else "sqlite"
    if store == "sqlite":
        if cluster_folder.exists():
            raise ConfigError(f"{folder} has its runs in PostgreSQL; take --store postgresql, or another --folder")
        reason = f" (not PostgreSQL: {lack})" if lack and settings.store == "auto" else ""
        tell(f"runs in {file}, sqlite in WAL mode{reason}")
        for database in (file, folder / "auth.db"):
            _make_wal(database)
        return f"sqlite:///{file}", f"sqlite:///{folder / 'auth.db'}", None
    if file.exists():
        raise ConfigError(f"{folder} has its runs in {file.name}; take --store sqlite, or another --folder")
    if lack:
        raise TrackingError(f"the runs in {cluster_folder} need PostgreSQL: {lack}")
    cluster = postgres.PostgresCluster(cluster_folder, secrets.postgres_password, secrets.studies_password)
    cleanup.callback(cluster.stop)
    cluster.start()
    tell(f"runs in PostgreSQL, {cluster_folder}, 127.0.0.1:{cluster.port}")
    runs_uri, logins_uri = (cluster.uri(database) for database in postgres.DATABASES)
    return runs_uri, logins_uri, cluster


def _make_wal(file: Path) -> None:
    """Set write-ahead logging, so that readers and a writer can work at the same time; the file keeps the mode."""
    file.touch(mode=0o600)
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


def _start_mlflow(
    settings: ServerSettings, folder: Path, runs_uri: str, logins_uri: str, secrets: logins.Secrets
) -> subprocess.Popen[bytes]:
    artifacts = settings.artifacts or str(folder / "artifacts")
    command = [
        *(sys.executable, "-m", MLFLOW_SERVER),
        *("--host", settings.host, "--port", str(settings.port)),
        *("--workers", str(settings.workers), "--artifacts-destination", artifacts),
    ]
    if hosts := _allowed_hosts(settings):
        command += ["--allowed-hosts", ",".join(hosts)]
    if settings.cors_origins:
        command += ["--cors-allowed-origins", ",".join(settings.cors_origins)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")} | {
        # by environment: a command line is for everybody on the machine to read
        "MLFLOW_BACKEND_STORE_URI": runs_uri,
        # 0.3 GB instead of 2.5 GB, in one process
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        **MODEL_SOURCES,
        **postgres.POOL,
    }
    if settings.has_auth:
        command += ["--app-name", "basic-auth"]
        environment |= {
            "MLFLOW_AUTH_CONFIG_PATH": str(logins.write_auth_config(folder, logins_uri)),
            "MLFLOW_AUTH_ADMIN_PASSWORD": secrets.admin_password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.flask_secret_key,
        }
    return start(command, folder=folder, log=folder / "server.log", environment=environment)


def _allowed_hosts(settings: ServerSettings) -> list[str]:
    """The host names it answers to; empty for mlflow's default. A list replaces the default, so our own are added."""
    named = list(settings.allowed_hosts)
    if settings.address:
        named.append(urlsplit(settings.address).netloc)
    if not named:
        return []
    own = [f"{name}:{settings.port}" for name in ("localhost", "127.0.0.1")]
    return list(dict.fromkeys([*named, *own]))


def _is_healthy(settings: ServerSettings) -> bool:
    request = urllib.request.Request(f"{settings.local_address}/health")
    request.add_header("Host", f"127.0.0.1:{settings.port}")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _make_logins(settings: ServerSettings, secrets: logins.Secrets, logins_uri: str) -> None:
    for user in settings.users:
        logins.make_user(settings.local_address, secrets.admin_password, user, secrets.users[user])
    logins.make_hashes_quick(logins_uri, secrets.users | {logins.ADMIN: secrets.admin_password})


def _tell_how_to_use(
    settings: ServerSettings,
    folder: Path,
    secrets: logins.Secrets,
    cluster: postgres.PostgresCluster | None,
    tell: Callable[[str], object],
) -> None:
    address, storage = settings.public_address, None if cluster is None else cluster.studies_uri
    tell(f"ready: {address}/#/experiments?workflowType=machine_learning")
    if not settings.has_auth:
        tell(f"  export MLFLOW_TRACKING_URI={address}")
        if storage:
            logins.write_private(folder / "studies.env", f"EHRTRACK_STORAGE={storage}\n")
            tell(f"  workers of a study also need what is in {folder / 'studies.env'}")
    for user in settings.users if settings.has_auth else ():
        file = logins.write_user_file(folder, address, user, secrets.users[user], storage)
        tell(f"  copy {file} to the pod, and there: set -a; . ./{file.name}; set +a; ehrtrack doctor")
    if settings.has_auth:
        tell(f"  user {logins.ADMIN!r} sees and may do everything; its password is in {folder / logins.SECRETS_FILE}")
    needs_tunnel = _is_loopback(settings.host) and not settings.address
    ports = [*([settings.port] if needs_tunnel else []), *([cluster.port] if cluster else [])]
    if ports:
        tunnel = " ".join(f"-R {port}:127.0.0.1:{port}" for port in ports)
        listens = "it listens" if needs_tunnel else "the database of studies listens"
        tell(f"  {listens} on this machine only; for a pod, run here: ssh -N {tunnel} USER@POD")
    if settings.has_auth and not needs_tunnel and not address.startswith("https:"):
        tell("  passwords travel in the clear over http: put TLS in front (docker/Caddyfile) and give --address")


def _watch(stop: threading.Event, processes: dict[str, tuple[subprocess.Popen[bytes], Path]]) -> None:
    """Wait for a signal to stop; if one process ends by itself, all are ended."""
    while not stop.wait(0.5):
        for name, (process, log) in processes.items():
            if process.poll() is not None:
                raise TrackingError(
                    f"{name} ended by itself (exit code {process.returncode}); start again with the same --folder. "
                    + tail(log)
                )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
