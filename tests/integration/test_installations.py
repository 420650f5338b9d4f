"""An installation tells its records from those of another one that shares its topics and groups by mistake."""

from __future__ import annotations

import json
import threading
import uuid
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connections
from django.test.utils import CaptureQueriesContext

from outbox import signals
from outbox.brokers.base import IncomingRecord
from outbox.brokers.memory import MemoryBroker
from outbox.consumer.loop import Consumer
from outbox.consumer.other_installations import LOG_INTERVAL
from outbox.fields import UtcNow
from outbox.lifecycle import Status
from outbox.models import INSTALLATION_MAX_LENGTH, Installation, RejectedRecord, Worker
from outbox.storage.installations import InstallationId, installation_id, renew_installation_id
from outbox.storage.rejections import RejectionStore
from outbox.wire.envelope import INSTALLATION_HEADER
from tests import factories
from tests.conftest import Configure
from tests.consumers import Scripted, subscribing
from tests.factories import get, record, record_of, row, rows, statuses
from tests.relays import MakeRelay, step_until_idle
from tests.toys import ManualClock, Toys, effect_ids

B, C = str(uuid.uuid4()), str(uuid.uuid4())
on_servers = pytest.mark.parametrize("database_alias", ["mariadb", "mysql", "postgres"], indirect=True)


def of(installation: str | bytes, found: IncomingRecord) -> IncomingRecord:
    """Return a record as another installation sent it."""
    name = installation if isinstance(installation, bytes) else installation.encode()
    return IncomingRecord(
        found.topic, found.partition, found.offset, found.key, found.value, ((INSTALLATION_HEADER, name),)
    )


def rejected(alias: str) -> list[RejectedRecord]:
    return list(RejectedRecord.objects.using(alias).order_by("id"))


def counts(alias: str) -> dict[str | None, int]:
    return {each.installation: each.records for each in rejected(alias)}


# --- the id ------------------------------------------------------------------------------------------------------


def test_id_is_made_once_and_stays(alias: str) -> None:
    first = installation_id(alias)

    assert str(uuid.UUID(first)) == first
    assert installation_id(alias) == InstallationId(alias)() == first
    assert Installation.objects.using(alias).count() == 1


@on_servers
def test_workers_that_start_at_once_agree_on_the_id(alias: str) -> None:
    together = threading.Barrier(6)
    found: list[str] = []

    def start() -> None:
        try:
            connections[alias].ensure_connection()
            together.wait(10)
            found.append(installation_id(alias))
        finally:
            connections.close_all()

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert len(found) == 6
    assert len(set(found)) == 1


@on_servers
def test_databases_of_one_project_have_each_an_id_of_their_own(alias: str) -> None:
    assert installation_id(alias) != installation_id("default")


def test_worker_reads_it_once(alias: str) -> None:
    own = InstallationId(alias)
    own()

    with CaptureQueriesContext(connections[alias]) as captured:
        own()
    assert len(captured) == 0


def test_events_that_a_project_relays_to_itself_are_its_own(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, toys: Toys
) -> None:
    ids = rows(alias, 3)
    step_until_idle(make_relay())

    factories.consumer(alias, toys, broker=broker).step(100)

    assert effect_ids(alias) == ids
    assert rejected(alias) == []


# --- records of another one --------------------------------------------------------------------------------------


def test_records_of_another_installation_are_one_rejected_group(alias: str, consumer: Consumer) -> None:
    good = row(alias, status=Status.PUBLISHED)
    theirs = [of(B, record(b'{"outbox_id": 7}', partition=2, offset=offset)) for offset in (40, 41, 44)]

    consumer.handle([theirs[0], record_of(alias, good), *theirs[1:]])

    [group] = rejected(alias)
    assert (group.service, group.topic, group.installation) == ("agent", "smartflow.agent.outbox", B)
    assert (group.partition, group.offset, group.last_partition, group.last_offset) == (2, 40, 2, 44)
    assert group.records == 3
    assert bytes(group.value) == b'{"outbox_id": 7}'
    assert json.loads(group.headers) == [[INSTALLATION_HEADER, B]]
    assert B in group.reason
    assert installation_id(alias) in group.reason
    assert "NAMESPACE" in group.reason
    assert effect_ids(alias) == [good]
    assert (consumer.totals.rejected, consumer.totals.consumed) == (3, 1)


def test_row_with_the_id_of_anothers_record_is_not_touched(alias: str, consumer: Consumer) -> None:
    """Ids are counted in each database: nearly every id of theirs is one of ours as well."""
    own = row(alias, status=Status.PUBLISHED)

    consumer.handle([of(B, record_of(alias, own))])

    assert statuses(alias) == {own: "published"}
    assert effect_ids(alias) == []
    assert counts(alias) == {B: 1}


