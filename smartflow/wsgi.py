"""The WSGI entry point."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application

from outbox.conf import outbox_settings

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "smartflow.settings")

application = get_wsgi_application()

# Wrong settings end the process here and not at the first publish.
outbox_settings()
