"""The options of `make bench`, and its exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import database
from benchmarks.__main__ import conclude, parse, plan_of
from benchmarks.speed.report import Line, Result, Target

PERFORMANCE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
SLOW = Line("slow", "events/s", [1.0], [100.0], Target(0.75, "least"))
MANY = Line("many", "a batch", [4.0], target=Target(3.0, "most", of="figure"), counted=True)


def test_defaults_are_those_of_a_full_run() -> None:
    plan = plan_of(parse([]))
    assert (plan.events, plan.payload, plan.processes, plan.repeats, plan.quick) == (50_000, 1_000, (1, 2, 4), 3, False)


def test_quick_run_is_smaller_where_nothing_else_is_said() -> None:
    plan = plan_of(parse(["--quick"]))
    assert (plan.events, plan.repeats) == (5_000, 1)
    assert plan_of(parse(["--quick", "--events", "6000", "--repeats", "2"])).events == 6_000


def test_suites_are_named_and_may_be_several() -> None:
    assert parse(["relay", "latency", "--processes", "1,3"]).suites == ["relay", "latency"]
    assert parse([]).suites == []


def test_database_is_mariadb_unless_another_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTFLOW_MARIADB_URL", "mysql://user@one:1/app")
    monkeypatch.setenv("SMARTFLOW_MYSQL_URL", "mysql://user@two:2/app")
    monkeypatch.setenv("SMARTFLOW_BENCH_DATABASE_URL", "")

    def chosen(*arguments: str) -> str:
        database.choose(parse(arguments).database)
        return database.url_of("bench")

    assert chosen() == "mysql://user@one:1/bench"
    assert chosen("--database", "mysql") == "mysql://user@two:2/bench"
    assert chosen("--database", "mysql://user@three:3/") == "mysql://user@three:3/bench"


@pytest.mark.parametrize(
    "wrong", [["relays"], ["--processes", "few"], ["--processes", "0"], ["--events", "600"], ["--repeats", "0"]]
)
def test_wrong_options_are_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        parse(wrong)
    assert refused.value.code == 2


@pytest.mark.parametrize(
    ("lines", "quick", "code"),
    [([SLOW], True, 0), ([MANY], True, 1), ([SLOW, MANY], False, 0), ([], True, 0)],
)
def test_only_a_count_in_a_quick_run_makes_it_fail(lines: list[Line], quick: bool, code: int) -> None:
    assert conclude([Result("a", lines)], quick=quick, load=0.0) == code


def test_what_falls_short_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    conclude([Result("relay", [SLOW])], quick=False, load=3.0)
    said = capsys.readouterr().out
    assert "SHORT  relay: slow: 1 events/s, ratio 0.01; asked for ≥ 0.75 ×" in said
    assert "what such shortfalls come from: docs/performance.md, What falls short, and why" in said
    assert "the load was 3.0" in said


def test_reasons_stand_where_they_are_said_to() -> None:
    assert "\n### What falls short, and why\n" in PERFORMANCE.read_text(encoding="utf-8")


def test_nothing_is_said_of_reasons_where_nothing_falls_short(capsys: pytest.CaptureFixture[str]) -> None:
    quick = Line("quick", "events/s", [9.0], [10.0], Target(0.75, "least"))
    conclude([Result("relay", [quick])], quick=False, load=0.0)
    assert "come from" not in capsys.readouterr().out
