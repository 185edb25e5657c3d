"""
What is logged of connections whose proxy is not believed, or not understood.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.logger import Logger

from txasynchat.log import Throttle, unlogged

if TYPE_CHECKING:
    from txasynchat.errors import PeerError

__all__ = ["log_refusal"]

_log = Logger()
# One line a second for each kind: peers can repeat them.
_refused = Throttle(1.0)


def log_refusal(peer: Any, error: PeerError) -> None:
    """
    Log why a connection ends before anybody serves it.

    Args:
        peer: the address of who connected.
        error: why.
    """
    suppressed = _refused.suppressed(type(error).__name__)
    if suppressed is not None:
        kind = type(error).__name__
        _log.info(
            "{peer}: {error}{before}",
            peer=peer,
            error=error,
            kind=kind,
            before=unlogged(suppressed),
        )
