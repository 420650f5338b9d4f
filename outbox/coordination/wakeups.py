"""Hints that a service has new rows: a relay that pauses is woken by a commit on the same host.

A hint is an empty datagram to the relay's UNIX socket, in a folder that publishers and relays share. It says nothing
and decides nothing: polling finds every row, a hint only makes it sooner. So it may be lost, come for nothing, or not
be there at all: on another host, for another user, on Windows, for rows that other software writes.
"""

from __future__ import annotations

import os
import socket
import stat
import tempfile
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2s
from pathlib import Path
from typing import Final

from outbox.log_text import get_logger

logger = get_logger(__name__)

_LOOK_AGAIN_S: Final = 1.0
"""How long a publisher believes what it saw in the folder: a new relay is woken from then on."""

_OTHERS_MAY_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH

_TAKEN_AT_ONCE: Final = 1_000


@dataclass(frozen=True, slots=True)
class MeetingPlace:
    """The folder in which publishers and relays of one project find each other."""

    folder: Path
    namespace: str
    private: bool
    """Only the user of this process may have made it: anybody can make a folder of its name in a temporary one."""

    def prefix(self, service: str) -> str:
        """Return what the names of a service's sockets begin with: short, as the path of a socket has to be."""
        return blake2s(f"{self.namespace}\0{service}".encode(), digest_size=8).hexdigest() + "."

    @property
    def is_trusted(self) -> bool:
        """Say whether the folder is there, and whose it should be."""
        try:
            found = self.folder.lstat()
        except OSError:
            return False
        if not stat.S_ISDIR(found.st_mode):
            return False
        return not self.private or (found.st_uid == os.getuid() and not found.st_mode & _OTHERS_MAY_WRITE)


def meeting_place(folder: str | None, namespace: str) -> MeetingPlace | None:
    """Return where to meet: ``folder``, or one of this user's own where it is None; nowhere where it is empty."""
    if folder == "" or not hasattr(socket, "AF_UNIX"):
        return None
    if folder is not None:
        return MeetingPlace(Path(folder), namespace, private=False)
    return MeetingPlace(Path(tempfile.gettempdir()) / f"outbox-{os.getuid()}", namespace, private=True)


class WakeUpSocket:
    """A relay's end: readable when hints have come. Wait for it, ``clear`` it, and then look for rows."""

    def __init__(self, place: MeetingPlace, service: str) -> None:
        """Open a socket of this relay's own.

        :raises OSError: the folder cannot be had, or a socket in it.
        """
        with suppress(FileExistsError):
            place.folder.mkdir(mode=0o700, parents=True)
        if not place.is_trusted:
            raise PermissionError(f"{place.folder} is not a folder of this user that others cannot write to")
        self._path = place.folder / f"{place.prefix(service)}{uuid.uuid4().hex[:12]}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            self._socket.bind(str(self._path))
            self._path.chmod(0o666)  # who may enter the folder may wake
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def clear(self) -> bool:
        """Take the hints that have come, and say whether there were any; rows of later ones make it readable again."""
        for taken in range(_TAKEN_AT_ONCE):
            try:
                self._socket.recv(1)
            except BlockingIOError:
                return taken > 0
        return True

    def close(self) -> None:
        self._socket.close()
        with suppress(OSError):
            self._path.unlink()


def open_wake_ups(place: MeetingPlace | None, service: str) -> WakeUpSocket | None:
    """Return a relay's end, None where there can be none: it polls then, as it does on another host."""
    if place is None:
        return None
    try:
        return WakeUpSocket(place, service)
    except OSError as error:
        logger.warning(
            "relay of %s: not woken by commits on this host, it polls: %s. Set OUTBOX['RELAY']['WAKE_UP_FOLDER'] to a"
            " folder that publishers and relays can write to, or to '' for polling only",
            service,
            error,
        )
        return None


class Hints:
    """The publishers' end. Threads share it, and so do processes that were forked. ``clock`` gives seconds."""

    def __init__(self, place: MeetingPlace | None, *, clock: Callable[[], float]) -> None:
        self._place = place
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[float, tuple[str, ...]]] = {}
        self._givers: dict[str, Callable[[], None]] = {}
        self._socket: socket.socket | None = None

    def is_heard(self, service: str) -> bool:
        """Say whether a relay of ``service`` was on this host within the last second."""
        return bool(self._listeners(service))

    def give(self, service: str) -> None:
        """Wake the relays of ``service`` on this host; nothing that goes wrong here matters."""
        for path in self._listeners(service):
            try:
                self._open().sendto(b"", path)
            except ConnectionRefusedError:
                with suppress(OSError):
                    Path(path).unlink()  # its relay was killed
            except OSError:
                continue  # gone, another user's, or so full of hints that it wakes anyway

    def giver(self, service: str) -> Callable[[], None]:
        """Return ``give`` for ``service``, always the same object: who has it in a list need not add it again."""
        return self._givers.setdefault(service, partial(self.give, service))

    def _listeners(self, service: str) -> tuple[str, ...]:
        place = self._place
        if place is None:
            return ()
        now_s = self._clock()
        seen_at, paths = self._seen.get(service, (None, ()))
        if seen_at is None or not 0 <= now_s - seen_at < _LOOK_AGAIN_S:
            paths = self._look(place, service)
            self._seen[service] = now_s, paths
        return paths

    def _look(self, place: MeetingPlace, service: str) -> tuple[str, ...]:
        prefix = place.prefix(service)
        try:
            names = [name for name in os.listdir(place.folder) if name.startswith(prefix)]
        except OSError:
            return ()
        return tuple(str(place.folder / name) for name in names) if names and place.is_trusted else ()

    def _open(self) -> socket.socket:
        with self._lock:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.setblocking(False)
            return self._socket

    def close(self) -> None:
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None
