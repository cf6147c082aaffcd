"""What can be known of docker/ without a container engine; and backup and restore, on a real PostgreSQL."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from running_servers import passable_folder
from werkzeug.security import check_password_hash

from ehrtrack.server import logins, postgres
from ehrtrack.server.command import MODEL_SOURCES
from ehrtrack.server.guard import MOST_BYTES_OF_A_CALL

DOCKER = Path(__file__).parents[2] / "docker"
SCRIPTS = sorted(DOCKER.glob("*.sh"))
INSTRUCTIONS = {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "RUN", "USER", "WORKDIR"}
needs_postgres_programs = pytest.mark.skipif(
    postgres.find_binaries() is None, reason="PostgreSQL's programs are not here"
)


def shell(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(DOCKER / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def compose() -> dict[str, dict[str, dict[str, object]]]:
    read: dict[str, dict[str, dict[str, object]]] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return read


def settings_of(file: Path) -> dict[str, str]:
    lines = [line for line in file.read_text().splitlines() if "=" in line and not line.startswith("# ")]
    return dict(line.lstrip("#").split("=", 1) for line in lines)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_are_shell(script: Path) -> None:
    assert subprocess.run(["sh", "-n", str(script)], check=False).returncode == 0


def test_one_env_file_has_every_setting_of_compose_and_new_secrets(tmp_path: Path) -> None:
    for name in ("a.env", "b.env"):
        assert shell("make-env.sh", "runs.example.org", tmp_path / name).returncode == 0
    first, second = settings_of(tmp_path / "a.env"), settings_of(tmp_path / "b.env")
    text = (DOCKER / "compose.yaml").read_text()
    environment = compose()["services"]["mlflow"]["environment"]
    assert isinstance(environment, dict)
    handed_on = {name for name, value in environment.items() if value is None}
    assert set(first) == set(re.findall(r"\$\{(\w+)", text)) | handed_on
    secrets = ("POSTGRES_PASSWORD", "MLFLOW_ADMIN_PASSWORD", "FLASK_SECRET_KEY")
    assert [len(first[name]) for name in secrets] == [48, 48, 48]
    assert len({settings[name] for settings in (first, second) for name in secrets}) == 6
    assert first["CORS_ORIGINS"] == "https://runs.example.org"
    assert first["ALLOWED_HOSTS"].split(",")[0] == "runs.example.org"
    assert stat.S_IMODE((tmp_path / "a.env").stat().st_mode) == 0o600


def test_an_env_file_that_is_there_keeps_its_passwords(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("POSTGRES_PASSWORD=kept\n")
    done = shell("make-env.sh", "runs.example.org", tmp_path / ".env")
    assert done.returncode == 1
    assert "is there already" in done.stderr
    assert (tmp_path / ".env").read_text() == "POSTGRES_PASSWORD=kept\n"


def test_compose_lets_nothing_but_tls_out_and_waits_for_health() -> None:
    read = compose()
    services = read["services"]
    assert {name for name, service in services.items() if "ports" in service} == {"caddy"}
    assert services["caddy"]["depends_on"] == {"mlflow": {"condition": "service_healthy"}}
    assert services["mlflow"]["depends_on"] == {"database": {"condition": "service_healthy"}}
    assert "healthcheck" in services["database"]
    assert "HEALTHCHECK" in (DOCKER / "server.Dockerfile").read_text()
    for service in services.values():
        for mount in service.get("volumes", []):  # type: ignore[attr-defined]
            source = mount.split(":")[0]
            assert (DOCKER / source).exists() if source.startswith(".") else source in read["volumes"], mount


def test_compose_and_ehrtrack_server_have_the_same_login_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logins.importlib.util, "find_spec", lambda _: object())
    local = settings_of(logins.write_auth_config(tmp_path, "postgresql://mlflow@database:5432/mlflow_auth"))
    composed = settings_of(DOCKER / "basic_auth.ini")
    strip = lambda settings: {key.strip(): value.strip() for key, value in settings.items()}  # noqa: E731
    assert strip(composed) == strip(local)


def test_compose_and_ehrtrack_server_take_models_from_the_same_places() -> None:
    environment = compose()["services"]["mlflow"]["environment"]
    assert isinstance(environment, dict)
    assert {name: environment.get(name) for name in MODEL_SOURCES} == MODEL_SOURCES


def test_tls_and_server_take_the_same_length_of_a_call_and_memory_is_bounded() -> None:
    assert MOST_BYTES_OF_A_CALL == 16 * 2**20
    caddy = re.findall(r"request_body @(\w+) \{\s*max_size (\w+)\s*\}", (DOCKER / "Caddyfile").read_text())
    assert caddy == [("files", "64GiB"), ("calls", "16MiB")]
    services = compose()["services"]
    assert {name: service.get("mem_limit") for name, service in services.items() if name != "database"} == {
        "mlflow": "2g",
        "caddy": "512m",
    }


def test_in_its_image_the_server_is_guarded_without_ehrtrack(tmp_path: Path) -> None:
    copied = re.search(r"COPY (.*) /opt/mlflow/", (DOCKER / "server.Dockerfile").read_text())
    assert copied is not None
    for file in copied[1].split():
        shutil.copy(DOCKER.parent / file, tmp_path)
    code = (
        "import guard, sys; from pathlib import Path; "
        "print(*guard.guarded(['python', '-m', 'uvicorn', '--factory', 'mlflow.server.auth:create_app'], "
        f"Path({str(tmp_path)!r}))); print('ehrtrack' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=300
    )
    command = ["python", "-m", "uvicorn", "--factory", "--app-dir", str(tmp_path), "guard:create_app"]
    assert done.stdout.splitlines()[-2:] == [f"{command} mlflow.server.auth:create_app", "False"]


def test_compose_and_ehrtrack_server_have_the_same_settings_of_memory() -> None:
    services = compose()["services"]
    given = [word for setting in postgres.MEMORY_SETTINGS for word in ("-c", setting)]
    assert services["database"]["command"] == ["postgres", *given]
    environment = services["mlflow"]["environment"]
    assert isinstance(environment, dict)
    assert {name: environment.get(name) for name in postgres.POOL} == postgres.POOL


@pytest.mark.parametrize("file", sorted(DOCKER.glob("*.Dockerfile")), ids=lambda file: file.name)
def test_dockerfiles_have_known_instructions_and_copy_what_is_there(file: Path) -> None:
    text = re.sub(r"\\\n", " ", file.read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert [line for line in lines if line.split()[0] not in INSTRUCTIONS] == []
    assert re.fullmatch(r"ARG PYTHON_IMAGE=[a-z]+:[0-9.a-z-]+", lines[0])
    assert lines[1] == "FROM ${PYTHON_IMAGE}"
    for line in lines:
        if line.startswith("COPY "):
            assert [name for name in line.split()[1:-1] if not (DOCKER.parent / name).exists()] == []
    assert any(line.startswith("USER ") for line in lines), "the image would run as root"


SERVICE_KEYS = {
    "image", "command", "build", "environment", "volumes", "ports", "depends_on", "healthcheck", "restart",
    "mem_limit",
}  # fmt: skip


def test_compose_has_the_form_that_the_specification_asks_for() -> None:
    """By hand, of the parts that are used: the specification's schema comes with no package."""
    read = compose()
    assert set(read) == {"services", "volumes"}
    assert all(options is None for options in read["volumes"].values())
    for name, service in read["services"].items():
        assert set(service) <= SERVICE_KEYS, name
        assert ("image" in service) != ("build" in service)
        assert service["restart"] in ("no", "always", "on-failure", "unless-stopped")
        environment = service["environment"]
        assert isinstance(environment, dict)
        assert all(value is None or isinstance(value, str) for value in environment.values())
        for port in service.get("ports", []):  # type: ignore[attr-defined]
            assert re.fullmatch(r"\d+:\d+", port)
        for needed, how in service.get("depends_on", {}).items():  # type: ignore[attr-defined]
            assert needed in read["services"]
            assert how == {"condition": "service_healthy"}
        check = service.get("healthcheck")
        if check is not None:
            assert isinstance(check, dict)
            assert check["test"][0] in ("CMD", "CMD-SHELL")
            assert re.fullmatch(r"\d+(s|m)", check["interval"])
            assert isinstance(check["retries"], int)
    build = read["services"]["mlflow"]["build"]
    assert isinstance(build, dict)
    assert (DOCKER / build["context"] / build["dockerfile"]).is_file()


