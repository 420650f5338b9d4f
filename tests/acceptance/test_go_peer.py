"""A table and a topic that a program in Go shares: it made the table, and writes, relays and consumes beside us."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import ON_EACH_MYSQL, end_all
from tests.acceptance.databases import Database, MariaDBServer, Server
from tests.acceptance.go_peers import TABLE, GoPeer, SharedInstallation, build, documented_sql
from tests.acceptance.topics import create_topic, topic_length
from tests.services import require

pytestmark = ON_EACH_MYSQL

SHANGHAI = "loc=Asia%2FShanghai"
LARGE = 300_000
"""More than a record of ours holds, unless payloads travel whole."""
COMMAND_TIMEOUT_S = 200.0


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("go"))


@pytest.fixture
def server(usual_database: str, database_servers: Callable[[str], Server]) -> MariaDBServer:
    found = database_servers(usual_database)
    assert isinstance(found, MariaDBServer)
    return found


@pytest.fixture(scope="session")
def adopted(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[MariaDBServer], Database]]:
    """Give the adopted database of a server, made when it is first asked for; tests copy it."""
    made: dict[MariaDBServer, SharedInstallation] = {}

    def of(server: MariaDBServer) -> Database:
        if server not in made:
            made[server] = installation_on(server.make(new_name()), tmp_path_factory.mktemp("adopted"))
            go = GoPeer(program, made[server])
            go.run("migrate")
            adopt(made[server], go)
        return made[server].database

    yield of
    for installation in made.values():
        installation.dispose()


@pytest.fixture
def strange(
    request: pytest.FixtureRequest, tmp_path: Path, program: Path, server: MariaDBServer
) -> Iterator[SharedInstallation]:
    """An installation that nothing is migrated of, and whose outbox table the Go program has made."""
    installation = installation_on(server.make(new_name()), tmp_path)
    try:
        GoPeer(program, installation).run("migrate")
        yield installation
    finally:
        end_all(request, [installation])


@pytest.fixture
def shared(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    server: MariaDBServer,
    adopted: Callable[[MariaDBServer], Database],
) -> Iterator[SharedInstallation]:
    """An installation whose table is adopted, and the Go program has started again since."""
    installation = installation_on(server.copy(adopted(server), new_name()), tmp_path)
    try:
        assert installation.kafka is not None
        create_topic(installation.kafka, installation.topic("shared"))
        yield installation
    finally:
        end_all(request, [installation])


@pytest.fixture
def go(program: Path, shared: SharedInstallation) -> GoPeer:
    return GoPeer(program, shared)


def new_name() -> str:
    return f"shared_{uuid.uuid4().hex[:12]}"


def installation_on(database: Database, folder: Path) -> SharedInstallation:
    return SharedInstallation(database=database, kafka=require("kafka"), folder=folder)


def adopt(installation: SharedInstallation, go: GoPeer) -> None:
    """Do what the page says for a new service; then the Go program starts again, and alters the table."""
    run_sql(installation, "outbox", "dead")
    for command in ("migrate shared --fake-initial", "migrate"):
        manage(installation, *command.split())
    go.run("migrate")


def run_sql(installation: SharedInstallation, *names: str) -> None:
    """Run what the page has under these names."""
    is_mariadb = "MariaDB" in installation.database.value("SELECT VERSION()")
    for statement in documented_sql(*names, service="shared", is_mariadb=is_mariadb):
        installation.database.execute(statement)


def manage(installation: SharedInstallation, *arguments: str) -> str:
    done = installation.run(*arguments, timeout_s=COMMAND_TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def ids_of(said: str) -> set[str]:
    """Return the ids of the checks that said something."""
    return {word.strip("()") for word in said.split() if word.startswith("(outbox.")}


def tables(installation: SharedInstallation) -> set[str]:
    return {row[0] for row in installation.database.query("SHOW TABLES")}


def consumed(installation: SharedInstallation, count: int) -> Callable[[], bool]:
    return lambda: installation.statuses("shared")["consumed"] == count


def check_effects(installation: SharedInstallation, *, ns: set[int], by: set[str]) -> None:
    """Each event took effect once, and those of a key in the order of their ids."""
    made = installation.made()
    assert sorted(n for _, _, n, _, _ in made) == sorted(ns)
    assert {who for *_, who in made} == by
    for key in {key for _, key, *_ in made}:
        ids = [row_id for row_id, of_key, *_ in made if of_key == key]
        assert ids == sorted(ids), f"out of order: {key}"


# --- adopting ----------------------------------------------------------------------------------------------------


def test_migrate_says_what_to_do_and_changes_nothing(strange: SharedInstallation) -> None:
    refused = strange.run("migrate", timeout_s=COMMAND_TIMEOUT_S)

    assert refused.returncode == 1
    said = refused.stdout + refused.stderr
    assert "outbox.E090" in said
    assert "docs/shared-tables.md" in said
    assert f"'{TABLE}'" in said
    assert "1050" not in said
    assert tables(strange) == {TABLE}


def test_adopted_table_works_with_the_rows_that_it_had(strange: SharedInstallation, program: Path) -> None:
    go = GoPeer(program, strange)
    go.write(first=0, count=12)

    adopt(strange, go)

    assert ids_of(manage(strange, "check", "--database", "default", "--tag", "outbox")) == {"outbox.W086"}
    assert "No changes detected" in manage(strange, "makemigrations", "--check", "--dry-run", "shared")
    go.write(first=12, count=3)
    manage(strange, "run_relay", "shared", "--once", "--create-topics")
    manage(strange, "consume", "shared", "--once")
    assert strange.statuses("shared") == {"consumed": 15}
    check_effects(strange, ns=set(range(15)), by={"django"})


def test_go_goes_on_where_it_was_before_the_table_was_adopted(shared: SharedInstallation, go: GoPeer) -> None:
    """All roles are its own again; the columns that were added are in nobody's way."""
    consumer, relay = go.start("consume", 10), go.start("relay")
    go.write(first=0, count=10)
    consumer.wait(timeout_s=90)
    relay.stop()
    assert shared.statuses("shared") == {"consumed": 10}
    check_effects(shared, ns=set(range(10)), by={"go"})


