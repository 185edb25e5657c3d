"""
What the facade's tests share.
"""

import socket
import sys
from collections.abc import Callable, Iterator

import pytest

from txasynchat.compat import _asking as asking
from txasynchat.compat import asyncore

#: Seconds: the limit of every wait that should be short.
LIMIT = 10.0


@pytest.fixture(params=["hub alone", "beside the reactor"])
def each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run loop() in the main thread: without a reactor to serve, and with the installed one."""
    if request.param == "hub alone":
        monkeypatch.delitem(sys.modules, "twisted.internet.reactor", raising=False)
    else:
        from twisted.internet import reactor

        assert not reactor.running
    return request.param


@pytest.fixture
def only_first_passes_are_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each loop() asks all channels in its first pass; later, what is noticed is noticed without."""
    monkeypatch.setattr(asking, "FULL_PASS_SOONEST", 1000.0)
    monkeypatch.setattr(asking, "FULL_PASS_LATEST", 1000.0)


@pytest.fixture
def threads_switch_often() -> Iterator[None]:
    """The interpreter lets another thread run a million times a second."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def channels():
    """A private map, closed at the end."""
    own = {}
    yield own
    asyncore.close_all(own, ignore_all=True)


@pytest.fixture
def pair() -> Iterator[Callable[[], tuple[socket.socket, socket.socket]]]:
    """Make connected TCP sockets on loopback, closed at the end in any case."""
    made: list[socket.socket] = []

    def make() -> tuple[socket.socket, socket.socket]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            near = socket.create_connection(server.getsockname(), timeout=LIMIT)
            far, _ = server.accept()
        far.settimeout(LIMIT)
        made.extend((near, far))
        return near, far

    yield make
    for sock in made:
        sock.close()
