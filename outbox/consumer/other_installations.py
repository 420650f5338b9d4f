"""The records of other installations on a service's topic: none of their rows is here, and this is no accident of one.

They are not looked up, as an id may be that of another event here. All of one installation are one rejected record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final

from outbox import signals
from outbox.brokers.base import IncomingRecord
from outbox.declarations.routes import ServiceRoute
from outbox.fields import storable
from outbox.log_text import get_logger
from outbox.models import INSTALLATION_MAX_LENGTH
from outbox.storage.installations import InstallationId
from outbox.storage.rejections import Rejection, RejectionStore
from outbox.wire.envelope import INSTALLATION_HEADER

logger = get_logger(__name__)

LOG_INTERVAL: Final = timedelta(minutes=1)

_GROUPS: Final = 20
"""So many installations of one batch have a row that counts; headers are what anybody writes."""


class OtherInstallations:
    """Takes the records of other installations out of what one consumer received. ``clock`` gives monotonic seconds."""

    def __init__(self, route: ServiceRoute, *, clock: Callable[[], float]) -> None:
        self._route = route
        self._own_id = InstallationId(route.database)
        self._store = RejectionStore(route.service, route.database)
        self._clock = clock
        self._logged_at: float | None = None

    def set_aside(self, records: Sequence[IncomingRecord]) -> list[IncomingRecord]:
        """Return the records of this installation, or of software that names none; those of others are rejected.

        Records that come again are counted again.

        :raises DatabaseError: the database is unavailable; nothing is lost when all of them are given again.
        """
        own: list[IncomingRecord] = []
        others: dict[str, list[IncomingRecord]] = {}
        own_id = b""
        for record in records:
            value = record.header(INSTALLATION_HEADER)
            if value and not own_id:
                own_id = self._own_id().encode()
            if not value or value == own_id or not (name := _text_of(value)):
                own.append(record)
            else:
                others.setdefault(name, []).append(record)
        if others:
            self._reject(others)
        return own

    def _reject(self, others: dict[str, list[IncomingRecord]]) -> None:
        most_first = sorted(others, key=lambda each: -len(others[each]))
        for name in most_first[:_GROUPS]:
            self._store.add_group(others[name], installation=name, reason=self._reason(name))
        rest = [Rejection(each, self._reason(name)) for name in most_first[_GROUPS:] for each in others[name]]
        if rest:
            self._store.add(rest)
        self._log(most_first[0], len(others[most_first[0]]))
        for name in most_first:
            count = len(others[name])
            signals.rejected.send_robust(self._route.service, count=count, reasons=[self._reason(name)] * count)

    def _log(self, name: str, count: int) -> None:
        now = self._clock()
        if self._logged_at is not None and now - self._logged_at < LOG_INTERVAL.total_seconds():
            return
        self._logged_at = now
        logger.error(
            "consumer of %s: another installation shares this topic and consumer group, and events of both wait: give"
            " each installation a NAMESPACE of its own (topic %s, group %s, this installation %s, the other one %s,"
            " %d of its records now)",
            self._route.service,
            self._route.topic,
            self._route.group,
            self._own_id(),
            name,
            count,
        )

    def _reason(self, name: str) -> str:
        return (
            f"it is of installation {name}, and {self._route.table} here is of installation {self._own_id()}: both use"
            f" one topic and consumer group. Give each installation a NAMESPACE of its own."
        )


def _text_of(value: bytes) -> str:
    """Return the name in a header, empty where it holds blanks only: those before a name must not cut it off."""
    return storable(value.decode("utf-8", "backslashreplace").strip(), INSTALLATION_MAX_LENGTH).rstrip()
