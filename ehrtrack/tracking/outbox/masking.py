"""Mask passwords and tokens of this process's environment in everything that is logged."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, quote_plus, unquote

NOTIFY = "EHRTRACK_NOTIFY"
"""The variable with the address of the service that is told how a study ended."""
_SECRET_NAME = re.compile(
    rf"(^{NOTIFY}$|PASSWORD|PASSWD|PASSPHRASE|TOKEN|SECRET|CREDENTIAL|API_?KEY|ACCESS_?KEY|CONNECTION_?STRING|CONN_STR"
    r"|_(PWD|PASS|PAT|AUTH|KEY|DSN|SAS)(?=_|$))(?!.*_(PATH|FILE|DIR|SOCK|COMMAND|CACHE|ENABLED)$)"
)
_MIN_SECRET_CHARACTERS = 6
_MIN_LINE_CHARACTERS = 16
# what proves something within a connection string, such as AccountName=…;AccountKey=…
_PART_OF_CONNECTION = re.compile(r"(?i)(?:key|signature|password|pwd|secret|token)=([^;\s]+)")
# user:password@ of an address, whose second slash a Path takes away; or a token alone
_URL_LOGIN = re.compile(r"(:/{1,2})[^/@:\s\"']+:[^/@\s\"']*@|(://)[^/@\s\"']+@")


def masked(value: Any) -> Any:
    """A JSON value in which `without_secrets` was applied to every text, including keys."""
    return _masked(value, _secrets())


def without_secrets(text: str) -> str:
    """The text with the values of secret environment variables, and logins in addresses, replaced by ``***``.

    Examples
    --------
    >>> without_secrets("cloned from https://ada:hunter2@git.example.org/study.git")
    'cloned from https://***@git.example.org/study.git'
    """
    return str(masked(text))


def _secrets() -> list[str]:
    """The values to mask, longest first, so that no value is left in part because another is contained in it."""
    whole = {value for name, value in os.environ.items() if _SECRET_NAME.search(name.upper())}
    logins = {match[1] for value in os.environ.values() for match in re.finditer(r"://[^/@:\s]*:([^/@\s]+)@", value)}
    parts = {part for value in whole for part in _PART_OF_CONNECTION.findall(value)}
    lines = {
        line.strip()
        for value in whole
        if "\n" in value.strip()
        for line in value.splitlines()
        if len(line.strip()) >= _MIN_LINE_CHARACTERS and not line.startswith("-----")
    }
    plain = whole | logins | parts | {unquote(value) for value in logins}
    written = {
        form for value in plain if len(value.strip()) >= _MIN_SECRET_CHARACTERS for form in _written_forms(value)
    }
    return sorted(written | lines, key=len, reverse=True)


def _written_forms(value: str) -> set[str]:
    """The forms of a text: as it is, stripped, and as JSON, JSON within JSON, Python and a URL write it."""
    forms = {value, value.strip()}
    for _ in range(2):
        forms |= {json.dumps(form, ensure_ascii=is_ascii)[1:-1] for form in forms for is_ascii in (True, False)}
    return forms | {repr(value)[1:-1], quote(value, safe=""), quote_plus(value)}


def _masked(value: Any, secrets: Sequence[str]) -> Any:
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, "***")
        return _URL_LOGIN.sub(lambda match: f"{match[1] or match[2]}***@", value)
    if isinstance(value, Mapping):
        return {_masked(key, secrets): _masked(item, secrets) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(item, secrets) for item in value]
    return value
