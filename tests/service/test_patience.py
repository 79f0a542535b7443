"""When a wait ends, and that it ends once."""

from __future__ import annotations

from service.patience import Patience


def test_what_is_late_at_two_checks_is_told_once() -> None:
    patience, told = Patience(), list[str]()
    patience.wait(10.0, 2.0, lambda: told.append("late"))
    for moment in (10.0, 11.9, 12.0):
        patience.check(moment)
    assert told == [], "the first check behind the end may follow a standstill of the process"
    patience.check(12.1)
    patience.check(99.0)
    assert told == ["late"]
    assert patience.since == 10.0


def test_a_new_wait_takes_the_place_of_the_one_before() -> None:
    patience, told = Patience(), list[str]()
    patience.wait(0.0, 1.0, lambda: told.append("head"))
    patience.check(1.5)
    patience.wait(1.6, 5.0, lambda: told.append("body"))
    patience.check(2.0)
    patience.check(6.6)
    assert told == []
    patience.check(6.7)
    assert told == ["body"]


def test_a_wait_that_somebody_else_minds_has_no_end() -> None:
    patience, told = Patience(), list[str]()
    patience.wait(0.0, 1.0, lambda: told.append("late"))
    patience.wait_without_end(0.5)
    for moment in (1.0, 2.0, 3.0):
        patience.check(moment)
    assert told == []
    assert patience.since == 0.5
    patience.stop()
    assert patience.since is None
