"""What `make limits` prints and hands on: one breach is a breach of the whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.journals import Transaction, read_journal
from benchmarks.limits import memory
from benchmarks.limits.soak import pruned_count
from benchmarks.report import Outcome, table


def test_one_breach_makes_the_outcome_one_and_is_told() -> None:
    outcome = Outcome("soak", sections=["a table"])
    outcome.judge("relay is flat", "+0.1 MiB", held=True)
    assert outcome.held
    outcome.judge("consumer is flat", "+9.0 MiB", held=False)
    assert not outcome.held
    assert "BREACHED  consumer is flat: +9.0 MiB" in str(outcome)
    assert "a table" in str(outcome)


def test_outcome_can_be_written_as_json() -> None:
    outcome = Outcome("prune", figures={"rows_per_second": 12.5})
    outcome.judge("errors", "3", held=False)
    read = json.loads(json.dumps(outcome.as_json()))
    assert read["held"] is False
    assert read["rows_per_second"] == 12.5
    assert read["verdicts"] == [{"target": "errors", "figure": "3", "held": False}]


def test_table_has_its_names_on_the_left_and_its_figures_on_the_right() -> None:
    assert table(("of", "MiB"), [("relay", "9.0"), ("it", "10.0")]) == "of      MiB\nrelay   9.0\nit     10.0"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("agent: deleted 12,345 consumed events older than 20s\n", 12_345),
        ("a line of a log\nagent: deleted 0 consumed events older than 20s\nstopped; run it again to go on\n", 0),
        ("", 0),
    ],
)
def test_cleaners_own_count_is_read(text: str, expected: int) -> None:
    assert pruned_count(text) == expected


def test_journal_of_a_writer_is_read_with_its_errors(tmp_path: Path) -> None:
    journal = tmp_path / "writer.tsv"
    journal.write_text("1.5\t1.6\t1.75\t0.01\t\n2.0\t2.0\t3.0\t0.5\tOperationalError: (1213, 'Deadlock')\n")
    assert read_journal(journal) == [
        Transaction(1.5, 1.6, 1.75, 0.01, ""),
        Transaction(2.0, 2.0, 3.0, 0.5, "OperationalError: (1213, 'Deadlock')"),
    ]


MIB_KIB = 1024


@pytest.mark.parametrize(
    ("load", "limit_mib"),
    [
        (memory.Load("ASCII", 2_000_000, "x"), 3 * 16 + 64),
        (memory.Load("wide", 2_000_000, "😀"), 6 * 16 + 64),
        (memory.Load("one wide character", 2_000_000, "x", mark="😀"), 6 * 16 + 64),
        (memory.Load("larger than a batch", 32 * 1024 * 1024, "x"), 3 * 32 + 64),
    ],
    ids=lambda each: each.name if isinstance(each, memory.Load) else "",
)
def test_memory_may_grow_by_multiples_of_a_batch_or_of_a_larger_payload(load: memory.Load, limit_mib: int) -> None:
    assert load.limit_kib == limit_mib * MIB_KIB


def test_worker_that_grew_by_more_than_its_limit_is_a_breach() -> None:
    outcome = Outcome("memory")
    sizes = [
        memory.Size("ASCII", worker, 120, idle=70 * MIB_KIB, peak=peak * MIB_KIB, limit=112 * MIB_KIB)
        for worker, peak in (("relay", 182), ("consumer", 183))
    ]

    memory.report(outcome, sizes)

    assert [str(each) for each in outcome.verdicts] == [
        "held      ASCII: relay grows by 112.0 MiB at the most: 112.0 MiB",
        "BREACHED  ASCII: consumer grows by 112.0 MiB at the most: 113.0 MiB",
    ]
    assert "ASCII: relay" in outcome.sections[0]
