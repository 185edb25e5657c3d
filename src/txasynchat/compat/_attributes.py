"""
Attributes of channels that the standard library's modules do not look at.

A channel may answer for any name: a stub whose methods are remote ones, a wrapper that delegates, a
mock.  What is ours on a channel is therefore looked up past ``__getattr__``, and whoever reads an
attribute of anybody else's believes it only if it is of the right type.
"""

from __future__ import annotations

from typing import Any

__all__ = ["own", "socket_of"]

_look_up = object.__getattribute__


def own(channel: Any, name: str) -> Any:
    """
    Return what *channel* has under a private *name* of ours, `None` if nothing; runs no code of it.
    """
    try:
        return _look_up(channel, name)
    except AttributeError:
        return None


def socket_of(channel: Any) -> Any:
    """Return what *channel* has as its socket, also by delegation; of any type, `None` if nothing."""
    try:
        return channel.socket
    except Exception:  # noqa: BLE001 - a program's __getattr__, or its property, may do anything
        return None
