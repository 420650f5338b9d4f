"""A process that uses Kafka through the outbox and by itself, and says as JSON what it found; a test starts it.

``what`` is ``untouched`` or the names to hide, as ``Class.name`` or ``kafka.module``: then code of the outbox finds no
such attribute or module, and the library does.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import pkgutil
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import kafka
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition

HEADERS = (("name", b"header"), ("name", b"again"))


# --- the library before and after ------------------------------------------------------------------------------------


def library() -> Iterator[Any]:
    """Give every module of the library, and every class in one."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "kafka" and module is not None:
            yield module
            yield from classes(vars(module), set())


def classes(names: Any, seen: set[type]) -> Iterator[type]:
    for each in list(names.values()):
        if isinstance(each, type) and each.__module__.partition(".")[0] == "kafka" and each not in seen:
            seen.add(each)
            yield each
            yield from classes(vars(each), seen)


def snapshot() -> dict[str, dict[str, Any]]:
    """Return what each attribute of the library is; the objects are kept, so that no other can get their identity."""
    return {
        f"{getattr(thing, '__module__', '')}:{getattr(thing, '__qualname__', thing.__name__)}": dict(vars(thing))
        for thing in library()
    }


def changes(before: dict[str, dict[str, Any]]) -> list[str]:
    found = []
    for owner, attributes in snapshot().items():
        known = before.get(owner, attributes)
        found += [
            f"{owner}.{name}"
            for name in {**known, **attributes}.keys() - {"__slotnames__"}  # which Python notes when it copies one
            if known.get(name, found) is not attributes.get(name, known)
        ]
    return sorted(found)


def import_all() -> None:
    for module in pkgutil.walk_packages(kafka.__path__, "kafka."):
        if not module.name.endswith("__main__") and not module.name.startswith(("kafka.cli", "kafka.benchmarks")):
            importlib.import_module(module.name)


# --- names that are not there ----------------------------------------------------------------------------------------


def hide(owner: type, names: set[str]) -> None:
    """Have code of the outbox find no attribute of ``names`` at instances of ``owner``."""
    look_up = owner.__getattribute__

    def hiding(self: Any, asked: str) -> Any:
        if asked in names and sys._getframe(1).f_globals.get("__name__", "").startswith("outbox."):
            raise AttributeError(f"{owner.__name__!r} object has no attribute {asked!r}")
        return look_up(self, asked)

    owner.__getattribute__ = hiding  # type: ignore[method-assign,assignment]


def owner_of(name: str) -> type:
    return next(each for each in library() if isinstance(each, type) and each.__name__ == name)


# --- what is done ----------------------------------------------------------------------------------------------------


class Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def sockets() -> int:
    found = 0
    for each in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{each}").startswith("socket:")
        except OSError:
            continue  # that of the listing
    return found


def use_outbox(servers: str, topic: str) -> dict[str, Any]:
    """Send and receive by the outbox, commit, and close everything; return what was found."""
    from outbox.brokers.base import OutgoingRecord
    from outbox.brokers.kafka import KafkaBroker
    from outbox.declarations.routes import ServiceRoute

    broker = KafkaBroker(bootstrap_servers=servers)
    route = ServiceRoute(service="process", table="none", topic=topic, group=topic)
    [state] = broker.create_topics([route], partitions=2)
    assert state.exists, state
    assert not state.problem, state
    producer = broker.producer(client_id="process-writer")
    batches = [
        [
            OutgoingRecord(number, topic, f"key-{number % 7}", b"%d" % number, HEADERS)
            for number in range(first, first + 50)
        ]
        for first in (0, 50)
    ]
    reports = [producer.send(batch).report(timedelta(seconds=30)) for batch in batches]
    subscription = broker.subscribe(route, client_id="process-reader")
    received: list[Any] = []
    deadline = time.monotonic() + 40
    while len(received) < 100 and time.monotonic() < deadline:
        batch = subscription.receive(max_records=30, timeout=timedelta(seconds=1))
        subscription.commit(batch)
        received += batch
    lag = broker.positions(route).lag
    shared = share_with_another(broker, route, subscription, producer)
    subscription.close()
    producer.close()
    broker.close()
    return {
        "acknowledged": sum(len(report.acknowledged) for report in reports),
        "received": sorted(int(record.value) for record in received),
        "headers": sorted({str(record.headers) for record in received}),
        "lag": lag,
        "shared": shared,
        "threads": [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()],
        "members": members(servers, topic),
    }


