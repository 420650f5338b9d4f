"""`make bench`: the throughput on the project's own MariaDB and Kafka, in a database made for it."""

from __future__ import annotations

import os
import sys
from urllib.parse import urlsplit, urlunsplit

import MySQLdb

DATABASE = "smartflow_bench"


def main() -> None:
    """Make the database anew and measure; arguments go to ``benchmarks.throughput``."""
    for name in ("SMARTFLOW_MARIADB_URL", "SMARTFLOW_KAFKA_SERVERS"):
        if name not in os.environ:
            sys.exit(f"{name} is not set; `make bench` starts the servers and sets it")
    url = urlsplit(os.environ["SMARTFLOW_MARIADB_URL"])
    connection = MySQLdb.connect(
        host=url.hostname, port=url.port or 3306, user=url.username, passwd=url.password or "", charset="utf8mb4"
    )
    with connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS {DATABASE}")
        cursor.execute(f"CREATE DATABASE {DATABASE} CHARACTER SET utf8mb4")
    connection.close()
    environment = os.environ | {
        "DATABASE_URL": urlunsplit(url._replace(path=f"/{DATABASE}")),
        "KAFKA_BOOTSTRAP_SERVERS": os.environ["SMARTFLOW_KAFKA_SERVERS"],
    }
    os.execve(sys.executable, [sys.executable, "-m", "benchmarks.throughput", *sys.argv[1:]], environment)


if __name__ == "__main__":
    main()
