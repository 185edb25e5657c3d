"""Bytes in, messages out, with no I/O: `Framer`, and what it does with messages that are too long."""

from txasynchat.framing.framer import Framer
from txasynchat.framing.overlong import Overflow

__all__ = ["Framer", "Overflow"]
