"""Apache Kafka, one node that is broker and controller, fetched by Maven."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

from scripts.services import kafka_wire, packages
from scripts.services.errors import ServicesError
from scripts.services.ports import LOOPBACK
from scripts.services.server import NativeServer
from scripts.services.state import write_atomically

POM = Path(__file__).with_name("kafka-pom.xml")
LOGGING = Path(__file__).with_name("kafka-log4j2.xml")
OLDEST_JAVA = 17
NODE = 1
_TRIES = 3

_SETTINGS = """\
# Written anew at every start by scripts/services/kafka.py.
process.roles=broker,controller
node.id={node}
controller.quorum.voters={node}@{host}:{controller}
listeners=CLIENT://{host}:{client},CONTROLLER://{host}:{controller}
advertised.listeners=CLIENT://{host}:{client}
listener.security.protocol.map=CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=CLIENT
controller.listener.names=CONTROLLER
log.dirs={data}

# One node: nothing can be replicated.
default.replication.factor=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=3
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=3
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=3

# As in production: a misspelt topic is an error, not a new topic.
auto.create.topics.enable=false
num.partitions=3
message.max.bytes=1048588

# Quick for tests: groups form at once, and a killed broker is let in again after 3 s instead of 9.
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500

# Small.
log.cleaner.dedupe.buffer.size=16777216
num.network.threads=2
num.io.threads=4
"""


class Kafka(NativeServer):
    """One Kafka node run by hand."""

    package_group: ClassVar[str] = "java"

    @property
    def more_settings(self) -> str:
        """What follows in server.properties; of two lines with one key the later counts."""
        return ""

    @property
    def more_format_options(self) -> Sequence[str]:
        """What else the storage is formatted with, such as users."""
        return ()

    def install(self) -> None:
        _java()
        if not _libraries().is_dir():
            _fetch()

    def set_up(self) -> None:
        data = self.state.subfolder("data")
        write_atomically(
            self._settings,
            _SETTINGS.format(
                node=NODE,
                host=LOOPBACK,
                client=self.port,
                controller=self.state.ports["controller"],
                data=data,
            )
            + self.more_settings,
        )
        if not (data / "meta.properties").exists():
            self._format()

    def command(self) -> Sequence[str]:
        return self._java_command(
            "-Xms256m",
            "-Xmx512m",
            "-XX:+UseG1GC",
            "-XX:+ExitOnOutOfMemoryError",
            "-Djava.awt.headless=true",
            f"-Dlog4j2.configurationFile={LOGGING}",
            "kafka.Kafka",
            str(self._settings),
        )

    def is_ready(self) -> bool:
        try:
            return kafka_wire.ask(LOOPBACK, self.port).serves(broker=NODE, port=self.port)
        except (OSError, kafka_wire.WireError):
            return False

    @property
    def _settings(self) -> Path:
        return self.state.folder / "server.properties"

    def _format(self) -> None:
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        command = self._java_command(
            "-Xmx256m",
            f"-Dlog4j2.configurationFile={LOGGING}",
            "kafka.tools.StorageTool",
            "format",
            f"--cluster-id={cluster}",  # with an equals sign: one that begins with a hyphen is no option
            "--config",
            str(self._settings),
            *self.more_format_options,
        )
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise ServicesError(f"Could not format Kafka's storage:\n{result.stdout}{result.stderr}")

    @staticmethod
    def _java_command(*arguments: str) -> Sequence[str]:
        return [_java(), "-cp", f"{_libraries()}/*", *arguments]


def version() -> str:
    """Give the version of Kafka that the POM names."""
    found = ElementTree.parse(POM).findtext(".//{*}properties/{*}kafka.version")
    if not found:
        raise ServicesError(f"{POM} names no kafka.version.")
    return found


def _libraries() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "smartflow" / f"kafka-{version()}"


def _fetch() -> None:
    """Fetch the libraries once for all checkouts; a half-done fetch leaves nothing behind under the final name."""
    target = _libraries()
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / "kafka.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():
            return
        if shutil.which("mvn") is None:
            packages.ensure("maven")
        print(f"Fetching Kafka {version()}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="kafka-fetch.") as folder:
            _run_maven(Path(folder) / "libraries")
            (Path(folder) / "libraries").rename(target)


def _run_maven(output: Path) -> None:
    command = ["mvn", "--batch-mode", "--quiet", "--file", str(POM), "dependency:copy-dependencies"]
    command += ["-DincludeScope=runtime", f"-DoutputDirectory={output}"]
    for attempt in range(1, _TRIES + 1):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode == 0 and any(output.glob("kafka_*.jar")):
            return
        if attempt < _TRIES:
            time.sleep(5 * attempt)
    raise ServicesError(f"`{' '.join(command)}` failed {_TRIES} times:\n{result.stdout[-3000:]}{result.stderr[-1000:]}")


def _java() -> str:
    """Give a Java that is new enough, from JAVA_HOME or the path; install one where there is none."""
    if found := _find_java():
        return found
    packages.ensure("java")
    if found := _find_java():
        return found
    raise ServicesError(f"Kafka needs Java {OLDEST_JAVA} or newer; install one or set JAVA_HOME.")


def _find_java() -> str | None:
    candidates = [shutil.which("java")]
    if home := os.environ.get("JAVA_HOME"):
        candidates.insert(0, str(Path(home) / "bin" / "java"))
    candidates += sorted(map(str, Path("/usr/lib/jvm").glob("*/bin/java")), reverse=True)
    return next((java for java in candidates if java and _java_version(java) >= OLDEST_JAVA), None)


def _java_version(java: str) -> int:
    try:
        result = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)
    except OSError:
        return 0
    found = re.search(r'version "(\d+)', result.stderr)
    return int(found.group(1)) if found else 0
