"""A server with logins, shared by the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from running_servers import RunningServer, passable_folder, running


@pytest.fixture(scope="module")
def login_server() -> Iterator[RunningServer]:
    """A server with logins for two users, sqlite."""
    with (
        passable_folder() as folder,
        running(folder / "data", "--store", "sqlite", "--user", "ada", "--user", "eve") as it,
    ):
        yield it
