"""What a chaos run takes for an answer that comes too late, or says the wrong thing, while Kafka is unavailable."""

from __future__ import annotations

import pytest

from tests.chaos.kinds import KINDS
from tests.chaos.lanes import Happening, Outcome
from tests.chaos.ledger import Look
from tests.chaos.look_checks import Looks, judge_looks, measure_looks, troubles_of_database
from tests.chaos.operator_looks import PAGE_S, STATUS_S, status_problem, without_start
from tests.chaos.schedule import TimedFault
from tests.chaos.standstill import Span
from tests.chaos.verdict import Verdict

BROKER = "127.0.0.1:9092"


def look(took_s: float, *, at: float = 100.0, limit_s: float = PAGE_S, problem: str = "") -> Look:
    return Look("/admin/", at, at + took_s, limit_s, 2.0, problem)


def measured(*looks: Look, spans: tuple[Span, ...] = (), waited: float = 0.0) -> Looks:
    return measure_looks(looks, spans, waited_s=lambda start, end: waited * (end - start))


def breaches(found: Looks) -> list[int]:
    verdict = Verdict()
    judge_looks(verdict, found)
    assert verdict.checked[10] == found.measured
    return [breach.promise for breach in verdict.breaches]


def test_answer_in_time_is_measured() -> None:
    found = measured(look(0.2), look(PAGE_S), look(STATUS_S, limit_s=STATUS_S))
    assert (found.measured, found.longest_s) == (3, {"/admin/": STATUS_S})
    assert breaches(found) == []


def test_late_answer_is_a_breach_however_busy_the_machine_is() -> None:
    assert breaches(measured(look(1.5))) == [10]
    assert breaches(measured(look(1.5), waited=0.9)) == []
    assert breaches(measured(look(5.0), waited=1.0)) == [10], (
        "who waits for Kafka waits for longer than a machine excuses"
    )


def test_wrong_answer_is_a_breach() -> None:
    assert breaches(measured(look(0.1, problem="it answered 500"))) == [10]


@pytest.mark.parametrize(("span", "excused"), [((98, 99), 0), ((99, 100.1), 1), ((104, 120), 1), ((105.5, 120), 0)])
def test_trouble_of_the_database_excuses_what_it_overlaps(span: tuple[float, float], excused: int) -> None:
    found = measured(look(5.0, problem="it answered 500"), spans=(Span(*span, "database-kill"),))
    assert (found.excused, len(found.wrong)) == (excused, 1 - excused)


def test_what_python_takes_to_start_does_not_count() -> None:
    slow = look(9.5, limit_s=STATUS_S)
    assert breaches(measured(slow)) == [10]
    assert breaches(measured(without_start(slow, 8.0))) == []
    assert breaches(measured(without_start(slow, 6.0))) == [10]
    assert breaches(measured(without_start(slow, 6.0), waited=1.0)) == [], "a machine on which Python starts slowly"
    assert without_start(slow, 20.0).took_s == 0


@pytest.mark.parametrize(
    ("name", "outcome", "lasts_s"),
    [
        ("database-kill", "done", 3.0),
        ("database-cut", "missed", 3.0),
        ("table-missing", "done", 3.0),
        ("kill-one", "done", 0.0),
        ("database-full", "impossible", None),
        ("database-stop", "skipped", None),
        ("stranger-locks", "done", None),
        ("kafka-kill", "done", None),
    ],
)
def test_what_disturbs_a_look_is_trouble_of_the_database(name: str, outcome: Outcome, lasts_s: float | None) -> None:
    happening = Happening(TimedFault(10.0, name, KINDS[name].lane, 5.0, 0.5), 10.0, 15.0, outcome, "")
    found = [(span.began_at, span.ended_at) for span in troubles_of_database([happening], began_at=1000.0)]
    assert found == ([] if lasts_s is None else [(1010.0, 1015.0 + lasts_s)])


def test_status_must_end_with_2_and_name_the_broker() -> None:
    said = (
        f"CommandError: a person is needed (probe: broker unavailable)\nKafka at {BROKER} has not answered within 1 s"
    )
    assert status_problem(2, said, broker=BROKER) == ""
    assert "exit code 0" in status_problem(0, said, broker=BROKER)
    assert "exit code 1" in status_problem(1, said, broker=BROKER)
    assert "does not name" in status_problem(2, "a person is needed (probe: dead events)", broker=BROKER)
