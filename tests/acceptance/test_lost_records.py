"""What is stuck in ``published`` comes back; what is only waiting is not sent again."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from tests.acceptance.conftest import ON_EACH_MYSQL, Install
from tests.acceptance.harness import Installation
from tests.acceptance.plans import Plan
from tests.acceptance.topics import create_topic, remove_topics, topic_length
from tests.acceptance.workers import Worker

pytestmark = ON_EACH_MYSQL

SOON = {"RELAY": {"REDELIVER_AFTER_SECONDS": 2.0}}


@pytest.fixture
def impatient(install: Install) -> Installation:
    """Give an installation that delivers again after two seconds."""
    return install(options=SOON)


def test_row_marked_published_without_a_record_comes_back(impatient: Installation) -> None:
    """Somebody marked it by hand, or the topic lost its record: for the database it is the same.

    Of the five, two have a successor of their key: whoever is quicker sends them again, the relay, or the consumer that
    receives the successor. The other three only the relay can miss. A slow machine may send one a second time.
    """
    impatient.publish(*[("step", {"key": f"k{n % 5}", "n": n}) for n in range(10)])
    impatient.database.execute(
        "UPDATE probe_outbox_messages SET status = 'published', published_at = UTC_TIMESTAMP(6),"
        " next_retry_at = UTC_TIMESTAMP(6) WHERE id % 2 = 0"
    )
    workers = [impatient.relay(), impatient.consumer()]
    impatient.wait_until_done(alive=workers)
    impatient.check()
    for worker in workers:
        worker.stop()
    by_relay, by_consumer = (_redelivered(worker) for worker in workers)
    assert by_relay >= 3, (by_relay, by_consumer)
    assert by_relay + by_consumer >= 5, (by_relay, by_consumer)


def _redelivered(worker: Worker) -> int:
    """Return how many rows a worker that has ended sent again, as its log adds up."""
    return sum(map(int, re.findall(r"rejected \d+, redelivered (\d+)", worker.text)))


def test_deleted_topic_loses_no_event(impatient: Installation) -> None:
    """All records are sent and none is consumed when the topic goes; the next workers make it anew."""
    assert impatient.kafka is not None
    relay = impatient.relay()
    impatient.load(Plan(prefix="k", transactions=20, seed=41))
    impatient.wait(lambda: impatient.statuses().keys() == {"published"}, "all is sent", alive=[relay])
    relay.stop()
    remove_topics(impatient.kafka, topics=[impatient.topic()])
    workers = [impatient.relay(), impatient.consumer()]
    impatient.wait_until_done(alive=workers)
    impatient.check()


def test_topic_made_anew_under_running_workers_loses_no_event(impatient: Installation) -> None:
    """Records that the consumer has read ahead go with the topic too, and the new one counts from 0 again."""
    assert impatient.kafka is not None
    workers = [impatient.relay(), impatient.consumer()]
    fields = {"sleep_ms": 10}
    load = impatient.start_load(Plan(prefix="k", threads=2, transactions=0, pause_ms=20, seed=44, fields=fields))
    everybody = [load, *workers]
    impatient.wait(lambda: impatient.statuses()["published"] > 50, "the consumer was behind", alive=everybody)
    remove_topics(impatient.kafka, topics=[impatient.topic()])
    create_topic(impatient.kafka, impatient.topic())
    before = impatient.statuses()["consumed"]
    impatient.wait(lambda: impatient.statuses()["consumed"] > before + 100, "work goes on", alive=everybody)
    load.stop()
    impatient.wait_until_done(alive=workers)
    impatient.check()


def test_backlog_of_a_stopped_consumer_is_sent_once(impatient: Installation) -> None:
    """The records are there, nobody reads them: to send them again every two seconds would drown the topic."""
    assert impatient.kafka is not None
    relay = impatient.relay()
    impatient.load(Plan(prefix="k", transactions=20, seed=42))
    total = len(impatient.rows())
    impatient.wait(lambda: impatient.statuses().keys() == {"published"}, "all is sent", alive=[relay])
    overdue = (
        f"SELECT COUNT(*) FROM probe_outbox_messages WHERE published_at > {impatient.database.now} - INTERVAL 6 SECOND"
    )
    impatient.wait(lambda: impatient.database.value(overdue) == 0, "all is thrice overdue", alive=[relay])
    assert topic_length(impatient.kafka, impatient.topic()) == total
    consumer = impatient.consumer()
    impatient.wait_until_done(alive=[relay, consumer])
    impatient.check()


def test_offsets_set_back_to_the_start_repeat_nothing(installation: Installation) -> None:
    """The group reads the whole topic a second time."""
    assert installation.kafka is not None
    relay, consumer = installation.relay(), installation.consumer()
    installation.load(Plan(prefix="k", transactions=20, seed=43))
    installation.wait_until_done(alive=[relay, consumer])
    consumer.stop()
    remove_topics(installation.kafka, topics=[], groups=[installation.group()])
    again = installation.consumer("probe", "--once")
    again.wait(timeout_s=60)
    installation.check()
    total = len(installation.rows())
    assert f"consumed 0, retried 0, waited 0, dead 0, rejected 0, duplicates {total}" in again.text
    assert set(Counter(mark.outbox_id for mark in installation.begun()).values()) == {1}
