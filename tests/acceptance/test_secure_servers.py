"""Servers that want TLS and a password, as production has them; docs/configuration.md shows the settings used here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from scripts.services.ports import LOOPBACK
from tests.acceptance.conftest import end_all
from tests.acceptance.databases import Database
from tests.acceptance.plans import Plan
from tests.acceptance.secure_servers import (
    PAGES,
    Account,
    Authority,
    SecureDatabaseServer,
    SecureInstallation,
    SecureKafka,
    SecureMariaDB,
    SecureMariaDBServer,
    SecureMySQL,
    new_account,
)
from tests.acceptance.workers import Worker, migrate

Install = Callable[..., SecureInstallation]

EVERYTHING = {"LOG_LEVEL": "DEBUG", "KAFKA_LOG_LEVEL": "DEBUG"}
"""Passwords are kept also by those who log all they can."""

ON_MARIADB = pytest.mark.parametrize("mysql", ["mariadb"], indirect=True)
ON_EACH_MYSQL = pytest.mark.parametrize("mysql", ["mariadb", "mysql"], indirect=True)

AWAY = "broker unavailable, retrying: .* pause_seconds=[0-9.]+ error="

SESSIONS = (
    "SELECT processlist_user, variable_value FROM performance_schema.status_by_thread"
    " JOIN performance_schema.threads USING (thread_id)"
    " WHERE variable_name = 'Ssl_cipher' AND processlist_db = DATABASE()"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of certificates and servers."""
    return tmp_path_factory.mktemp("secure")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    """Give the authority that the project is told to trust."""
    return Authority(folder, "authority")


@pytest.fixture(scope="module")
def stranger(folder: Path) -> Authority:
    """Give an authority that certified none of the servers."""
    return Authority(folder, "stranger")


@pytest.fixture(scope="module")
def kafka(folder: Path, authority: Authority) -> Iterator[SecureKafka]:
    """Run a Kafka for this module."""
    yield from _running(SecureKafka(folder, authority, authority.certify(folder, "kafka-server")))


@pytest.fixture(scope="module")
def mysql(request: pytest.FixtureRequest, folder: Path, authority: Authority) -> Iterator[SecureDatabaseServer]:
    """Run a MariaDB or a MySQL for this module."""
    kind = {"mariadb": SecureMariaDB, "mysql": SecureMySQL}[request.param]
    yield from _running(kind(folder, authority, authority.certify(folder, f"{request.param}-server")))


def _running(server: Any) -> Iterator[Any]:
    try:
        server.up()
        yield server
    finally:
        server.kill()
        server.state.remove()


@pytest.fixture(scope="module")
def databases(mysql: SecureDatabaseServer) -> SecureMariaDBServer:
    """Give the maker of databases, as the project's user."""
    return SecureMariaDBServer(mysql.url_of(mysql.project, "smartflow"), migrate)


@pytest.fixture
def install(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    kafka: SecureKafka,
    mysql: SecureDatabaseServer,
    databases: SecureMariaDBServer,
) -> Iterator[Install]:
    """Give a function that makes an installation; those of one test may share a database."""
    made: list[SecureInstallation] = []

    def make(*, database: Database | None = None, secrets: tuple[Account, ...] = (), **more: Any) -> SecureInstallation:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        known = (*secrets, *kafka.accounts.values(), mysql.project)
        made.append(
            SecureInstallation(
                database=database or databases.create(),
                folder=folder,
                secrets=[account.password for account in known],
                **more,
            )
        )
        return made[-1]

    yield make
    end_all(request, made)


@ON_EACH_MYSQL
def test_every_committed_event_has_one_effect_over_tls(install: Install, kafka: SecureKafka) -> None:
    """The relay comes in by one mechanism and the consumer by the other; both log all they can."""
    installation = install(environment={**kafka.environment_of("PLAIN"), **EVERYTHING})
    relay = installation.relay()
    installation.change(**kafka.environment_of("SCRAM-SHA-512"))
    consumer = installation.consumer()
    installation.load(Plan(prefix="k", transactions=15, seed=91))
    installation.wait_until_done(alive=[relay, consumer])
    installation.check()
    sessions = installation.database.query(SESSIONS)
    assert {user for user, _ in sessions} == {"outbox"}
    assert all(cipher for _, cipher in sessions)
    assert len(sessions) > 2, "the test's own, and at least one of each worker"
    for worker in (relay, consumer):
        worker.stop()
    status, topics, checked, pages = installation.run_all(
        ["outbox_status", "probe", "--json", "--timeout", "30s"],
        ["outbox_topics", "probe"],
        ["check", "--database", "default"],
        ["shell", "-c", PAGES],
    )
    assert [done.returncode for done in (status, topics, checked, pages)] == [0, 0, 0, 0], pages.stderr
    assert json.loads(status.stdout)["services"][0]["lag"] == 0
    assert "ready" in topics.stdout
    installation.check_secrets()


