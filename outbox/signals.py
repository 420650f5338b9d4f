"""What happened, as Django signals. Logging and metrics listen here; relay and consumer only tell.

A receiver runs on the worker's thread between batches: it must be quick, and what it raises is logged, not obeyed.
Every signal is sent with ``sender`` = the service's name.
"""

from __future__ import annotations

from typing import Final

from django.dispatch import Signal

__all__ = [
    "buried",
    "consumed",
    "interrupted",
    "outage",
    "recovered",
    "redelivered",
    "refused",
    "rejected",
    "relayed",
    "replayed",
    "retried",
    "waited",
]

relayed: Final = Signal()
"""Rows were marked published. Arguments: ``count`` (int)."""

refused: Final = Signal()
"""Rows died in the relay. Arguments: ``outbox_id`` (int), ``reason`` (str)."""

consumed: Final = Signal()
"""Rows were marked consumed. Arguments: ``count`` (int), ``event_types`` (dict, how many of each)."""

retried: Final = Signal()
"""A handler failed and the row comes again.

Arguments: ``outbox_id`` (int), ``event_type`` (str), ``attempt`` (int, from 1), ``delay`` (timedelta), ``error``
(Exception).
"""

interrupted: Final = Signal()
"""A connection was lost while an event was at work alone, and the row comes again.

Arguments: ``outbox_id`` (int), ``event_type`` (str), ``interruptions`` (int, in a row), ``delay`` (timedelta).
"""

waited: Final = Signal()
"""Events were deferred behind an unfinished one of their key. Arguments: ``count`` (int)."""

buried: Final = Signal()
"""A row died in the consumer. Arguments: ``outbox_id`` (int), ``event_type`` (str), ``reason`` (str)."""

rejected: Final = Signal()
"""Broker records could not be tied to a row and were kept. Arguments: ``count`` (int), ``reasons`` (list of str)."""

redelivered: Final = Signal()
"""Rows stuck in ``published`` went back to ``pending``. Arguments: ``count`` (int)."""

outage: Final = Signal()
"""The broker or the database is unavailable, or the worker itself fails, and is tried again after a pause.

Arguments: ``what`` (``broker``, ``database``, ``subscription``, ``relay``, ``consumer``), ``error`` (str),
``pause_seconds`` (float).
"""

recovered: Final = Signal()
"""Work goes on. Arguments: ``what``, as ``outage`` said it last."""

replayed: Final = Signal()
"""A person sent dead rows again. Arguments: ``ids`` (list of int), ``by`` (str, the user's name)."""