def test_every_variable_of_compose_has_a_default_or_says_how_it_is_made() -> None:
    text = (DOCKER / "compose.yaml").read_text()
    assert re.findall(r"\$(?!\{[A-Z_]+(:-[^}]*|:\?[^}]+)\})", text) == []


@pytest.mark.parametrize("file", sorted(DOCKER.glob("*.Dockerfile")), ids=lambda file: file.name)
def test_commands_of_dockerfiles_are_in_exec_form_and_run_lines_are_shell(file: Path) -> None:
    text = re.sub(r"\\\n", " ", file.read_text())
    for line in text.splitlines():
        instruction, _, rest = line.partition(" ")
        if instruction in ("CMD", "ENTRYPOINT") or (instruction == "HEALTHCHECK" and " CMD " in line):
            words = json.loads(rest.rpartition("CMD ")[2])
            assert all(isinstance(word, str) for word in words)
        if instruction == "RUN":
            assert subprocess.run(["sh", "-n", "-c", rest], check=False).returncode == 0


ENGINE = """#!/bin/sh
case "$1 $2" in
    "pull --quiet") echo "$3" >> {pulled} ;;
    "image inspect") echo "${{5%:*}}{digest}" ;;
esac
"""
IMAGES = {"PYTHON_IMAGE": "python:3.11-slim", "POSTGRES_IMAGE": "postgres:17", "CADDY_IMAGE": "caddy:2"}


