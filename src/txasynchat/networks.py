"""
What an address of a peer stands for: a number to compare with networks, and the network it counts for.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["Number", "network_of", "number_of"]

#: An address that can be looked for in networks.
Number: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address"


def number_of(host: Any) -> Number | None:
    """
    Return the address that *host*, a string as the `socket` module gives it, is: the IPv4 address where
    it is that within IPv6. None for everything else, such as what stands for a Unix socket.
    """
    try:
        number = ipaddress.ip_address(host.partition("%")[0])
    except (AttributeError, ValueError):
        return None
    return getattr(number, "ipv4_mapped", None) or number


def network_of(address: Any) -> Hashable:
    """
    Return the network that a client at *address*, as `getpeername` returns it, counts for.

    That is an IPv4 address itself; the first 64 bits of an IPv6 address, because whoever has one has
    the whole network; None for everything else, which counts as one network.
    """
    host = address[0] if isinstance(address, tuple) and address else None
    if not isinstance(host, str) or ":" not in host:
        return host if isinstance(host, str) else None
    try:
        number = ipaddress.IPv6Address(host)
    except ValueError:
        return host
    mapped = number.ipv4_mapped
    return number.packed[:8] if mapped is None else str(mapped)
