"""What a page of an error leaves out, over what Django leaves out by itself.

A project uses it by ``DEFAULT_EXCEPTION_REPORTER_FILTER = "outbox.admin.error_reports.WithoutEnvironment"``.
"""

from __future__ import annotations

import os
from typing import Any

from django.http import HttpRequest
from django.views.debug import SafeExceptionReporterFilter


class WithoutEnvironment(SafeExceptionReporterFilter):
    """Hides the process's environment, which the development server mixes into the data of a request.

    Django hides variables by their names; a database's address, or JSON, holds a password under a harmless one.
    """

    def get_safe_request_meta(self, request: HttpRequest) -> dict[str, Any]:
        """Return the data of the request without the values that the environment has."""
        meta: dict[str, Any] = super().get_safe_request_meta(request)
        return {
            name: self.cleansed_substitute if value and value == os.environ.get(name) else value
            for name, value in meta.items()
        }
