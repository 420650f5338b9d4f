"""What can go wrong here."""

from __future__ import annotations

from pathlib import Path


class ServicesError(Exception):
    """A server, a package or a tool could not be brought into the wanted state."""


class NotManagedError(ServicesError):
    """The server was given by an environment variable; whoever gave it starts and stops it."""


class MissingPackagesError(ServicesError):
    """System packages are missing and cannot be installed from here."""


class UnobtainableError(ServicesError):
    """A server's programs are not here and cannot be fetched."""


class NotReadyError(ServicesError):
    """A server did not become usable in time."""

    def __init__(self, what: str, *, log: Path | None = None) -> None:
        """Add the tail of the server's log, where the reason is."""
        super().__init__(f"{what}\n{tail(log)}" if log else what)


def tail(log: Path, *, lines: int = 25) -> str:
    """Give the last lines of a log, or say why there are none."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return f"(no log: {error})"
    kept = text.splitlines()[-lines:]
    return "\n".join([f"--- the end of {log}", *kept, "---"])
