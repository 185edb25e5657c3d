r"""
Attributes of a handler class that a part of each connection keeps, and what is checked of them.

A class says what its connections begin with (``terminator = b"\n"``); the same attribute of a
connection is what is in force, which its framer knows. Read and written there, it costs a message
nothing.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from txasynchat import ranges
from txasynchat.terminators import check_terminator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Setting", "check_terminator_of", "restore", "setting", "shown"]


if TYPE_CHECKING:
    shown = property
else:

    class shown:  # noqa: N801 stands where `property` would
        """
        A property that an instance may hide by an attribute of its own.

        Applications that never meant these names use them: ``self.state = "AUTH"`` and ``self.addr =
        addr`` are idioms of Twisted's.
        """

        def __init__(self, read: Any) -> None:
            self._read = read
            self.__doc__ = read.__doc__

        def __get__(self, owner: Any, cls: Any = None) -> Any:
            return self if owner is None else self._read(owner)


class Setting:
    """
    Of a class, what its connections begin with; of a connection, what is in force.

    Subclasses set a plain value, which hides this; `restore` puts it in place again.

    Args:
        value: what it is of a class.
        part: the attribute of a connection that holds the part which knows what is in force.
        kept_as: the attribute of that part.
        check: called with a value that a class is given, raises what is wrong with it.
        assign: called with a connection and a value, in place of assigning to the part.
    """

    def __init__(
        self,
        value: Any,
        part: str,
        kept_as: str,
        check: Callable[[Any], Any] | None,
        assign: Callable[[Any, Any], None] | None,
    ) -> None:
        self._value = value
        self._part = part
        self._kept_as = kept_as
        self._check = check
        self._assign = assign
        self._name = kept_as

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def begin_with(self, value: Any) -> Setting:
        """
        Return the same attribute for a class with another value.
        """
        if self._check is not None:
            self._check(value)
        other = type(self)(value, self._part, self._kept_as, self._check, self._assign)
        other._name = self._name
        return other

    def __get__(self, owner: Any, cls: Any = None) -> Any:
        return self._value if owner is None else getattr(getattr(owner, self._part), self._kept_as)

    def __set__(self, owner: Any, value: Any) -> None:
        if self._assign is not None:
            self._assign(owner, value)
            return
        if self._name in ranges.HANDLER:
            ranges.HANDLER[self._name].check(f"{type(owner).__qualname__}.{self._name}", value)
        setattr(getattr(owner, self._part), self._kept_as, value)

    def __delete__(self, owner: Any) -> None:
        self.__set__(owner, self._value)


def setting(
    value: Any,
    part: str,
    kept_as: str,
    *,
    check: Callable[[Any], Any] | None = None,
    assign: Callable[[Any, Any], None] | None = None,
) -> Any:
    """
    Make a `Setting`, which for a type checker is the value that it begins with.
    """
    return Setting(value, part, kept_as, check, assign)


def restore(cls: type, base: type, names: Iterable[str]) -> bool:
    """
    Put the settings *names* of *base* in place again where *cls*, or a class between, hides them.

    Returns:
        True if one of them is a property of a subclass, which computes it.
    """
    computes = False
    for name in names:
        owner = next(one for one in cls.__mro__ if name in vars(one))
        value = vars(owner)[name]
        ours = inspect.getattr_static(base, name)
        if isinstance(value, Setting):
            continue
        if not issubclass(owner, base):
            owner = cls  # that of a class mixed in
        if not hasattr(value, "__get__"):
            setattr(owner, name, ours.begin_with(value))
        elif isinstance(value, property) and name != "terminator":
            computes = True
        else:
            setattr(owner, name, ours)  # in place of a slot, which would hide it
    return computes


def check_terminator_of(cls: Any) -> None:
    """
    Check ``terminator = …`` in a class body: the terminator that a connection begins with.

    Raises:
        TypeError, ValueError: it is no terminator, or a number above ``max_message_length``.
    """
    terminator = cls.terminator
    # Whatever has __get__ or is a field is somebody else's, who puts a value there later.
    if hasattr(terminator, "__get__") or _is_field(terminator):
        return
    check_terminator(terminator)
    limit = cls.max_message_length
    if isinstance(terminator, int) and isinstance(limit, int) and terminator > limit:
        raise ValueError(
            f"{cls.__qualname__}: terminator {terminator} is above max_message_length {limit}, so "
            "that every message is too long"
        )


def _is_field(value: object) -> bool:
    """
    Return whether *value* stands in a class body for a field of `dataclasses` or of attrs.
    """
    return type(value).__module__.partition(".")[0] in {"attr", "attrs", "dataclasses"}
