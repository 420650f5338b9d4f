"""Helpers for the tests of a project that publishes and handles events.

What was published, and that the right events were::

    def test_order_tells_the_warehouse(self):
        with captured_events() as events:
            place_order(order)
        self.assertEqual(events, [("order.placed", OrderPlaced(order_id="7"))])

What the handlers make of it, at once and in this process, without Kafka and without a worker::

    def test_warehouse_reserves(self):
        place_order(order)
        drain()
        self.assertTrue(Reservation.objects.filter(order_id="7").exists())

Both work inside the transaction of Django's ``TestCase``, as they look at rows on the test's own connection. ``drain``
carries events through relay and consumer as they run for real, over a broker in memory; the configured broker is not
touched. An event that fails waits for its next attempt: ``drain(ignore_backoff=True)`` brings it at once, until it
succeeds or is dead. A test that wants no dead event says ``drain(raise_on_dead=True)``.
"""

from __future__ import annotations

from outbox.exceptions import DrainError
from outbox.testing.captured import CapturedEvent, CapturedEvents, captured_events
from outbox.testing.draining import DeadEvent, Drained, drain

__all__ = ["CapturedEvent", "CapturedEvents", "DeadEvent", "DrainError", "Drained", "captured_events", "drain"]
