"""Whatever is typed or configured: a command ends well or says in one line what is wrong; so do the settings."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from io import StringIO
from typing import Any, Final

import msgspec
import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.test import override_settings
from hypothesis import event, given
from hypothesis import strategies as st

from outbox.checks.options import check_options
from outbox.conf import (
    BrokerOptions,
    ConsumerOptions,
    EventOptions,
    LeaseOptions,
    OutboxSettings,
    RelayOptions,
    ServiceOptions,
    outbox_settings,
)
from outbox.coordination.shutdown import StopFlag
from outbox.declarations.backoff import RetryPolicy
from outbox.exceptions import ConfigurationError
from outbox.management.commands import outbox_status, run_outbox
from outbox.registry.catalog import route_registry
from outbox.workers.build import open_broker
from tests import factories, fuzz, notifications
from tests.conftest import SERVICES, Configure
from tests.fuzz import fuzzing

on_sqlite = pytest.mark.parametrize("database_alias", ["default"], indirect=True)

FOREIGN: Final = "task.urgency.promote.requested"


class StopsAfterOnePause(StopFlag):
    """A flag that is set by the first pause, which takes no time but has to be one that a thread can make."""

    def wait(self, pause: timedelta, *, until: object = None) -> bool:
        if pause.total_seconds() > threading.TIMEOUT_MAX:
            raise OverflowError("timeout value is too large")
        self.set()
        return True


class NoSupervisor:
    """Starts nothing."""

    def __init__(self, commands: dict[str, list[str]], *, out: Any) -> None:
        assert all(len(command) >= 4 for command in commands.values())

    def run(self, stop: StopFlag) -> None:
        assert not stop.is_set


@pytest.fixture
def rows(alias: str, configure: Configure, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Insert something for every command to do, and let none of them go on without end."""

    @contextmanager
    def stop_soon() -> Iterator[StopFlag]:
        yield StopsAfterOnePause()

    monkeypatch.setattr(outbox_status, "stop_on_signals", stop_soon)
    monkeypatch.setattr(run_outbox, "Supervisor", NoSupervisor)
    configure(BROKER={"BACKEND": "table"})
    old = factories.database_now(alias) - timedelta(days=30)
    for status in ("consumed", "consumed", "dead", "pending"):
        factories.row(alias, status=status, created_at=old, consumed_at=old)
    factories.row(alias, event_type=FOREIGN)
    yield alias
    notifications.empty(alias)


# --- what is typed -----------------------------------------------------------------------------------------------

ODD_WORDS: Final = ("\udcff", "agent\udcff", "--", "-", "-1", "@file", "agent,task", "Agent", "agent ", "")
ODD_NUMBERS: Final = ("1", "2", "0", "-1", "999", "1_000", "1e3", "+1", " 1", "٣", "1.0", "2147483648")
ODD_LENGTHS: Final = ("7d", "0s", "1h30m", "36500d", "36501d", "1w1d", "999999999w", "1h1h", "1m1h", "7", "٣d", "7 D")


def is_fit_to_type(text: str) -> bool:
    """Say no to what ends a process in its own way, help and the version, and to numbers that a test of its own has."""
    return not text.startswith(("-h", "--h", "--v")) and not (text.isdecimal() and len(text) > 10)


typed = (fuzz.texts | st.sampled_from(ODD_WORDS)).filter(is_fit_to_type)
numbers = st.sampled_from(ODD_NUMBERS) | typed
lengths = st.sampled_from(ODD_LENGTHS) | typed
services = st.lists(st.sampled_from(SERVICES) | typed, max_size=3)


@st.composite
def options(draw: st.DrawFn, **values: st.SearchStrategy[str] | None) -> list[str]:
    """Return some of the named options with their values; None: the option takes none."""
    words: list[str] = []
    for name, value in values.items():
        if draw(st.booleans()):
            words += [f"--{name.replace('_', '-')}", *([] if value is None else [draw(value)])]
    return words


def words(command: str, fixed: list[str], *parts: st.SearchStrategy[list[str]]) -> st.SearchStrategy[list[str]]:
    """Return a command line whose ``parts`` stand in any order."""
    ordered = st.tuples(*parts).flatmap(st.permutations)
    return ordered.map(lambda drawn: [command, *fixed, *(word for part in drawn for word in part)])


