"""Where results may be fetched from: result URLs come from outside, and must not lead into our own network.

The rules and the guard on sockets belong here; fetching is the client's.

What is guaranteed: every hop of a download is checked by name (`HostRules`), and every socket by the very address that
it is about to connect to (`public_socket`). So neither a name that resolves to a private address, nor one that resolves
differently the second time it is asked for, nor an odd spelling of an address gets through. What is not: a public host
that relays to a private one; only a list of allowed hosts (`NANOBANANA_IMAGE_HOSTS`) keeps that out.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

AddressInfo = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[Any, ...]]
"""What is known of an address about to be connected to, as `socket.getaddrinfo` gives it."""

SocketFactory = Callable[[AddressInfo], socket.socket]

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_LOW_32_BITS = 0xFFFF_FFFF


class RefusedAddressError(OSError):
    """The address is private, and results may only come from public ones."""


@dataclass(frozen=True, slots=True)
class HostRules:
    """Which hosts results may be fetched from.

    `allowed` are host names: `example.com` is that host alone, `*.example.com` (or `.example.com`) every host below it;
    empty is any host. `private_ok` lets private and loopback addresses through: right only when the API itself is on
    one.
    """

    allowed: tuple[str, ...] = ()
    private_ok: bool = False

    def objection(self, url: httpx.URL) -> str | None:
        """Why the URL's host may not be asked, or None when it may. Names are resolved only when connecting."""
        host = _plain(url.raw_host.decode("ascii", "replace"))
        # A rule may be written in letters or in the punycode that is sent.
        spellings = (host, _plain(url.host))
        if self.allowed and not any(_covers(rule, spelling) for rule in self.allowed for spelling in spellings):
            return f"the host {host} is not among NANOBANANA_IMAGE_HOSTS"
        if not self.private_ok and _is_address(host) and not is_public(host):
            return f"{host} is a private address"
        return None


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet; what is no address at all is not."""
    try:
        ip = _embedded(ipaddress.ip_address(address))
    except ValueError:
        return False
    return ip.is_global and not ip.is_multicast


def public_socket(address: AddressInfo) -> socket.socket:
    """A socket for an address about to be connected to. Raises `RefusedAddressError` when the address is not public."""
    family, kind, protocol, _, where = address
    if not is_public(str(where[0])):
        # One text for every address: aiohttp keeps the type of several failures only when they read the same.
        raise RefusedAddressError("the host has a private address")
    return socket.socket(family, kind, protocol)


async def is_private_host(host: str) -> bool:
    """Whether a host has private addresses only. One that can't be resolved counts as public: the stricter answer."""
    try:
        found: list[Any] = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return bool(found) and not any(is_public(str(info[4][0])) for info in found)


def _embedded(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address that an IPv6 one stands for: `::ffff:127.0.0.1` leads to loopback as surely as `127.0.0.1`."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & _LOW_32_BITS)
    return ip.ipv4_mapped or ip.sixtofour or ip


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _covers(rule: str, host: str) -> bool:
    rule = _plain(rule).removeprefix("*")
    return host.endswith(rule) if rule.startswith(".") else host == rule


def _plain(host: str) -> str:
    return host.strip().lower().rstrip(".").removeprefix("[").removesuffix("]")
