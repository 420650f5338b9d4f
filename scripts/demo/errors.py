"""What can go wrong in a demo."""

from __future__ import annotations


class DemoError(Exception):
    """The demo cannot go on, or did not end as it should; the message is for the person at the terminal."""
