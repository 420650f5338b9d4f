"""Where a notification may be sent to: which webhook addresses and which network addresses are allowed. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

DOMAIN: Final = "feishu.cn"
PATH_PREFIX: Final = "/flow/api/trigger-webhook/"
ADDRESS_MAX_LENGTH: Final = 1000
TOKEN_MAX_LENGTH: Final = 1000

# One strict pattern instead of a lenient parser: what it does not match (user names, back slashes, escapes, dots at
# the end of a host, fragments) has no second reading by anybody further down.
_ADDRESS: Final = re.compile(
    r"(?P<scheme>https?)://"
    r"(?P<host>[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[a-z0-9_~.=/-]*)"
    r"(?P<query>\?[a-z0-9_~.=&%+-]*)?",
    re.IGNORECASE | re.ASCII,
)
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_DEFAULT_PORTS: Final = {"https": 443, "http": 80}
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class WebhookRefusedError(ValueError):
    """A webhook address or its token is not allowed. The message never holds any part of either that is secret."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """An address that may be posted to. ``named``: the allowed-hosts setting names its host, so that it may be http
    and lead to a private address."""

    scheme: str
    host: str
    port: int
    target: str = field(repr=False)
    named: bool

    @property
    def origin(self) -> str:
        """Return the part that is no secret."""
        port = "" if self.port == _DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{self.host}{port}"

    @property
    def secret(self) -> str:
        """Return the part of the path that only its owner knows."""
        return self.target.partition("?")[0][len(PATH_PREFIX) :]


def parse_webhook(address: str, *, allowed_hosts: Collection[str]) -> Webhook:
    """Return the webhook at ``address``; ``allowed_hosts`` holds ``host`` or ``host:port``, beside feishu.cn.

    :raises WebhookRefusedError: says which rule the address breaks.
    """
    found = _ADDRESS.fullmatch(address) if len(address) <= ADDRESS_MAX_LENGTH else None
    if found is None:
        raise WebhookRefusedError(f"the webhook is no address of the form https://{DOMAIN}{PATH_PREFIX}…")
    scheme, host = found["scheme"].lower(), found["host"].lower()
    port = int(found["port"]) if found["port"] else _DEFAULT_PORTS[scheme]
    if not 0 < port < 65536:
        raise WebhookRefusedError("the webhook's port is no port number")
    named = bool({host, f"{host}:{port}"} & {each.strip().lower() for each in allowed_hosts})
    if not named:
        _demand_feishu(scheme, host, port)
    _demand_path(found["path"])
    return Webhook(scheme, host, port, found["path"] + (found["query"] or ""), named)


def check_token(token: str) -> None:
    """Refuse a bearer token that could not be sent as it is (RFC 6750).

    :raises WebhookRefusedError: says so, without the token.
    """
    if len(token) > TOKEN_MAX_LENGTH or not _TOKEN.fullmatch(token):
        raise WebhookRefusedError(
            f"the bearer token may hold letters, digits and -._~+/ only (= at its end), {TOKEN_MAX_LENGTH} at the most"
        )


def is_public(address: str) -> bool:
    """Say whether ``address`` is one of the public internet, and not private, loopback, link-local or reserved."""
    plain = address.partition("%")[0]
    return all(each.is_global and not each.is_multicast and not each.is_reserved for each in _meant(plain))


def _meant(address: str) -> list[IPAddress]:
    """Return the address and the IPv4 address that it stands for, if it is one of those that embed one."""
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv4Address):
        return [parsed]
    if parsed.ipv4_mapped is not None:
        return [parsed.ipv4_mapped]
    if parsed in _NAT64:
        return [ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)]
    embedded = parsed.sixtofour
    return [parsed] if embedded is None else [parsed, embedded]


def _demand_feishu(scheme: str, host: str, port: int) -> None:
    if host != DOMAIN and not host.endswith(f".{DOMAIN}"):
        raise WebhookRefusedError(f"the webhook's host is neither {DOMAIN} nor one of its subdomains")
    if scheme != "https":
        raise WebhookRefusedError("the webhook must be https")
    if port != _DEFAULT_PORTS["https"]:
        raise WebhookRefusedError("the webhook's port must be that of https")
    if any(not label or len(label) > 63 for label in host.split(".")):
        raise WebhookRefusedError("the webhook's host is no host name")


def _demand_path(path: str) -> None:
    if not path.startswith(PATH_PREFIX):
        raise WebhookRefusedError(f"the webhook's path does not start with {PATH_PREFIX}")
    if any(segment in {"", ".", ".."} for segment in path[len(PATH_PREFIX) :].split("/")):
        raise WebhookRefusedError(f"the webhook's path names nothing under {PATH_PREFIX}")
