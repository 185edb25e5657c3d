"""Deadlines of channels."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from txasynchat.compat._deadlines import Deadlines


def test_keys_are_due_in_the_order_of_their_deadlines():
    deadlines = Deadlines()
    for key, moment in (("late", 9.0), (object, 2.0), (7, 2.0), ("soon", 1.0)):
        deadlines.set(key, moment)
    assert deadlines.next == 1.0
    assert deadlines.take_due(0.5) == []
    assert deadlines.take_due(2.0) == [("soon", 1.0), (object, 2.0), (7, 2.0)]
    assert deadlines.next == 9.0
    assert "late" in deadlines
    assert "soon" not in deadlines


def test_last_deadline_set_for_a_key_counts():
    deadlines = Deadlines()
    deadlines.set(1, 5.0)
    deadlines.set(1, 8.0)
    assert deadlines.take_due(6.0) == []
    deadlines.set(1, 7.0)
    assert deadlines.take_due(8.0) == [(1, 7.0)]
    assert deadlines.next == math.inf


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["set", "drop", "take"]), st.integers(0, 3), st.integers(0, 9))
)


@given(ACTIONS)
def test_due_keys_agree_with_a_plain_dict(actions):
    deadlines = Deadlines()
    moments: dict[int, int] = {}
    for action, key, moment in actions:
        if action == "set":
            deadlines.set(key, moment)
            moments[key] = moment
        elif action == "drop":
            deadlines.drop(key)
            moments.pop(key, None)
        else:
            due = {one: at for one, at in moments.items() if at <= moment}
            assert dict(deadlines.take_due(moment)) == due
            moments = {one: at for one, at in moments.items() if one not in due}
        assert deadlines.next <= min(moments.values(), default=math.inf)
        assert all((one in deadlines) is (one in moments) for one in range(4))
