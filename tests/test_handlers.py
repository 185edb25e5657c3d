"""
What a handler's constructor needs is checked before any client connects.
"""

import functools
import inspect

import pytest
from twisted.internet import protocol

from txasynchat import AsyncChat, ChatFactory
from txasynchat.compat import asynchat, asyncore
from txasynchat.compat.served import LegacyFactory
from txasynchat.handlers import Hears, hears, wanted


class Native(AsyncChat):
    terminator = b"\n"

    def message_received(self, message):
        self.push(message)


class InRoom(Native):
    def __init__(self, room, *, name, colour="red"):
        self.room = room


class Legacy(asynchat.async_chat):
    def collect_incoming_data(self, data):
        pass

    def found_terminator(self):
        pass


def legacy(parameters):
    """A legacy handler whose constructor has these parameters."""
    names = {"Legacy": Legacy}
    exec(f"class Handler(Legacy):\n    def __init__(self, {parameters}): pass", names)
    return names["Handler"]


class Listener(asyncore.dispatcher):
    def __init__(self, address):
        pass

    def handle_accepted(self, sock, addr):
        Legacy(sock)


# -- what no connection could be served by is refused at the call

NATIVE = {
    "an argument is missing": (
        lambda: ChatFactory(InRoom, "lobby"),
        "InRoom wants (room, *, name, colour='red'); write ChatFactory(InRoom, room, name=name)",
    ),
    "an argument is too much": (
        lambda: ChatFactory(protocol.Protocol, 1),
        "Protocol wants (); write ChatFactory(Protocol)",
    ),
    "an instance": (
        lambda: ChatFactory(Native()),
        "is not a class of handlers, nor can it be called to make one; write ChatFactory(Native)",
    ),
    "a legacy handler": (
        lambda: ChatFactory(Legacy),
        "Legacy is a legacy handler; write LegacyFactory(Legacy)",
    ),
}
LEGACY = {
    "sock, addr, server": (
        "Handler wants (sock, addr, server), and would be called with (sock, addr); "
        "write LegacyFactory(build=lambda sock, addr: Handler(sock, addr, server))"
    ),
    "server, conn, addr": (
        "Handler wants (server, conn, addr), and would be called with (sock); "
        "write LegacyFactory(build=lambda sock, addr: Handler(server, sock, addr))"
    ),
    "": (
        "Handler wants (), and would be called with (sock); "
        "write LegacyFactory(build=make), where make(sock, addr) makes one for a socket"
    ),
    "sock, *, server, level=3": (
        "Handler wants (sock, *, server, level=3), and would be called with (sock); "
        "write LegacyFactory(build=lambda sock, addr: Handler(sock, server=server))"
    ),
    "host, port": "Handler wants (host, port), and would be called with (sock); write ",
}


@pytest.mark.parametrize("case", NATIVE)
def test_chat_factory_that_cannot_build_its_handler_is_refused(case):
    """The mistake raises where it is made, not on each connection."""
    make, told = NATIVE[case]
    with pytest.raises(TypeError) as caught:
        make()
    assert told in str(caught.value)


@pytest.mark.parametrize("parameters", LEGACY)
def test_legacy_factory_names_what_the_constructor_needs(parameters):
    """The message shows how to build the handler."""
    with pytest.raises(TypeError) as caught:
        LegacyFactory(legacy(parameters))
    assert str(caught.value).startswith(LEGACY[parameters])


def test_listener_class_is_refused():
    """It would get connections that it never accepts."""
    with pytest.raises(TypeError, match=r"^Listener listens by itself"):
        LegacyFactory(Listener)


def test_value_that_is_not_a_handler_is_refused():
    """Look up a value by its name."""
    for make in ChatFactory, LegacyFactory:
        with pytest.raises(TypeError, match=r"^42 is not a class of handlers"):
            make(42)


# -- what works is not refused


