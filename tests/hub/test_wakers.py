"""
How a wait in another thread is ended, also after a program closed the descriptors.
"""

import os
import select
import socket
import threading

import pytest

from txasynchat.hub.pollers import PollPoller, new_poller
from txasynchat.hub.wakers import new_waker

LIMIT = 20.0


@pytest.fixture(params=[new_poller, PollPoller], ids=["nested", "flat"])
def poller(request):
    one = request.param()
    yield one
    one.close()


@pytest.fixture
def waker(poller):
    one = new_waker(nests=hasattr(poller, "fileno"))
    poller.register(one.number, select.POLLIN)
    yield one
    one.close()


def test_wake_up_ends_a_wait_in_another_thread(poller, waker):
    found = []
    thread = threading.Thread(target=lambda: found.extend(poller.poll(LIMIT, 10)))
    thread.start()
    waker.ring(poller)
    thread.join(LIMIT)
    assert [number for number, _ in found] == [waker.number]


def test_waker_is_readable_until_it_is_hushed(poller, waker):
    assert poller.poll(0, 10) == []
    waker.ring(poller)
    waker.ring(poller)
    assert len(poller.poll(LIMIT, 10)) == len(poller.poll(LIMIT, 10)) == 1
    waker.hush(poller)
    waker.hush(poller)
    assert poller.poll(0, 10) == []


def test_nested_pollers_share_one_waker():
    first = new_waker(nests=True)
    second = new_waker(nests=True)
    assert first is second
    first.close()
    assert os.fstat(second.number)
    second.close()
    assert not second.is_ours()


def test_other_pollers_have_their_own_waker():
    first, second = new_waker(nests=False), new_waker(nests=False)
    assert first.number != second.number
    first.close()
    second.close()


def test_waker_closed_by_the_program_is_not_reused():
    first = new_waker(nests=True)
    os.close(first.number)
    second = new_waker(nests=True)
    assert second is not first
    assert second.number == first.number
    first.close()
    assert second.is_ours()
    second.close()


def test_waker_closed_by_the_program_reports_it(poller, waker):
    assert waker.is_in(poller)
    with socket.socket() as stranger:
        os.dup2(stranger.fileno(), waker.number)
        with pytest.raises(OSError, match=r"No such file|Bad file|Broken pipe"):
            waker.ring(poller)
        assert not waker.is_in(poller)
        assert poller.poll(0, 10) == [] or isinstance(poller, PollPoller)
    os.close(waker.number)
    with pytest.raises(OSError, match=r"No such file|Bad file|Broken pipe"):
        waker.ring(poller)
    assert not waker.is_in(poller)


@pytest.mark.nests_pollers
@pytest.mark.parametrize("poller", [new_poller], indirect=True)
def test_programs_poller_on_a_reused_number_is_noticed_and_left_alone(poller, waker):
    stranger = new_poller()
    os.dup2(stranger.fileno(), poller.fileno())
    assert not waker.is_in(poller)
    with pytest.raises(OSError, match="No such file"):
        waker.ring(poller)
    with pytest.raises(OSError, match="No such file"):
        stranger.unregister(waker.number)
    stranger.close()
