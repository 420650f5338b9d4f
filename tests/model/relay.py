"""What a relay does: it claims, sends, marks and forgets, and has its lease or loses it."""

from __future__ import annotations

from collections.abc import Iterator

from outbox import lifecycle
from outbox.lifecycle import Status
from tests.model.case import Case
from tests.model.state import Kind, Lease, Relay, State, Step, ids_of, put_back, with_relay


def relay_steps(case: Case, state: State, place: int, locked: int) -> Iterator[Step]:
    """Return every step of the relay at ``place``."""
    relay = state.relays[place]
    if relay.claimed:
        yield from _send(case, state, place)
    elif relay.lease:
        yield from _claim(case, state, place)
    if relay.sent and not relay.claimed:
        yield from _settle(case, state, place, locked)
    elif relay.unmarked & (~locked | relay.stale) and not relay.claimed:
        label = ("relay", place, "marks what it remembers", ids_of(relay.unmarked))
        yield Step(Kind.SYSTEM, label, _mark(case, state, place, relay, relay.unmarked, locked))
    idle = not relay.claimed | relay.sent
    if relay.lease is Lease.HELD and case.relays > 1 and case.may_fail(state):
        yield from _lose_lease(case, state, place, idle=idle)
    elif relay.lease is Lease.LOST and idle:
        after = with_relay(state, place, relay._replace(lease=Lease.NONE))
        yield Step(Kind.SYSTEM, ("relay", place, "sees that its lease is gone"), after)
    if relay.claimed | relay.sent | relay.unmarked and case.may_fail(state):
        heir = relay.lease is Lease.HELD and case.relays > 1
        after = with_relay(state, place, Relay(Lease.HELD if case.relays == 1 else Lease.NONE))
        yield from case.fault(("relay", place, "crashes"), _with_heir(after, place) if heir else after)


def _lose_lease(case: Case, state: State, place: int, *, idle: bool) -> Iterator[Step]:
    relay = state.relays[place]
    if idle:
        after = _with_heir(with_relay(state, place, relay._replace(lease=Lease.NONE)), place)
        yield from case.fault(("relay", place, "gives its lease back"), after)
    after = _with_heir(with_relay(state, place, relay._replace(lease=Lease.LOST)), place)
    yield from case.fault(("relay", place, "sleeps through the end of its lease"), after)


def _claim(case: Case, state: State, place: int) -> Iterator[Step]:
    relay = state.relays[place]
    known = relay.sent | relay.unmarked
    claimed = 0
    for i, row in enumerate(state.rows):
        if row.status is Status.PENDING and row.due and not known >> i & 1:
            claimed |= 1 << i
    if claimed:
        refused = sum(1 << i for i in ids_of(claimed) if i in case.refused and not state.rows[i].mended)
        after = with_relay(state, place, relay._replace(claimed=claimed, refused=relay.refused | refused))
        yield Step(Kind.SYSTEM, ("relay", place, "claims", ids_of(claimed)), after)


def _send(case: Case, state: State, place: int) -> Iterator[Step]:
    relay = state.relays[place]
    bit = relay.claimed & -relay.claimed
    i = bit.bit_length() - 1
    sent = with_relay(state, place, relay._replace(claimed=relay.claimed ^ bit, sent=relay.sent | bit))
    partition = _partition(case, i)
    records = state.topic[partition]
    if relay.refused & bit:
        yield Step(Kind.SYSTEM, ("relay", place, "sends what will be refused", i), sent)
    elif len(records) < case.lag:
        topic = (*state.topic[:partition], (*records, i), *state.topic[partition + 1 :])
        yield Step(Kind.SYSTEM, ("relay", place, "sends", i), sent._replace(topic=topic))
    if not case.guards.marks_after_answer:
        yield from case.fault(("relay", place, "loses on its way to the topic", i), sent)


def _partition(case: Case, i: int) -> int:
    return ord(case.keys[i]) % case.partitions


def _settle(case: Case, state: State, place: int, locked: int) -> Iterator[Step]:
    """Mark what was acknowledged; forget what was not: it may or may not be on the topic."""
    relay = state.relays[place]
    yield Step(
        Kind.SYSTEM,
        ("relay", place, "marks", ids_of(relay.sent)),
        _mark(case, state, place, relay, relay.sent, locked),
    )
    silent = relay.sent if case.may_fail(state) else 0
    while silent:
        known = ~silent
        heard = relay._replace(sent=relay.sent & known, stale=relay.stale & known, refused=relay.refused & known)
        after = _mark(case, state, place, heard, heard.sent, locked)
        yield from case.fault(("relay", place, "marks", ids_of(heard.sent), "no answer for", ids_of(silent)), after)
        silent = (silent - 1) & relay.sent


def _mark(case: Case, state: State, place: int, relay: Relay, bits: int, locked: int) -> State:
    """Mark ``bits``, remember those that a consumer holds, forget what is not as it was claimed."""
    rows = list(state.rows)
    held = buried = 0
    for i in ids_of(bits):
        stale = relay.stale >> i & 1
        if relay.refused >> i & 1:
            if not locked >> i & 1 and not (stale and case.guards.buries_as_claimed):
                rows[i] = case.move(rows[i], lifecycle.BURY, due=True, parks=case.parks)
                buried |= 1 << i
        elif stale and case.guards.marks_as_claimed:
            continue
        elif not locked >> i & 1:
            rows[i] = case.move(rows[i], lifecycle.MARK_PUBLISHED, due=True)
        elif rows[i].status in lifecycle.MARK_PUBLISHED.sources and case.guards.remembers_unmarked:
            held |= 1 << i
    after = Relay(
        relay.lease,
        relay.claimed,
        relay.sent & ~bits,
        relay.unmarked & ~bits | held,
        relay.stale & ~(bits & ~held),
        relay.refused & ~bits,
    )
    return put_back(with_relay(state._replace(rows=tuple(rows)), place, after), buried)


def relay_without(relay: Relay, done: int) -> Relay:
    """Take finished rows out of a relay's memory."""
    lease, claimed, sent, unmarked, stale, refused = relay
    if not (claimed | sent | unmarked) & done:
        return relay
    left = ~done
    return Relay(lease, claimed & left, sent & left, unmarked & left, stale & left, refused & left)


def _with_heir(state: State, place: int) -> State:
    """Give the lease to the other relay."""
    return with_relay(state, 1 - place, state.relays[1 - place]._replace(lease=Lease.HELD))
