"""What an experiment hands back, and how it is printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from outbox.management.console import table


@dataclass(frozen=True, slots=True)
class Verdict:
    """One target, what was measured, and whether it is within the target."""

    target: str
    figure: str
    held: bool

    def cells(self) -> tuple[Text, str, str]:
        """Return its row of the table."""
        word = Text("held", "green") if self.held else Text("BREACHED", "bold red")
        return word, self.target, self.figure


@dataclass(slots=True)
class Outcome:
    """One experiment's result."""

    experiment: str
    sections: list[RenderableType] = field(default_factory=list)
    """Texts and tables, in the order in which they are shown."""
    figures: dict[str, Any] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def held(self) -> bool:
        return all(verdict.held for verdict in self.verdicts)

    def judge(self, target: str, figure: str, *, held: bool) -> None:
        """Add a verdict."""
        self.verdicts.append(Verdict(target, figure, held))

    def parts(self) -> list[RenderableType]:
        """Return what to show, with an empty line before each part."""
        cells = [verdict.cells() for verdict in self.verdicts]
        verdicts = table(("verdict", "limit", "measured"), cells, wrapped=1)
        return list(chain.from_iterable(("", part) for part in (f"## {self.experiment}", *self.sections, verdicts)))

    def as_json(self) -> dict[str, Any]:
        """Return it for ``--json``."""
        return {"held": self.held, "verdicts": [asdict(verdict) for verdict in self.verdicts], **self.figures}


def figures_table(header: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> Table:
    """Return a table whose first column has names, and whose others have figures."""
    return table(header, rows, right=header[1:], wrapped=0)


def mib(kib: float) -> str:
    """Write KiB as MiB."""
    return f"{kib / 1024:.1f}"
