"""Settings of the SmartFlow project, from the environment or a ``.env`` file beside ``manage.py``.

With nothing set it runs on SQLite and the table broker, for one machine. ``DATABASE_URL`` and
``KAFKA_BOOTSTRAP_SERVERS`` make it what it is run as for real. ``.env.example`` lists every variable.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from django.core.exceptions import ImproperlyConfigured

from smartflow.database_url import database
from smartflow.environment import Environment, read_dot_env

BASE_DIR = Path(__file__).resolve().parent.parent

env = Environment()
if env.flag("READ_DOT_ENV", default=True):
    read_dot_env(BASE_DIR / ".env")

# --- security ----------------------------------------------------------------------------------------------------

_DEVELOPMENT_KEY = "insecure-and-for-development-only"
DEBUG = env.flag("DEBUG", default=False)
SECRET_KEY = env.text("SECRET_KEY", default=_DEVELOPMENT_KEY if DEBUG else "")
if not SECRET_KEY or (SECRET_KEY == _DEVELOPMENT_KEY and not DEBUG):
    raise ImproperlyConfigured(
        "SECRET_KEY is not set. Give it a long random value (see .env.example), or set DEBUG=true on your own machine."
    )
ALLOWED_HOSTS = env.names(
    "ALLOWED_HOSTS",
    default=["localhost", "127.0.0.1", "[::1]"],
    each=re.compile(r"\*|\.?[\w-]+(\.[\w-]+)*\.?|\[[0-9A-Fa-f:.]+\]"),
    form="host names without scheme, port and path",
)
CSRF_TRUSTED_ORIGINS = env.names(
    "CSRF_TRUSTED_ORIGINS", each=re.compile(r"[A-Za-z]+://[^/?#@\s]+"), form="origins such as https://example.com"
)
_HTTPS = env.flag("HTTPS", default=False)
SECURE_SSL_REDIRECT = _HTTPS
SESSION_COOKIE_SECURE = _HTTPS
CSRF_COOKIE_SECURE = _HTTPS
SECURE_HSTS_SECONDS = env.integer("SECURE_HSTS_SECONDS", default=3600 if _HTTPS else 0, least=0, most=2**31 - 1)
SECURE_HSTS_INCLUDE_SUBDOMAINS = env.flag("SECURE_HSTS_INCLUDE_SUBDOMAINS", default=False)
SECURE_HSTS_PRELOAD = env.flag("SECURE_HSTS_PRELOAD", default=False)
# Each of these is a statement about a whole domain. Until somebody has decided, `check --deploy` asks; an explicit
# `false` is an answer too.
SILENCED_SYSTEM_CHECKS = [
    check
    for check, variable, value in (
        ("security.W005", "SECURE_HSTS_INCLUDE_SUBDOMAINS", SECURE_HSTS_INCLUDE_SUBDOMAINS),
        ("security.W021", "SECURE_HSTS_PRELOAD", SECURE_HSTS_PRELOAD),
    )
    if variable in env and not value
]
if env.flag("BEHIND_PROXY", default=False):
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
if env.flag("SHARED_TABLE", default=False):
    INSTALLED_APPS.append("outbox.contrib.shared_table")

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
TIME_ZONE = env.time_zone("TIME_ZONE", default="UTC")
USE_TZ = True
USE_I18N = True
STATIC_URL = "static/"
STATIC_ROOT = env.text("STATIC_ROOT", default=str(BASE_DIR / "staticfiles"))

# --- databases ---------------------------------------------------------------------------------------------------

DATABASES = {"default": database(env.text("DATABASE_URL", default=f"sqlite:///{BASE_DIR / 'db.sqlite3'}"))}
DATABASE_ROUTERS = ["outbox.routers.ServiceRouter"]

# --- the outbox --------------------------------------------------------------------------------------------------

KAFKA_BOOTSTRAP_SERVERS = env.names("KAFKA_BOOTSTRAP_SERVERS")
KAFKA_ENABLED = env.flag("KAFKA_ENABLED", default=bool(KAFKA_BOOTSTRAP_SERVERS))
_OUTBOX = env.json_object("OUTBOX")

# Which of them fit together is judged where the broker is built: options of OUTBOX have to fit too.
_KAFKA_SECURITY: dict[str, tuple[str, str]] = {
    "KAFKA_SECURITY_PROTOCOL": (
        "security_protocol",
        env.choice("KAFKA_SECURITY_PROTOCOL", ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"), default=""),
    ),
    "KAFKA_SASL_MECHANISM": (
        "sasl_mechanism",
        env.choice(
            "KAFKA_SASL_MECHANISM", ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI", "AWS_MSK_IAM"), default=""
        ),
    ),
    "KAFKA_SASL_USERNAME": ("sasl_plain_username", env.text("KAFKA_SASL_USERNAME")),
    "KAFKA_SASL_PASSWORD": ("sasl_plain_password", env.text("KAFKA_SASL_PASSWORD")),
    "KAFKA_SSL_CAFILE": ("ssl_cafile", env.text("KAFKA_SSL_CAFILE")),
    "KAFKA_SSL_CERTFILE": ("ssl_certfile", env.text("KAFKA_SSL_CERTFILE")),
    "KAFKA_SSL_KEYFILE": ("ssl_keyfile", env.text("KAFKA_SSL_KEYFILE")),
}
env.refuse_unknown(re.compile(r"KAFKA_(SECURITY|SASL|SSL)_\w+"), known=_KAFKA_SECURITY)


def _kafka() -> dict[str, Any]:
    """Return the broker, the table's where no server is named.

    :raises ImproperlyConfigured: a variable says how Kafka is reached, and nobody would read it.
    """
    security = {variable: (option, value) for variable, (option, value) in _KAFKA_SECURITY.items() if value}
    if "BROKER" in _OUTBOX:
        if security:
            raise ImproperlyConfigured(
                f"{next(iter(security))} is set, and OUTBOX has a BROKER of its own, which replaces all that KAFKA_… "
                "say. Give its OPTIONS in OUTBOX, or remove BROKER from it."
            )
        return {}
    if not KAFKA_BOOTSTRAP_SERVERS:
        if security or KAFKA_ENABLED:
            raise ImproperlyConfigured(
                f"{next(iter(security), 'KAFKA_ENABLED')} is set, and KAFKA_BOOTSTRAP_SERVERS is not, so nothing would "
                "go through Kafka. Set the servers, or remove the variable."
            )
        return {"BACKEND": "table"}
    options = {"bootstrap_servers": KAFKA_BOOTSTRAP_SERVERS, "common": dict(security.values())}
    return {"BACKEND": "kafka", "OPTIONS": options}


OUTBOX: dict[str, Any] = {
    "NAMESPACE": "smartflow",
    # Kafka is configured and switched off: events wait. Nothing is configured: the table itself is the queue.
    "ENABLED": KAFKA_ENABLED or "KAFKA_ENABLED" not in env,
    "BROKER": _kafka(),
} | _OUTBOX

# --- logging -----------------------------------------------------------------------------------------------------

_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname} {name} {message}", "style": "{"}},
    "filters": {"one_line": {"()": "outbox.log_text.OneLineFilter"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["one_line"]}},
    "root": {"handlers": ["stderr"], "level": env.choice("LOG_LEVEL", _LEVELS, default="INFO")},
    "loggers": {"kafka": {"level": env.choice("KAFKA_LOG_LEVEL", _LEVELS, default="CRITICAL")}},
}

# --- the services ------------------------------------------------------------------------------------------------

SMARTFLOW: dict[str, Any] = {
    # Whether what users say in chats is offered to the memory service.
    "MEMORY_ENABLED": env.flag("MEMORY_ENABLED", default=True),
    # Dotted path of the function that says what to propose for a trigger: agent_events/active_scheduler/candidates.py.
    "PREVIEW_BUILDER": env.text("PREVIEW_BUILDER", default="agent_events.active_scheduler.candidates.propose_due_task"),
}


# --- notification ------------------------------------------------------------------------------------------------

NOTIFICATION: dict[str, Any] = {
    # Where this site is for a user's browser: the links in notifications start with it.
    "SITE_URL": env.text("NOTIFICATION_SITE_URL", default="http://localhost:8000"),
    # Hosts (host or host:port) beside feishu.cn that webhooks may lead to. They may be http and private: only your own.
    "ALLOWED_HOSTS": env.names("NOTIFICATION_ALLOWED_HOSTS"),
    # The whole of a request, and how long a record may be in `sending` before it is taken up again.
    "TIMEOUT_SECONDS": env.number("NOTIFICATION_TIMEOUT_SECONDS", default=5.0, least=0.001, most=3600),
    "LEASE_SECONDS": env.number("NOTIFICATION_LEASE_SECONDS", default=60.0, least=0.002, most=86_400),
    # CA certificates (PEM) to trust in place of the public ones.
    "CA_FILE": env.text("NOTIFICATION_CA_FILE", default=""),
    # Keys that webhooks and tokens are encrypted with, the newest first. None: SECRET_KEY.
    "SECRET_KEYS": env.secrets("NOTIFICATION_SECRET_KEYS"),
}
# At DEBUG the HTTP client logs the headers of answers, which may echo a token.
LOGGING["loggers"]["httpcore"] = {"level": "INFO"}  # type: ignore[index]
