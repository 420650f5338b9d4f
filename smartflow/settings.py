"""Settings of the SmartFlow project, from the environment or a ``.env`` file beside ``manage.py``.

With nothing set it runs on SQLite and the table broker, for one machine. ``DATABASE_URL`` and
``KAFKA_BOOTSTRAP_SERVERS`` make it what it is run as for real. ``.env.example`` lists every variable.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import environ
from django.core.exceptions import ImproperlyConfigured

BASE_DIR = Path(__file__).resolve().parent.parent


class _Env(environ.Env):  # type: ignore[misc]
    """Takes values as they are: one that begins with ``$``, as a password may, does not name another variable."""

    def get_value(
        self, var: str, cast: Any = None, default: Any = environ.Env.NOTSET, parse_default: bool = False
    ) -> Any:
        value = self.ENVIRON.get(var, "")
        if value.startswith("$"):
            return self.parse_value(value, cast)
        return super().get_value(var, cast=cast, default=default, parse_default=parse_default)


def _without_the_line(record: logging.LogRecord) -> bool:
    """Leave out what stands in a line of ``.env`` that cannot be read: it may be a password."""
    if record.levelno >= logging.WARNING:
        record.msg, record.args = ".env: a line is not of the form NAME=value, without blanks around '='; not read", ()
    return True


logging.getLogger("environ.environ").addFilter(_without_the_line)

env = _Env()
if env.bool("READ_DOT_ENV", default=True):
    environ.Env.read_env(BASE_DIR / ".env")

# --- security ----------------------------------------------------------------------------------------------------

_DEVELOPMENT_KEY = "insecure-and-for-development-only"
DEBUG = env.bool("DEBUG", default=False)
SECRET_KEY = env.str("SECRET_KEY", default=_DEVELOPMENT_KEY if DEBUG else "")
if not SECRET_KEY or (SECRET_KEY == _DEVELOPMENT_KEY and not DEBUG):
    raise ImproperlyConfigured(
        "SECRET_KEY is not set. Give it a long random value (see .env.example), or set DEBUG=true on your own machine."
    )
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]"])
CSRF_TRUSTED_ORIGINS = env.list("CSRF_TRUSTED_ORIGINS", default=[])
_HTTPS = env.bool("HTTPS", default=False)
SECURE_SSL_REDIRECT = _HTTPS
SESSION_COOKIE_SECURE = _HTTPS
CSRF_COOKIE_SECURE = _HTTPS
SECURE_HSTS_SECONDS = env.int("SECURE_HSTS_SECONDS", default=3600 if _HTTPS else 0)
SECURE_HSTS_INCLUDE_SUBDOMAINS = env.bool("SECURE_HSTS_INCLUDE_SUBDOMAINS", default=False)
SECURE_HSTS_PRELOAD = env.bool("SECURE_HSTS_PRELOAD", default=False)
# Each of these is a statement about a whole domain. Until somebody has decided, `check --deploy` asks; an explicit
# `false` is an answer too.
SILENCED_SYSTEM_CHECKS = [
    check
    for check, variable, value in (
        ("security.W005", "SECURE_HSTS_INCLUDE_SUBDOMAINS", SECURE_HSTS_INCLUDE_SUBDOMAINS),
        ("security.W021", "SECURE_HSTS_PRELOAD", SECURE_HSTS_PRELOAD),
    )
    if variable in env.ENVIRON and not value
]
if env.bool("BEHIND_PROXY", default=False):
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
LOGIN_REDIRECT_URL = "admin:index"
# A working day, and no longer than the browser is open: who is signed in may change what users get.
SESSION_COOKIE_AGE = 12 * 3600
SESSION_EXPIRE_AT_BROWSER_CLOSE = True
# The pages of errors that DEBUG shows leave out the environment, where DATABASE_URL and OUTBOX may hold passwords.
DEFAULT_EXCEPTION_REPORTER_FILTER = "outbox.admin.error_reports.WithoutEnvironment"

# --- the project -------------------------------------------------------------------------------------------------

ROOT_URLCONF = "smartflow.urls"
WSGI_APPLICATION = "smartflow.wsgi.application"
ASGI_APPLICATION = "smartflow.asgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "outbox",
    "agent_events.agent",
    "agent_events.task",
    "agent_events.memory",
    "agent_events.active_scheduler",
    "agent_events.notification",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]

LANGUAGE_CODE = "en-us"
TIME_ZONE = env.str("TIME_ZONE", default="UTC")
USE_TZ = True
USE_I18N = True
STATIC_URL = "static/"
STATIC_ROOT = env.str("STATIC_ROOT", default=str(BASE_DIR / "staticfiles"))

# --- databases ---------------------------------------------------------------------------------------------------


def database(url: str) -> dict[str, Any]:
    """Return a Django database for ``url``, with what the outbox needs of its kind.

    :raises ImproperlyConfigured: it cannot be read; no part of it is repeated, as each may be one of the password.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the parser's warnings repeat the address
        try:
            config: dict[str, Any] = env.db_url_config(url)
        except (ValueError, Warning):
            config = {}
    is_file = config.get("ENGINE", "").endswith("sqlite3")
    if "." not in config.get("ENGINE", "") or ("@" in config["NAME"] and not is_file):
        raise ImproperlyConfigured(
            "DATABASE_URL cannot be read. It has the form mysql://user:password@host:port/name, postgres://… or "
            "sqlite:///path; characters such as @ : / ? # % of a password are quoted (@ is %40)."
        ) from None
    options = config.setdefault("OPTIONS", {})
    if config["ENGINE"].endswith("mysql"):
        # READ COMMITTED is Django's default and what the outbox is built for: see docs/performance.md.
        options.setdefault("isolation_level", "read committed")
        options.setdefault("charset", "utf8mb4")
        options.setdefault("connect_timeout", 5)
        if tls := {name: options.pop(f"ssl_{name}") for name in ("ca", "cert", "key") if f"ssl_{name}" in options}:
            # The driver's own default would go on in the clear where the server has no TLS, and trust any server.
            options["ssl"] = tls
            options.setdefault("ssl_mode", "VERIFY_IDENTITY")
    elif config["ENGINE"].endswith("sqlite3"):
        # One writer at a time: take the lock at BEGIN, or a transaction that reads first may fail when it writes.
        options.setdefault("transaction_mode", "IMMEDIATE")
        options.setdefault("timeout", 20)
        options.setdefault("init_command", "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;")
    elif config["ENGINE"].endswith("postgresql"):
        options.setdefault("connect_timeout", 5)
    return config


