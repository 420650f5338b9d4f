"""Publishes events of the `shared` service, each in a transaction of its own: FIRST COUNT KEYS FILLER."""

from __future__ import annotations

import sys

import django
from django.db import transaction


def main(first: int, count: int, keys: int, filler: int) -> None:
    """Publish events ``first`` to ``first + count - 1``, over ``keys`` keys."""
    from outbox import publish
    from tests.acceptance.shared.events import SharedStep

    for n in range(first, first + count):
        with transaction.atomic():
            publish(SharedStep(key=f"k{n % keys}", n=n, filler="x" * filler))


if __name__ == "__main__":
    django.setup()
    main(*map(int, sys.argv[1:]))