COMMANDS: Final = {
    "run_relay": words("run_relay", ["--once"], services, options(create_topics=None)),
    "consume": words("consume", ["--once"], services, options(max_events=numbers, create_topics=None)),
    "run_outbox": words("run_outbox", [], services, options(create_topics=None)),
    "outbox_status": words(
        "outbox_status",
        [],
        services,
        options(json=None, watch=numbers, check=None, stalled_after=lengths, timeout=lengths),
    ),
    "outbox_topics": words(
        "outbox_topics", [], services, options(create=None, partitions=numbers, replication=numbers)
    ),
    "outbox_prune": words(
        "outbox_prune",
        [],
        services,
        options(older_than=lengths, rejected_older_than=lengths, batch_size=numbers, busy_share=numbers, dry_run=None),
    ),
    "rehome_outbox": words("rehome_outbox", [], services, options(dry_run=None, batch_size=numbers)),
    "deliver_notifications": words(
        "deliver_notifications", ["--once"], options(batch_size=numbers, poll_interval=lengths), services
    ),
    "reseal_webhooks": words("reseal_webhooks", [], services),
}


def run(command: str, *arguments: str) -> str:
    """Run a command and return what it said, also where that is its error."""
    out = StringIO()
    try:
        call_command(command, *arguments, stdout=out, stderr=StringIO())
    except CommandError as error:
        return f"error: {error}"
    return out.getvalue()


@on_sqlite
@pytest.mark.parametrize("command", COMMANDS)
@fuzzing(25)
@given(data=st.data())
def test_command_ends_well_or_with_an_error_that_names_the_value(rows: str, command: str, data: st.DataObject) -> None:
    name, *arguments = data.draw(COMMANDS[command])

    said = run(name, *arguments)

    event("refused" if said.startswith("error: ") else "done")
    if said.startswith("error: ") and "are required: service" not in said and "a person is needed" not in said:
        shown = [argument for argument in arguments if argument in said or repr(argument)[1:-1] in said]
        assert shown, (arguments, said)


MORE: Final = {"consume": ["agent", "--once"], "deliver_notifications": ["--once"], "outbox_topics": ["--create"]}


@on_sqlite
@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("consume", "--max-events"),
        ("outbox_topics", "--partitions"),
        ("outbox_topics", "--replication"),
        ("outbox_status", "--watch"),
        ("outbox_prune", "--batch-size"),
        ("outbox_prune", "--busy-share"),
        ("rehome_outbox", "--batch-size"),
        ("deliver_notifications", "--batch-size"),
    ],
)
@pytest.mark.parametrize("digits", [19, 400])
def test_number_is_never_too_large(rows: str, command: str, option: str, digits: int) -> None:
    number = "9" * digits
    said = run(command, *MORE.get(command, []), option, number)
    assert not said.startswith("error: ") or number in said


@on_sqlite
@pytest.mark.parametrize("command", ["outbox_prune", "rehome_outbox", "deliver_notifications"])
def test_number_that_python_does_not_read_is_refused(rows: str, command: str) -> None:
    assert fuzz.DIGITS in run(command, *MORE.get(command, []), "--batch-size", fuzz.DIGITS)


# --- what is configured --------------------------------------------------------------------------------------------


def keys_of(struct: type[msgspec.Struct]) -> tuple[str, ...]:
    return tuple(field.encode_name for field in msgspec.structs.fields(struct))


KEYS: Final = keys_of(OutboxSettings)

odd: Final[st.SearchStrategy[Any]] = st.one_of(
    st.sampled_from((None, True, False, 0, 1, -1, 7, 999, 1000, 10**400, 0.5, 1.0, -0.0, float("nan"), 1e-300, 1e9)),
    st.sampled_from(("", "kafka", "memory", "table", "park", "continue", "agent", "a\x00b", "tests.toys.Toys")),
    st.builds(lambda make: make(), st.sampled_from((dict, list, set, object, tuple))),
    st.sampled_from((b"bytes", Decimal("1.5"), timedelta(seconds=1), {1: 2}, {None: None}, {"": ""}, [1, "2"])),
    fuzz.texts,
)


