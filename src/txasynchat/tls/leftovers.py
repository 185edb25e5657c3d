"""
What becomes of plaintext that has arrived before TLS starts; `protocol.starttls` says why it matters.

A module of its own, because the `start_tls` of the facade uses it without loading Twisted.
"""

from __future__ import annotations

import enum

__all__ = ["Leftovers"]


class Leftovers(enum.Enum):
    """What becomes of bytes that came in the clear after the message that starts TLS."""

    #: The connection is aborted; its `close_reason` is `PlaintextAfterStartTLS`. (On the facade
    #: ``start_tls`` raises that.)
    REJECT = "reject"
    #: They are taken for the beginning of the peer's handshake; if they are not, it fails. For
    #: protocols whose clients begin it without waiting for an answer.
    FEED = "feed"
