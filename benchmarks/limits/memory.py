"""Whether relay and consumer hold no more of large payloads than their batches may have.

Both stand idle after one event; then all rows become due at once. A worker's size is what the kernel says: resident
when it was idle, and the largest until its end. The limit leaves out what a contract's own objects take; the figures do
not, so they are held against it the more strictly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final

from benchmarks.installation import Installation, installed
from benchmarks.report import Outcome, figures_table, mib
from benchmarks.tables import OutboxTable

BATCH_BYTES: Final = 16 * 1024 * 1024
"""The default of ``RELAY["BATCH_BYTES"]`` and ``CONSUMER["BATCH_BYTES"]``."""

LARGE_BYTES: Final = 2 * 1024 * 1024
INLINE_BYTES: Final = 250_000
"""Just below ``REFERENCE_BYTES``: the payload travels in its record, so the relay reads it too."""

_MIB_KIB: Final = 1024
_DUE_TIMEOUT_S: Final = 600.0
_ENVELOPE_BYTES: Final = 320
"""What a payload column holds beside its notes."""


@dataclass(frozen=True, slots=True)
class Load:
    """Rows of one kind."""

    name: str
    payload_bytes: int
    text: str
    """The notes of a payload repeat it; beside it they have one of ``mark``."""
    mark: str = ""

    @property
    def is_wide(self) -> bool:
        """Whether characters take 4 bytes: all those of a Python text, as soon as one of them does."""
        return not (self.text + self.mark).isascii()

    @property
    def limit_kib(self) -> int:
        """What a worker may take above its idle size."""
        largest = max(BATCH_BYTES, self.payload_bytes)
        return (6 if self.is_wide else 3) * largest // 1024 + 64 * _MIB_KIB


LOADS: Final = (
    Load("ASCII", LARGE_BYTES, "x"),
    Load("characters of 4 bytes", LARGE_BYTES, "😀"),
    Load("ASCII and one character of 4 bytes", LARGE_BYTES, "x", mark="😀"),
    Load("ASCII, in the record", INLINE_BYTES, "x"),
    Load("ASCII and one character of 4 bytes, in the record", INLINE_BYTES, "x", mark="😀"),
)


@dataclass(frozen=True, slots=True)
class Size:
    """How large one worker was with one load, in KiB."""

    load: str
    worker: str
    rows: int
    idle: int
    peak: int
    limit: int

    @property
    def growth(self) -> int:
        return self.peak - self.idle

    @property
    def held(self) -> bool:
        return self.growth <= self.limit


def measure(*, rows: int, keep: bool) -> Outcome:
    """Have relay and consumer work off each load: ``rows`` large ones, and as many bytes of those in their record."""
    sizes: list[Size] = []
    with installed("limits", keep=keep) as installation:
        outbox = OutboxTable(installation)
        for load in LOADS:
            sizes += work_off(installation, outbox, load, rows * (LARGE_BYTES // load.payload_bytes))
    outcome = Outcome("memory", figures={"sizes": [asdict(size) for size in sizes]})
    report(outcome, sizes)
    return outcome


def report(outcome: Outcome, sizes: Sequence[Size]) -> None:
    """Print and judge ``sizes``."""
    lines = [
        (f"{each.load}: {each.worker}", f"{each.rows:,}", *map(mib, (each.idle, each.peak, each.growth, each.limit)))
        for each in sizes
    ]
    outcome.sections.append(figures_table(("MiB resident", "rows", "idle", "peak", "grew by", "may grow by"), lines))
    for each in sizes:
        target = f"{each.load}: {each.worker} grows by {mib(each.limit)} MiB at the most"
        outcome.judge(target, f"{mib(each.growth)} MiB", held=each.held)


def work_off(installation: Installation, outbox: OutboxTable, load: Load, rows: int) -> list[Size]:
    """Let ``rows`` rows become due before an idle relay and an idle consumer; return how large both were."""
    template = outbox.template(body_bytes=load.payload_bytes)
    notes = "x" * (load.payload_bytes - _ENVELOPE_BYTES)
    repeated = (len(notes) - len(load.mark.encode())) // len(load.text.encode())
    wide = replace(template, payload=template.payload.replace(notes, load.text * repeated + load.mark))
    outbox.fill(wide, rows=rows, keys=rows, more={"next_retry_at": "UTC_TIMESTAMP(6) + INTERVAL 1 DAY"})
    workers = {
        "relay": installation.manage("relay", "run_relay", "agent"),
        "consumer": installation.manage("consumer", "consume", "agent"),
    }
    installation.writers("first", "one", "--bytes", "1000").wait(timeout_s=60)
    installation.wait(lambda: outbox.count("status = 'consumed'") == 1, "the first is consumed", timeout_s=90)
    idle = {name: worker.sample().rss for name, worker in workers.items()}
    outbox.execute("UPDATE agent_outbox_messages SET next_retry_at = UTC_TIMESTAMP(6) WHERE status = 'pending'")
    installation.wait(
        lambda: outbox.count("status = 'consumed'") == rows + 1, f"{rows:,} are consumed", timeout_s=_DUE_TIMEOUT_S
    )
    peaks = {name: worker.stop().peak_kib for name, worker in workers.items()}
    return [Size(load.name, name, rows, idle[name], peaks[name], load.limit_kib) for name in workers]
