"""What `make bench` prints and hands on: ratios of medians, and a line that falls short is told."""

from __future__ import annotations

import json

import pytest

from benchmarks.speed.report import Curve, Line, Result, Target, number

AT_LEAST = Target(0.75, "least")
AT_MOST = Target(20.0, "most", of="figure")


def test_ratio_is_of_the_medians_of_both() -> None:
    line = Line("one relay", "events/s", [80.0, 70.0, 900.0], [100.0, 1.0, 100.0], AT_LEAST)
    assert (line.figure, line.ceiling, line.ratio, line.held) == (80.0, 100.0, 0.8, True)


@pytest.mark.parametrize(
    ("target", "figure", "ceiling", "held"),
    [
        (AT_LEAST, 75.0, 100.0, True),
        (AT_LEAST, 74.0, 100.0, False),
        (Target(2.0, "most"), 200.0, 100.0, True),
        (Target(2.0, "most"), 201.0, 100.0, False),
        (AT_MOST, 20.0, 1.0, True),
        (AT_MOST, 20.1, 100.0, False),
    ],
)
def test_target_is_of_the_ratio_or_of_the_figure(target: Target, figure: float, ceiling: float, held: bool) -> None:
    assert Line("a", "x", [figure], [ceiling], target).held is held


def test_ratio_without_a_ceiling_is_not_held() -> None:
    line = Line("a", "x", [1.0], target=AT_LEAST)
    assert line.ratio is None
    assert line.held is False


def test_line_without_a_target_is_not_judged() -> None:
    assert Line("a", "x", [1.0], [2.0]).held is None


def test_short_line_is_told_with_its_ratio() -> None:
    result = Result("relay", lines=[Line("one relay", "events/s", [50.0], [100.0], AT_LEAST)])
    assert result.fell_short(counted_only=False) == result.lines
    [text] = [line for line in result.text(counted_only=False).splitlines() if line.startswith("one relay")]
    assert text.split() == ["one", "relay", "≥", "0.75", "×", "50", "events/s", "100", "0.50", "SHORT"]


def test_quick_run_judges_what_was_counted_and_no_times() -> None:
    slow = Line("slow", "events/s", [1.0], [100.0], AT_LEAST)
    many = Line("many", "a batch", [21.0], target=AT_MOST, counted=True)
    few = Line("few", "a batch", [3.0], target=AT_MOST, counted=True)
    result = Result("cost", lines=[slow, many, few])
    assert result.fell_short(counted_only=True) == [many]
    assert result.fell_short(counted_only=False) == [slow, many]


def test_spread_is_shown_where_there_were_several_runs() -> None:
    assert "40–60" in Line("a", "ms", [60.0, 40.0, 50.0]).cells(counted_only=False)
    assert Line("a", "ms", [60.0]).cells(counted_only=False)[3] == ""


def test_result_can_be_written_as_json() -> None:
    curve = Curve("keys", "Keys", "keys", "events/s", ["all", "one"], {"relay": [1.0, None]})
    result = Result("scale", [Line("a", "events/s", [1.0, 3.0], [4.0], AT_LEAST)], [curve], ["a note"])
    read = json.loads(json.dumps(result.as_json(counted_only=False)))
    assert read["lines"][0]["ratio"] == 0.5
    assert read["lines"][0]["verdict"] == "SHORT"
    assert read["lines"][0]["figures"] == [1.0, 3.0]
    assert read["curves"]["keys"]["series"] == {"relay": [1.0, None]}
    assert read["notes"] == ["a note"]


def test_curve_is_a_table_in_the_text() -> None:
    curve = Curve("keys", "Keys", "keys", "events/s", ["all", "one"], {"relay": [1000.0, None]})
    lines = Result("scale", curves=[curve]).text(counted_only=False).splitlines()
    assert "Keys     all  one" in lines
    assert "relay  1,000" in lines


@pytest.mark.parametrize(
    ("value", "expected"), [(12_345.6, "12,346"), (100.0, "100"), (99.94, "99.9"), (3.0, "3"), (0.1234, "0.123")]
)
def test_figures_have_three_digits_or_all_before_the_point(value: float, expected: str) -> None:
    assert number(value) == expected
