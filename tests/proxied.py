"""A database behind a proxy that makes trouble when told to."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from django.db import connections

from tests.chaos.proxy import Proxy


@contextmanager
def proxied(alias: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Have connections that are opened within the block go through a proxy; the test's own stays as it is."""
    connections[alias].ensure_connection()
    settings = connections[alias].settings_dict
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    proxy = Proxy(port=port, target=int(settings["PORT"]))
    proxy.start()
    try:
        with monkeypatch.context() as patch:
            patch.setitem(settings, "PORT", port)
            yield proxy
    finally:
        proxy.stop()
