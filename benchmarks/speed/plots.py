"""Curves as SVG, without a library: a few lines on a white ground, which is all that they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

from benchmarks.speed.report import Curve, number

_WIDTH, _HEIGHT = 720, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 24, 76, 56
_COLOURS: Final = ("#1f5fa8", "#d1661f", "#2c8a4b", "#8a3fa0", "#7a7a7a", "#b3243b")


_WIDE: Final = 100
"""Where the largest value is so many times the smallest, powers of ten stand at equal distances."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The values of y: from 0, or by their logarithm."""

    bottom: float
    top: float
    by_logarithm: bool = False

    @classmethod
    def of(cls, values: Sequence[float]) -> Scale:
        """Return the scale that shows all of ``values``, none of which is below 0."""
        most, least = max(values, default=1.0), min(values, default=0.0)
        if 0 < least * _WIDE <= most:
            return cls(10.0 ** math.floor(math.log10(least)), 10.0 ** math.ceil(math.log10(most)), by_logarithm=True)
        return cls(0.0, ceiling_of(most))

    @property
    def marks(self) -> list[float]:
        """Return the values to draw a line at."""
        if self.by_logarithm:
            return [self.bottom * 10**power for power in range(round(math.log10(self.top / self.bottom)) + 1)]
        return [self.top * quarter / 4 for quarter in range(5)]

    def height(self, value: float) -> float:
        """Return where ``value`` stands between bottom, 0, and top, 1."""
        if self.by_logarithm:
            return math.log10(value / self.bottom) / math.log10(self.top / self.bottom)
        return value / self.top


def save(curve: Curve, folder: Path) -> Path:
    """Draw ``curve`` into ``folder``; return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"bench-{curve.name}.svg"
    file.write_text(draw(curve), encoding="utf-8")
    return file


def draw(curve: Curve) -> str:
    """Return ``curve`` as SVG: the values of x at equal distances."""
    scale = Scale.of([value for of in curve.series.values() for value in of if value is not None])
    font = 'font-family="sans-serif" font-size="13" fill="#222"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" {font}>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        _text(_LEFT, 24, curve.title, size=16),
        *_axes(curve, scale),
    ]
    across = _LEFT
    for index, (name, values) in enumerate(curve.series.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        points = [(_x(curve, place), _y(value, scale)) for place, value in enumerate(values) if value is not None]
        parts.append(
            f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" fill="none" stroke="{colour}"'
            ' stroke-width="2.5"/>'
        )
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in points]
        parts.append(f'<rect x="{across}" y="41" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(across + 18, 52, name))
        across += 40 + 7 * len(name)
    return "\n".join([*parts, "</svg>", ""])


def ceiling_of(value: float) -> float:
    """Return the smallest round number that is not below ``value``: 1, 2, 2.5, 5 or 10 times a power of ten."""
    power = 1.0
    while power * 10 <= value:
        power *= 10
    while power > value > 0:
        power /= 10
    return next((step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value), 10 * power)


def _axes(curve: Curve, scale: Scale) -> list[str]:
    parts = []
    for value in scale.marks:
        y = _y(value, scale)
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(_text(_LEFT - 8, y + 4, number(value), anchor="end"))
    for place, name in enumerate(curve.at):
        parts.append(_text(_x(curve, place), _HEIGHT - _BOTTOM + 20, name, anchor="middle"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 14, curve.x, anchor="middle"))
    parts.append(_text(_LEFT - 8, _TOP - 10, curve.y, anchor="end"))
    return parts


def _x(curve: Curve, place: int) -> float:
    inner = _WIDTH - _LEFT - _RIGHT - 60
    return _LEFT + 30 + (inner * place / (len(curve.at) - 1) if len(curve.at) > 1 else inner / 2)


def _y(value: float, scale: Scale) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * scale.height(value)


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 13) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'