@ON_MARIADB
def test_broker_that_refuses_is_waited_for_and_named(
    install: Install, kafka: SecureKafka, stranger: Authority, tmp_path: Path
) -> None:
    plain, scram = (new_account(account.user) for account in kafka.accounts.values())
    by_name = kafka.servers.replace(LOOPBACK, "localhost")
    cases = {
        "Invalid username or password": (kafka.servers, kafka.options_of("PLAIN", plain)),
        "invalid credentials": (kafka.servers, kafka.options_of("SCRAM-SHA-512", scram)),
        "does not take sasl_mechanism SCRAM-SHA-256": (
            kafka.servers,
            kafka.options_of("PLAIN", sasl_mechanism="SCRAM-SHA-256"),
        ),
        "certificate is not trusted .see ssl_cafile.": (
            kafka.servers,
            kafka.options_of("PLAIN", ssl_cafile=str(stranger.path)),
        ),
        "certificate is for another name: .*'localhost'": (by_name, kafka.options_of("PLAIN")),
        "the port wants TLS, and security_protocol is SASL_PLAINTEXT": (
            kafka.servers,
            kafka.options_of("PLAIN", security_protocol="SASL_PLAINTEXT", ssl_cafile=None),
        ),
        "the port does not speak TLS, and security_protocol is SASL_SSL": (
            kafka.in_the_clear,
            kafka.options_of("PLAIN"),
        ),
    }
    first = install()
    first.publish(("step", {"key": "k", "n": 1}))
    workers: list[tuple[SecureInstallation, Worker]] = []
    for number, (servers, options) in enumerate(cases.values()):
        one = install(database=first.database, kafka=servers, broker_options=options, secrets=(plain, scram))
        workers.append((one, (one.consumer if number % 2 else one.relay)()))
    wrong = workers[0][0]
    wrong.change(**EVERYTHING)
    status, topics, checked, pages = wrong.run_all(
        ["outbox_status", "probe", "--json", "--timeout", "30s"],
        ["outbox_topics", "probe"],
        ["check"],
        ["shell", "-c", PAGES],
    )
    # A broker that is away makes the lag unknown, nothing else; only what is about topics alone cannot go on.
    assert [done.returncode for done in (status, topics, checked, pages)] == [0, 1, 0, 0], pages.stderr
    for said in (
        json.loads(status.stdout)["services"][0]["lag_problem"],
        topics.stderr.splitlines()[-1],
        pages.stdout,
    ):
        assert re.search(rf"Kafka at {kafka.servers}: .*Invalid username or password", said)
    for (one, worker), (reason, (servers, _)) in zip(workers, cases.items(), strict=True):
        one.wait(
            partial(_says, worker, f"{AWAY}Kafka at {servers}: cannot connect: .*{reason}"),
            f"the worker says {reason!r}",
            alive=[worker],
        )
        worker.stop()
        one.check_secrets()
    (row,) = first.rows()
    assert (row.status, row.retry_count, row.last_error) == ("pending", 0, None)


@ON_MARIADB
def test_running_workers_say_that_their_password_is_no_longer_taken(install: Install, kafka: SecureKafka) -> None:
    account = new_account("rotated")
    kafka.set_scram_password(account)
    installation = install(
        kafka=kafka.servers, broker_options=kafka.options_of("SCRAM-SHA-512", account), secrets=(account,)
    )
    workers = [installation.relay(), installation.consumer()]
    installation.publish(("step", {"key": "k", "n": 1}))
    installation.wait_until_done(alive=workers)
    kafka.set_scram_password(new_account(account.user))
    kafka.restart()
    installation.publish(("step", {"key": "k", "n": 2}))
    for worker in workers:
        installation.wait(
            partial(_says, worker, f"{AWAY}Kafka at {kafka.servers}: .*refuses the user or the password"),
            "the worker says that its password is not taken",
            alive=workers,
        )
    status = installation.run("outbox_status", "probe", "--json", "--timeout", "30s")
    assert "refuses the user or the password" in json.loads(status.stdout)["services"][0]["lag_problem"]
    kafka.set_scram_password(account)
    installation.wait_until_done(alive=workers)
    installation.check()
    for worker in workers:
        assert _says(worker, "broker recovered")
        worker.stop()
    installation.check_secrets()


