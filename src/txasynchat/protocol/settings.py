r"""
Class attributes of a handler that its connections keep elsewhere, and what is checked of them.

A class says what its connections begin with (``terminator = b"\n"``). The same attribute of a
connection is the value in force, which its inbox keeps: reading and writing it there costs a message
nothing.
"""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING, Any

from txasynchat import ranges
from txasynchat.terminators import check_terminator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    shown = property
else:

    class shown:  # noqa: N801 stands where `property` would
        """
        A property that an instance may hide by an attribute of its own.

        Applications that never heard of these names use them: ``self.state = "AUTH"`` and
        ``self.addr = addr`` are idioms of Twisted protocols.
        """

        def __init__(self, read: Any) -> None:
            self._read = read
            self.__doc__ = read.__doc__

        def __get__(self, owner: Any, cls: Any = None) -> Any:
            return self if owner is None else self._read(owner)


__all__ = ["Setting", "check_terminator_of", "restore", "setting", "shown"]


class Setting:
    """
    On a class, what its connections begin with; on a connection, the value in force.

    Subclasses set a plain value, which hides this; `restore` puts it in place again.

    Args:
        value: what connections begin with.
        kept_as: the attribute of the inbox that holds the value in force.
        assign: called with a connection and a value, instead of setting that attribute.
    """

    def __init__(
        self, value: Any, kept_as: str, *, assign: Callable[[Any, Any], None] | None = None
    ) -> None:
        self._value = value
        self._name = self._kept_as = kept_as
        self._assign = assign

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def begin_with(self, value: Any) -> Setting:
        """Return the same attribute for a class with another value."""
        if self._name == "terminator":
            check_terminator(value)
        other = copy.copy(self)
        other._value = value
        return other

    def __get__(self, owner: Any, cls: Any = None) -> Any:
        return self._value if owner is None else getattr(owner._inbox, self._kept_as)

    def __set__(self, owner: Any, value: Any) -> None:
        if self._assign is not None:
            self._assign(owner, value)
            return
        if self._name in ranges.HANDLER:
            ranges.HANDLER[self._name].check(f"{type(owner).__qualname__}.{self._name}", value)
        setattr(owner._inbox, self._kept_as, value)

    def __delete__(self, owner: Any) -> None:
        self.__set__(owner, self._value)


#: To a type checker the attribute is the value that it begins with.
setting: Any = Setting


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
            owner = cls  # the value is a mixin's
        if not hasattr(value, "__get__"):
            setattr(owner, name, ours.begin_with(value))
        elif isinstance(value, property) and name != "terminator":
            computes = True
        else:
            setattr(owner, name, ours)  # in place of a slot, which would hide it
    return computes


def check_terminator_of(cls: Any) -> None:
    """Check ``terminator = …`` in a class body; see ``AsyncChat.__init_subclass__``."""
    terminator = cls.terminator
    # A descriptor, or a field of dataclasses or attrs, puts a value there later.
    made_by = type(terminator).__module__.partition(".")[0]
    if hasattr(terminator, "__get__") or made_by in {"attr", "attrs", "dataclasses"}:
        return
    check_terminator(terminator)
    limit = cls.max_message_length
    if isinstance(terminator, int) and isinstance(limit, int) and terminator > limit:
        raise ValueError(
            f"{cls.__qualname__}: terminator {terminator} is above max_message_length {limit}, so "
            "that every message is too long"
        )
