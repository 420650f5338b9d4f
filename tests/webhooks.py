"""A webhook of our own: a real HTTP or HTTPS server on this machine that answers as the test says."""

from __future__ import annotations

import datetime
import ipaddress
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent_events.notification.webhooks import PATH_PREFIX

SECRET = "c0ffee00112233445566778899aabbcc"
"""The part of the webhook that only its owner knows."""
TOKEN = "tok-5f2b8d1e9a7c4630b1d2"


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Answer = Callable[["Exchange"], None]


@dataclass(slots=True)
class Exchange:
    """One request and the way to answer it."""

    received: Received
    handler: BaseHTTPRequestHandler
    server: WebhookServer

    def reply(self, status: int = 200, body: bytes | Any = b"", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.handler.send_response(status)
        for name, value in headers.items():
            self.handler.send_header(name.replace("_", "-"), value)
        self.handler.send_header("Content-Length", str(len(content)))
        self.handler.end_headers()
        self.handler.wfile.write(content)

    def raw(self, data: bytes) -> None:
        self.handler.wfile.write(data)
        self.handler.wfile.flush()

    def hang(self) -> None:
        """Say nothing until the test lets go."""
        self.server.let_go.wait(30)


def answer(status: int = 200, body: bytes | Any = b"", **headers: str) -> Answer:
    """Return what answers like this."""
    return lambda exchange: exchange.reply(status, body, **headers)


def hang(exchange: Exchange) -> None:
    exchange.hang()


def close(exchange: Exchange) -> None:
    """Close the connection without an answer."""


def drip(head: bytes, drop: bytes) -> Answer:
    """Return what sends ``head`` and then a ``drop`` now and then, without end: never silent, never done."""

    def dripping(exchange: Exchange) -> None:
        exchange.raw(head)
        while not exchange.server.let_go.wait(0.05):
            exchange.raw(drop)

    return dripping


def huge(size: int) -> Answer:
    """Return what answers 200 with ``size`` bytes."""

    def pouring(exchange: Exchange) -> None:
        exchange.handler.send_response(200)
        exchange.handler.send_header("Content-Length", str(size))
        exchange.handler.end_headers()
        sent = 0
        while sent < size:
            block = b"x" * min(65536, size - sent)
            exchange.raw(block)
            sent += len(block)

    return pouring


@dataclass(slots=True)
class WebhookServer:
    """``answer`` may be replaced at any time; ``received`` holds every request in the order of arrival."""

    http: ThreadingHTTPServer
    scheme: str
    answer: Answer = field(default_factory=lambda: answer(200, {"code": 0}))
    received: list[Received] = field(default_factory=list)
    let_go: threading.Event = field(default_factory=threading.Event)

    @property
    def port(self) -> int:
        return int(self.http.server_address[1])

    def url(self, host: str = "127.0.0.1", *, secret: str = SECRET) -> str:
        return f"{self.scheme}://{host}:{self.port}{PATH_PREFIX}{secret}"

    @property
    def bodies(self) -> list[Any]:
        return [received.json for received in self.received]


@contextmanager
def webhook_server(*, tls: ssl.SSLContext | None = None) -> Iterator[WebhookServer]:
    """Run a server for the time of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            received = Received(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
            server.received.append(received)
            with suppress(OSError):  # the client may go away, as it should
                server.answer(Exchange(received, self, server))
            self.close_connection = True

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, *args: Any) -> None:
            pass

        def finish(self) -> None:
            with suppress(OSError):
                super().finish()

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Stay quiet about clients that refuse our certificate."""

        def finish_request(self, request: Any, client_address: Any) -> None:
            if tls is not None:
                request = tls.wrap_socket(request, server_side=True)
            try:
                super().finish_request(request, client_address)
            finally:
                request.close()

    http = Server(("127.0.0.1", 0), Handler)
    server = WebhookServer(http, "https" if tls else "http")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.let_go.set()
        http.shutdown()
        http.server_close()
        thread.join()


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA that only a test trusts."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, folder: Path) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test CA")])
        usage = x509.KeyUsage(
            digital_signature=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        certificate = (
            _builder(name, name, key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(key, hashes.SHA256())
        )
        made = cls(folder, key, certificate)
        made.ca_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return made

    @property
    def ca_file(self) -> Path:
        return self.folder / "ca.pem"

    def server_context(self, *hosts: str) -> ssl.SSLContext:
        """Return what a server needs to be believed to be one of ``hosts``."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.IPAddress(ipaddress.ip_address(host)) if _is_ip(host) else x509.DNSName(host) for host in hosts]
        certificate = (
            _builder(x509.Name([]), self.certificate.subject, key)
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        pem = self.folder / f"{'-'.join(hosts)}.pem"
        pem.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        return context


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
