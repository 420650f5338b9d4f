"""The state machine, as the design writes it."""

from __future__ import annotations

from outbox import lifecycle
from outbox.lifecycle import TRANSITIONS, UNFINISHED, Status

PENDING, PUBLISHED, CONSUMED, DEAD = Status

LEGAL = {
    "mark_published": ({PENDING}, PUBLISHED),
    "consume": ({PENDING, PUBLISHED}, CONSUMED),
    "retry": ({PENDING, PUBLISHED}, PENDING),
    "wait": ({PENDING, PUBLISHED}, PENDING),
    "interrupt": ({PENDING, PUBLISHED}, PENDING),
    "redeliver": ({PUBLISHED}, PENDING),
    "bury": ({PENDING, PUBLISHED}, DEAD),
    "replay": ({DEAD}, PENDING),
    "give_up": ({DEAD}, DEAD),
    "edit": ({DEAD}, DEAD),
}


def test_statuses_are_the_ones_that_the_go_services_write() -> None:
    assert [status.value for status in Status] == ["pending", "published", "consumed", "dead"]


def test_transitions_are_the_ones_of_the_design() -> None:
    assert {each.name: (set(each.sources), each.target) for each in TRANSITIONS} == LEGAL


def test_every_transition_of_the_module_is_listed() -> None:
    declared = {value for value in vars(lifecycle).values() if isinstance(value, lifecycle.Transition)}
    assert declared == set(TRANSITIONS)


def test_nothing_leads_away_from_consumed() -> None:
    assert all(CONSUMED not in transition.sources for transition in TRANSITIONS)


def test_only_a_decision_of_a_person_leads_away_from_dead() -> None:
    assert {each.name for each in TRANSITIONS if DEAD in each.sources} == {"replay", "give_up", "edit"}


def test_every_status_can_be_reached_and_every_unfinished_one_can_end() -> None:
    reached = {PENDING}
    while more := {each.target for each in TRANSITIONS if reached & set(each.sources)} - reached:
        reached |= more
    assert reached == set(Status)
    for status in UNFINISHED:
        assert {CONSUMED, DEAD} <= {each.target for each in TRANSITIONS if status in each.sources}
