"""
Log lines about peers are few, however many peers there are.
"""

from txasynchat.rarely import Rarely


def test_one_of_a_kind_is_said_in_each_interval_and_the_others_are_counted():
    now = 100.0
    rarely = Rarely(1.0, lambda: now)
    assert [rarely.hidden("a") for _ in range(4)] == [0, None, None, None]
    assert rarely.hidden("b") == 0
    now = 101.0
    assert [rarely.hidden("a") for _ in range(2)] == [3, None]
    now = 102.5
    assert rarely.hidden("a") == 1
    assert rarely.hidden("b") == 0
