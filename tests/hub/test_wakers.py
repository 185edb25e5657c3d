"""
How a wait in another thread is ended, and what happens to that when a program closes descriptors.
"""

import os
import select
import socket
import threading

import pytest

from txasynchat.hub.pollers import PollPoller, new_poller
from txasynchat.hub.wakers import new_waker

LIMIT = 5.0


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


def test_a_wait_in_another_thread_ends(poller, waker):
    found = []
    thread = threading.Thread(target=lambda: found.extend(poller.poll(LIMIT, 10)))
    thread.start()
    waker.ring(poller)
    thread.join(LIMIT)
    assert [number for number, _ in found] == [waker.number]


def test_it_rings_until_it_is_hushed(poller, waker):
    assert poller.poll(0, 10) == []
    waker.ring(poller)
    waker.ring(poller)
    assert len(poller.poll(LIMIT, 10)) == len(poller.poll(LIMIT, 10)) == 1
    waker.hush(poller)
    waker.hush(poller)
    assert poller.poll(0, 10) == []


def test_pollers_that_nest_share_one():
    first = new_waker(nests=True)
    second = new_waker(nests=True)
    assert first is second
    first.close()
    assert os.fstat(second.number)
    second.close()
    assert not second.is_ours()


def test_each_of_the_others_has_its_own():
    first, second = new_waker(nests=False), new_waker(nests=False)
    assert first.number != second.number
    first.close()
    second.close()


def test_one_that_was_closed_by_the_program_is_not_used_again():
    first = new_waker(nests=True)
    os.close(first.number)
    second = new_waker(nests=True)
    assert second is not first
    assert second.number == first.number
    first.close()
    assert second.is_ours()
    second.close()


def test_one_that_was_closed_by_the_program_says_so(poller, waker):
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
def test_a_poller_of_the_program_on_the_number_of_ours_is_noticed_and_stays_as_it_is(poller, waker):
    stranger = new_poller()
    os.dup2(stranger.fileno(), poller.fileno())
    assert not waker.is_in(poller)
    with pytest.raises(OSError, match="No such file"):
        waker.ring(poller)
    with pytest.raises(OSError, match="No such file"):
        stranger.unregister(waker.number)
    stranger.close()
