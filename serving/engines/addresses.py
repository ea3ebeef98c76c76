"""Which addresses an upstream may be at, decided on the address that is connected to.

A name is looked up here, each of its addresses is checked, and the connection goes to one of those that were checked, so that
a name which answers differently the second time (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from urllib.parse import SplitResult, urlsplit

from serving.engines.upstream import Reach

_KEPT = 30.0  # seconds that a looked-up address is used again
_CLOUDS = frozenset(
    map(ipaddress.ip_address, ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254"))
)
"""Where clouds keep their instances' credentials beside link-local addresses: Alibaba, Azure, Oracle, Amazon, Google."""
_WITHIN = tuple(  # not routed by the internet, which not every version of Python knows
    map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "fec0::/10", "3fff::/20"))
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class Unreachable(ValueError):
    """The host may not, or cannot, be connected to; the message says why."""


class NotAllowed(Unreachable):
    """The host lies beyond what settings allow."""


def permitted(address: str, reach: Reach) -> bool:
    """Whether an IP address is within reach.

    `public` is what the internet routes, `own` adds this machine and `private` private networks; link-local addresses (where
    clouds keep their instances' credentials), multicast and reserved ones belong to `any` alone.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        within = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None
        ip = ip.ipv4_mapped or ip.sixtofour or within or ip
    if reach == "any":
        return True
    if ip.is_loopback:
        return reach != "public"
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip.is_reserved or ip in _CLOUDS:
        return False
    return reach == "private" or (ip.is_global and not any(ip in network for network in _WITHIN))


def lookup(host: str, port: int, reach: Reach) -> list[str]:
    """The host's addresses, all of them within reach. Blocking. Raises `Unreachable`, and of its kind `NotAllowed`."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise Unreachable(f"The host {host} is not known here. Check the address.") from None
    addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
    if not all(permitted(address, reach) for address in addresses):
        raise NotAllowed(
            f"{host} lies in a private network; `upstream_hosts: [{host}]` in the server's smalti.yaml allows it, and so does an "
            "administrator who makes it with `private_network: true` (link-local addresses: smalti.yaml only)."
        )
    return addresses


class Place:
    """Where requests for one base URL are sent: the URL with a checked address in place of its name.

    Parameters
    ----------
    base_url: the upstream's.
    reach: what it may be at; `any` is not looked up.
    """

    def __init__(self, base_url: str, reach: Reach) -> None:
        self._reach: Reach = reach
        self._parts = urlsplit(base_url)
        self._until, self._pinned = 0.0, base_url

    @property
    def server_hostname(self) -> str | None:
        """The name that TLS goes on checking, where the address stands in the URL."""
        pinned = self._reach != "any" and self._parts.scheme == "https"
        return self._parts.hostname if pinned else None

    @property
    def host_header(self) -> str | None:
        return self._parts.netloc if self._reach != "any" else None

    async def url(self) -> str:
        """Raises `Unreachable`."""
        if self._reach == "any" or time.monotonic() < self._until:
            return self._pinned
        host, port = self._parts.hostname or "", self._parts.port or (443 if self._parts.scheme == "https" else 80)
        addresses = await asyncio.to_thread(lookup, host, port, self._reach)
        address = f"[{addresses[0]}]" if ":" in addresses[0] else addresses[0]
        pinned = SplitResult(self._parts.scheme, f"{address}:{port}", self._parts.path, "", "")
        self._pinned, self._until = pinned.geturl(), time.monotonic() + _KEPT
        return self._pinned