def injected(function):
    """Adds an argument that the caller does not pass."""

    @functools.wraps(function)
    def wrapper(self):
        function(self, "the room")

    return wrapper


class Injected(Native):
    @injected
    def __init__(self, room):
        self.room = room


class Signed(Native):
    __signature__ = inspect.Signature([inspect.Parameter("room", inspect.Parameter.KEYWORD_ONLY)])


class Meta(type):
    def __call__(cls):
        return super().__call__("the room", name="its")


class ByMetaclass(InRoom, metaclass=Meta):
    pass


class Plain(Native):
    def __init__(self):
        object.__init__(self)


class Anything(Native):
    def __init__(self, *arguments, **keywords):
        pass


@pytest.mark.parametrize(
    "make",
    [
        lambda: ChatFactory(Native),
        lambda: ChatFactory(Native, "ignored, as AsyncChat does"),
        lambda: ChatFactory(InRoom, "lobby", name="me"),
        lambda: ChatFactory(functools.partial(InRoom, name="me"), "lobby"),
        lambda: ChatFactory(lambda: InRoom("lobby", name="me")),
        lambda: ChatFactory(Injected),
        lambda: ChatFactory(Signed),
        lambda: ChatFactory(ByMetaclass),
        lambda: ChatFactory(Plain),
        lambda: ChatFactory(Anything, 1, 2, a=3),
        lambda: ChatFactory(protocol.Protocol),
    ],
)
def test_handler_that_can_be_built_is_accepted(make):
    """Whatever the kind of its constructor."""
    assert make().buildProtocol(None) is not None


@pytest.mark.parametrize(
    "parameters",
    [
        "request",
        "*args",
        "sock=None, map=None",
        "addr, sock",
        "conn, address, server=None",
        "client, client_address, *rest",
        "whatever, *, name='x'",
    ],
)
def test_a_legacy_handler_that_takes_a_socket_is_served(parameters):
    """By any name, since the first argument is the socket."""
    LegacyFactory(legacy(parameters))


def test_arguments_of_the_factory_are_taken_into_account():
    """What follows the socket and the address may come from the factory."""
    LegacyFactory(legacy("sock, addr, server"), "the server")
    LegacyFactory(legacy("sock, *, server"), server="the server")
    LegacyFactory(build=lambda sock, addr: None)


def test_listener_that_also_reads_is_served():
    """One class may be both."""

    class Both(Listener):
        def handle_read(self):
            pass

    LegacyFactory(Both)


def test_callable_without_a_signature_is_accepted():
    """Some callables written in C have no signature."""
    with pytest.raises(ValueError, match=r"(no|invalid) signature"):
        inspect.signature(iter)
    assert wanted(iter, (), {}) is None


# -- whether anybody listens to the peer

HOOKS = ("message_received", "found_terminator")


class Deaf(AsyncChat):
    terminator = b"\n"

    def __init__(self):
        super().__init__()
        self.buffer = []

    def handle_connect(self):
        self.set_terminator(b"\r\n")

    def line_received(self, line):
        self.push(line)


class Speaks(AsyncChat):
    def handle_connect(self):
        self.push(b"now\n")


class Known(AsyncChat):
    def __init__(self):
        subscribers.append(self)


subscribers = []


class Assigns(AsyncChat):
    def __init__(self):
        self.message_received = self.push


class Borrows(AsyncChat):
    message_received = AsyncChat.push


@pytest.mark.parametrize(
    ("handler", "answer"),
    [
        (Native, Hears.YES),
        (Assigns, Hears.YES),
        (Borrows, Hears.YES),
        (Speaks, Hears.NO),
        (Known, Hears.NO),
        (Deaf, Hears.USELESS),
    ],
)
def test_handler_without_a_hook_is_useless_only_if_it_cannot_send(handler, answer):
    """A handler that sends, or that others send through, may be intended."""
    assert hears(handler, AsyncChat, HOOKS) is answer
