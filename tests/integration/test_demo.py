"""The demo, small, as a developer runs it: a process of its own, with real workers."""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

import pytest

from outbox.declarations.contracts import contracts
from scripts.demo import servers, stage
from tests import services
from tests.conftest import SERVICES
from tests.waiting import wait_until

DEMO = (sys.executable, "-m", "scripts.demo")
PATIENCE_S = 150


def run_demo(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [*DEMO, "--events", "200", "--folder", str(folder), *arguments]
    return subprocess.run(
        command,
        cwd=stage.CHECKOUT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S + 60,
        check=False,
    )


def table(output: str) -> dict[str, str]:
    """Return the counts by status, as the demo printed them."""
    return dict(re.findall(r"^  (pending|published|consumed|dead) +([\d,]+)$", output, re.MULTILINE))


def checks(output: str) -> dict[str, str]:
    """Return how often each check held."""
    return dict(re.findall(r"^  ok  (.+?)  +(\d[\d,]* of [\d,]+)$", output, re.MULTILINE))


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Give a folder with a demo that was played in it, and what it said."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, run_demo(folder)


def test_demo_ends_well_and_shows_what_happened(played: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    _, result = played

    assert result.returncode == 0, result.stdout + result.stderr
    assert table(result.stdout) == {"pending": "0", "published": "0", "consumed": "231", "dead": "4"}
    assert "BROKEN" not in result.stdout
    held = checks(result.stdout)
    assert set(held.values()) == {"200 of 200", "40 of 40", "4 of 4", "2 of 2", "1 of 1", "24 of 24"}
    assert [held[what] for what in held if what.startswith("chain: ")] == ["4 of 4", "4 of 4"]
    for reason in ("EnvelopeError: ", "PayloadError: ", "UnknownVersionError: ", "is not registered"):
        assert reason in result.stdout
    assert re.search(r"failed attempts, retried +4 of 2 events", result.stdout)
    assert "user admin, password demo" in result.stdout


def test_demo_shows_every_event_type_of_every_service(played: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    shown = set(re.findall(r"^  ([a-z-]+)  +([a-z_.]+)  +consumed  +\d", played[1].stdout, re.MULTILINE))

    assert shown - {("agent", "demo.step.taken")} == {
        (contract.service, contract.event_type) for contract in contracts if contract.service in SERVICES
    }


def test_served_demo_consumes_what_is_replayed(played: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, result = played
    assert result.returncode == 0, result.stdout + result.stderr
    port = free_port()

    with served(folder, port) as site:
        wait_until(lambda: answers(port), timeout=60, message="the admin's login page")
        mend_and_replay(folder)
        wait_until(lambda: status_of_mended(folder) == "consumed", timeout=60, interval=0.5)
        site.send_signal(signal.SIGINT)
        output, _ = site.communicate(timeout=60)

    assert site.returncode == 0, output
    assert "Ctrl-C stops everything" in output


def test_settings_of_a_developer_do_not_reach_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = (stage.CHECKOUT / "smartflow" / "settings.py").read_text(encoding="utf-8")
    names = set(re.findall(r"env\.\w+\(\s*\"([A-Z_]+)\"", settings))
    for name in names:
        monkeypatch.setenv(name, "a developer's own")
    here = stage.Stage(folder=tmp_path, kind=stage.Kind.EMBEDDED, namespace="demo")

    assert {"DATABASE_URL", "SECRET_KEY"} <= names
    assert "a developer's own" not in here.environment().values()


def test_a_second_demo_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    with stage.only_one(tmp_path):
        result = run_demo(tmp_path)

    assert result.returncode == 1
    assert "stop it first" in result.stderr


def test_serving_without_a_demo_says_what_to_do(tmp_path: Path) -> None:
    result = subprocess.run(
        [*DEMO, "--serve", "--folder", str(tmp_path)],
        cwd=stage.CHECKOUT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert result.returncode == 1
    assert "run `make demo` first" in result.stderr


def test_demo_that_cannot_finish_in_time_fails(tmp_path: Path) -> None:
    # Two events fail on purpose and wait for their back-off, so a second is too short.
    result = run_demo(tmp_path, "--time-limit", "1")

    assert result.returncode == 1
    assert "time" in result.stderr
    assert no_process_of(tmp_path)


@pytest.mark.parametrize("server", ["mariadb", "mysql"])
def test_demo_on_a_server_and_kafka(tmp_path: Path, server: str) -> None:
    services.require("kafka")
    url = services.require(server)
    database = f"smartflow_demo_{secrets.token_hex(4)}"
    try:
        result = run_demo(tmp_path, "--kafka", "--database", database, SMARTFLOW_MARIADB_URL=url)
    finally:
        servers.remove_topics(stage.last_stage(tmp_path))
        drop_database(url, database)

    assert result.returncode == 0, result.stdout + result.stderr
    assert table(result.stdout) == {"pending": "0", "published": "0", "consumed": "231", "dead": "4"}
    assert checks(result.stdout)["records on the topic that are nobody's and are kept"] == "1 of 1"


# --- the served demo ---------------------------------------------------------------------------------------------


@contextmanager
def served(folder: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """Run `--serve` in a session of its own; nothing of it outlives the block."""
    process = subprocess.Popen(
        [*DEMO, "--serve", "--port", str(port), "--folder", str(folder)],
        cwd=stage.CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/admin/login/", timeout=5) as page:
            return page.status == 200
    except OSError:
        return False


def mend_and_replay(folder: Path) -> None:
    """Do what the admin does with the row whose user_id is refused: edit it, then send it again."""
    django(
        folder,
        "from outbox.registry.catalog import repository_of;"
        "from agent_events.agent.models import AgentOutboxMessage as M;"
        "row = M.objects.get(error_class='PayloadError');"
        "rows = repository_of('agent');"
        "assert rows.edit(row.pk, payload=row.payload.replace('\"user_id\": 0', '\"user_id\": 7').encode()) == 1;"
        "assert rows.replay([row.pk]) == 1",
    )


def status_of_mended(folder: Path) -> str:
    return django(
        folder,
        "from agent_events.agent.models import AgentOutboxMessage as M;"
        "print(M.objects.get(payload__contains='\"user_id\": 7, \"phase\"', event_type='agent.state.snapshot.persist',"
        " error_class='PayloadError').status)",
    ).strip()


def django(folder: Path, code: str) -> str:
    """Run code in the demo's project."""
    last = stage.last_stage(folder)
    assert last is not None
    result = subprocess.run(
        [sys.executable, "manage.py", "shell", "--no-imports", "-c", code],
        cwd=stage.CHECKOUT,
        env=last.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return result.stdout


# --- cleaning up -------------------------------------------------------------------------------------------------


def no_process_of(folder: Path) -> bool:
    """Say whether no process has a file of ``folder`` open: the workers of a failed demo must be gone."""
    return not list(open_files_in(folder))


def open_files_in(folder: Path) -> Iterator[str]:
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.startswith(str(folder)):
            yield target


def drop_database(url: str, name: str) -> None:
    import MySQLdb

    parts = urlsplit(url)
    connection = MySQLdb.connect(
        host=parts.hostname, port=parts.port, user=unquote(parts.username or ""), password=unquote(parts.password or "")
    )
    try:
        with connection.cursor() as cursor:
            cursor.execute(f"DROP DATABASE IF EXISTS `{name}`")
    finally:
        connection.close()
