"""What happened, as Django signals. Logging and metrics listen here; relay and consumer only tell.

A receiver runs on the worker's thread between batches: it must be quick, and what it raises is logged, not obeyed.
Every signal is sent with ``sender`` = the service's name.
"""

from __future__ import annotations

from typing import Final

from django.dispatch import Signal

relayed: Final = Signal()
"""Rows were marked published. Arguments: ``count``."""

refused: Final = Signal()
"""Rows died in the relay. Arguments: ``outbox_id``, ``reason``."""

consumed: Final = Signal()
"""Rows were marked consumed. Arguments: ``count``, ``event_types``."""

retried: Final = Signal()
"""A handler failed and the row comes again.

Arguments: ``outbox_id``, ``event_type``, ``attempt``, ``delay``, ``error``.
"""

interrupted: Final = Signal()
"""A connection was lost while an event was at work alone, and the row comes again.

Arguments: ``outbox_id``, ``event_type``, ``interruptions``, ``delay``.
"""

waited: Final = Signal()
"""Rows were put back behind an unfinished predecessor. Arguments: ``count``."""

buried: Final = Signal()
"""A row died in the consumer. Arguments: ``outbox_id``, ``event_type``, ``reason``."""

rejected: Final = Signal()
"""Broker records could not be tied to a row and were kept. Arguments: ``count``, ``reasons``."""

redelivered: Final = Signal()
"""Rows stuck in ``published`` went back to ``pending``. Arguments: ``count``."""

outage: Final = Signal()
"""The broker or the database is unavailable, or the worker itself fails, and is tried again after a pause.

Arguments: ``what`` (``broker``, ``database``, ``subscription``, ``relay``, ``consumer``), ``error``, ``pause_seconds``.
"""

recovered: Final = Signal()
"""Work goes on. Arguments: ``what``, as ``outage`` said it last."""

replayed: Final = Signal()
"""A person sent dead rows again. Arguments: ``ids``, ``by``."""
