"""The clocks of a chaos run: how far they jump, and whether a log shows it."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from scripts.services.errors import ServicesError
from tests.chaos import clocks
from tests.chaos.clocks import jump_s, make_clock, shifted_lines, sweep

DICE = [number / 200 for number in range(200)]


def test_clocks_jump_both_ways_by_seconds_minutes_and_hours() -> None:
    jumps = [jump_s(dice) for dice in DICE]
    assert jumps == [jump_s(dice) for dice in DICE]
    for lowest, highest in [(2, 60), (60, 3600), (3600, 12 * 3600)]:
        assert any(lowest <= jump <= highest for jump in jumps)
        assert any(lowest <= -jump <= highest for jump in jumps)


def test_clock_says_how_far_it_is_off(tmp_path: Path) -> None:
    clock = make_clock(tmp_path / "clock")
    assert clock.file.read_text() == "+0.0\n"
    clock.put(-90.5)
    assert clock.file.read_text() == "-90.5\n"
    assert list(tmp_path.iterdir()) == [clock.file]


@pytest.mark.parametrize(
    ("off_s", "shown_s", "is_off"), [(5400, 5400, True), (5400, 0, False), (-90, -90, True), (-90, 0, False)]
)
def test_log_shows_a_clock_that_is_off(off_s: float, shown_s: float, *, is_off: bool) -> None:
    since = datetime.now(UTC) - timedelta(seconds=5)
    stamp = since + timedelta(seconds=2 + shown_s)
    text = f"{stamp:%Y-%m-%d %H:%M:%S},123 INFO outbox it goes on\n  and on\n"
    assert shifted_lines(text, off_s=off_s, since=since) == (1, is_off)


def test_log_without_a_time_shows_nothing() -> None:
    assert shifted_lines("no time\n", off_s=60, since=datetime.now(UTC)) == (0, False)


def test_missing_library_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(clocks, "_PLACES", ("/nowhere/*/faketime",))
    with pytest.raises(ServicesError, match="Debian's package libfaketime"):
        _ = make_clock(tmp_path / "clock").environment


def test_library_is_found_whatever_the_architecture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = tmp_path / "riscv64-linux-gnu" / "faketime" / "libfaketimeMT.so.1"
    library.parent.mkdir(parents=True)
    library.touch()
    monkeypatch.setattr(clocks, "_PLACES", (f"{tmp_path}/*/faketime",))
    assert make_clock(tmp_path / "clock").environment["LD_PRELOAD"] == str(library)


def test_what_killed_processes_have_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    gone = 2**22 + 1  # above the highest process id there can be
    for name in (f"faketime_shm_{gone}", f"sem.faketime_sem_{gone}", f"faketime_shm_{os.getpid()}", "faketime_shm_x"):
        (tmp_path / name).touch()
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"faketime_shm_{os.getpid()}", "faketime_shm_x"}
