"""The promises hold in every state that small cases can reach, and each guard is there for one of them.

Every case is searched to its end: all orders of steps, with a crash, a lost lease, a lost partition or a lost answer
between any two. A case without ``faults`` has any number of them; the larger ones have one or two, anywhere.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import pytest

from tests.model.case import Guards
from tests.model.protocol import Protocol
from tests.model.search import Found, Search
from tests.model.state import EARLIER, OTHER, Kind

FIRST: Final = frozenset({0})
WITH_OPERATOR: Final = (Kind.SYSTEM, Kind.OPERATOR)
"""A parked key ends with the help of a person only."""


def search(case: Protocol) -> Found:
    return Search(case, progress_by=WITH_OPERATOR if case.parks else (Kind.SYSTEM,)).run()


def shared(keys: str, **more: Any) -> Protocol:
    """Return a case whose topic others write to as well, and take records from if that is not said otherwise."""
    return Protocol(keys, lag=2, **({"poison": FIRST, "strangers": (OTHER, EARLIER), "steals": True} | more))


def everything(keys: str, **more: Any) -> Protocol:
    """Return a case of two relays and two consumers."""
    return Protocol(keys, relays=2, consumers=2, lag=2, forgets_done=True, **more)


def killer(keys: str, **more: Any) -> Protocol:
    """Return a case whose first event ends every process that handles it; it is dead after two in a row."""
    return Protocol(keys, forgets_done=True, killers=FIRST, max_interruptions=2, **more)


REAL: Final = {
    # Three events of two keys, two relays, two consumers.
    "two faults": everything("aab", faults=2),
    "a fault and failures": everything("aab", faults=1, poison=FIRST),
    "a fault, the smallest id commits late": everything("aab", faults=1, late=FIRST),
    "a fault, two partitions": everything("aab", faults=1, partitions=2),
    # Fewer workers or events, and any number of faults.
    "any faults, one event": replace(everything("a", poison=FIRST), lag=1),
    "any faults, two relays": Protocol("aa", relays=2, lag=1, forgets_done=True, poison=FIRST),
    "any faults, two consumers": Protocol("aa", consumers=2, lag=1, forgets_done=True),
    "any faults, the topic loses records": Protocol(
        "aa", lag=1, forgets_done=True, poison=FIRST, late=FIRST, loses_topic=True
    ),
    # The operator.
    "any faults and replays": Protocol("aa", lag=2, forgets_done=True, poison=FIRST, replays=True),
    "any faults, a key is parked": Protocol("aa", lag=2, forgets_done=True, poison=FIRST, replays=True, parks=True),
    "a fault, a key is parked, two consumers": Protocol(
        "aa",
        consumers=2,
        lag=1,
        faults=1,
        forgets_done=True,
        poison=FIRST,
        replays=True,
        parks=True,
    ),
    "a fault, an unreadable event parks its key": Protocol(
        "aab", consumers=2, lag=2, faults=1, forgets_done=True, unreadable=FIRST, replays=True, parks=True
    ),
    "a fault, the broker refuses a record": Protocol(
        "aa",
        relays=2,
        lag=2,
        faults=1,
        forgets_done=True,
        refused=FIRST,
        replays=True,
        mends=True,
    ),
    # Interruptions: one event ends whatever process handles it, or an innocent one is at work when a process ends.
    "no faults, a killer before others": killer("aab", lag=2, faults=0, most_kills=3),
    "a fault, a killer before others": killer("aab", lag=2, faults=1, most_kills=6),
    "a fault, a killer, two consumers": killer("ab", consumers=2, lag=2, faults=1, most_kills=6),
    "a fault, a killer and an event that fails": killer("ab", lag=1, faults=1, most_kills=6, poison=frozenset({1})),
    "no faults, a killer parks its key": killer(
        "aab", lag=1, faults=0, most_kills=3, parks=True, replays=True, mends=True
    ),
    "a fault, a killer is mended": killer("ab", lag=1, faults=1, most_kills=6, replays=True, mends=True),
    "any faults, an event at work alone": Protocol("aa", lag=1, forgets_done=True, poison=FIRST, max_interruptions=2),
    "three faults, an event at work alone, two consumers": Protocol(
        "a", consumers=2, lag=1, faults=3, forgets_done=True, poison=FIRST, max_interruptions=2
    ),
    "two faults, an event at work alone is replayed": Protocol(
        "a",
        consumers=2,
        lag=1,
        faults=2,
        forgets_done=True,
        poison=FIRST,
        replays=True,
        mends=True,
        max_interruptions=2,
    ),
    # Another installation on the topic and in the group, and records of earlier rows with our ids.
    "two faults, strangers and thefts": shared("aa", faults=2, forgets_done=True),
    "any faults, strangers and thefts": shared("a", forgets_done=True),
    "two faults, strangers and thefts, two consumers": shared("a", consumers=2, faults=2),
    "a fault, strangers and a killer": killer("ab", lag=2, faults=1, most_kills=6, strangers=(OTHER, EARLIER)),
    # Records of finished rows are kept here; the cases above leave them out.
    "any faults, two consumers, all records": Protocol("a", consumers=2, lag=2, poison=FIRST),
    "any faults, two relays, all records": Protocol("a", relays=2, lag=2, poison=FIRST),
    "any faults, two events, all records": Protocol("aa", lag=2, poison=FIRST),
    "a fault, all records": Protocol("a", relays=2, consumers=2, lag=2, faults=1, poison=FIRST),
}


@pytest.mark.parametrize("case", REAL.values(), ids=REAL.keys())
def test_every_reachable_state_keeps_the_promises(case: Protocol) -> None:
    found = search(case)

    assert not found.breach, str(found)
    assert found.states > 1000, "the case leaves nothing to search"


# --- one guard less ------------------------------------------------------------------------------------------------

ONE: Final = Protocol("a", consumers=2, lag=2, faults=2, poison=FIRST)
TWO: Final = Protocol("aa", lag=2, poison=FIRST)

STRANGERS: Final = shared("a", faults=2, steals=False)

KILLER: Final = killer("ab", lag=2, faults=0, most_kills=3)
ALONE: Final = Protocol("a", lag=1, faults=3, forgets_done=True, poison=FIRST, max_interruptions=2)

NEEDED: Final = {
    "predecessors": (TWO, Guards(waits_for_predecessor=False), "the effect of 1 before that of 0"),
    "parked predecessors": (
        replace(TWO, parks=True, replays=True),
        Guards(waits_for_parked=False),
        "the effect of 1 before that of 0",
    ),
    "one transaction for effect and status": (ONE, Guards(is_atomic=False), "its effect is there"),
    "legal sources": (ONE, Guards(moves_from_sources=False), "row 0 goes from consumed to p"),
    # Each of these two pairs is double: either of a pair is enough (below).
    "status and count": (ONE, Guards(looks_at_status=False, counts_consumed=False), "a second effect of 0"),
    "locks and count": (ONE, Guards(locks_rows=False, counts_consumed=False), "a second effect of 0"),
    "attempts as seen": (ONE, Guards(notes_seen_attempt=False), "row 0 has more attempts than it may have"),
    "lost locks are nobody's fault": (
        replace(ONE, poison=frozenset()),
        Guards(excuses_lost_locks=False),
        "row 0 lost an attempt though its handler never failed",
    ),
    # Redelivery is the net under everything that leaves a row published without a record.
    "redelivery": (replace(ONE, loses_topic=True), Guards(redelivers=False), "no way from here"),
    "marks as claimed": (ONE, Guards(redelivers=False, marks_as_claimed=False), "no way from here"),
    "marks behind the answer": (ONE, Guards(redelivers=False, marks_after_answer=False), "no way from here"),
    "offsets behind the database": (ONE, Guards(redelivers=False, commits_after_database=False), "no way from here"),
    # A killer ends one process before anybody suspects it, then as many as make it dead.
    "announcements": (KILLER, Guards(announces=False), "row 0 has ended more processes than it may"),
    "suspicion": (KILLER, Guards(suspects_partitions=False), "row 0 has ended more processes than it may"),
    "orderly ends": (ALONE, Guards(forgets_interruptions=False), "row 0 died of 2 interruptions"),
    "outages of suspect events": (ALONE, Guards(withdraws=False), "row 0 died of 2 interruptions"),
    # A stranger's record would be taken for that of the row whose id it has; and what it takes comes again.
    "headers of other installations": (
        STRANGERS,
        Guards(sets_others_aside=False),
        "rows (0,) are changed by a record that is not of them",
    ),
    "event ids": (STRANGERS, Guards(matches_event_ids=False), "rows (0,) are changed by a record that is not of them"),
    "own records again": (STRANGERS, Guards(redelivers=False, repeats_own_records=False), "no way from here"),
    "redelivery of what was stolen": (shared("a", faults=1), Guards(redelivers=False), "no way from here"),
    # Nothing but the memory keeps a relay from sending again what a consumer holds.
    "memory of unmarked rows": (
        Protocol("aab", faults=0, expects_single_records=True),
        Guards(remembers_unmarked=False),
        "a row is on the topic twice",
    ),
}


@pytest.mark.parametrize(("case", "guards", "breach"), NEEDED.values(), ids=NEEDED.keys())
def test_a_guard_less_breaks_a_promise(case: Protocol, guards: Guards, breach: str) -> None:
    found = search(replace(case, guards=guards))

    assert breach in found.breach, str(found)
    assert found.trace


SPARED: Final = {
    # The count of marked rows catches a second effect, at the price of a rollback.
    "status": (ONE, Guards(looks_at_status=False)),
    "locks": (ONE, Guards(locks_rows=False)),
    # And the status under the lock leaves nothing for the count to find.
    "count": (ONE, Guards(counts_consumed=False)),
    # A row marked too much waits for its redelivery: minutes late, not lost.
    "marks as claimed": (ONE, Guards(marks_as_claimed=False)),
    "marks behind the answer": (ONE, Guards(marks_after_answer=False)),
    "offsets behind the database": (ONE, Guards(commits_after_database=False)),
    # As long as the topic keeps its records, everything that is published comes to a consumer.
    "redelivery": (ONE, Guards(redelivers=False)),
    # Records of strangers take none of ours along, whatever happens to the batch; and a row whose record would not be
    # done again is sent again.
    "redelivery, with strangers": (STRANGERS, Guards(redelivers=False)),
    "own records again": (STRANGERS, Guards(repeats_own_records=False)),
    # What was announced is tried under the lock of its row, whose status is looked at; and what is noted of an attempt
    # looks at its number.
    "tries as announced": (replace(ALONE, consumers=2), Guards(tries_as_announced=False)),
    "interruptions as seen": (replace(ALONE, consumers=2), Guards(notes_seen_interruptions=False)),
    # Costs duplicates only.
    "memory of unmarked rows": (ONE, Guards(remembers_unmarked=False)),
}


@pytest.mark.parametrize(("case", "guards"), SPARED.values(), ids=SPARED.keys())
def test_another_guard_stands_behind_this_one(case: Protocol, guards: Guards) -> None:
    found = search(replace(case, guards=guards))

    assert not found.breach, str(found)


def test_without_faults_every_row_is_sent_once() -> None:
    found = search(Protocol("aab", faults=0, expects_single_records=True))

    assert not found.breach, str(found)


# --- what the search found -----------------------------------------------------------------------------------------

REPLAYED: Final = Protocol("a", consumers=2, lag=1, faults=2, forgets_done=True, poison=FIRST, replays=True)


def test_without_the_count_a_late_burial_takes_attempts_from_a_replayed_event() -> None:
    """Show what the guard ``buries_seen_attempt`` is for.

    Two consumers see the last attempt of an event fail, one of them having lost the partition meanwhile. The first
    buries it, a person replays it, and then the second buries it again with the attempt of before.
    """
    assert not search(REPLAYED).breach
    found = search(replace(REPLAYED, guards=Guards(buries_seen_attempt=False, notes_seen_replay=False)))
    assert found.breach == "row 0 died before its last attempt"


def test_without_the_count_of_replays_a_late_note_takes_an_attempt_from_a_mended_event() -> None:
    """Show what the guard ``notes_seen_replay`` is for.

    Counting attempts does not tell a replayed event from the one of before, as both may have none.
    """
    case = replace(REPLAYED, mends=True)

    assert not search(case).breach
    found = search(replace(case, guards=Guards(notes_seen_replay=False)))
    assert found.breach == "row 0 lost an attempt though its handler never failed"


def test_without_the_claim_a_late_refusal_buries_a_mended_event() -> None:
    """Show what the guard ``buries_as_claimed`` is for.

    Two relays are told that the broker refuses a record, one of them having slept through the end of its lease. The
    first buries the event, a person mends and replays it, and then the second buries the mended one.
    """
    case = Protocol("a", relays=2, lag=1, faults=1, refused=FIRST, replays=True, mends=True)

    assert not search(case).breach
    found = search(replace(case, guards=Guards(buries_as_claimed=False)))
    assert found.breach == "row 0 died before its last attempt"
