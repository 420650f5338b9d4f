"""What an experiment hands back, and how it is printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Verdict:
    """One target, what was measured, and whether it is within the target."""

    target: str
    figure: str
    held: bool

    def __str__(self) -> str:
        return f"{'held    ' if self.held else 'BREACHED'}  {self.target}: {self.figure}"


@dataclass(slots=True)
class Outcome:
    """One experiment's result."""

    experiment: str
    sections: list[str] = field(default_factory=list)
    """Texts and tables, in the order in which they are printed."""
    figures: dict[str, Any] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def held(self) -> bool:
        return all(verdict.held for verdict in self.verdicts)

    def judge(self, target: str, figure: str, *, held: bool) -> None:
        """Add a verdict."""
        self.verdicts.append(Verdict(target, figure, held))

    def __str__(self) -> str:
        verdicts = "\n".join(str(verdict) for verdict in self.verdicts)
        return "\n\n".join([f"## {self.experiment}", *self.sections, verdicts])

    def as_json(self) -> dict[str, Any]:
        """Return it for ``--json``."""
        return {"held": self.held, "verdicts": [asdict(verdict) for verdict in self.verdicts], **self.figures}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return aligned columns: the first on the left, the others on the right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def mib(kib: float) -> str:
    """Write KiB as MiB."""
    return f"{kib / 1024:.1f}"
