"""
One descriptor in a reactor or event loop for many channels.

`Hub` keeps the descriptors of many channels in a poller that can itself be polled. The other names
are what `Hub.watch` takes and `Hub.wait` returns. Nothing here needs Twisted before a reactor is
attached, and nothing knows what a channel is.
"""

from txasynchat.hub.hub import Hub
from txasynchat.hub.pollers import ENDED, ERROR, HANGUP, INVALID, READ, URGENT, WRITE, Events

__all__ = ["ENDED", "ERROR", "HANGUP", "INVALID", "READ", "URGENT", "WRITE", "Events", "Hub"]
