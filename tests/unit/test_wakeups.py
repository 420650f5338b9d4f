"""Hints between a publisher and a relay on one host, and everything that may be wrong with the place they meet at."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from outbox.coordination.shutdown import StopFlag
from outbox.coordination.wakeups import Hints, MeetingPlace, WakeUpSocket, meeting_place, open_wake_ups
from tests.toys import ManualClock

LONG = timedelta(seconds=30)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a folder with a short path: the address of a socket has little room."""
    with tempfile.TemporaryDirectory(prefix="wake-") as name:
        yield Path(name)


@pytest.fixture
def place(folder: Path) -> MeetingPlace:
    return MeetingPlace(folder / "meet", "shop", private=True)


@pytest.fixture
def relay(place: MeetingPlace) -> Iterator[WakeUpSocket]:
    opened = WakeUpSocket(place, "billing")
    yield opened
    opened.close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def hints(place: MeetingPlace, clock: ManualClock) -> Iterator[Hints]:
    made = Hints(place, clock=clock)
    yield made
    made.close()


def test_hint_ends_a_pause_and_is_taken_once(relay: WakeUpSocket, hints: Hints) -> None:
    assert hints.is_heard("billing")
    hints.give("billing")

    assert StopFlag().wait(LONG, until=relay) is False
    assert relay.clear() is True
    assert relay.clear() is False
    StopFlag().wait(timedelta(0), until=relay)
    assert relay.clear() is False


def test_every_relay_of_the_service_is_woken_and_nobody_else(
    place: MeetingPlace, relay: WakeUpSocket, hints: Hints
) -> None:
    second = WakeUpSocket(place, "billing")
    other_service = WakeUpSocket(place, "shipping")
    other_project = WakeUpSocket(MeetingPlace(place.folder, "school", private=True), "billing")

    hints.give("billing")

    assert (relay.clear(), second.clear()) == (True, True)
    assert (other_service.clear(), other_project.clear()) == (False, False)
    for each in (second, other_service, other_project):
        each.close()


def test_more_hints_than_fit_do_no_harm(relay: WakeUpSocket, hints: Hints) -> None:
    for _ in range(5_000):
        hints.give("billing")

    assert relay.clear() is True
    hints.give("billing")
    assert relay.clear() is True, "hints are heard again"


def test_what_a_killed_relay_left_is_tidied_up(place: MeetingPlace, relay: WakeUpSocket, hints: Hints) -> None:
    killed = WakeUpSocket(place, "billing")
    killed._socket.close()
    assert len(list(place.folder.iterdir())) == 2

    hints.give("billing")

    assert relay.clear() is True
    assert len(list(place.folder.iterdir())) == 1


def test_relay_that_ends_leaves_nothing(place: MeetingPlace, hints: Hints, clock: ManualClock) -> None:
    WakeUpSocket(place, "billing").close()

    assert list(place.folder.iterdir()) == []
    assert not hints.is_heard("billing")


def test_publisher_looks_again_after_a_second(place: MeetingPlace, hints: Hints, clock: ManualClock) -> None:
    assert not hints.is_heard("billing")
    late = WakeUpSocket(place, "billing")
    assert not hints.is_heard("billing"), "what was seen a moment ago is believed"

    clock.advance(1)

    assert hints.is_heard("billing")
    late.close()
    hints.give("billing")  # it is gone again: no harm


def test_folder_is_this_users_alone(place: MeetingPlace, relay: WakeUpSocket) -> None:
    found = place.folder.stat()
    assert (found.st_uid, found.st_mode & 0o777) == (os.getuid(), 0o700)


@pytest.mark.parametrize("wrong", ["others can write", "a link", "a file"])
def test_folder_that_somebody_else_may_have_made_is_not_used(
    place: MeetingPlace, tmp_path: Path, wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    if wrong == "others can write":
        place.folder.mkdir()
        place.folder.chmod(0o777)
    elif wrong == "a link":
        place.folder.symlink_to(elsewhere)
    else:
        place.folder.write_text("")
    decoy = place.folder / f"{place.prefix('billing')}decoy"
    if wrong != "a file":
        decoy.write_text("")

    with caplog.at_level(logging.WARNING):
        assert open_wake_ups(place, "billing") is None

    assert "OUTBOX['RELAY']['WAKE_UP_FOLDER']" in caplog.text
    hints = Hints(place, clock=ManualClock())
    assert not hints.is_heard("billing")
    hints.give("billing")


def test_folder_of_another_user_is_not_used(place: MeetingPlace) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a folder away")
    place.folder.mkdir(mode=0o700)
    os.chown(place.folder, 12345, 12345)

    assert open_wake_ups(place, "billing") is None


def test_named_folder_may_be_shared(folder: Path) -> None:
    folder = folder / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    place = meeting_place(str(folder), "shop")
    relay = open_wake_ups(place, "billing")
    assert relay is not None

    Hints(place, clock=ManualClock()).give("billing")

    assert relay.clear() is True
    [socket] = folder.iterdir()
    assert socket.stat().st_mode & 0o222 == 0o222, "another user who may enter the folder may wake"
    relay.close()


def test_folder_whose_path_is_too_long_for_a_socket_means_polling(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert open_wake_ups(meeting_place(str(tmp_path / ("x" * 120)), "shop"), "billing") is None
    assert "too long" in caplog.text


def test_hints_can_be_switched_off(caplog: pytest.LogCaptureFixture) -> None:
    place = meeting_place("", "shop")
    assert place is None
    assert open_wake_ups(place, "billing") is None
    hints = Hints(place, clock=ManualClock())
    assert not hints.is_heard("billing")
    hints.give("billing")
    assert caplog.text == ""


def test_place_by_default_is_in_the_temporary_folder_and_the_users_own() -> None:
    place = meeting_place(None, "shop")
    assert place is not None
    assert place.private
    assert place.folder.name == f"outbox-{os.getuid()}"
