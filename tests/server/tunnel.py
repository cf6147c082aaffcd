"""What `ssh -R` does, without ssh: a port of the pod that leads to a port of the laptop."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def tunnel(from_port: int, to_port: int) -> Iterator[None]:
    """Inside, connections to one loopback port arrive at the other."""

    class Connection(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(("127.0.0.1", to_port)) as there:
                back = threading.Thread(target=_pass_on, args=(there, self.request))
                back.start()
                _pass_on(self.request, there)
                back.join()

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    with Server(("127.0.0.1", from_port), Connection) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    """Until the source has no more to say."""
    with contextlib.suppress(OSError):
        while content := source.recv(65_536):
            target.sendall(content)
        target.shutdown(socket.SHUT_WR)
