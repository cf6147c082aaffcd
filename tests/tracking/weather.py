"""A real HTTP proxy before a real tracking server, with the bad weather of networks: down, silent, 503, 403."""

from __future__ import annotations

import http.client
import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


@dataclass
class Weather:
    """What the proxy does to the next requests, and those it has seen.

    Attributes
    ----------
    mode : fair (passes on), silent (never answers), lossy (passes on, and loses the answer), or a status to answer
    on_request : called with each request's number, from 1, and its path before anything is done with it
    """

    address: str
    mode: str = "fair"
    seen: list[str] = field(default_factory=list)
    on_request: Callable[[int, str], None] = lambda number, path: None
    is_over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def proxy(server: str, port: int = 0) -> Iterator[Weather]:
    """A proxy before `server`, at a port of one's own choice, until the block ends."""
    target = urlsplit(server).netloc

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with weather.lock:
                weather.seen.append(f"{self.command} {self.path.split('?')[0]}")
                number = len(weather.seen)
            weather.on_request(number, self.path)
            if weather.mode == "silent":
                weather.is_over.wait(300)
                return
            if weather.mode.isdigit():
                self.answer(int(weather.mode), b"bad weather", {})
                return
            connection = http.client.HTTPConnection(target, timeout=60)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
            connection.request(self.command, self.path, body, headers)
            reply = connection.getresponse()
            content = reply.read()
            connection.close()
            if weather.mode != "lossy":
                self.answer(reply.status, content, dict(reply.getheaders()))

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = handle_any  # noqa: N815

        def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in _HOP | {"server", "date"}:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that was killed is what these tests are about."""

    with Server(("127.0.0.1", port), Handler) as web:
        weather = Weather(f"http://127.0.0.1:{web.server_port}")
        thread = threading.Thread(target=web.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield weather
        finally:
            weather.is_over.set()
            web.shutdown()
            thread.join()
