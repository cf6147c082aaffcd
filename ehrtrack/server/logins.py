"""The server's secrets: generated once, and kept in files that only their owner can read."""

from __future__ import annotations

import importlib.util
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ehrtrack.errors import TrackingError
from ehrtrack.files import written_aside

ADMIN = "admin"
AUTH_CACHE_SECONDS = 60
QUICK_HASH = "pbkdf2:sha256:1000"
"""How the server keeps the passwords made here. They are 128 random bits and more, which no hash has to make slow to
guess; mlflow's scrypt takes 0.1 s and 32 MB for each call that its cache does not know, and for each wrong login."""
SECRETS_FILE = "secrets.json"


@dataclass
class Secrets:
    """The keys and passwords of the server and its users."""

    flask_secret_key: str
    admin_password: str
    postgres_password: str
    users: dict[str, str] = field(default_factory=dict)  # name -> password
    studies_password: str = field(default_factory=lambda: secrets.token_hex(24))


def load_secrets(folder: Path, users: tuple[str, ...]) -> Secrets:
    """The secrets of the folder; missing ones are generated, with a password for each user that has none."""
    file = folder / SECRETS_FILE
    if file.exists():
        kept = Secrets(**json.loads(file.read_text()))
    else:
        kept = Secrets(secrets.token_hex(24), secrets.token_hex(24), secrets.token_hex(24))
    for user in users:
        kept.users.setdefault(user, secrets.token_hex(16))
    write_private(file, json.dumps(asdict(kept), indent=2) + "\n")
    return kept


def write_private(file: Path, text: str) -> None:
    """Write a file that only its owner can read, completely or not at all."""
    with written_aside(file, mode=0o600) as aside:
        aside.write_text(text)


def write_auth_config(folder: Path, database_uri: str) -> Path:
    """Write mlflow's basic-auth settings: every user may read everything, and write only their own experiments.

    The user who makes an experiment gets MANAGE on it; READ lets the others compare, and neither write nor delete.
    """
    if importlib.util.find_spec("flask_wtf") is None:
        raise TrackingError(
            "mlflow's login needs Flask-WTF, which is not installed; pip install 'mlflow[auth]', "
            "or start with --no-auth (on this machine only)"
        )
    file = folder / "basic_auth.ini"
    write_private(
        file,
        "[mlflow]\n"
        "default_permission = READ\n"
        f"database_uri = {database_uri.replace('%', '%%')}\n"
        f"admin_username = {ADMIN}\n"
        # without it every call costs a password hash, 0.3 s
        f"auth_cache_ttl_seconds = {AUTH_CACHE_SECONDS}\n",
    )
    return file


def make_hashes_quick(database_uri: str, passwords: Mapping[str, str]) -> None:
    """Store the users' passwords with `QUICK_HASH`, which is quick to check. Changed passwords are left as they are."""
    from sqlalchemy import create_engine, text
    from werkzeug.security import check_password_hash, generate_password_hash

    engine = create_engine(database_uri)
    try:
        with engine.begin() as connection:
            kept = connection.execute(text("SELECT username, password_hash FROM users")).all()
            for user, found in kept:
                password = passwords.get(user, "")
                if password and not found.startswith(f"{QUICK_HASH}$") and check_password_hash(found, password):
                    connection.execute(
                        text("UPDATE users SET password_hash = :new WHERE username = :user"),
                        {"new": generate_password_hash(password, QUICK_HASH), "user": user},
                    )
    finally:
        engine.dispose()


def write_user_file(folder: Path, address: str, user: str, password: str, storage: str | None = None) -> Path:
    """Write the settings that a pod needs as a file for ``set -a; . ./pod.env``.

    Parameters
    ----------
    storage : address of the database of studies, as a pod reaches it through the tunnel
    """
    file = folder / f"{user}.env"
    write_private(
        file,
        f"MLFLOW_TRACKING_URI={address}\nMLFLOW_TRACKING_USERNAME={user}\nMLFLOW_TRACKING_PASSWORD={password}\n"
        + (f"EHRTRACK_STORAGE={storage}\n" if storage else ""),
    )
    return file


def make_user(local_address: str, admin_password: str, user: str, password: str) -> None:
    """Create a user on the running server, if it does not exist.

    Raises
    ------
    TrackingError
        If the server refuses.
    """
    import requests

    answer = requests.post(
        f"{local_address}/api/2.0/mlflow/users/create",
        json={"username": user, "password": password},
        auth=(ADMIN, admin_password),
        timeout=30,
    )
    if answer.status_code == 401:
        raise TrackingError(
            f"the server does not accept the admin password in {SECRETS_FILE}; if it was changed over the network, "
            f"write the new one there as admin_password"
        )
    if answer.status_code != 200 and answer.json().get("error_code") != "RESOURCE_ALREADY_EXISTS":
        raise TrackingError(f"the server did not make user {user!r}: {answer.status_code} {answer.text[:300]}")
