"""What is due later is due in time, whatever enters and leaves meanwhile, on one timer."""

import gc
import weakref

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from txasynchat.limits.wheel import SHORTEST, Wheel


class One:
    before = after = None

    def __init__(self, then=None):
        self.times = []
        self.then = then

    def due(self, now):
        self.times.append(now)
        if self.then is not None:
            self.then(self)


delays = st.floats(0.001, 500)


@settings(deadline=None)
@given(
    start=st.floats(0, 1e6),
    actions=st.lists(
        st.tuples(st.sampled_from(["enter", "leave", "pass"]), st.integers(0, 4), delays),
        max_size=60,
    ),
)
def test_nothing_is_early_nor_later_than_an_eighth_nor_called_after_it_left(start, actions):
    clock = Clock()
    clock.advance(start)
    wheel = Wheel(clock)
    ones = [One() for _ in range(5)]
    expected = {}
    for action, which, delay in actions:
        one = ones[which]
        if action == "enter":
            wheel.enter(one, delay, clock.seconds())
            wanted = max(delay, SHORTEST)
            expected[one] = clock.seconds() + wanted, clock.seconds() + wanted * 1.125
            one.times.clear()
        elif action == "leave":
            wheel.leave(one)
            wheel.leave(one)
            expected.pop(one, None)
            one.times.clear()
        else:
            end = clock.seconds() + delay
            while (calls := clock.getDelayedCalls()) and calls[0].getTime() <= end:
                clock.advance(max(0, calls[0].getTime() - clock.seconds()))
            clock.advance(max(0, end - clock.seconds()))
        assert len(clock.getDelayedCalls()) <= 1
        for one in ones:
            if one in expected:
                earliest, latest = expected[one]
                slack = 1e-6
                if one.times:
                    assert len(one.times) == 1
                    assert earliest - slack <= one.times[0] <= latest + slack
                else:
                    assert clock.seconds() <= latest + slack
            else:
                assert not one.times
    for one in ones:
        wheel.leave(one)
    assert len(wheel) == 0


def test_ten_thousand_need_one_timer_and_few_calls_of_it():
    clock = Clock()
    wheel = Wheel.of(clock)
    ones = [One(lambda one: wheel.enter(one, 7.5, clock.seconds())) for _ in range(10_000)]
    for number, one in enumerate(ones):
        wheel.enter(one, 7.5 + number / 10_000, clock.seconds())
    turns = 0
    while clock.seconds() < 75:
        (call,) = clock.getDelayedCalls()
        turns += 1
        clock.advance(call.getTime() - clock.seconds())
    assert all(8 <= len(one.times) <= 10 for one in ones)
    assert turns < 75 * 4


def test_a_wheel_that_is_empty_leaves_no_timer_and_is_forgotten():
    clock = Clock()
    wheel = Wheel.of(clock)
    one, other = One(), One()
    wheel.enter(one, 1, 0)
    wheel.enter(other, 100, 0)
    assert Wheel.of(clock) is wheel
    wheel.leave(one)
    (call,) = clock.getDelayedCalls()
    assert call.getTime() >= 100
    wheel.leave(other)
    assert not clock.getDelayedCalls()
    clock = weakref.ref(clock)
    del wheel, call
    gc.collect()
    assert clock() is None


def test_after_the_reactor_was_held_up_it_reads_before_anything_is_due():
    clock = Clock()
    wheel = Wheel(clock)
    order = []
    wheel.enter(One(lambda _: order.append("due")), 1, 0)
    clock.callLater(2, order.append, "read")
    clock.advance(5)
    assert order == ["read", "due"]
    wheel.enter(One(lambda _: order.append("again")), 1, 5)
    clock.callLater(2, order.append, "read")
    clock.advance(5)
    assert order == ["read", "due", "read", "again"]


def test_one_that_raises_is_logged_and_the_others_are_called():
    clock = Clock()
    wheel = Wheel(clock)
    ones = [One(lambda _: 1 / 0), One(), One(lambda _: wheel.leave(ones[1]))]
    for one in ones:
        wheel.enter(one, 1, 0)
    with capturedLogs() as logs:
        clock.advance(2)
    assert [event["log_failure"].type for event in logs] == [ZeroDivisionError]
    assert len(ones[0].times) == len(ones[2].times) == 1
    assert len(wheel) == 0


def test_a_clock_that_cannot_be_a_key_has_wheels_all_the_same():
    class Unhashable(Clock):
        __hash__ = None

    clock = Unhashable()
    one = One()
    Wheel.of(clock).enter(one, 1, 0)
    clock.advance(2)
    assert one.times == [2]
