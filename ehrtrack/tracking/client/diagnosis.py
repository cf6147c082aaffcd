"""Diagnose the tracking server step by step: name, certificate, login, version, clock, speed, files."""

from __future__ import annotations

import hashlib
import socket
import ssl
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from ehrtrack.errors import TrackingError
from ehrtrack.tracking.client.connection import (
    CHECK_TIMEOUT_SECONDS,
    basic_auth,
    check_reachable,
    client,
    http_get,
    is_remote,
    raise_for,
    redacted,
    tls_verification,
    token_header,
    tracking_errors,
    tracking_uri,
)
from ehrtrack.tracking.provenance import user_name

if TYPE_CHECKING:
    import requests

MAX_SKEW_SECONDS = 30
MAX_ROUND_TRIP_MS = 500
MIN_MEGABYTES_PER_SECOND = 0.5
MIN_CERTIFICATE_DAYS = 14
N_ROUND_TRIPS = 5
_ONE_EXPERIMENT = "/api/2.0/mlflow/experiments/search?max_results=1"


@dataclass(frozen=True)
class Finding:
    """One line of a diagnosis: what was checked, the result, and what to change."""

    state: Literal["ok", "warn", "fail"]
    subject: str
    text: str

    def to_text(self) -> str:
        """The line as aligned columns."""
        return f"{self.state:<4}  {self.subject:<12}  {self.text}"


def check_server(n_megabytes: int) -> Iterator[Finding]:
    """Check everything from the address to a file that is sent and read back."""
    subject = "address"
    try:
        uri = tracking_uri()
        if not is_remote():
            check_reachable()
            yield Finding("ok", subject, f"{redacted(uri)}: a local database; MLFLOW_TRACKING_URI names a server")
        else:
            yield _check_name(uri)
            subject = "tls"
            yield from _check_certificate(uri)
            subject = "server"
            health = http_get(uri, "/health")
            if health.status_code != 200 or health.text.strip() != "OK":
                raise_for(health, uri, asked="GET /health")
            yield Finding("ok", subject, "answers as an MLflow server does")
            subject = "host name"
            answer = http_get(uri, _ONE_EXPERIMENT)
            if answer.status_code == 403 and "host" in answer.text.lower():
                raise_for(answer, uri, asked="a list of experiments")
            yield Finding("ok", subject, f"{urlsplit(uri).netloc.rpartition('@')[2]} is accepted")
            subject = "login"
            yield _check_login(answer, uri)
            subject = "version"
            yield _check_version(uri)
            yield _check_clock(uri)
            subject = "round trip"
            yield _check_round_trip(uri)
        subject = "files"
        yield from _check_files(n_megabytes)
    except TrackingError as trouble:
        yield Finding("fail", subject, str(trouble))


def _check_name(uri: str) -> Finding:
    parts = urlsplit(uri)
    host = parts.hostname or ""
    try:
        found = socket.getaddrinfo(
            host, parts.port or (443 if parts.scheme == "https" else 80), type=socket.SOCK_STREAM
        )
    except OSError as error:
        raise TrackingError(
            f"the name {host!r} of {redacted(uri)} cannot be resolved ({error}); "
            "correct MLFLOW_TRACKING_URI, or this machine's DNS"
        ) from error
    return Finding("ok", "address", f"{redacted(uri)} is {found[0][4][0]}")


def _check_certificate(uri: str) -> Iterator[Finding]:
    parts = urlsplit(uri)
    has_login = basic_auth() is not None or bool(token_header())
    if parts.scheme == "http":
        if has_login and not _is_loopback(parts.hostname or ""):
            yield Finding("warn", "tls", "none: the password travels in the clear; use an https:// address or a tunnel")
        return
    verify = tls_verification()
    if verify is False:
        yield Finding("warn", "tls", "MLFLOW_TRACKING_INSECURE_TLS is set: anybody in between can pose as the server")
        return
    http_get(uri, "/health")  # says what is wrong with a certificate in words
    context = ssl.create_default_context(cafile=verify if isinstance(verify, str) else _authorities())
    address = (parts.hostname or "", parts.port or 443)
    try:
        with (
            socket.create_connection(address, timeout=CHECK_TIMEOUT_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=parts.hostname) as secured,
        ):
            certificate = secured.getpeercert() or {}
    except OSError as error:
        raise TrackingError(
            f"no TLS connection to {redacted(uri)}: {error}; look at the server's certificate"
        ) from error
    n_days = (ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()) / 86_400
    text = f"the certificate is trusted, and valid for {n_days:.0f} more days"
    yield Finding("ok", "tls", text) if n_days > MIN_CERTIFICATE_DAYS else Finding("warn", "tls", f"{text}; renew it")


def _authorities() -> str:
    """The certificate authorities that requests, and so mlflow, trusts."""
    import requests.utils

    return str(requests.utils.DEFAULT_CA_BUNDLE_PATH)