@ON_EACH_MYSQL
def test_database_that_refuses_is_waited_for_and_named(
    install: Install, kafka: SecureKafka, mysql: SecureDatabaseServer, stranger: Authority
) -> None:
    first = install()
    name = first.database.value("SELECT DATABASE()")
    wrong = new_account(mysql.project.user)
    cases = {
        mysql.url_of(wrong, name): "Access denied for user 'outbox'",
        mysql.url_of(mysql.project, name, trusted=stranger.path): "certificate",
        # The password is right: MariaDB says no more than this of a missing TLS, MySQL says what is missing.
        mysql.url_of(mysql.project, name, tls=False): "(Access denied|insecure transport)",
    }
    workers: list[tuple[SecureInstallation, Worker]] = []
    for number, url in enumerate(cases):
        environment = {**kafka.environment_of("PLAIN"), "DATABASE_URL": url}
        one = install(database=first.database, environment=environment, secrets=(wrong,))
        workers.append((one, (one.consumer if number % 2 else one.relay)()))
    status = workers[0][0].run("outbox_status", "probe", "--timeout", "30s")
    assert status.returncode == 1
    assert re.fullmatch("CommandError: database unavailable: default: .*Access denied.*\n", status.stderr)
    for (one, worker), reason in zip(workers, cases.values(), strict=True):
        away = f"database unavailable, retrying: .*{reason}"
        one.wait(partial(_says, worker, away), f"the worker says {reason!r}", alive=[worker])
        worker.stop()
        one.check_secrets()


@ON_EACH_MYSQL
def test_workers_go_on_when_the_servers_take_their_passwords(
    install: Install, kafka: SecureKafka, mysql: SecureDatabaseServer
) -> None:
    """They are deployed before their users are there; no event suffers from it."""
    late = new_account("late")
    installation = install(kafka=kafka.servers, broker_options=kafka.options_of("SCRAM-SHA-512", late), secrets=(late,))
    installation.publish(("step", {"key": "k", "n": 1}))
    name = installation.database.value("SELECT DATABASE()")
    installation.change(DATABASE_URL=mysql.url_of(late, name))
    workers = [installation.relay(), installation.consumer()]
    for server, take in (("broker", kafka.set_scram_password), ("database", mysql.admit)):
        for worker in workers:
            away = partial(_says, worker, f"{server} unavailable, retrying")
            installation.wait(away, f"the worker says that the {server} is unavailable", alive=workers)
        take(late)
    installation.wait_until_done(alive=workers)
    installation.check()
    for worker in workers:
        assert _says(worker, "database recovered")
        worker.stop()
    installation.check_secrets()


def _says(worker: Worker, pattern: str) -> bool:
    return re.search(pattern, worker.text) is not None


# --- the settings ------------------------------------------------------------------------------------------------


def test_certificates_in_the_database_url_reach_the_driver() -> None:
    from smartflow.database_url import database

    url = "mysql://u:p@db.example/x?ssl_ca=/etc/ca.pem&ssl_cert=/etc/own.pem&ssl_key=/etc/own.key"
    options = database(url)["OPTIONS"]
    assert options["ssl"] == {"ca": "/etc/ca.pem", "cert": "/etc/own.pem", "key": "/etc/own.key"}
    assert options["ssl_mode"] == "VERIFY_IDENTITY"
    assert not {"ssl_ca", "ssl_cert", "ssl_key"} & options.keys()


def test_how_much_is_verified_is_for_the_database_url_to_say() -> None:
    from smartflow.database_url import database

    options = database("mysql://u:p@db.example/x?ssl_ca=/etc/ca.pem&ssl_mode=VERIFY_CA")["OPTIONS"]
    assert (options["ssl"], options["ssl_mode"]) == ({"ca": "/etc/ca.pem"}, "VERIFY_CA")
    assert not {"ssl", "ssl_mode"} & database("mysql://u:p@db.example/x")["OPTIONS"].keys()
