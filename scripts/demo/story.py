"""What is published in a demo, and what must have become of it. The plan is made before anything is written."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

PHASES = ("planning", "executing", "waiting_user", "done")
_SNAPSHOTS_PER_STEP = 4
_EVENTS_PER_CONVERSATION = 100
_FAILURES = 2
_SEED = 20_260_101


@dataclass(frozen=True, slots=True)
class CommonState:
    """The part of an agent's state that has its phase."""

    phase: str


@dataclass(frozen=True, slots=True)
class RuntimeState:
    """What an agent holds while it runs."""

    common_state: CommonState


@dataclass(frozen=True, slots=True)
class AgentState:
    """A runtime snapshot, as the business code would hand it to its publisher."""

    version: int
    runtime_state: RuntimeState
    notes: tuple[str, ...]

    @property
    def phase(self) -> str:
        return self.runtime_state.common_state.phase


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation: a snapshot, at times with a step; both are published in one transaction."""

    conversation_id: str
    user_id: int
    state: AgentState
    step: int | None = None
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Poison:
    """A row that other software wrote by plain SQL and that can never be handled."""

    conversation_id: str
    event_type: str
    payload: str
    fault: str
    """Words for a person."""
    reason: str
    """What the row's reason must contain."""


@dataclass(frozen=True, slots=True)
class Story:
    """All that a demo publishes, in order."""

    turns: tuple[Turn, ...]
    poisons: tuple[Poison, ...]

    @property
    def conversations(self) -> int:
        return len({turn.conversation_id for turn in self.turns})

    @property
    def events(self) -> int:
        return len(self.turns) + sum(turn.step is not None for turn in self.turns)

    def acts(self) -> Iterator[Turn | Poison]:
        """Yield turns with the poisonous rows spread among them."""
        every = max(1, len(self.turns) // (len(self.poisons) + 1))
        waiting = list(self.poisons)
        for number, turn in enumerate(self.turns, start=1):
            yield turn
            if waiting and number % every == 0:
                yield waiting.pop(0)
        yield from waiting


@dataclass(slots=True)
class Published:
    """What was really published, by event id or row id: what the audit compares with."""

    snapshots: dict[str, Turn] = field(default_factory=dict)
    steps: dict[str, Turn] = field(default_factory=dict)
    poisons: dict[int, Poison] = field(default_factory=dict)
    rolled_back: list[str] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return len(self.snapshots) + len(self.steps) + len(self.poisons)


def make_story(events: int) -> Story:
    """Plan about ``events`` events; the same story each time."""
    rand = random.Random(_SEED)
    names = [f"conversation-{number:03d}" for number in range(1, max(4, events // _EVENTS_PER_CONVERSATION) + 1)]
    versions = dict.fromkeys(names, 0)
    steps = dict.fromkeys(names, 0)
    # The first step of two conversations fails, so that there are successors that have to wait for it.
    failing = set(rand.sample(names, 2))
    turns: list[Turn] = []
    planned = 0
    while planned < events or len(turns) < len(names) * _SNAPSHOTS_PER_STEP:
        name = names[len(turns) % len(names)]
        versions[name] += 1
        step = None
        if versions[name] % _SNAPSHOTS_PER_STEP == 2:
            step = steps[name] = steps[name] + 1
        turns.append(
            Turn(
                conversation_id=name,
                user_id=1 + names.index(name),
                state=AgentState(
                    version=versions[name],
                    runtime_state=RuntimeState(CommonState(PHASES[versions[name] % len(PHASES)])),
                    notes=tuple(f"note {rand.getrandbits(64):016x} " * 4 for _ in range(rand.randint(2, 12))),
                ),
                step=step,
                failures=_FAILURES if step == 1 and name in failing else 0,
            )
        )
        planned += 1 if step is None else 2
    return Story(tuple(turns), tuple(_poisons(rand.sample(names, 4))))


def _poisons(names: Sequence[str]) -> Iterator[Poison]:
    snapshot = "agent.state.snapshot.persist"
    yield Poison(
        names[0], snapshot, '{"event_id": "broken", "payload": {"conversation_id": ', "cut off JSON", "not an envelope"
    )
    yield Poison(
        names[1], snapshot, _stored(names[1], snapshot, user_id=0), "a user_id that the contract refuses", "user_id"
    )
    yield Poison(
        names[2], snapshot, _stored(names[2], snapshot, version="v9"), "a version that nobody knows", "unknown here"
    )
    misspelt = "agent.state.snapshot.persit"
    yield Poison(names[3], misspelt, _stored(names[3], misspelt), "a misspelt event type", "not registered")


def _stored(name: str, event_type: str, *, user_id: int = 1, version: str = "v1") -> str:
    payload = {"conversation_id": name, "user_id": user_id, "phase": "done", "snapshot_json": '{"version": 999999}'}
    return json.dumps(
        {
            "event_id": f"poison-of-{name}",
            "event_type": event_type,
            "event_version": version,
            "aggregate_id": name,
            "payload": payload,
        }
    )