def some_of(struct: type[msgspec.Struct], also: st.SearchStrategy[Any] = odd) -> st.SearchStrategy[dict[Any, Any]]:
    """Return a dict with some of the keys of ``struct``, and now and then another one."""
    known = st.dictionaries(st.sampled_from(keys_of(struct)), also, max_size=3)
    other = st.dictionaries(fuzz.texts | st.sampled_from((1, None, b"RELAY", "relay")), also, min_size=1, max_size=1)
    return known | st.tuples(known, other).map(lambda both: both[0] | both[1])


def by_name(names: tuple[str, ...], struct: type[msgspec.Struct]) -> st.SearchStrategy[dict[Any, Any]]:
    return st.dictionaries(st.sampled_from(names) | fuzz.texts, some_of(struct) | odd, max_size=2)


sections = st.fixed_dictionaries(
    {},
    optional={
        "BROKER": some_of(BrokerOptions),
        "SERVICES": by_name(SERVICES, ServiceOptions),
        "EVENTS": by_name((FOREIGN,), EventOptions),
        "RELAY": some_of(RelayOptions),
        "CONSUMER": some_of(ConsumerOptions),
        "LEASES": some_of(LeaseOptions),
    },
)
both = st.tuples(some_of(OutboxSettings), sections).map(lambda two: {**two[0], **two[1]})
configured = st.one_of(odd, some_of(OutboxSettings), sections, both)


def use(options: OutboxSettings) -> None:
    """Do with settings what relays and consumers do when they are built.

    :raises ConfigurationError: a name in them cannot be used.
    """
    route_registry()
    if not options.broker.backend.startswith("."):  # which a test of its own has
        with open_broker():
            pass
    for event_type in ("", FOREIGN):
        assert isinstance(options.retry_policy(event_type, None), RetryPolicy)
    for part in (options, options.relay, options.consumer, options.leases):
        for name in part.__struct_fields__:
            if name.endswith("_seconds"):
                timedelta(seconds=getattr(part, name))
            elif name.endswith("_ms"):
                timedelta(milliseconds=getattr(part, name))


@fuzzing(400)
@given(raw=configured)
def test_settings_are_refused_with_their_key_or_can_be_used(raw: Any) -> None:
    with override_settings(OUTBOX=raw):
        complaints = check_options()
        try:
            options = outbox_settings()
        except ConfigurationError as error:
            event("refused")
            said = str(error)
            assert said.startswith("settings.OUTBOX: ")
            assert complaints
            if isinstance(raw, dict) and raw and all(isinstance(key, str) for key in raw):
                assert any(key in said for key in raw), said
            return
        if complaints:
            event("complained about")
            return
        try:
            use(options)
        except ConfigurationError:
            event("refused when used")
        else:
            event("used")


@pytest.mark.parametrize(
    "backend",
    [
        "",
        "a..b",
        "a.",
        "tests.toys.",
        "a\x00.b",
        ".",
        ".a",
        "..a",
        "../../etc",
    ],
)
def test_backend_that_is_no_path_is_refused(backend: str) -> None:
    with (
        override_settings(OUTBOX={"BROKER": {"BACKEND": backend}}),
        pytest.raises(ConfigurationError, match="backend"),
        open_broker(),
    ):
        pass


@pytest.mark.parametrize("seconds", [float("inf"), 1e300, 10**30])
@pytest.mark.parametrize("key", ["RETRY_BASE_SECONDS", "RETRY_CAP_SECONDS"])
def test_check_says_which_retries_are_endless(key: str, seconds: float) -> None:
    with override_settings(OUTBOX={key: seconds}):
        assert key in str(check_options())


@pytest.mark.parametrize(
    ("section", "key"),
    [
        (section, key)
        for section, struct in (("RELAY", RelayOptions), ("CONSUMER", ConsumerOptions))
        for key in keys_of(struct)
        if key.endswith("_SECONDS")
    ],
)
def test_endless_seconds_are_refused(section: str, key: str) -> None:
    with override_settings(OUTBOX={section: {key: float("inf")}}):
        if check_options():
            return
        use(outbox_settings())


@pytest.mark.parametrize("raw", ["\ud800", {"\ud800": 1}, {"RELAY": {"\ud800": 1}}, {"RELAY": "\ud800"}])
def test_half_a_surrogate_pair_is_refused(raw: Any) -> None:
    with override_settings(OUTBOX=raw), pytest.raises(ConfigurationError, match=r"settings\.OUTBOX"):
        outbox_settings()