def _check_login(answer: requests.Response, uri: str) -> Finding:
    if answer.status_code != 200:
        raise_for(answer, uri, asked="a list of experiments")
    if basic_auth() is None and not token_header():
        return Finding("ok", "login", "the server asks for none")
    return Finding("ok", "login", "accepted")


def _check_version(uri: str) -> Finding:
    import mlflow

    answer = http_get(uri, "/version")
    theirs, ours = answer.text.strip(), mlflow.__version__
    if answer.status_code != 200 or len(theirs) > 20:
        return Finding("warn", "version", f"the server does not report its own; ours is mlflow {ours}")
    if theirs == ours:
        return Finding("ok", "version", f"mlflow {ours} on both sides")
    state: Literal["warn", "fail"] = "warn" if theirs.split(".")[:2] == ours.split(".")[:2] else "fail"
    return Finding(
        state, "version", f"the server has mlflow {theirs}, this machine {ours}; pip install mlflow=={theirs}"
    )


def _check_clock(uri: str) -> Finding:
    answer, now = http_get(uri, "/health"), datetime.now(UTC)
    if "Date" not in answer.headers:
        return Finding("warn", "clock", "the server does not report its time")
    # the header counts whole seconds
    skew_seconds = (now - parsedate_to_datetime(answer.headers["Date"])).total_seconds()
    text = f"{abs(skew_seconds):.0f} s {'ahead of' if skew_seconds > 0 else 'behind'} the server's"
    if abs(skew_seconds) > MAX_SKEW_SECONDS:
        return Finding(
            "warn", "clock", f"{text}; runs would be shown in the wrong order: set it (timedatectl set-ntp true)"
        )
    return Finding("ok", "clock", text)


def _check_round_trip(uri: str) -> Finding:
    times_ms = []
    for _ in range(N_ROUND_TRIPS):
        began = time.perf_counter()
        http_get(uri, _ONE_EXPERIMENT)
        times_ms.append((time.perf_counter() - began) * 1000)
    median_ms = statistics.median(times_ms)
    text = f"{median_ms:.0f} ms for a call, with its connection (median of {N_ROUND_TRIPS})"
    if median_ms > MAX_ROUND_TRIP_MS:
        return Finding("warn", "round trip", f"{text}; training does not wait for it, but `compare` will be slow")
    return Finding("ok", "round trip", text)


def _check_files(n_megabytes: int) -> Iterator[Finding]:
    """Write a run and a file in an experiment of their own, read them back, and delete them."""
    from mlflow.artifacts import download_artifacts

    # Random bytes, since a proxy may compress; unique, since a deleted experiment keeps its name.
    with _scratch_run() as run_id, tempfile.TemporaryDirectory() as folder:
        yield Finding("ok", "writing", "an experiment and a run were made, and are deleted again")
        sent = Path(folder) / "doctor.bin"
        content = hashlib.shake_128(run_id.encode()).digest(n_megabytes * 1_000_000)
        sent.write_bytes(content)
        with tracking_errors(f"upload {n_megabytes} MB"):
            began = time.perf_counter()
            client().log_artifact(run_id, str(sent))
            up_seconds = time.perf_counter() - began
        with tracking_errors(f"download {n_megabytes} MB"):
            began = time.perf_counter()
            got = download_artifacts(
                run_id=run_id, artifact_path=sent.name, dst_path=f"{folder}/got", tracking_uri=tracking_uri()
            )
            down_seconds = time.perf_counter() - began
        if Path(got).read_bytes() != content:
            raise TrackingError(
                f"{n_megabytes} MB came back changed; look at the proxy and the disk on the way to "
                f"{redacted(tracking_uri())}"
            )
    up, down = n_megabytes / up_seconds, n_megabytes / down_seconds
    text = f"{n_megabytes} MB went up at {up:.1f} MB/s and down at {down:.1f} MB/s, unchanged"
    if min(up, down) < MIN_MEGABYTES_PER_SECOND:
        yield Finding("warn", "files", f"{text}; checkpoints will be long on their way: train.checkpoint less often")
    else:
        yield Finding("ok", "files", text)


@contextmanager
def _scratch_run() -> Iterator[str]:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    mlflow_client = client()
    with tracking_errors("make an experiment"):
        experiment_id = mlflow_client.create_experiment(f"ehrtrack-doctor-{uuid.uuid4().hex[:12]}")
    try:
        with tracking_errors("make a run"):
            run = mlflow_client.create_run(experiment_id, run_name="doctor", tags={"mlflow.user": user_name()})
        yield run.info.run_id
        with tracking_errors("delete a file"):
            # deleting a run leaves its files for `mlflow gc`
            get_artifact_repository(run.info.artifact_uri, tracking_uri=tracking_uri()).delete_artifacts()  # type: ignore[no-untyped-call]
        with tracking_errors("delete a run"):
            mlflow_client.delete_run(run.info.run_id)
    finally:
        with tracking_errors("delete an experiment"):
            mlflow_client.delete_experiment(experiment_id)


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host.startswith("127.") or host == "::1"
