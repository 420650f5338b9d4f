"""The admin as a process of its own: ``python -m tests.chaos.admin_process`` opens a page for each line of JSON."""

from __future__ import annotations

import sys
import time

import django
import msgspec


def main() -> None:
    """Answer each path with the status of its page and the seconds that it took."""
    django.setup()
    from django.conf import settings
    from django.contrib.auth.models import User
    from django.db import connections
    from django.test import Client

    settings.ALLOWED_HOSTS = ["testserver"]
    user, _ = User.objects.get_or_create(username="chaos", defaults={"is_staff": True, "is_superuser": True})
    client = Client(raise_request_exception=False)
    client.force_login(user)
    for line in sys.stdin.buffer:
        path = msgspec.json.decode(line)["path"]
        began = time.monotonic()
        connections.close_all()  # as behind each request of a real server
        status = client.get(path, secure=True).status_code
        sys.stdout.buffer.write(msgspec.json.encode([status, time.monotonic() - began]) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