@pytest.mark.parametrize("header", [(), ((INSTALLATION_HEADER, b""),), (("event_id", b"x"),)])
def test_record_that_names_no_installation_goes_its_usual_way(
    alias: str, consumer: Consumer, header: tuple[tuple[str, bytes], ...]
) -> None:
    """Other software writes none, nor does a relay of an older version."""
    own = row(alias, status=Status.PUBLISHED)
    found = record_of(alias, own)

    consumer.handle(
        [IncomingRecord(found.topic, found.partition, found.offset, found.key, found.value, header), record(b"garbage")]
    )

    assert effect_ids(alias) == [own]
    assert counts(alias) == {None: 1}


def test_blanks_before_a_name_do_not_make_a_record_ours(alias: str, consumer: Consumer) -> None:
    """A name is cut to what its column holds."""
    own = row(alias, status=Status.PUBLISHED)

    consumer.handle([of(" " * INSTALLATION_MAX_LENGTH + B, record_of(alias, own))])

    assert statuses(alias) == {own: "published"}
    assert effect_ids(alias) == []
    assert counts(alias) == {B: 1}


def test_redelivered_records_of_another_installation_make_no_further_row(alias: str, consumer: Consumer) -> None:
    first = [of(B, record(b"theirs", offset=offset)) for offset in range(5)]
    again = [of(B, record(b"theirs", partition=1, offset=offset)) for offset in range(3)]

    consumer.handle(first)
    consumer.handle(again)
    consumer.handle([of(C, record(b"a third one's"))])

    assert counts(alias) == {B: 8, C: 1}
    [group, _] = rejected(alias)
    assert (group.partition, group.offset, group.last_partition, group.last_offset) == (0, 0, 1, 2)
    assert group.last_received_at is not None
    assert group.last_received_at >= group.received_at


@on_servers
def test_consumers_of_one_service_count_in_one_row(alias: str, toys: Toys) -> None:
    together = threading.Barrier(4)
    errors: list[BaseException] = []

    def work(partition: int) -> None:
        try:
            consumer = factories.consumer(alias, toys)
            together.wait(10)
            for offset in range(10):
                consumer.handle([of(B, record(b"theirs", partition=partition, offset=offset))])
        except BaseException as error:  # noqa: BLE001 - told to the test
            errors.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=work, args=(partition,)) for partition in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert errors == []
    assert counts(alias) == {B: 40}


def test_their_records_are_committed_so_that_the_topic_goes_on(alias: str, toys: Toys) -> None:
    own = row(alias, status=Status.PUBLISHED)
    batch = [of(B, record(b"theirs")), record_of(alias, own)]
    subscription = Scripted(batch)

    factories.consumer(alias, toys, subscribe=subscribing(subscription)).step(100)

    assert subscription.committed == batch


def test_resolved_group_opens_again_when_another_record_comes(alias: str, consumer: Consumer) -> None:
    consumer.handle([of(B, record(b"theirs"))])
    RejectionStore("agent", alias).resolve([rejected(alias)[0].pk], by="ann")
    assert rejected(alias)[0].resolved_by == "ann"

    consumer.handle([of(B, record(b"theirs"))])

    [group] = rejected(alias)
    assert (group.records, group.resolved_at, group.resolved_by) == (2, None, "")


def test_record_that_an_older_version_rejected_by_itself_does_not_hide_its_group(
    alias: str, consumer: Consumer
) -> None:
    theirs = record(b"theirs", partition=1, offset=7)
    consumer.handle([theirs])

    consumer.handle([of(B, theirs)])

    assert counts(alias) == {None: 1, B: 1}


def test_any_bytes_may_stand_in_the_header(alias: str, consumer: Consumer) -> None:
    strange = [b"\xff\x00" * 100, b"x" * 70_000, b"  ", "日本".encode() * 50, b"a\nb", B.upper().encode(), b"b ", b"b"]

    consumer.handle([of(value, record(b"theirs")) for value in strange])

    assert sum(counts(alias).values()) == len(strange)
    assert all(each is None or len(each) <= 64 for each in counts(alias))


def test_many_names_in_one_batch_take_few_statements(alias: str, consumer: Consumer) -> None:
    good = row(alias, status=Status.PUBLISHED)
    flood = [of(f"name-{number}", record(b"theirs")) for number in range(300)]

    with CaptureQueriesContext(connections[alias]) as captured:
        consumer.handle([*flood, record_of(alias, good)])

    assert len(captured) < 150
    assert sum(counts(alias).values()) + sum(1 for each in rejected(alias) if each.installation is None) >= 300
    assert effect_ids(alias) == [good]