# --- sharing -----------------------------------------------------------------------------------------------------


def test_both_write_we_relay_and_go_consumes(shared: SharedInstallation, go: GoPeer) -> None:
    relay, consumer = shared.relay("shared"), go.start("consume", 82)
    ours = shared.start_publishing(first=0, count=40)
    go.write(first=1_000, count=40)
    ours.wait(timeout_s=60)
    shared.start_publishing(first=2_000, count=1, filler=LARGE).wait(timeout_s=60)
    go.write(first=3_000, count=1, filler=LARGE)

    consumer.wait(timeout_s=120)

    relay.stop()
    check_effects(shared, ns={*range(40), *range(1_000, 1_040), 2_000, 3_000}, by={"go"})
    lengths = {n: length for _, _, n, length, _ in shared.made()}
    assert (lengths[2_000], lengths[3_000], lengths[0]) == (LARGE, LARGE, 10), "a payload came empty"
    assert shared.statuses("shared") == {"consumed": 82}


def test_both_write_go_relays_and_we_consume(shared: SharedInstallation, go: GoPeer) -> None:
    relay, consumer = go.start("relay"), shared.consumer("shared")
    ours = shared.start_publishing(first=0, count=40)
    go.write(first=1_000, count=40)
    ours.wait(timeout_s=60)

    shared.wait(consumed(shared, 80), "all is consumed", alive=[relay, consumer])

    check_effects(shared, ns={*range(40), *range(1_000, 1_040)}, by={"django"})


def test_relaying_and_consuming_change_sides_while_both_write(shared: SharedInstallation, go: GoPeer) -> None:
    """One relays and one consumes at a time, and both write all the time: nothing is lost, doubled or out of order."""
    ours = shared.start_publishing(first=0, count=150)
    theirs = go.start("write", 1_000, 150, 5, 10)
    relay, consumer = shared.relay("shared"), go.start("consume", 60)
    consumer.wait(timeout_s=120)
    relay.stop()
    relay, consumer = go.start("relay"), shared.consumer("shared")
    shared.wait(lambda: shared.statuses("shared")["consumed"] >= 150, "half is consumed", alive=[relay, consumer])
    relay.stop()
    relay = shared.relay("shared")
    for writer in (ours, theirs):
        writer.wait(timeout_s=60)

    shared.wait(consumed(shared, 300), "all is consumed", alive=[relay, consumer])

    check_effects(shared, ns={*range(150), *range(1_000, 1_150)}, by={"go", "django"})


def test_two_relays_make_duplicates_and_no_second_effect(shared: SharedInstallation, go: GoPeer) -> None:
    assert shared.kafka is not None
    shared.start_publishing(first=0, count=60).wait(timeout_s=60)
    theirs, ours = go.start("relay"), shared.relay("shared")
    consumer = shared.consumer("shared")
    go.write(first=1_000, count=60)

    shared.wait(consumed(shared, 120), "all is consumed", alive=[theirs, ours, consumer])

    check_effects(shared, ns={*range(60), *range(1_000, 1_060)}, by={"django"})
    assert topic_length(shared.kafka, shared.topic("shared")) >= 120


def test_a_consumer_without_a_common_assignor_is_kept_out(shared: SharedInstallation, go: GoPeer) -> None:
    """It joins the group of ours in vain, and ours goes on."""
    relay, ours = shared.relay("shared"), shared.consumer("shared")
    shared.start_publishing(first=0, count=5).wait(timeout_s=60)
    shared.wait(consumed(shared, 5), "ours is at work", alive=[relay, ours])
    theirs = go.start("consume", 1)
    shared.wait(lambda: "Inconsistent Group Protocol" in theirs.text, "the group refuses it", alive=[theirs])
    shared.start_publishing(first=5, count=10).wait(timeout_s=60)

    shared.wait(consumed(shared, 15), "all is consumed", alive=[relay, ours, theirs])

    check_effects(shared, ns=set(range(15)), by={"django"})


# --- times -------------------------------------------------------------------------------------------------------


def test_writer_in_local_time_is_found_and_its_rows_are_set_right(shared: SharedInstallation, go: GoPeer) -> None:
    go.write(first=0, count=3, session=SHANGHAI)
    go.write(first=3, count=2)

    manage(shared, "run_relay", "shared", "--once")
    assert shared.statuses("shared") == {"pending": 3, "published": 2}
    assert "outbox.W087" in ids_of(manage(shared, "check", "--database", "default", "--tag", "outbox"))
    told = shared.run("outbox_status", "shared", "--check")
    assert told.returncode == 2
    assert "time zone" in told.stderr

    run_sql(shared, "local times")

    assert "outbox.W087" not in ids_of(manage(shared, "check", "--database", "default", "--tag", "outbox"))
    manage(shared, "run_relay", "shared", "--once")
    manage(shared, "consume", "shared", "--once")
    check_effects(shared, ns=set(range(5)), by={"django"})
