"""
What becomes of plaintext that is there already when TLS starts: `protocol.starttls` says why it
matters. Both `start_tls` use it, and the facade loads no Twisted for it.
"""

from __future__ import annotations

import enum

__all__ = ["Leftovers"]


class Leftovers(enum.Enum):
    """
    What becomes of bytes that came in the clear after the message that starts TLS.
    """

    #: The connection is aborted; its `close_reason` is `PlaintextAfterStartTLS`. (On the facade
    #: ``start_tls`` raises that.)
    REJECT = "reject"
    #: They are taken for the beginning of the peer's handshake, and if they are none, it fails. For
    #: protocols whose clients do not wait for an answer before they begin it.
    FEED = "feed"
