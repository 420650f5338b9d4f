"""The part of scripts/services that can be tested without a server: what is remembered, recognised and refused."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from scripts.services import (
    __main__,
    catalog,
    control,
    inventory,
    kafka,
    kafka_wire,
    mariadb,
    mysql,
    mysql_packages,
    packages,
    ports,
)
from scripts.services.errors import (
    MissingPackagesError,
    NotManagedError,
    NotReadyError,
    ServicesError,
    UnobtainableError,
    tail,
)
from scripts.services.process import Process, descendants, spawn
from scripts.services.server import GivenServer, NativeServer
from scripts.services.state import VARIABLE, State, default_folder
from tests import services
from tests.waiting import wait_until

IDLE = (sys.executable, "-c", "import signal; signal.alarm(60); signal.pause()")
"""A process that waits to be ended, for a minute at the most."""


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Iterator[State]:
    """Give a state in a folder of the test's own, with a short path as sockets need it; no variable gives a server."""
    folder = tempfile.mkdtemp(prefix="services-")
    monkeypatch.setenv(VARIABLE, f"{folder}/state")
    monkeypatch.delenv(inventory.BACKEND_VARIABLE, raising=False)
    for service in catalog.SERVICES.values():
        monkeypatch.delenv(service.variable, raising=False)
    found = State(catalog.KAFKA)
    found.prepare()
    yield found
    shutil.rmtree(folder)


# What is remembered


def test_each_checkout_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)

    assert default_folder(Path("/one")) == default_folder(Path("/one"))
    assert default_folder(Path("/one")) != default_folder(Path("/two"))


def test_state_keeps_what_it_was_told_before(state: State) -> None:
    state.remember(ports={"client": 1, "controller": 2})
    state.remember(backend="native")

    assert state.ports == {"client": 1, "controller": 2}
    assert state.backend == "native"
    assert state.address == "127.0.0.1:1"


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_a_damaged_file_counts_as_none(state: State, text: str) -> None:
    (state.folder / "state.json").write_text(text)
    state.process_file.write_text(text)

    assert state.ports == {}
    assert state.address is None
    assert Process.read(state.process_file) is None


def test_a_folder_that_is_a_link_is_refused(state: State, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    state.folder.rmdir()
    state.folder.symlink_to(elsewhere)

    with pytest.raises(ServicesError, match="not a folder of this user"):
        state.prepare()


def test_a_missing_log_is_said_to_be_missing(tmp_path: Path) -> None:
    assert "no log" in tail(tmp_path / "nothing.log")


# Which process it is


def test_a_started_process_is_recognised_and_ended_with_what_it_started(tmp_path: Path) -> None:
    parent = f"import subprocess; child = subprocess.Popen({list(IDLE)!r}); print('up', flush=True); child.wait()"
    started = spawn([sys.executable, "-c", parent], log=tmp_path / "log", cwd=tmp_path)
    started.write(tmp_path / "process.json")
    _wait_for_text(tmp_path / "log", "up")
    family = [Process(pid, IDLE) for pid in descendants(started.pid)]

    found = Process.read(tmp_path / "process.json")
    assert found == started
    assert found.runs()
    assert [member.runs() for member in family] == [True]

    found.kill()
    assert not found.runs()
    assert [member.runs() for member in family] == [False]


def test_a_process_ends_when_it_is_asked(tmp_path: Path) -> None:
    started = spawn(IDLE, log=tmp_path / "log", cwd=tmp_path)

    assert started.end(signal.SIGTERM, deadline_seconds=20)
    assert not started.runs()


def test_a_process_that_does_not_end_is_reported(tmp_path: Path) -> None:
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"
    started = spawn([sys.executable, "-c", stubborn], log=tmp_path / "log", cwd=tmp_path)
    _wait_for_text(tmp_path / "log", "up")

    assert not started.end(signal.SIGTERM, deadline_seconds=0.2)
    started.kill()


def test_a_reused_process_id_is_not_taken_for_the_server() -> None:
    assert not Process(os.getpid(), ("mariadbd", "--defaults-file=my.cnf")).runs()


def test_a_dead_process_that_nobody_buried_does_not_run() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    assert not Process(child.pid, (sys.executable, "-c", "")).runs()
    child.wait()


def test_a_program_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ServicesError, match="No such file"):
        spawn([str(tmp_path / "nothing")], log=tmp_path / "log", cwd=tmp_path)


# Ports and addresses


