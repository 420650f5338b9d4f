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

# IANA's special-purpose registries, and multicast. Written down here, because ``ipaddress`` knows others of them with
# each version of Python. A block stands here also where it may be reached from everywhere (AS112, AMT): no webhook is.
_SPECIAL_IPV4: Final = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # shared, behind a carrier's NAT
            "127.0.0.0/8",  # loopback
            "169.254.0.0/16",  # link-local, and the metadata of clouds
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocols
            "192.0.2.0/24",  # documentation
            "192.31.196.0/24",  # AS112
            "192.52.193.0/24",  # AMT
            "192.88.99.0/24",  # relays of 6to4
            "192.168.0.0/16",  # private
            "192.175.48.0/24",  # AS112
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
        ),
    )
)
_GLOBAL_IPV6: Final = ipaddress.IPv6Network("2000::/3")
"""All that is given out to the internet. Outside of it lie loopback, link-local, site-local (``fec0::/10``), private,
multicast and reserved addresses, IPv4-compatible and translated ones, and NAT64 of a site (``64:ff9b:1::/48``)."""
_SPECIAL_IPV6: Final = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # protocols: Teredo, benchmarks, AMT, AS112, ORCHID, drones
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4, which leads to the IPv4 address inside
            "2620:4f:8000::/48",  # AS112
            "3fff::/20",  # documentation
        ),
    )
)
_STANDS_FOR_IPV4: Final = (ipaddress.IPv6Network("::ffff:0:0/96"), ipaddress.IPv6Network("64:ff9b::/96"))
"""Mapped addresses, and those of the NAT64 that everybody may use: packets go to the IPv4 address in the last bits."""
_ISATAP: Final = frozenset({0x00005EFE, 0x02005EFE})
"""Bits 64 to 95 of an address that is tunnelled, inside of a site, to the IPv4 address in its last bits."""


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
    """Say whether ``address`` is one of the public internet: given out, and not for a special purpose.

    The answer does not depend on the version of Python.

    :raises ValueError: ``address`` is no IP address.
    """
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        if not any(parsed in network for network in _STANDS_FOR_IPV4):
            return _is_public_ipv6(parsed)
        parsed = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
    return not any(parsed in network for network in _SPECIAL_IPV4)


def _is_public_ipv6(address: ipaddress.IPv6Address) -> bool:
    is_isatap = int(address) >> 32 & 0xFFFFFFFF in _ISATAP
    return address in _GLOBAL_IPV6 and not is_isatap and not any(address in network for network in _SPECIAL_IPV6)


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