def test_images_are_pinned_by_their_digests_in_the_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, env = tmp_path / "engine", tmp_path / "a.env"
    monkeypatch.setenv("ENGINE", str(engine))
    assert shell("make-env.sh", "runs.example.org", env).returncode == 0
    before = settings_of(env)

    for digest in ("@sha256:0123", "@sha256:4567"):
        engine.write_text(ENGINE.format(pulled=tmp_path / "pulled", digest=digest))
        engine.chmod(0o755)
        done = shell("pin-images.sh", env)
        assert done.returncode == 0, done.stderr
        pinned = {name: image.split(":")[0] + digest for name, image in IMAGES.items()}
        assert settings_of(env) == before | pinned
    assert stat.S_IMODE(env.stat().st_mode) == 0o600
    assert set((tmp_path / "pulled").read_text().split()) == set(IMAGES.values())
    compose_file = (DOCKER / "compose.yaml").read_text()
    assert all(f"${{{name}:-{image}}}" in compose_file for name, image in IMAGES.items())


def test_an_image_without_a_digest_pins_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, env = tmp_path / "engine", tmp_path / "a.env"
    monkeypatch.setenv("ENGINE", str(engine))
    env.write_text("DOMAIN=runs.example.org\n")
    engine.write_text(ENGINE.format(pulled=tmp_path / "pulled", digest=""))
    engine.chmod(0o755)

    done = shell("pin-images.sh", env)

    assert done.returncode == 1
    assert "knows no digest of python:3.11-slim" in done.stderr
    assert env.read_text() == "DOMAIN=runs.example.org\n"


def test_the_images_have_the_mlflow_of_the_clients() -> None:
    wanted = re.search(r"^mlflow==(\S+)", (DOCKER.parent / "requirements.lock").read_text(), re.MULTILINE)
    assert wanted is not None
    assert f'"mlflow[auth]=={wanted[1]}"' in (DOCKER / "server.Dockerfile").read_text()