def test_a_taken_port_is_passed_over() -> None:
    with socket.socket() as listener:
        listener.bind((ports.LOOPBACK, 0))
        listener.listen()
        taken = listener.getsockname()[1]

        assert not ports.is_free(taken)
        assert ports.answers(ports.LOOPBACK, taken)
        assert ports.pick(taken) > taken


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("mysql://u:p@db.example:3307/x", [("db.example", 3307)]),
        ("mysql://u:p@db.example/x", [("db.example", 3306)]),
        ("postgres://u:p@[::1]/x", [("::1", 5432)]),
        ("one:9092, two:9093", [("one", 9092), ("two", 9093)]),
        ("one", [("one", 9092)]),
    ],
)
def test_an_address_gives_its_endpoints(address: str, expected: list[tuple[str, int]]) -> None:
    assert list(ports.endpoints(address)) == expected


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(ServicesError, match="Not an address"):
        list(ports.endpoints("host:port"))


# Who runs a server


def test_a_given_server_is_left_alone(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(catalog.KAFKA.variable, "kafka.example:9092")

    assert isinstance(inventory.server("kafka"), GivenServer)
    assert control.address("kafka") == "kafka.example:9092"
    assert not control.is_managed("kafka")
    with pytest.raises(NotManagedError):
        control.kill("kafka")


def test_our_own_address_in_the_environment_is_not_a_given_server(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.remember(ports={"client": 19092, "controller": 19093}, backend="native")
    monkeypatch.setenv(catalog.KAFKA.variable, "127.0.0.1:19092")

    assert isinstance(inventory.server("kafka"), NativeServer)
    assert control.is_managed("kafka")


def test_a_server_that_was_never_set_up_is_not_managed(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(inventory.BACKEND_VARIABLE, "native")

    assert not control.is_managed("kafka")
    assert inventory.variables() == {}
    with pytest.raises(ServicesError, match="never set up"):
        control.start("kafka")


def test_a_given_server_that_does_not_answer_is_reported(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GivenServer, "deadline_seconds", 0.0)
    with socket.socket() as unused:  # bound but not listening: connections are refused
        unused.bind((ports.LOOPBACK, 0))
        monkeypatch.setenv(catalog.KAFKA.variable, f"127.0.0.1:{unused.getsockname()[1]}")

        with pytest.raises(NotReadyError, match=catalog.KAFKA.variable):
            inventory.server("kafka").up()


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ServicesError, match="mariadb, mysql, postgres, kafka"):
        inventory.server("oracle")


# Packages


def test_missing_packages_are_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "GROUPS", {"some": ("here", "gone")})
    monkeypatch.setattr(packages, "_is_installed", lambda package: package == "here")
    monkeypatch.setattr(packages, "_may_sudo", lambda: False)
    monkeypatch.setattr(packages.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(packages.os, "getuid", lambda: 1000)

    with pytest.raises(MissingPackagesError, match="apt-get install --no-install-recommends gone\n"):
        packages.ensure("some")


def test_a_program_on_the_path_stands_for_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "GROUPS", {"test": ("golang-go",)})
    monkeypatch.setattr(packages.shutil, "which", lambda name: "/opt/go/bin/go" if name == "go" else None)
    packages.ensure("test")
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    with pytest.raises(MissingPackagesError, match="golang-go"):
        packages.ensure("test")


def test_nothing_is_installed_when_nothing_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_is_installed", lambda _package: True)
    monkeypatch.setattr(packages, "_run", lambda command: pytest.fail(f"ran {command}"))

    packages.ensure(*packages.GROUPS)


# Whether Kafka serves


def _answer(*, broker_port: int, leader: int, error: int = 0) -> bytes:
    host, topic = b"127.0.0.1", b"orders"
    brokers = struct.pack(f">iih{len(host)}sih", 1, 1, len(host), host, broker_port, -1)
    partition = struct.pack(">hiiiiii", error, 0, leader, 1, 1, 1, 1)
    topics = struct.pack(f">ihh{len(topic)}sbi", 1, 0, len(topic), topic, 0, 1) + partition
    return struct.pack(">i", 7) + brokers + struct.pack(">i", 1) + topics


def test_kafka_serves_when_the_broker_has_joined_and_leads() -> None:
    found = kafka_wire.decode(_answer(broker_port=19092, leader=1))

    assert found.brokers == {1: ("127.0.0.1", 19092)}
    assert found.partitions == (kafka_wire.Partition("orders", 0, 0, 1),)
    assert found.serves(broker=1, port=19092)


@pytest.mark.parametrize(
    "answer",
    [
        _answer(broker_port=19092, leader=-1),
        _answer(broker_port=19092, leader=1, error=5),
        _answer(broker_port=9, leader=1),
    ],
    ids=["no leader", "an error", "another's port"],
)
def test_kafka_does_not_serve_yet(answer: bytes) -> None:
    assert not kafka_wire.decode(answer).serves(broker=1, port=19092)


def test_a_cut_answer_is_an_error() -> None:
    with pytest.raises(kafka_wire.WireError):
        kafka_wire.decode(_answer(broker_port=19092, leader=1)[:-1])


def test_the_pom_names_an_exact_version_of_kafka() -> None:
    assert kafka.version().split(".")[0] == "4"
    assert all(part.isdigit() for part in kafka.version().split("."))


# Where MySQL comes from


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give an empty cache; no archive is asked."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(mysql_packages, "_run", lambda command: pytest.fail(f"ran {command}"))
    return tmp_path / "cache" / "smartflow"


@pytest.fixture
def no_archive(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let apt name an archive of Debian's that cannot be reached."""

    def run(command: Sequence[str]) -> str:
        if "--print-uris" in command:
            return "'http://archive.example/debian/dists/bookworm/InRelease' archive.example_InRelease 0 \n"
        raise UnobtainableError(f"`{command[0]}` failed")

    monkeypatch.setattr(mysql_packages, "_run", run)
    monkeypatch.setattr(mysql_packages.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(mysql_packages, "_own_name", lambda: "me")


def unpack(cache: Path, version: str) -> Path:
    """Put what looks like an unpacked MySQL into the cache."""
    root = cache / f"mysql-{version}"
    for name in ("usr/sbin/mysqld", "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"):
        (root / name).parent.mkdir(parents=True)
        (root / name).touch()
    return root


def test_the_newest_mysql_in_the_cache_is_used_as_it_is(cache: Path) -> None:
    unpack(cache, "9.7.9")
    newest = unpack(cache, "9.7.10")
    (cache / "mysql-10.0.0").mkdir()  # where nothing was unpacked
    (cache / "mysql.lock").touch()

    assert mysql_packages.ensure() == mysql_packages.unpacked() == newest
    assert mysql_packages.program(newest)[-1] == str(newest / "usr/sbin/mysqld")


def test_an_archive_without_mysql_is_an_error_that_leaves_nothing_behind(no_archive: None, cache: Path) -> None:
    with pytest.raises(UnobtainableError, match=r"sid, which has MySQL, cannot be had: .*\n.*MYSQL=optional"):
        mysql_packages.ensure()

    assert [path.name for path in cache.iterdir()] == ["mysql.lock"]


def test_where_mysql_comes_from_is_read_from_the_machines_own_sources(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = """\
'http://archive.example/debian-security/dists/bookworm-security/InRelease' archive.example_one_InRelease 0
'http://archive.example/debian/dists/bookworm/InRelease' archive.example_two_InRelease 0
'http://archive.example/debian/dists/bookworm-updates/InRelease' archive.example_three_InRelease 0
'http://archive.example/debian/dists/bookworm/main/binary-amd64/Packages.xz' archive.example_four 0
"""
    monkeypatch.setattr(mysql_packages.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(mysql_packages, "_run", lambda _command: printed)

    assert list(mysql_packages._archives()) == ["http://archive.example/debian"]


@pytest.mark.usefixtures("no_archive", "state")
def test_without_mysql_nothing_comes_up_unless_it_is_optional(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(inventory.BACKEND_VARIABLE, "native")
    with socket.socket() as kafka_server:
        kafka_server.bind((ports.LOOPBACK, 0))
        kafka_server.listen()
        kafka_address = f"{ports.LOOPBACK}:{kafka_server.getsockname()[1]}"
        monkeypatch.setenv(catalog.KAFKA.variable, kafka_address)

        assert __main__.main(["up", "mysql", "kafka"]) == 1
        assert "cannot be had" in capsys.readouterr().err

        monkeypatch.setenv(__main__.OPTIONAL_VARIABLE, "optional")
        assert __main__.main(["up", "mysql", "kafka"]) == 0
        assert "mysql: not run" in capsys.readouterr().err
        assert inventory.environment_file().read_text() == f"{catalog.KAFKA.variable}={kafka_address}\n"


@pytest.mark.usefixtures("no_archive")
def test_a_mysql_that_cannot_run_any_more_has_no_address(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(inventory.BACKEND_VARIABLE, "native")
    monkeypatch.setenv(__main__.OPTIONAL_VARIABLE, "optional")
    earlier = State(catalog.MYSQL)
    earlier.prepare()
    earlier.remember(ports={"client": 1}, installed=True)

    assert __main__.main(["up", "mysql"]) == 0
    assert inventory.variables() == {}


@pytest.mark.parametrize(
    ("given", "optional", "in_ci", "outcome"),
    [
        ("", "", "true", pytest.fail.Exception),
        ("", "optional", "true", pytest.skip.Exception),
        ("", "", "", pytest.skip.Exception),
        ("mysql://u:p@127.0.0.1:1/x", "optional", "true", pytest.fail.Exception),
    ],
)
def test_tests_without_mysql_fail_in_ci_unless_it_is_optional(
    monkeypatch: pytest.MonkeyPatch, given: str, optional: str, in_ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv(catalog.MYSQL.variable, given)
    monkeypatch.setenv("MYSQL", optional)
    monkeypatch.setenv("CI", in_ci)
    monkeypatch.setattr(services, "_services_file", dict)
    monkeypatch.setattr(services, "_reachable", lambda _name: None)

    with pytest.raises(outcome):
        services.require("mysql")


def test_mysql_runs_with_its_own_defaults_but_for_what_keeps_it_to_itself(
    state: State, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = unpack(cache, "9.7.4")
    own = State(catalog.MYSQL)
    own.prepare()
    own.remember(ports={"client": 1}, installed=True)
    server = mysql.MySQL(catalog.MYSQL, own)
    server.set_up()

    settings = (own.folder / "my.cnf").read_text().splitlines()
    names = {line.partition(" = ")[0] for line in settings if line and not line.startswith(("#", "["))}
    assert names - {"user"} == {
        *("basedir", "plugin-dir", "lc-messages-dir", "character-sets-dir", "datadir", "tmpdir", "secure-file-priv"),
        *("port", "bind-address", "socket", "pid-file", "init-file", "mysqlx", "skip-name-resolve"),
        *("binlog_expire_logs_seconds", "max_binlog_size"),
    }
    assert f"basedir = {root / 'usr'}" in settings
    assert server.command()[-1] == f"--defaults-file={own.folder / 'my.cnf'}"


@pytest.mark.parametrize(
    ("greeting", "ready"), [(b"K\0\0\0\x0a9.7.4", True), (b"K\0\0\0\xff\x10\x04", False), (b"", False)]
)
def test_mysql_is_ready_when_it_greets(state: State, greeting: bytes, ready: bool) -> None:
    with socket.create_server((ports.LOOPBACK, 0)) as listener:

        def greet() -> None:
            client, _ = listener.accept()
            client.sendall(greeting)
            client.close()

        thread = threading.Thread(target=greet)
        thread.start()
        own = State(catalog.MYSQL)
        own.prepare()
        own.remember(ports={"client": listener.getsockname()[1]})
        assert mysql.MySQL(catalog.MYSQL, own).is_ready() is ready
        thread.join()


# A server with settings beyond our own


def test_more_settings_of_kafka_come_last_and_its_users_with_the_storage(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Secure(kafka.Kafka):
        more_settings = "listeners=SECURE://127.0.0.1:3\n"
        more_format_options = ("--add-scram", "SCRAM-SHA-512=[name=me,password=mine]")

    state.remember(ports={"client": 1, "controller": 2})
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(kafka, "_java", lambda: "java")
    monkeypatch.setattr(kafka.subprocess, "run", run)
    Secure(catalog.KAFKA, state).set_up()

    settings = (state.folder / "server.properties").read_text()
    assert settings.index("listeners=CLIENT://127.0.0.1:1") < settings.index("listeners=SECURE://127.0.0.1:3")
    assert commands[0][-2:] == ["--add-scram", "SCRAM-SHA-512=[name=me,password=mine]"]


def test_more_settings_of_mariadb_come_last_and_it_is_asked_as_it_wants_to_be(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Secure(mariadb.MariaDB):
        account = None
        more_settings = "require-secure-transport = ON\n"
        more_login_options = ("--ssl-ca=ca.pem",)

    state.remember(ports={"client": 1}, installed=True)
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(mariadb, "_require", lambda program: program)
    monkeypatch.setattr(mariadb.subprocess, "run", run)
    server = Secure(catalog.MARIADB, state)
    server.set_up()

    assert (state.folder / "my.cnf").read_text().endswith("require-secure-transport = ON\n")
    assert server.user is None
    assert server.is_ready()
    assert commands[0][-1] == "--ssl-ca=ca.pem"


def _wait_for_text(path: Path, text: str) -> None:
    wait_until(lambda: path.exists() and text in path.read_text(), timeout=20, message=f"{text!r} is in {path}")
