"""`ehrtrack doctor` and certificates, against a real TLS server."""

from __future__ import annotations

import datetime
import http.server
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ehrtrack.tracking.client import diagnosis
from ehrtrack.tracking.client.diagnosis import check_server


def write_certificate(folder: Path, *, n_days: int, address: str) -> Path:
    """A certificate of its own authority, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "runs")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=100))
        .not_valid_after(now + datetime.timedelta(days=n_days, hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "runs.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return file


@contextmanager
def tls_server(certificate: Path) -> Iterator[str]:
    """A web server that says OK to everything, over TLS."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"OK")

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # a client that does not trust the certificate hangs up

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with Server(("127.0.0.1", 0), Handler) as web:
        web.socket = context.wrap_socket(web.socket, server_side=True)
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        try:
            yield f"https://127.0.0.1:{web.server_port}"
        finally:
            web.shutdown()
            thread.join()


@pytest.mark.parametrize(("n_days", "state"), [(90, "ok"), (5, "warn")])
def test_a_trusted_certificate_is_ok_until_it_is_about_to_end(
    n_days: int, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = write_certificate(tmp_path, n_days=n_days, address="127.0.0.1")
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
    with tls_server(certificate) as address:
        (finding,) = diagnosis._check_certificate(address)
    assert finding.state == state
    assert f"valid for {n_days} more days" in finding.text


@pytest.mark.parametrize("wrong", ["authority", "expired", "name"])
def test_a_certificate_that_cannot_be_trusted_fails(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = write_certificate(
        tmp_path, n_days=-2 if wrong == "expired" else 90, address="127.0.0.9" if wrong == "name" else "127.0.0.1"
    )
    if wrong != "authority":
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
    with tls_server(certificate) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        *_, finding = check_server(n_megabytes=1)
    assert (finding.state, finding.subject) == ("fail", "tls")
    assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in finding.text


def test_tls_that_is_not_checked_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
    (finding,) = diagnosis._check_certificate("https://127.0.0.1:1")
    assert finding.state == "warn"
