"""The database that the workers of a sweep or a study share: a file, or an address."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import optuna
import sqlalchemy
import sqlalchemy.exc
from optuna.storages import RDBStorage

from ehrtrack.errors import ConfigError

STORAGE = "EHRTRACK_STORAGE"
"""The variable that names the database which workers share, for the programs that `ehrtrack server` tells it."""

_SQLITE_LOCK_SECONDS = 60
_TRIES_TO_OPEN = 10
_REFUSED_ONCE = (sqlalchemy.exc.OperationalError, sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError)


def shared_storage(address: str, cache: Path) -> RDBStorage:
    """The database that workers share: at an address, at that of EHRTRACK_STORAGE, or in a file of the cache.

    Raises
    ------
    ConfigError
        If it cannot be opened or is no database of trials.
    """
    return study_storage(storage_place(address, cache))


def storage_place(address: str, cache: Path) -> Path | str:
    """Where `shared_storage` is."""
    return address or os.environ.get(STORAGE, "").strip() or cache / "sweeps.db"


def shown(place: Path | str) -> str:
    """A place as messages show it: without its password.

    >>> shown("postgresql://anna:secret@host/trials")
    'postgresql://anna:***@host/trials'
    """
    if isinstance(place, Path):
        return str(place)
    try:
        return sqlalchemy.make_url(place).render_as_string()
    except sqlalchemy.exc.ArgumentError:  # what is wrong with it may well be the password
        return "the address given, which is none of a database,"


def study_storage(where: Path | str) -> RDBStorage:
    """The database of trials in a sqlite file, shared by all workers that can see it, or at an address.

    Raises
    ------
    ConfigError
        If it cannot be opened or is no database of trials.
    """
    is_file = isinstance(where, Path)
    if isinstance(where, Path):
        where.parent.mkdir(parents=True, exist_ok=True)
    address = f"sqlite:///{where}" if is_file else str(where)
    of_engine = (
        {"connect_args": {"timeout": _SQLITE_LOCK_SECONDS}}
        if address.startswith("sqlite")
        else {"pool_pre_ping": True, "pool_size": 2}  # a connection that was cut off in the night is made anew
    )
    for tries_left in reversed(range(_TRIES_TO_OPEN)):
        try:
            return RDBStorage(address, engine_kwargs=of_engine)
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError, ImportError) as error:
            # of workers that make the tables at the same moment, all but one are refused once
            if tries_left and isinstance(error, _REFUSED_ONCE):
                time.sleep(random.uniform(0.1, 0.5))
                continue
            raise ConfigError(
                f"{shown(where)} is no database of trials that this Optuna can use: {str(error).splitlines()[0]}; "
                f"name another {'file' if is_file else 'one in runtime.storage'}"
            ) from error
    raise AssertionError("the last try returns or raises")
