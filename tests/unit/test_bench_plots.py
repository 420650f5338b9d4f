"""The curves of `make bench` as SVG: well-formed, inside the picture, and with what was not measured left out."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from benchmarks.speed.plots import ceiling_of, draw, save
from benchmarks.speed.report import Curve

SVG = "{http://www.w3.org/2000/svg}"
CURVE = Curve(
    "processes",
    "Processes & more",
    "processes",
    "events/s",
    ["1", "2", "4"],
    {"relay": [10_000.0, 18_000.0, 21_000.0], "relay, database only": [20_000.0, None, 25_000.0]},
)


def test_each_series_is_a_line_with_a_point_for_each_figure() -> None:
    root = ET.fromstring(draw(CURVE))
    assert len(root.findall(f"{SVG}polyline")) == 2
    assert len(root.findall(f"{SVG}circle")) == 5
    texts = [element.text for element in root.findall(f"{SVG}text")]
    assert {"Processes & more", "relay", "relay, database only", "1", "2", "4", "25,000"} <= set(texts)


def test_points_are_inside_and_more_is_higher() -> None:
    root = ET.fromstring(draw(CURVE))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    points = [(float(circle.attrib["cx"]), float(circle.attrib["cy"])) for circle in root.findall(f"{SVG}circle")]
    assert all(0 < x < width and 0 < y < height for x, y in points)
    (first_x, first_y), (second_x, second_y), *_ = points
    assert first_x < second_x
    assert first_y > second_y


@pytest.mark.parametrize("series", [{}, {"relay": [None, None, None]}, {"relay": [0.0, 0.0, 0.0]}])
def test_curve_without_figures_can_be_drawn(series: dict[str, list[float | None]]) -> None:
    ET.fromstring(draw(Curve("a", "a", "x", "y", ["1", "2", "3"], dict(series))))


def test_curve_of_one_point_can_be_drawn() -> None:
    root = ET.fromstring(draw(Curve("a", "a", "x", "y", ["1"], {"relay": [5.0]})))
    assert len(root.findall(f"{SVG}circle")) == 1


def test_what_is_far_apart_stands_by_its_logarithm() -> None:
    values: list[float | None] = [3.0, 30.0, 300.0, 3_000.0]
    root = ET.fromstring(draw(Curve("a", "a", "x", "y", ["1", "2", "3", "4"], {"relay": values})))
    heights = [float(circle.attrib["cy"]) for circle in root.findall(f"{SVG}circle")]
    steps = [above - below for above, below in pairwise(heights)]
    assert steps == pytest.approx([steps[0]] * 3, abs=0.2)
    texts = {element.text for element in root.findall(f"{SVG}text")}
    assert {"1", "10", "100", "1,000", "10,000"} <= texts


def test_file_is_named_after_the_curve(tmp_path: Path) -> None:
    file = save(CURVE, tmp_path / "new")
    assert file.name == "bench-processes.svg"
    assert re.match(r"<svg ", file.read_text())


@pytest.mark.parametrize(
    ("value", "expected"), [(21_000.0, 25_000.0), (10.0, 10.0), (10.1, 20.0), (0.3, 0.5), (99.0, 100.0), (0.0, 1.0)]
)
def test_axis_ends_at_a_round_number_above_all_figures(value: float, expected: float) -> None:
    assert ceiling_of(value) == pytest.approx(expected)
