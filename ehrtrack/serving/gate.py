"""Who may ask, and how much: decided by the headers, and by counting what is read of a body."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from ehrtrack.serving.messages import Refusal
from ehrtrack.serving.reading import Refused

MOST_BYTES = 8 * 2**20
"""Of a body: 100,000 events of 80 characters."""
MOST_BYTES_AT_ONCE = 8 * MOST_BYTES
"""Of all bodies that are being read."""
MOST_SECONDS = 30
"""In which a body has to be there."""

Messages = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Messages]]
Send = Callable[[Messages], Awaitable[None]]
App = Callable[[Messages, Receive, Send], Awaitable[None]]


class Gate:
    """Refuses who does not know the token; without one, who calls this machine by a name that is not its own.

    That a page in a browser on this machine can name anything it likes for 127.0.0.1 is how it would read answers
    that are for this machine alone (DNS rebinding).

    Parameters
    ----------
    host : on which it listens
    token : that has to come as ``Authorization: Bearer``; empty for a server that this machine alone reaches
    """

    def __init__(self, app: App, token: str, host: str) -> None:
        self._app = app
        self._names = {"127.0.0.1", "localhost", "[::1]", host}
        self._token = token.encode()

    async def __call__(self, scope: Messages, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, scope: Messages) -> Response | None:
        headers = Headers(scope=scope)
        if self._token:
            kind, _, given = headers.get("authorization", "").partition(" ")
            is_known = kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token)
            if is_known or scope["path"] == "/health":
                return None
            return refusal(
                401, "the token is missing or wrong: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
            )
        host = headers.get("host", "")
        if (host if host.endswith("]") else host.rpartition(":")[0] or host) in self._names:
            return None
        return refusal(403, "this server answers to localhost alone; with a token (EHRTRACK_SERVE_TOKEN) to any name")


def refusal(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    """An answer that says why there is none."""
    return Response(Refusal(detail=detail).model_dump_json(), status, headers, "application/json")


class Bodies:
    """Reads bodies, as long as they and all that are read at the same time are no larger than is allowed."""

    def __init__(self) -> None:
        self._n_bytes = 0

    async def read(self, request: HttpRequest) -> bytes:
        """The body of a request.

        Raises
        ------
        Refused
            415 where it is no JSON, 413 where it is too large, 503 where too much is read already, 408 where it does
            not come, 400 where it breaks off.
        """
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "needed is a body with Content-Type: application/json")
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            raise _too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(MOST_SECONDS):
                async for chunk in request.stream():
                    if len(body) + len(chunk) > MOST_BYTES:
                        raise _too_large()
                    if self._n_bytes + len(chunk) > MOST_BYTES_AT_ONCE:
                        raise Refused(503, "too much is being read already; try again in a second")
                    self._n_bytes += len(chunk)
                    body += chunk
        except TimeoutError:
            raise Refused(408, f"the body did not come within {MOST_SECONDS} s") from None
        except ClientDisconnect:
            raise Refused(400, "the body broke off") from None
        finally:
            self._n_bytes -= len(body)
        return bytes(body)


def _too_large() -> Refused:
    return Refused(413, f"a body of more than {MOST_BYTES:,} bytes; send the subjects in parts")
