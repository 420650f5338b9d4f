"""Settings for tests: SQLite by default, and every database server that can be reached under an alias of its own."""

from __future__ import annotations

import os

os.environ.setdefault("DEBUG", "true")
os.environ["READ_DOT_ENV"] = "false"
os.environ["SHARED_TABLE"] = "true"
for name in [*os.environ]:
    if name in {"DATABASE_URL", "OUTBOX"} or name.startswith("KAFKA_"):
        del os.environ[name]

from smartflow.database_url import database  # noqa: E402
from smartflow.settings import *  # noqa: E402, F403
from smartflow.settings import BASE_DIR  # noqa: E402
from tests.services import mariadb_url, mysql_url, postgres_url  # noqa: E402

DATABASES = {"default": database(f"sqlite:///{BASE_DIR / 'test.sqlite3'}")}
# Named by process, so that two runs at once do not meet in one database.
DATABASES["default"]["TEST"] = {"NAME": str(BASE_DIR / f"test_{os.getpid()}.sqlite3")}
for alias, url in (("mariadb", mariadb_url()), ("mysql", mysql_url()), ("postgres", postgres_url())):
    if url:
        DATABASES[alias] = database(url)
        DATABASES[alias]["TEST"] = {"NAME": f"test_{DATABASES[alias]['NAME']}_{os.getpid()}", "DEPENDENCIES": []}
if "mariadb" in DATABASES:
    DATABASES["mariadb"]["TEST"]["CHARSET"] = "utf8mb4"  # its own default is still latin1; MySQL's is utf8mb4

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