def test_log_names_both_topic_and_remedy_once_a_minute(
    alias: str, toys: Toys, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    consumer = factories.consumer(alias, toys, clock=clock)
    heard: list[int] = []

    def on_rejected(sender: str, count: int, **_: object) -> None:
        heard.append(count)

    signals.rejected.connect(on_rejected)
    try:
        for _ in range(10):
            consumer.handle([of(B, record(b"theirs")), of(B, record(b"theirs"))])
        clock.advance(LOG_INTERVAL.total_seconds())
        consumer.handle([of(B, record(b"theirs"))])
    finally:
        signals.rejected.disconnect(on_rejected)

    said = [each.getMessage() for each in caplog.records if "another installation" in each.getMessage()]
    assert len(said) == 2
    for part in (B, installation_id(alias), "smartflow.agent.outbox", "smartflow-agent-outbox-consumer", "NAMESPACE"):
        assert part in said[0]
    assert heard == [2] * 10 + [1]


# --- what an operator sees ---------------------------------------------------------------------------------------


@pytest.fixture
def at_work(alias: str) -> None:
    for role in ("relay", "consumer"):
        Worker.objects.using(alias).create(
            worker_id=role, service="agent", role=role, host="host.example", pid=1, seen_at=UtcNow()
        )


def status(*arguments: str) -> str:
    out = StringIO()
    call_command("outbox_status", "agent", *arguments, "--timeout", "30s", stdout=out)
    return out.getvalue()


def test_check_is_two_until_the_group_is_resolved(alias: str, consumer: Consumer, at_work: None) -> None:
    status("--check")
    consumer.handle([of(B, record(b"theirs")), of(B, record(b"theirs"))])

    with pytest.raises(CommandError, match=r"agent: rejected, other installation\)") as raised:
        status("--check")
    assert raised.value.returncode == 2
    [service] = json.loads(status("--json"))["services"]
    [other] = service["other_installations"]
    assert (other["installation_id"], other["records"]) == (B, 2)
    assert service["open_rejected"] == {"value": 1, "capped": False}
    assert f"2 records of installation {B}: NAMESPACE is shared" in status()

    RejectionStore("agent", alias).resolve([rejected(alias)[0].pk], by="ann")
    status("--check")


def test_group_of_a_topic_that_is_not_used_any_more_is_history(
    alias: str, consumer: Consumer, configure: Configure
) -> None:
    """The remedy was taken: a NAMESPACE of its own."""
    consumer.handle([of(B, record(b"theirs"))])

    configure(NAMESPACE="staging")

    [service] = json.loads(status("--json"))["services"]
    assert service["other_installations"] == []
    assert "rejected" in service["attention"], "until somebody has looked at it"


# --- outbox_installation -----------------------------------------------------------------------------------------


def installations(*arguments: str) -> str:
    out = StringIO()
    call_command("outbox_installation", *arguments, stdout=out)
    return out.getvalue()


def test_command_says_the_id_of_each_database(alias: str) -> None:
    header, line = installations().splitlines()

    assert header.split() == ["DATABASE", "INSTALLATION", "SERVICES"]
    assert line.split(maxsplit=2)[:2] == [alias, installation_id(alias)]
    assert "agent" in line


def test_copy_of_a_database_gets_an_id_of_its_own(alias: str, toys: Toys) -> None:
    """What the original sent is not the copy's, and the copy has the same rows."""
    original = installation_id(alias)
    own = row(alias, status=Status.PUBLISHED)

    assert original not in installations("--renew")

    assert installation_id(alias) != original
    factories.consumer(alias, toys).handle([of(original, record_of(alias, own))])
    assert get(alias, own).status == Status.PUBLISHED
    assert counts(alias) == {original: 1}


def test_id_is_not_renewed_while_a_worker_runs(alias: str, at_work: None) -> None:
    before = installation_id(alias)

    with pytest.raises(CommandError, match=r"these workers run, .*relay of agent \(host.example:1\)"):
        installations("--renew")

    assert installation_id(alias) == before


def test_first_id_of_a_database_can_be_a_renewed_one(alias: str) -> None:
    new = renew_installation_id(alias)

    assert installation_id(alias) == new


def test_events_that_were_under_way_when_the_id_changed_come_again(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, toys: Toys
) -> None:
    [row_id] = rows(alias, 1)
    relay = make_relay(redeliver_after_seconds=300)
    step_until_idle(relay)
    relay._leases.release()
    renew_installation_id(alias)
    factories.consumer(alias, toys, broker=broker).step(100)
    assert effect_ids(alias) == []

    factories.let_get_stuck(alias, [row_id], by=timedelta(seconds=301))
    step_until_idle(make_relay(redeliver_after_seconds=300))
    consumer = factories.consumer(alias, toys, broker=broker)
    while consumer.step(100):
        pass

    assert effect_ids(alias) == [row_id]
