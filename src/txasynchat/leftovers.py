"""
Plaintext behind the start of TLS: what becomes of it, on a protocol and on a legacy channel alike.
"""

from __future__ import annotations

import enum

__all__ = ["Leftovers"]


class Leftovers(enum.Enum):
    """
    What becomes of bytes that came in the clear after the message that starts TLS.
    """

    #: The connection ends with `PlaintextAfterStartTLS`.
    REJECT = "reject"
    #: They are taken for the beginning of the peer's handshake, and if they are none, it fails. For
    #: protocols whose clients do not wait for an answer before they begin it.
    FEED = "feed"