def share_with_another(broker: Any, route: Any, first: Any, producer: Any) -> list[int]:
    """Let a second member join, and both have a partition; return what both received of what was sent then."""
    from outbox.brokers.base import OutgoingRecord

    both = [first, broker.subscribe(route, client_id="process-other")]
    received: list[Any] = []

    def receive() -> None:
        for member in both:
            batch = member.receive(max_records=30, timeout=timedelta(milliseconds=100))
            member.commit(batch)
            received.extend(batch)

    deadline = time.monotonic() + 40
    while [len(member.assignments) for member in both] != [1, 1] and time.monotonic() < deadline:
        receive()
    batch = [
        OutgoingRecord(number, route.topic, f"key-{number}", b"%d" % number, HEADERS) for number in range(200, 240)
    ]
    assert len(producer.send(batch).report(timedelta(seconds=30)).acknowledged) == len(batch)
    while len(received) < len(batch) and time.monotonic() < deadline:
        receive()
    both[1].close()
    return sorted(int(record.value) for record in received)


def members(servers: str, group: str) -> int:
    admin = KafkaAdminClient(bootstrap_servers=servers)
    try:
        [described] = admin.describe_groups([group]).values()
        return len(described["members"])
    finally:
        admin.close()


def use_plain_clients(servers: str, topic: str) -> dict[str, Any]:
    """Do what a team's own code does, with clients of its own."""
    producer = KafkaProducer(bootstrap_servers=servers)
    producer.send(topic, value=b"plain", headers=list(HEADERS), partition=0).get(timeout=30)
    batches = producer._accumulator._batches
    producer.close(timeout=10)
    consumer = KafkaConsumer(bootstrap_servers=servers, auto_offset_reset="earliest", group_id=None)
    place = TopicPartition(topic, 0)
    consumer.assign([place])
    found: list[Any] = []
    deadline = time.monotonic() + 30
    while not any(record.value == b"plain" for record in found) and time.monotonic() < deadline:
        found += consumer.poll(timeout_ms=500).get(place, [])
    kind = type(consumer._fetcher.PartitionRecords).__name__, consumer._fetcher.PartitionRecords.__module__
    consumer.close()
    return {
        "kinds": sorted({type(record.headers).__name__ for record in found}),
        "headers": sorted({str(record.headers) for record in found}),
        "lengths": sorted({sum(len(value) for _, value in record.headers) for record in found}),
        "records_are": kind[1],
        "batches": len(batches),
    }


def main(what: str, servers: str, topic: str) -> None:
    heard = Heard()
    logging.getLogger("outbox").addHandler(heard)
    sockets_before = sockets()
    found: dict[str, Any] = {}
    if what == "untouched":
        import_all()
        before = snapshot()
        import django
        from django.core.management import call_command

        django.setup()
        call_command("check")
    else:
        import_all()
        hidden: dict[str, set[str]] = {}
        for each in what.split(","):
            if each.startswith("kafka."):
                sys.modules[each] = None  # type: ignore[assignment] # the library has imported what it needs of it
                continue
            owner, name = each.split(".")
            hidden.setdefault(owner, set()).add(name)
        for owner, names in hidden.items():
            hide(owner_of(owner), names)
    found["outbox"] = use_outbox(servers, topic)
    found["sockets"] = sockets() - sockets_before
    if what == "untouched":
        import gc

        gc.collect()
        found["changed"] = changes(before)
        found["plain"] = use_plain_clients(servers, topic)
    found["said"] = heard.said
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
