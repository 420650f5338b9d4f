"""What a suite hands back: lines with a target, a figure and a ceiling of the same run, and curves. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from statistics import median
from typing import Any, Literal

from rich.console import RenderableType
from rich.text import Text

from benchmarks.report import figures_table

HELD, SHORT, UNJUDGED = "held", "SHORT", ""


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked for: of the figure itself, or of its ratio to the ceiling."""

    limit: float
    at: Literal["least", "most"]
    of: Literal["ratio", "figure"] = "ratio"

    def __str__(self) -> str:
        return f"{'≥' if self.at == 'least' else '≤'} {self.limit:g}{' ×' if self.of == 'ratio' else ''}"

    def holds(self, value: float) -> bool:
        return value >= self.limit if self.at == "least" else value <= self.limit


@dataclass(frozen=True, slots=True)
class Line:
    """One figure: its runs, and those of the ceiling between them."""

    name: str
    unit: str
    figures: Sequence[float]
    ceilings: Sequence[float] = ()
    target: Target | None = None
    counted: bool = False
    """Statements or bytes, which noise does not change; a time otherwise."""

    @property
    def figure(self) -> float:
        return median(self.figures)

    @property
    def ceiling(self) -> float | None:
        return median(self.ceilings) if self.ceilings else None

    @property
    def ratio(self) -> float | None:
        return self.figure / self.ceiling if self.ceiling else None

    @property
    def held(self) -> bool | None:
        """Say whether the target is met; None where there is none."""
        if self.target is None:
            return None
        value = self.ratio if self.target.of == "ratio" else self.figure
        return value is not None and self.target.holds(value)

    def verdict(self, *, counted_only: bool) -> str:
        """Return how it is to be printed; ``counted_only`` judges no times."""
        if self.held is None or (counted_only and not self.counted):
            return UNJUDGED
        return HELD if self.held else SHORT

    def cells(self, *, counted_only: bool) -> tuple[str | Text, ...]:
        """Return its row of the table."""
        verdict = self.verdict(counted_only=counted_only)
        return (
            self.name,
            str(self.target or ""),
            f"{number(self.figure)} {self.unit}",
            _spread(self.figures),
            "" if self.ceiling is None else number(self.ceiling),
            _spread(self.ceilings),
            "" if self.ratio is None else f"{self.ratio:.2f}",
            Text(verdict, "bold red" if verdict == SHORT else "green"),
        )

    def as_json(self, *, counted_only: bool) -> dict[str, Any]:
        """Return it for ``--json``."""
        return {
            "name": self.name,
            "unit": self.unit,
            "target": str(self.target or ""),
            "figure": self.figure,
            "figures": list(self.figures),
            "ceiling": self.ceiling,
            "ceilings": list(self.ceilings),
            "ratio": self.ratio,
            "counted": self.counted,
            "verdict": self.verdict(counted_only=counted_only),
        }


@dataclass(frozen=True, slots=True)
class Curve:
    """How figures change with one thing; None where it was not measured."""

    name: str
    """Also of the file."""
    title: str
    x: str
    y: str
    at: Sequence[str]
    series: dict[str, Sequence[float | None]]


@dataclass(slots=True)
class Result:
    """What one suite found."""

    suite: str
    lines: list[Line] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def judged(self, *, counted_only: bool) -> list[Line]:
        """Return the lines that have a verdict."""
        return [line for line in self.lines if line.verdict(counted_only=counted_only) != UNJUDGED]

    def fell_short(self, *, counted_only: bool) -> list[Line]:
        """Return the lines that miss their target."""
        return [line for line in self.lines if line.verdict(counted_only=counted_only) == SHORT]

    def parts(self, *, counted_only: bool) -> list[RenderableType]:
        """Return what to show, with an empty line before each part."""
        header = ("line", "target", "figure", "lowest–highest", "ceiling", "lowest–highest", "ratio", "verdict")
        rows = [line.cells(counted_only=counted_only) for line in self.lines]
        curves = [
            figures_table(
                (curve.title, *curve.at), [(name, *map(_cell, values)) for name, values in curve.series.items()]
            )
            for curve in self.curves
        ]
        tables = [figures_table(header, rows)] if rows else []
        parts = (f"## {self.suite}", *tables, *curves, *self.notes)
        return list(chain.from_iterable(("", part) for part in parts))

    def as_json(self, *, counted_only: bool) -> dict[str, Any]:
        """Return it for ``--json``."""
        curves = {
            curve.name: {"title": curve.title, "x": curve.x, "y": curve.y, "at": list(curve.at)}
            | {"series": {name: list(values) for name, values in curve.series.items()}}
            for curve in self.curves
        }
        lines = [line.as_json(counted_only=counted_only) for line in self.lines]
        return {"lines": lines, "curves": curves, "notes": self.notes}


def number(value: float) -> str:
    """Write a figure with the digits that it deserves."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _spread(values: Sequence[float]) -> str:
    return f"{number(min(values))}–{number(max(values))}" if len(values) > 1 else ""


def _cell(value: float | None) -> str:
    return "" if value is None else number(value)
