"""Opens pages of the admin, in a process that an outage of the database may end."""

from __future__ import annotations

from typing import Final

from tests.acceptance.harness import Installation
from tests.acceptance.workers import Conversation
from tests.chaos.errors import MissedError

PAGES: Final = ("/admin/outbox/route/", "/admin/outbox/deadevent/", "/admin/outbox/rejectedrecord/")


class AdminProcess(Conversation):
    """A process with the admin in it."""

    def open(self, path: str) -> tuple[int, float]:
        status, took_s = self._ask(path=path)
        return int(status), float(took_s)


class AdminPages:
    """The admin, made anew when its process has ended. For one thread."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._process: AdminProcess | None = None

    def be_ready(self) -> None:
        """Have a process that has opened a page before, so that the next one says how long pages take.

        :raises MissedError: there is none, as in an outage of the database.
        """
        try:
            self.open(PAGES[-1])
        except AssertionError as error:
            raise MissedError(f"the admin does not start: {str(error).splitlines()[0]}") from error

    def open(self, path: str) -> tuple[int, float]:
        """Open a page; return the status of the answer and the seconds that it took.

        :raises AssertionError: the process has ended over it, or does not answer.
        """
        if self._process is None or not self._process.is_alive:
            self._process = self._installation.converse(AdminProcess, "admin", "tests.chaos.admin_process")
        try:
            return self._process.open(path)
        except (AssertionError, OSError) as error:
            self._process.dispose()
            raise AssertionError(str(error)) from error
