"""
`AsyncChat`, a Twisted protocol that speaks in messages, and the parts that it is made of.

Nothing here knows how a protocol is served.
"""

from txasynchat.protocol.chat import AsyncChat
from txasynchat.protocol.state import State
from txasynchat.protocol.stream import Stream

__all__ = ["AsyncChat", "State", "Stream"]