DATABASES = {"default": database(env.str("DATABASE_URL", default=f"sqlite:///{BASE_DIR / 'db.sqlite3'}"))}
DATABASE_ROUTERS = ["outbox.routers.ServiceRouter"]

# --- the outbox --------------------------------------------------------------------------------------------------

KAFKA_BOOTSTRAP_SERVERS = env.list("KAFKA_BOOTSTRAP_SERVERS", default=[])
KAFKA_ENABLED = env.bool("KAFKA_ENABLED", default=bool(KAFKA_BOOTSTRAP_SERVERS))


def _kafka() -> dict[str, Any]:
    """Return the broker's options; security settings go to the client as they are."""
    security = {
        option: value
        for option, value in (
            ("security_protocol", env.str("KAFKA_SECURITY_PROTOCOL", default="")),
            ("sasl_mechanism", env.str("KAFKA_SASL_MECHANISM", default="")),
            ("sasl_plain_username", env.str("KAFKA_SASL_USERNAME", default="")),
            ("sasl_plain_password", env.str("KAFKA_SASL_PASSWORD", default="")),
            ("ssl_cafile", env.str("KAFKA_SSL_CAFILE", default="")),
            ("ssl_certfile", env.str("KAFKA_SSL_CERTFILE", default="")),
            ("ssl_keyfile", env.str("KAFKA_SSL_KEYFILE", default="")),
        )
        if value
    }
    return {"bootstrap_servers": KAFKA_BOOTSTRAP_SERVERS, "common": security}


def _given() -> dict[str, Any]:
    try:
        given = env.json("OUTBOX", default={})
    except ValueError as error:
        raise ImproperlyConfigured(f"OUTBOX is no JSON: {error}") from None
    if not isinstance(given, dict):
        raise ImproperlyConfigured('OUTBOX must be a JSON object, such as {"RELAY": {"BATCH_SIZE": 500}}.')
    return given


OUTBOX: dict[str, Any] = {
    "NAMESPACE": "smartflow",
    # Kafka is configured and switched off: events wait. Nothing is configured: the table itself is the queue.
    "ENABLED": KAFKA_ENABLED or "KAFKA_ENABLED" not in env.ENVIRON,
    "BROKER": {"BACKEND": "kafka", "OPTIONS": _kafka()} if KAFKA_BOOTSTRAP_SERVERS else {"BACKEND": "table"},
} | _given()

# --- logging -----------------------------------------------------------------------------------------------------

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname} {name} {message}", "style": "{"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": env.str("LOG_LEVEL", default="INFO")},
    "loggers": {"kafka": {"level": env.str("KAFKA_LOG_LEVEL", default="CRITICAL")}},
}

# --- the services ------------------------------------------------------------------------------------------------

SMARTFLOW: dict[str, Any] = {
    # Whether what users say in chats is offered to the memory service.
    "MEMORY_ENABLED": env.bool("MEMORY_ENABLED", default=True),
    # Dotted path of the function that says what to propose for a trigger: agent_events/active_scheduler/candidates.py.
    "PREVIEW_BUILDER": env.str("PREVIEW_BUILDER", default="agent_events.active_scheduler.candidates.propose_due_task"),
}


# --- notification ------------------------------------------------------------------------------------------------

NOTIFICATION: dict[str, Any] = {
    # Where this site is for a user's browser: the links in notifications start with it.
    "SITE_URL": env.str("NOTIFICATION_SITE_URL", default="http://localhost:8000"),
    # Hosts (host or host:port) beside feishu.cn that webhooks may lead to. They may be http and private: only your own.
    "ALLOWED_HOSTS": env.list("NOTIFICATION_ALLOWED_HOSTS", default=[]),
    # The whole of a request, and how long a record may be in `sending` before it is taken up again.
    "TIMEOUT_SECONDS": env.float("NOTIFICATION_TIMEOUT_SECONDS", default=5.0),
    "LEASE_SECONDS": env.float("NOTIFICATION_LEASE_SECONDS", default=60.0),
    # CA certificates (PEM) to trust in place of the public ones.
    "CA_FILE": env.str("NOTIFICATION_CA_FILE", default=""),
    # Keys that webhooks and tokens are encrypted with, the newest first. None: SECRET_KEY.
    "SECRET_KEYS": env.list("NOTIFICATION_SECRET_KEYS", default=[]),
}
# At DEBUG the HTTP client logs the headers of answers, which may echo a token.
LOGGING["loggers"]["httpcore"] = {"level": "INFO"}  # type: ignore[index]
