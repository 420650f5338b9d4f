"""Posts one request to a webhook: no redirects, no proxies, a deadline for the whole of it, a limit for the answer."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from typing import Final

import certifi
import httpcore

from agent_events.notification.network import (
    AddressRefusedError,
    CheckedNetwork,
    Deadline,
    Lookup,
    LookupFailedError,
    system_lookup,
)
from agent_events.notification.policy import Answer, NoAnswer
from agent_events.notification.webhooks import Webhook
from outbox.exceptions import ConfigurationError

ANSWER_MAX_BYTES: Final = 64 * 1024
_USER_AGENT: Final = "smartflow-notification/1"


class WebhookSender:
    """Posts to webhooks; safe to share between threads.

    ``httpcore`` neither follows redirects nor reads proxies from the environment, and opens no answer that is
    compressed, so none can grow while being read. Each request has a connection of its own.
    """

    def __init__(
        self,
        *,
        timeout: timedelta,
        ca_file: str = "",
        clock: Callable[[], float] = time.monotonic,
        lookup: Lookup = system_lookup,
    ) -> None:
        self._timeout = timeout
        self._clock = clock
        self._lookup = lookup
        self._tls = _tls_context(ca_file)

    def post(self, webhook: Webhook, *, body: bytes, token: str | None) -> Answer | NoAnswer:
        """Return what the webhook answered, or why it did not. Never raises for what the other side does."""
        network = CheckedNetwork(Deadline(self._timeout, self._clock), webhook.named, self._lookup)
        try:
            with httpcore.ConnectionPool(
                ssl_context=self._tls, network_backend=network, max_connections=1, max_keepalive_connections=0
            ) as pool:
                return self._exchange(pool, webhook, body, token)
        except httpcore.TimeoutException:
            return NoAnswer("timeout", f"no answer within {self._timeout.total_seconds():g} s")
        except AddressRefusedError as error:
            return NoAnswer("address_refused", str(error))
        except LookupFailedError as error:
            return NoAnswer("no_address", str(error))
        except httpcore.ConnectError as error:
            return NoAnswer("not_connected", f"could not connect to {webhook.origin}: {error}")
        except (httpcore.NetworkError, httpcore.RemoteProtocolError) as error:
            return NoAnswer("broken_answer", f"the connection or the answer broke off: {error}")

    def _exchange(self, pool: httpcore.ConnectionPool, webhook: Webhook, body: bytes, token: str | None) -> Answer:
        url = httpcore.URL(
            scheme=webhook.scheme, host=webhook.host.strip("[]"), port=webhook.port, target=webhook.target
        )
        with pool.stream("POST", url, headers=_headers(webhook, body, token), content=body) as response:
            read = bytearray()
            for chunk in response.iter_stream():
                read += chunk
                if len(read) > ANSWER_MAX_BYTES:
                    break
        return Answer(response.status, bytes(read[:ANSWER_MAX_BYTES]), cut=len(read) > ANSWER_MAX_BYTES)


def _headers(webhook: Webhook, body: bytes, token: str | None) -> list[tuple[str, str]]:
    headers = [
        ("Host", webhook.origin.partition("://")[2]),
        ("Content-Type", "application/json; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Accept", "application/json"),
        ("Accept-Encoding", "identity"),
        ("Connection", "close"),
        ("User-Agent", _USER_AGENT),
    ]
    if token:
        headers.append(("Authorization", f"Bearer {token}"))
    return headers


@lru_cache(maxsize=4)
def _tls_context(ca_file: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file or certifi.where())
    except OSError as error:
        raise ConfigurationError(f"settings.NOTIFICATION: CA_FILE {ca_file!r} cannot be used: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
