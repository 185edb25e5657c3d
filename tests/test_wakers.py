"""
How a wait in another thread is ended, and what happens to that when a program closes descriptors.
"""

import os
import select
import socket
import threading
from types import SimpleNamespace

import pytest

from txasynchat.pollers import PollPoller, new_poller
from txasynchat.wakers import new_waker

LIMIT = 5.0


@pytest.fixture(params=[new_poller, PollPoller], ids=["nested", "flat"])
def poller(request):
    one = request.param()
    yield one
    one.close()


@pytest.fixture
def its(poller):
    """The waker of the poller, which is let go of before descriptors are counted."""
    own = SimpleNamespace(waker=new_waker(nests=hasattr(poller, "fileno")))
    poller.register(own.waker.number, select.POLLIN)
    yield own
    own.waker.close()
    del own.waker


def test_a_wait_in_another_thread_ends(poller, its):
    found = []
    thread = threading.Thread(target=lambda: found.extend(poller.poll(LIMIT, 10)))
    thread.start()
    its.waker.ring(poller)
    thread.join(LIMIT)
    assert [number for number, _ in found] == [its.waker.number]


def test_it_rings_until_it_is_hushed(poller, its):
    assert poller.poll(0, 10) == []
    its.waker.ring(poller)
    its.waker.ring(poller)
    assert len(poller.poll(LIMIT, 10)) == len(poller.poll(LIMIT, 10)) == 1
    its.waker.hush(poller)
    its.waker.hush(poller)
    assert poller.poll(0, 10) == []


def test_pollers_that_nest_share_one():
    first = new_waker(nests=True)
    assert new_waker(nests=True) is first
    number = first.number
    del first
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


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
    del first
    assert os.fstat(second.number)


def test_one_that_was_closed_by_the_program_says_so(poller, its):
    assert its.waker.is_in(poller)
    with socket.socket() as stranger:
        os.dup2(stranger.fileno(), its.waker.number)
        with pytest.raises(OSError, match=r"No such file|Bad file|Broken pipe"):
            its.waker.ring(poller)
        assert not its.waker.is_in(poller)
        assert poller.poll(0, 10) == [] or isinstance(poller, PollPoller)
    os.close(its.waker.number)
    with pytest.raises(OSError, match=r"No such file|Bad file|Broken pipe"):
        its.waker.ring(poller)
    assert not its.waker.is_in(poller)


@pytest.mark.parametrize("poller", [new_poller], indirect=True)
def test_a_poller_of_the_program_on_the_number_of_ours_is_noticed_and_stays_as_it_is(poller, its):
    stranger = new_poller()
    os.dup2(stranger.fileno(), poller.fileno())
    assert not its.waker.is_in(poller)
    with pytest.raises(OSError, match="No such file"):
        its.waker.ring(poller)
    with pytest.raises(OSError, match="No such file"):
        stranger.unregister(its.waker.number)
    stranger.close()
