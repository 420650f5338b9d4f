"""`make bench`: the throughput on the project's own MariaDB and Kafka, in a database made for it."""

from __future__ import annotations

import os
import sys

from benchmarks.database import kafka_servers, make_anew

DATABASE = "smartflow_bench"


def main() -> None:
    """Make the database anew and measure; arguments go to ``benchmarks.throughput``."""
    environment = os.environ | {
        "KAFKA_BOOTSTRAP_SERVERS": kafka_servers(),
        "DATABASE_URL": make_anew(DATABASE),
    }
    os.execve(sys.executable, [sys.executable, "-m", "benchmarks.throughput", *sys.argv[1:]], environment)


if __name__ == "__main__":
    main()