def test_a_user_is_made_with_a_quick_hash_and_a_file_for_its_owner_alone(tmp_path: Path) -> None:
    """The engine, the database and the network are programs of this test that note what they are given."""
    docker = tmp_path / "docker"
    shutil.copytree(DOCKER, docker)
    assert subprocess.run(["sh", str(docker / "make-env.sh"), "runs.example.org"], check=False).returncode == 0
    programs = tmp_path / "bin"
    programs.mkdir()
    python = f"exec {sys.executable} -c"
    for name, script in {
        "curl": f"cat > {tmp_path}/curl",
        # compose -f FILE exec -T mlflow python -c CODE
        "docker": f'case "$*" in *psql*) cat > {tmp_path}/psql ;; *) shift 8; {python} "$1" ;; esac',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    environment = {"PATH": f"{programs}:/usr/bin:/bin"}
    done = subprocess.run(
        ["sh", str(docker / "add-user.sh"), "pod"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    settings = settings_of(tmp_path / "pod.env")
    assert settings["MLFLOW_TRACKING_URI"] == "https://runs.example.org"
    assert stat.S_IMODE((tmp_path / "pod.env").stat().st_mode) == 0o600
    password = settings["MLFLOW_TRACKING_PASSWORD"]
    assert f'"{password}' in (tmp_path / "curl").read_text().replace("\\", "")
    kept = re.fullmatch(
        r"UPDATE users SET password_hash = '(pbkdf2:sha256:1000\$[^']+)' WHERE username = 'pod';\n",
        (tmp_path / "psql").read_text(),
    )
    assert kept is not None
    assert check_password_hash(kept[1], password)
    assert password not in done.stdout + done.stderr


def write_sums(backup: Path) -> None:
    names = ["store", "mlflow.dump", "mlflow_auth.dump", "artifacts.tar"]
    sums = subprocess.run(["sha256sum", *names], cwd=backup, capture_output=True, text=True, check=True).stdout
    (backup / "SHA256SUMS").write_text(sums)


@needs_postgres_programs
def test_backup_and_restore_bring_back_rows_and_files_and_take_away_what_came_later() -> None:
    with passable_folder() as folder:
        secrets = logins.load_secrets(folder, ())
        cluster = postgres.PostgresCluster(folder / "postgres", secrets.postgres_password, secrets.studies_password)
        cluster.start()
        try:
            file = folder / "artifacts" / "1" / "run" / "weights.bin"
            file.parent.mkdir(parents=True)
            file.write_bytes(b"weights")
            cluster._run("psql", "-d", "mlflow", "-qc", "CREATE TABLE runs (name text); INSERT INTO runs VALUES ('a')")
            cluster._run(
                "psql", "-d", "mlflow_auth", "-qc", "CREATE TABLE users (name text); INSERT INTO users VALUES ('u')"
            )
            done = shell("backup.sh", folder / "backup", folder)
            assert done.returncode == 0, done.stderr
            cluster._run("psql", "-d", "mlflow", "-qc", "UPDATE runs SET name = 'lost'")
            cluster._run("psql", "-d", "mlflow_auth", "-qc", "DROP TABLE users")
            file.write_bytes(b"damaged")
            (file.parent / "later.bin").touch()
            done = shell("restore.sh", folder / "backup", folder)
            assert done.returncode == 0, done.stderr
            assert cluster._run("psql", "-d", "mlflow", "-tAc", "SELECT name FROM runs") == "a\n"
            assert cluster._run("psql", "-d", "mlflow_auth", "-tAc", "SELECT name FROM users") == "u\n"
            assert {path.name: path.read_bytes() for path in file.parent.iterdir()} == {"weights.bin": b"weights"}
            assert not (folder / "artifacts" / ".replaced").exists()
            dump = folder / "backup" / "mlflow_auth.dump"
            dump.write_bytes(dump.read_bytes()[:-200])  # with its list of contents, without the end of its rows
            write_sums(folder / "backup")
            cluster._run("psql", "-d", "mlflow", "-qc", "UPDATE runs SET name = 'newer'")
            assert shell("restore.sh", folder / "backup", folder).returncode != 0
            assert cluster._run("psql", "-d", "mlflow", "-tAc", "SELECT name FROM runs") == "newer\n"
            (folder / "backup" / "mlflow.dump").write_bytes(b"cut")
            assert shell("restore.sh", folder / "backup", folder).returncode != 0
            assert file.read_bytes() == b"weights"
        finally:
            cluster.stop()


def rows_of(database: Path, statement: str) -> list[tuple[str, ...]]:
    with closing(sqlite3.connect(database)) as connection:
        found = connection.execute(statement).fetchall()
        connection.commit()
    return found


@pytest.fixture
def sqlite_folder(tmp_path: Path) -> Path:
    """What `ehrtrack server --store sqlite` keeps: a run, a user, and three files."""
    folder = tmp_path / "data"
    (folder / "artifacts" / "1").mkdir(parents=True)
    for name, table in (("mlflow.db", "runs"), ("auth.db", "users")):
        rows_of(folder / name, "PRAGMA journal_mode=WAL")
        rows_of(folder / name, f"CREATE TABLE {table} (name TEXT)")
        rows_of(folder / name, f"INSERT INTO {table} VALUES ('kept')")
    for name in ("a.bin", "b.bin", ".hidden"):
        (folder / "artifacts" / "1" / name).write_bytes(name.encode() * 9_000)
    return folder


def state(folder: Path) -> tuple[object, ...]:
    files = sorted(file for file in (folder / "artifacts").rglob("*") if file.is_file())
    return (
        rows_of(folder / "mlflow.db", "SELECT name FROM runs"),
        rows_of(folder / "auth.db", "SELECT name FROM users"),
        {str(file.relative_to(folder)): file.read_bytes() for file in files},
    )


def test_a_folder_with_sqlite_is_backed_up_and_restored_while_it_is_in_use(sqlite_folder: Path, tmp_path: Path) -> None:
    before = state(sqlite_folder)
    with closing(sqlite3.connect(sqlite_folder / "mlflow.db")) as server:
        server.execute("SELECT name FROM runs").fetchall()
        done = shell("backup.sh", tmp_path / "backup", sqlite_folder)
        assert done.returncode == 0, done.stderr
        rows_of(sqlite_folder / "mlflow.db", "UPDATE runs SET name = 'lost'")
        rows_of(sqlite_folder / "auth.db", "DELETE FROM users")
        (sqlite_folder / "artifacts" / "1" / "a.bin").unlink()
        (sqlite_folder / "artifacts" / "later.bin").touch()
        done = shell("restore.sh", tmp_path / "backup", sqlite_folder)
        assert done.returncode == 0, done.stderr
        assert state(sqlite_folder) == before
        assert server.execute("SELECT name FROM runs").fetchall() == [("kept",)]
    assert rows_of(sqlite_folder / "mlflow.db", "PRAGMA journal_mode") == [("wal",)]


@pytest.mark.parametrize(
    "damage",
    ["cut tar", "cut tar, signed", "cut database, signed", "cut logins, signed", "no sums", "few sums", "store"],
)
def test_a_backup_that_is_not_whole_changes_nothing(damage: str, sqlite_folder: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    assert shell("backup.sh", backup, sqlite_folder).returncode == 0
    rows_of(sqlite_folder / "mlflow.db", "UPDATE runs SET name = 'newer'")
    (sqlite_folder / "artifacts" / "1" / "newer.bin").write_text("newer")
    before = state(sqlite_folder)
    files = {"database": "mlflow.dump", "logins": "mlflow_auth.dump", "store": "store"}
    file = backup / next((name for word, name in files.items() if word in damage), "artifacts.tar")
    if "cut" in damage:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif damage == "no sums":
        (backup / "SHA256SUMS").unlink()
    elif damage == "few sums":
        (backup / "SHA256SUMS").write_text((backup / "SHA256SUMS").read_text().splitlines(keepends=True)[0])
    else:
        file.write_text("postgresql\n")
    if "signed" in damage or damage == "store":
        write_sums(backup)
    assert shell("restore.sh", backup, sqlite_folder).returncode != 0
    assert state(sqlite_folder) == before
    assert not (sqlite_folder / "artifacts" / ".restoring").exists()


@pytest.mark.parametrize("script", ["backup.sh", "restore.sh"])
def test_a_folder_that_cannot_be_backed_up_is_told(script: str, tmp_path: Path) -> None:
    (tmp_path / "stopped" / "postgres").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    for folder, told in {
        "stopped": "does not run, and its runs are in PostgreSQL; start it",
        "empty": "has no runs, in postgres/ or mlflow.db",
        "absent": "is no folder",
    }.items():
        done = shell(script, tmp_path / "backup", tmp_path / folder)
        assert (done.returncode, told in done.stderr, "sed" in done.stderr) == (2, True, False)
    assert not (tmp_path / "backup").exists()


@needs_postgres_programs
def test_a_cluster_goes_on_with_its_rows_and_refuses_a_wrong_password() -> None:
    with passable_folder() as folder:
        for expected in ("", "kept\n"):
            cluster = postgres.PostgresCluster(folder / "postgres", "a-password", "another")
            cluster.start()
            try:
                tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
                assert cluster._run("psql", "-d", "mlflow", "-tAc", tables) == expected
                cluster._run("psql", "-d", "mlflow", "-qc", "CREATE TABLE IF NOT EXISTS kept ()")
                cluster._password = "another"
                with pytest.raises(postgres.TrackingError, match="password authentication failed"):
                    cluster._run("psql", "-d", "mlflow", "-tAc", tables)
            finally:
                cluster.stop()
            assert not (folder / "postgres" / "postmaster.pid").exists()


def test_workers_get_what_a_pod_needs_and_run_one_command(tmp_path: Path) -> None:
    file = logins.write_user_file(tmp_path, "https://runs.example.org", "pod", "secret", "postgresql://studies")
    needed = {line.split("=")[0] for line in file.read_text().splitlines()}
    sky, dstack = (yaml.safe_load((DOCKER / name).read_text()) for name in ("sky.yaml", "dstack.yml"))
    assert set(sky["envs"]) == needed | {"STUDY"}
    assert {name.split("=")[0] for name in dstack["env"]} == needed | {"STUDY"}
    job = yaml.safe_load((DOCKER / "k8s-job.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["args"][0] == "work"
    ends = [sky["run"].strip(), dstack["commands"][-1], (DOCKER / "slurm.sh").read_text().splitlines()[-1]]
    assert all(line.startswith("exec ") and " work " in line for line in ends)  # signals reach the worker itself
