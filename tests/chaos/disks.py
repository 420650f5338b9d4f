"""A file system for the tables of a run alone, which can be made full: the server then really finds no space.

It is a tmpfs over the schema's own folder that may take half of the memory. Redo log, undo log and binary log stay
where they were, so commits wait for the disk as before, and a server without space for rows can still roll back.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from scripts.services.errors import ServicesError
from tests.chaos.errors import ImpossibleError

_ROOMY: Final = "50%"
_TRIES: Final = 20
"""How often it is made full: what the server writes in between makes the size that was seen too small."""


class TablesDisk:
    """The file system of one schema. Needs root, or a sudo without password, and the right to mount."""

    def __init__(self, folder: Path) -> None:
        """Take the folder of the schema, which may hold nothing that is needed."""
        self._folder = folder

    def mount(self) -> None:
        """Put it over the folder, for the folder's owner.

        :raises ImpossibleError: nobody here may do so.
        """
        owner = self._folder.stat()
        options = f"size={_ROOMY},uid={owner.st_uid},gid={owner.st_gid},mode=0700"
        result = _as_root("mount", "-t", "tmpfs", "-o", options, "smartflow-chaos", str(self._folder))
        if result.returncode:
            raise ImpossibleError(
                "a full disk needs a file system of its own, and none can be mounted without root or a sudo without "
                f"password: {result.stderr.strip()}"
            )

    def fill(self) -> None:
        """Leave no more space than is used.

        :raises ServicesError: it cannot be made so small.
        """
        for _ in range(_TRIES):
            found = os.statvfs(self._folder)
            result = self._resize(str((found.f_blocks - found.f_bfree) * found.f_frsize))
            if not result.returncode:
                return
        raise ServicesError(f"{self._folder} cannot be made full: {result.stderr.strip()}")

    def free(self) -> None:
        """Give space again.

        :raises ServicesError: it cannot be made larger.
        """
        result = self._resize(_ROOMY)
        if result.returncode:
            raise ServicesError(f"{self._folder} stays full: {result.stderr.strip()}")

    def unmount(self) -> None:
        """Take it away, with what is on it."""
        _as_root("umount", "-l", str(self._folder))

    def _resize(self, size: str) -> subprocess.CompletedProcess[str]:
        return _as_root("mount", "-o", f"remount,size={size}", str(self._folder))


def _as_root(*command: str) -> subprocess.CompletedProcess[str]:
    prefix = () if os.getuid() == 0 or shutil.which("sudo") is None else ("sudo", "-n")
    try:
        return subprocess.run([*prefix, *command], capture_output=True, text=True, check=False, timeout=20)
    except OSError as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))
