"""The foreign records of a chaos run are what they are said to be, and the report says what could not be injected."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import pytest

from outbox.wire.envelope import INSTALLATION_HEADER, decode_message
from tests.chaos import foreign_records, strangers
from tests.chaos.disks import TablesDisk
from tests.chaos.errors import ImpossibleError
from tests.chaos.evidence import key_of
from tests.chaos.faults import FAULTS
from tests.chaos.kinds import KINDS
from tests.chaos.lanes import Happening
from tests.chaos.report import impossible_kinds, table_of_faults
from tests.chaos.schedule import TimedFault

FULL = TimedFault(10.0, "database-full", "database", 5.0, 0.5)
KEY = b"unreadable-12.5-end"


def test_every_kind_has_what_injects_it() -> None:
    assert FAULTS.keys() == KINDS.keys()


def test_batch_of_unreadable_records_alone_is_spoilt() -> None:
    packed = foreign_records._spoil(b"one " + KEY + b" two " + KEY)
    assert packed.endswith(KEY)
    with pytest.raises(gzip.BadGzipFile):
        gzip.decompress(packed)
    assert gzip.decompress(foreign_records._spoil(b"sound")) == b"sound"


def test_rejected_record_is_known_by_its_key_or_by_that_in_its_batch() -> None:
    assert key_of(b"k", None) == b"k"
    assert key_of(None, b"\x1f\x8b packed" + KEY) == KEY
    assert key_of(None, b"something else") is None
    assert key_of(None, None) is None


def test_name_of_a_header_that_is_no_utf8_keeps_its_bytes() -> None:
    assert foreign_records._RawName("na\xffme").encode("utf-8") == b"na\xffme"


def test_record_of_another_installation_is_as_one_of_ours_but_for_whose_it_is() -> None:
    record = strangers._of_other_installation("other-1", 7, "probe.step")
    message = decode_message(record.value)
    assert (message.outbox_id, message.event_type, message.service_name) == (7, "probe.step", "probe")
    headers = dict(record.headers)
    assert {"event_id", "service_name", "ce_id"} <= headers.keys()
    assert record.reason == f"it is of installation {headers[INSTALLATION_HEADER].decode()}"
    assert record.is_certain


def test_disk_that_nobody_may_mount_is_said_to_be_impossible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImpossibleError, match="without root"):
        TablesDisk(tmp_path).mount()


def test_report_says_what_this_machine_cannot_inject() -> None:
    happenings = [Happening(FULL, 10.0, 10.0, "impossible", "no mount"), Happening(FULL, 30.0, 30.0, "skipped", "")]
    assert impossible_kinds(happenings) == {"database-full": "no mount"}
    assert [happening.was_tried for happening in happenings] == [False, False]
    lines = list(table_of_faults(happenings, Counter()))
    assert lines[1].split()[:4] == ["database-full", "0", "0", "2"]
    assert lines[2] == "database-full was skipped, this machine cannot do it: no mount"
