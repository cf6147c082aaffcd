"""A PostgreSQL cluster for the server alone: on the loopback, with a password, in one folder."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path

from ehrtrack.errors import TrackingError
from ehrtrack.files import written_aside
from ehrtrack.server.processes import end, free_port, is_free, start, tail, wait_until

DATABASES = ("mlflow", "mlflow_auth")
USER = "mlflow"
STUDIES = "ehrtrack_studies"
"""The database of studies and sweeps, and its user, as whom pods take their next run from it; of the runs' databases
that user sees nothing."""
DRIVER = "psycopg2"
START_SECONDS = 60
_DEBIAN = Path("/usr/lib/postgresql")
_HAS_STUDIES = f"SELECT 1 FROM pg_roles WHERE rolname = '{STUDIES}'"
_NEEDED = ("initdb", "postgres", "pg_isready", "psql", "createdb")
# A process of PostgreSQL holds 20 MB, and in time all of shared_buffers; there is one for each connection. With these
# and one process of mlflow (server/guard.py), six runs at once took 658 MB of resident memory instead of
# 1,049 MB (605 with at most 5 connections a pool, 703 with 12), at the CPU time of before: benchmarks/server_load.py.
# docker/compose.yaml has the same.
MEMORY_SETTINGS = (
    "shared_buffers=16MB",
    "autovacuum_max_workers=1",
    "max_parallel_workers_per_gather=0",
    "max_logical_replication_workers=0",
    "jit=off",
)
# Connections that a worker keeps, and opens beyond them while calls wait. A batch of metrics holds one while it asks
# for another, so ten let nine batches through at the same moment: of twelve, all could wait for each other, for 30 s.
POOL = {"MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "2", "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "8"}
_SETTINGS = ("listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=60", *MEMORY_SETTINGS)


def find_binaries() -> Path | None:
    """The folder with PostgreSQL's programs: from PATH, otherwise Debian's newest; None if there is none."""
    on_path = shutil.which("initdb")
    debian = sorted(_DEBIAN.glob("*/bin"), key=lambda folder: float(folder.parent.name), reverse=True)
    for folder in ([Path(on_path).resolve().parent] if on_path else []) + debian:
        if all((folder / program).exists() for program in _NEEDED):
            return folder
    return None


def why_not() -> str:
    """What is missing for PostgreSQL on this machine, and how to install it; empty if it can be used."""
    if find_binaries() is None:
        return "no PostgreSQL programs were found on PATH or in /usr/lib/postgresql (Debian: apt install postgresql)"
    if importlib.util.find_spec(DRIVER) is None:
        return "Python has no driver for it (pip install psycopg2-binary)"
    return ""


class PostgresCluster:
    """A cluster in a folder, and its server while it runs.

    Parameters
    ----------
    folder
        Created and initialised if it does not exist.
    password
        Password of the user who owns the databases of runs and of logins.
    studies_password
        Password of the user who owns the database of studies.
    """

    def __init__(self, folder: Path, password: str, studies_password: str) -> None:
        binaries = find_binaries()
        if binaries is None:
            raise TrackingError(f"PostgreSQL cannot be used: {why_not()}")
        self.folder = folder
        self.port = _usual_port(folder.with_name("postgres.port"))
        self.log = folder.parent / "postgres.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._binaries = binaries
        self._password = password
        self._studies_password = studies_password
        self._account = _unprivileged_account()

    def uri(self, database: str) -> str:
        """The address of a database with its password; it names the driver, since the default may vary."""
        return f"postgresql+psycopg2://{USER}:{self._password}@127.0.0.1:{self.port}/{database}"

    @property
    def studies_uri(self) -> str:
        """The address of the database of studies, with the password of its user."""
        return f"postgresql+psycopg2://{STUDIES}:{self._studies_password}@127.0.0.1:{self.port}/{STUDIES}"

    def start(self) -> None:
        """Initialise the folder if it is new, start the server, and create missing databases.

        Raises
        ------
        TrackingError
            If a step fails; the message has the end of the log.
        """
        if not self.folder.exists():
            self._initialise()
        command = [str(self._binaries / "postgres"), "-D", str(self.folder), "-p", str(self.port)]
        for setting in _SETTINGS:
            command += ["-c", setting]
        self.process = start(command, folder=self.folder.parent, log=self.log, user=self._account)
        wait_until(self._is_ready, self.process, seconds=START_SECONDS, log=self.log)
        there = self._run("psql", "-d", "postgres", "-tAc", "SELECT datname FROM pg_database").split()
        for database in DATABASES:
            if database not in there:
                self._run("createdb", database)
        self._make_studies(is_new=STUDIES not in there)

    def stop(self) -> None:
        """Stop the server; open connections are closed (PostgreSQL's fast shutdown)."""
        if self.process is not None:
            end(self.process, signal.SIGINT, is_group=False)

    def _initialise(self) -> None:
        """Create the cluster aside and move it into place, so that an interrupted start leaves nothing incomplete."""
        aside = self.folder.with_name(self.folder.name + ".new")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(mode=0o700)
        password_file = self.folder.with_name("initdb.password")
        password_file.touch(mode=0o600)
        password_file.write_text(self._password + "\n")
        if self._account is not None:
            shutil.chown(aside, self._account)
            shutil.chown(password_file, self._account)
        try:
            process = start(
                [
                    *(str(self._binaries / "initdb"), "-D", str(aside), "-U", USER, "-E", "UTF8", "--locale=C"),
                    *("--auth=scram-sha-256", f"--pwfile={password_file}"),
                ],
                folder=self.folder.parent,
                log=self.log,
                user=self._account,
            )
            if process.wait() != 0:
                raise TrackingError(f"PostgreSQL's initdb failed{self._account_hint()}: {tail(self.log)}")
        finally:
            password_file.unlink()
        aside.rename(self.folder)

    def _make_studies(self, *, is_new: bool) -> None:
        role = "ALTER ROLE" if self._run("psql", "-d", "postgres", "-tAc", _HAS_STUDIES).strip() else "CREATE ROLE"
        statements = [f"{role} {STUDIES} LOGIN PASSWORD '{self._studies_password}';"]
        statements += [f"REVOKE CONNECT ON DATABASE {database} FROM PUBLIC;" for database in DATABASES]
        statements += [f"CREATE DATABASE {STUDIES} OWNER {STUDIES};"] if is_new else []
        # by standard input: a command line is for everybody on the machine to read
        self._run("psql", "-d", "postgres", "-q", "-v", "ON_ERROR_STOP=1", "-f", "-", text="\n".join(statements))

    def _is_ready(self) -> bool:
        command = [str(self._binaries / "pg_isready"), "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def _run(self, program: str, *arguments: str, text: str = "") -> str:
        command = [str(self._binaries / program), "-h", "127.0.0.1", "-p", str(self.port), "-U", USER, *arguments]
        environment = os.environ | {"PGPASSWORD": self._password}
        done = subprocess.run(command, env=environment, input=text, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise TrackingError(f"PostgreSQL's {program} failed: {done.stderr.strip()}")
        return done.stdout

    def _account_hint(self) -> str:
        if self._account is None:
            return ""
        return (
            f" (run as {self._account}, since it refuses root; every folder above {self.folder} has to let that "
            "account through, mode 711: choose another --folder, or --store sqlite)"
        )


def _usual_port(file: Path) -> int:
    """The port of the last start, which pods know, if it is free; otherwise another, which is kept for the next."""
    if file.exists() and is_free("127.0.0.1", port := int(file.read_text())):
        return port
    port = free_port()
    with written_aside(file) as aside:
        aside.write_text(f"{port}\n")
    return port


def _unprivileged_account() -> str | None:
    """The account that runs PostgreSQL: ours, or its own if we are root, which PostgreSQL refuses."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        raise TrackingError(
            "PostgreSQL refuses to run as root, and there is no account `postgres` to run it as; "
            "start the server as another user, make the account (useradd postgres), or take --store sqlite"
        ) from None
