"""Kafka, MariaDB and MySQL that let nobody in without TLS, each with certificates of its own and run by the test."""

from __future__ import annotations

import ipaddress
import os
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, quote_plus, unquote, urlencode, urlsplit, urlunsplit
from uuid import uuid4

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from scripts.services import catalog, inventory
from scripts.services.catalog import Service
from scripts.services.kafka import Kafka
from scripts.services.mariadb import MariaDB
from scripts.services.mysql import MySQL
from scripts.services.ports import LOOPBACK
from scripts.services.server import NativeServer
from scripts.services.state import State
from tests.acceptance.databases import MariaDBDatabase, MariaDBServer
from tests.acceptance.harness import Installation
from tests.acceptance.topics import kafka_admin
from tests.services import require


@dataclass(frozen=True, slots=True)
class Account:
    """Who comes in, and by which password."""

    user: str
    password: str


def new_account(user: str) -> Account:
    """Return an account whose password is nowhere by chance, and has to be quoted in a URL."""
    return Account(user, f"{uuid4().hex}:/@%")


# --- certificates ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Certificate:
    """A server's certificate and its key, as PEM files; ``both`` has the two in one, as Kafka wants it."""

    certificate: Path
    key: Path
    both: Path


class Authority:
    """A certificate authority; ``path`` is what those who trust it are given."""

    def __init__(self, folder: Path, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=True,
            crl_sign=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        own = self._builder(self._name, self._key, is_authority=True).add_extension(usage, critical=True)
        self.path = folder / f"{name}.pem"
        self.path.write_bytes(_pem(own.sign(self._key, hashes.SHA256())))

    def certify(self, folder: Path, name: str) -> Certificate:
        """Make the certificate of a server on the loopback address."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(LOOPBACK))])
        signed = self._builder(subject, key, is_authority=False).add_extension(address, critical=False)
        certificate_pem = _pem(signed.sign(self._key, hashes.SHA256()))
        key_pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        made = Certificate(folder / f"{name}.pem", folder / f"{name}.key", folder / f"{name}-both.pem")
        made.certificate.write_bytes(certificate_pem)
        made.key.write_bytes(key_pem)
        made.both.write_bytes(key_pem + certificate_pem)
        return made

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, is_authority: bool
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(issuer_key, critical=False)
        )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


# --- servers -----------------------------------------------------------------------------------------------------


def _own(service: Service, folder: Path, ports: Sequence[str], *, address: str, offset: int) -> State:
    """Return the state of a server of the test's own, beside the shared one; skip where its programs may be missing."""
    require(service.name)
    if not isinstance(inventory.server(service.name), NativeServer):
        pytest.skip(f"{service.name} is not run from here, so that its programs may be missing")
    # Away from the ports of the shared servers and of other runs; ports that are taken are passed over.
    first = 20_000 + os.getpid() % 1_000 * 10 + offset
    numbers = {purpose: first + number for number, purpose in enumerate(ports)}
    own = Service(service.name, service.variable, numbers, address, service.compose_service, service.compose_variable)
    return State(own, root=folder)


class SecureKafka(Kafka):
    """Kafka with a second listener, by SASL over TLS. The first one, in the clear, is for the node and for tests."""

    _SECURE = """
listeners=CLIENT://{host}:{client},SECURE://{host}:{secure},CONTROLLER://{host}:{controller}
advertised.listeners=CLIENT://{host}:{client},SECURE://{host}:{secure}
listener.security.protocol.map=CLIENT:PLAINTEXT,SECURE:SASL_SSL,CONTROLLER:PLAINTEXT
listener.name.secure.ssl.keystore.type=PEM
listener.name.secure.ssl.keystore.location={keystore}
listener.name.secure.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512
listener.name.secure.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
user_{plain.user}="{plain.password}";
listener.name.secure.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
"""

    def __init__(self, folder: Path, authority: Authority, certificate: Certificate) -> None:
        ports = ("client", "controller", "secure")
        state = _own(catalog.KAFKA, folder, ports, address=f"{LOOPBACK}:{{secure}}", offset=0)
        super().__init__(state.service, state)
        self.authority = authority
        self.accounts = {"PLAIN": new_account("by_plain"), "SCRAM-SHA-512": new_account("by_scram")}
        self._certificate = certificate

    @property
    def servers(self) -> str:
        """The servers as the project is given them."""
        return str(self.address)

    @property
    def in_the_clear(self) -> str:
        """The listener that has neither TLS nor passwords."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def more_settings(self) -> str:
        return self._SECURE.format(
            host=LOOPBACK, **self.state.ports, keystore=self._certificate.both, plain=self.accounts["PLAIN"]
        )

    @property
    def more_format_options(self) -> Sequence[str]:
        account = self.accounts["SCRAM-SHA-512"]
        return ["--add-scram", f"SCRAM-SHA-512=[name={account.user},password={account.password}]"]

    def set_scram_password(self, account: Account) -> None:
        """Let ``account`` in by this password from now on."""
        from kafka.admin import UserScramCredentialUpsertion

        admin = kafka_admin(self.in_the_clear)
        try:
            change = UserScramCredentialUpsertion(account.user, "SCRAM-SHA-512", account.password)
            assert admin.alter_user_scram_credentials([change]) == {account.user: None}
        finally:
            admin.close()

    def environment_of(self, mechanism: str, **changes: str) -> dict[str, str]:
        """Return the variables by which the project comes in."""
        account = self.accounts[mechanism]
        return {
            "KAFKA_BOOTSTRAP_SERVERS": self.servers,
            "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "KAFKA_SASL_MECHANISM": mechanism,
            "KAFKA_SASL_USERNAME": account.user,
            "KAFKA_SASL_PASSWORD": account.password,
            "KAFKA_SSL_CAFILE": str(self.authority.path),
            **changes,
        }

    def options_of(self, mechanism: str, account: Account | None = None, **changes: str | None) -> dict[str, Any]:
        """Return the options of ``settings.OUTBOX`` that do the same; that nobody gets in is soon noticed."""
        account = account or self.accounts[mechanism]
        common = {
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": mechanism,
            "sasl_plain_username": account.user,
            "sasl_plain_password": account.password,
            "ssl_cafile": str(self.authority.path),
            **changes,
        }
        return {"common": common, "request_timeout_seconds": 3.0}


class SecureDatabaseServer(NativeServer):
    """MariaDB or MySQL that wants TLS of everybody."""

    authority: Authority
    certificate: Certificate
    project: Account

    @property
    def secure_settings(self) -> str:
        """The lines of my.cnf."""
        return (
            f"ssl-ca = {self.authority.path}\n"
            f"ssl-cert = {self.certificate.certificate}\n"
            f"ssl-key = {self.certificate.key}\n"
            "require-secure-transport = ON\n"
            "performance-schema = ON\n"
        )

    def protect(self, authority: Authority, certificate: Certificate) -> None:
        """Take the certificate that it shows, and who is to trust it."""
        self.authority, self.certificate = authority, certificate
        self.project = new_account("outbox")

    def finish_set_up(self) -> None:
        self.admit(self.project)

    def admit(self, account: Account) -> None:
        """Let ``account`` in by this password from now on."""
        self.execute(f"CREATE USER IF NOT EXISTS '{account.user}'@'%'")
        self.execute(f"ALTER USER '{account.user}'@'%' IDENTIFIED BY '{account.password}'")
        self.execute(f"GRANT ALL ON *.* TO '{account.user}'@'%'")

    def execute(self, sql: str) -> None:
        """Run a statement as the administrator."""
        database = SecureMariaDBDatabase(str(self.address))
        database.execute(sql)
        database.close()

    def url_of(self, account: Account, database: str, *, trusted: Path | None = None, tls: bool = True) -> str:
        """Return the ``DATABASE_URL`` by which ``account`` comes in, or would like to."""
        url = f"mysql://{account.user}:{quote(account.password, safe='')}@{LOOPBACK}:{self.port}/{database}"
        return f"{url}?{urlencode({'ssl_ca': trusted or self.authority.path})}" if tls else url


class SecureMariaDB(SecureDatabaseServer, MariaDB):
    """MariaDB that wants TLS of everybody."""

    account = None
    """Its folder is the test's, where other users do not come in."""

    def __init__(self, folder: Path, authority: Authority, certificate: Certificate) -> None:
        state = _own_database(catalog.MARIADB, folder, authority, offset=5)
        super().__init__(state.service, state)
        self.protect(authority, certificate)

    @property
    def more_settings(self) -> str:
        user = "user = root\n" if os.getuid() == 0 else ""
        return f"{self.secure_settings}innodb-buffer-pool-size = 64M\ninnodb-log-file-size = 16M\n{user}"

    @property
    def more_login_options(self) -> Sequence[str]:
        return [f"--ssl-ca={self.authority.path}", "--ssl-verify-server-cert"]


class SecureMySQL(SecureDatabaseServer, MySQL):
    """MySQL that wants TLS of everybody."""

    def __init__(self, folder: Path, authority: Authority, certificate: Certificate) -> None:
        state = _own_database(catalog.MYSQL, folder, authority, offset=6)
        super().__init__(state.service, state)
        self.protect(authority, certificate)

    @property
    def more_settings(self) -> str:
        return self.secure_settings


def _own_database(service: Service, folder: Path, authority: Authority, *, offset: int) -> State:
    address = service.address + "?" + urlencode({"ssl_ca": authority.path})
    return _own(service, folder, ("client",), address=address, offset=offset)


class SecureMariaDBDatabase(MariaDBDatabase):
    """A database on a ``SecureDatabaseServer``, reached by its URL as the project reaches it."""

    def connect(self) -> Any:
        import MySQLdb

        parts = urlsplit(self.url)
        return MySQLdb.connect(
            host=parts.hostname,
            port=parts.port,
            user=parts.username,
            password=unquote(parts.password or ""),
            database=parts.path.lstrip("/"),
            charset="utf8mb4",
            connect_timeout=5,
            autocommit=True,
            ssl={"ca": parse_qs(parts.query)["ssl_ca"][0]},
            ssl_mode="VERIFY_IDENTITY",
        )


class SecureMariaDBServer(MariaDBServer):
    """Makes databases on a ``SecureDatabaseServer``."""

    def make(self, name: str) -> MariaDBDatabase:
        self._execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        return SecureMariaDBDatabase(urlunsplit(urlsplit(self._url)._replace(path=f"/{name}")))

    def _execute(self, sql: str) -> None:
        server = SecureMariaDBDatabase(self._url)
        server.execute(sql)
        server.close()


# --- the project on them -----------------------------------------------------------------------------------------


PAGES = """
from django.contrib.auth.models import User
from django.test import Client
from tests.waiting import wait_until

client = Client(SERVER_NAME="localhost")
client.force_login(User.objects.get_or_create(username="root", is_staff=True, is_superuser=True)[0])
routes = "/admin/outbox/route/"
wait_until(lambda: "has not answered within" not in client.get(routes).content.decode(), timeout=30)
for page in ("/admin/", routes, "/admin/outbox/deadevent/", "/admin/outbox/rejectedrecord/"):
    answer = client.get(page)
    assert answer.status_code == 200, (page, answer.status_code)
    print(answer.content.decode())
"""
"""For ``manage.py shell``: the admin's pages, once the broker has answered or is known to be away."""


class SecureInstallation(Installation):
    """An installation on servers that end with the module; ``secrets`` must show in nothing that it says."""

    def __init__(
        self,
        *,
        secrets: Sequence[str],
        environment: Mapping[str, str] | None = None,
        kafka: str | None = None,
        **more: Any,
    ) -> None:
        super().__init__(kafka=kafka, **more)
        self._secrets = secrets
        self._environment = dict(environment or {})
        self._said: list[str] = []

    @property
    def env(self) -> dict[str, str]:
        return {**super().env, **self._environment}

    def change(self, **variables: str) -> None:
        """Start what comes next with other variables."""
        self._environment.update(variables)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = super().run(*arguments)
        self._said.append(done.stdout + done.stderr)
        return done

    def run_all(self, *commands: Sequence[str]) -> list[subprocess.CompletedProcess[str]]:
        """Run management commands at the same time; return what became of each."""
        with ThreadPoolExecutor(len(commands)) as pool:
            return list(pool.map(lambda arguments: self.run(*arguments), commands))

    def check_secrets(self) -> None:
        """Check that no password is in a log, in what a command or a page said, or in a row."""
        said = [
            *self._said,
            str(self.rows()),
            str(self.rejected()),
            *(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log"))),
        ]
        assert any(said)
        for secret in self._secrets:
            for form in {secret, quote(secret), quote(secret, safe=""), quote_plus(secret), repr(secret)[1:-1]}:
                assert not any(form in text for text in said), f"{form!r} was said"

    def dispose(self) -> None:
        for worker in self.workers:
            worker.dispose()
        self.database.close()
