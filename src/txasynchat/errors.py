"""
Every exception of this package, under one base.

Three kinds, told apart by whose fault they describe:

* a *caller's* mistake (a terminator of the wrong type, pushing text) raises the builtin `TypeError`
  or `ValueError` at the call, with the value in its message: nothing of those is defined here;
* a *peer's* mistake or misfortune is a `PeerError`: it reaches a hook of the application, is logged
  once and closes that connection only;
* a *producer's* failure is a `ProducerError`: it is handled as an exception in a handler is.
"""

from __future__ import annotations

__all__ = [
    "ChatError",
    "CloseTimedOut",
    "MessageTooLong",
    "PeerError",
    "ProducerError",
    "UnsentLimitExceeded",
]


class ChatError(Exception):
    """
    The base of every exception that this package defines.
    """


class PeerError(ChatError):
    """
    The other side of one connection broke a limit or a rule; that connection ends.
    """


class MessageTooLong(PeerError):
    """
    A message is longer than the limit on it.

    The same bytes give the same error, however they were cut on their way.

    Attributes:
        limit: the limit in force, in bytes, terminator not counted.
        count: the length that broke it. Where the length is announced (a number of bytes, a length
            prefix) that is the announced one; where a delimiter ends the message, `limit` + 1, since
            the rest need not have arrived.
        sample: the first bytes of the message, 128 at most; empty where the length was announced.
    """

    def __init__(self, limit: int, count: int, sample: bytes) -> None:
        super().__init__(limit, count, sample)
        self.limit = limit
        self.count = count
        self.sample = sample

    def __str__(self) -> str:
        """Name the limit and the value, never the data."""
        return f"message of at least {self.count} bytes, limit {self.limit}"


class UnsentLimitExceeded(PeerError):
    """
    The peer reads too slowly: more bytes wait to be sent than `max_unsent` allows.

    Attributes:
        limit: the limit in force, in bytes.
        count: bytes that were waiting when it was broken.
    """

    def __init__(self, limit: int, count: int) -> None:
        super().__init__(limit, count)
        self.limit = limit
        self.count = count

    def __str__(self) -> str:
        """Name the limit and the value."""
        return f"{self.count} bytes wait to be sent, limit {self.limit}"


class CloseTimedOut(PeerError):
    """
    The peer took nothing for the whole of `close_timeout` after the connection began to close.

    Attributes:
        limit: the limit in force, in seconds.
        count: bytes known to be lost.
    """

    def __init__(self, limit: float, count: int) -> None:
        super().__init__(limit, count)
        self.limit = limit
        self.count = count

    def __str__(self) -> str:
        """Name the limit and the value."""
        return f"no progress for {self.limit:g} s while closing, {self.count} bytes dropped"


class ProducerError(ChatError):
    """
    A producer raised, gave something that is not bytes, or gave nothing again and again.

    The producer's own exception, where there was one, is the `__cause__`.
    """
