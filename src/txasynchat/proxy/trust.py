"""
Whose headers are believed, and how they are read: `ProxyOptions`.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from txasynchat.networks import number_of
from txasynchat.proxy.header import LONGEST
from txasynchat.ranges import PROXY

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ProxyOptions"]

#: Stands for the peers of Unix sockets, among the networks.
UNIX = "unix"


@dataclass(frozen=True, kw_only=True)
class ProxyOptions:
    """
    How the headers of proxies are read.

    Args:
        trusted: the networks that proxies connect from, as ``10.0.0.0/8``, ``2001:db8::/32``, or an
            address; ``unix`` stands for the peers of Unix sockets. Everybody else is refused.
        timeout: seconds in which the header has to be complete; None for no limit.
        longest: bytes that a header of version 2 may have.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: *trusted* is empty, or one of them is no network; or a number is out of its range.
    """

    trusted: Iterable[str]
    timeout: float | None = 5.0
    longest: int = LONGEST

    def __post_init__(self) -> None:
        if isinstance(self.trusted, str):
            raise TypeError(f"trusted is the single string {self.trusted!r}; give a list of them")
        names = tuple(self.trusted)
        if not names:
            raise ValueError("trusted must name the networks that proxies connect from")
        PROXY["timeout"].check("timeout", self.timeout)
        PROXY["longest"].check("longest", self.longest)
        networks = tuple(_network(one) for one in names if one != UNIX)
        object.__setattr__(self, "trusted", names)
        object.__setattr__(self, "_networks", networks)

    def trusts(self, address: Any) -> bool:
        """
        Return whether a peer's header is believed.

        Args:
            address: the peer's, as the `socket` module gives it.
        """
        if not isinstance(address, tuple):
            return UNIX in self.trusted
        host = number_of(address[0])
        networks: tuple[Any, ...] = self._networks  # type: ignore[attr-defined] # set above
        return host is not None and any(host in one for one in networks)


def _network(name: Any) -> Any:
    if not isinstance(name, str):
        raise TypeError(f"a network must be a string, not {name!r:.80}")
    try:
        network = ipaddress.ip_network(name)
    except ValueError as error:
        # It says "has host bits set" of an address with a shorter prefix.
        raise ValueError(f"{name!r} is not a network such as 10.0.0.0/8: {error}") from None
    return network
