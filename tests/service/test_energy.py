"""Energy: what models and idle are given always adds up to the counter, and follows the rule."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lacuna_service.energy import BATCHES_KEPT, IDLE, Busy, Ledger, apportion


@given(st.integers(0, 10**9), st.lists(st.floats(0, 1e6), min_size=1, max_size=20))
def test_apportioned_parts_are_whole_and_add_up(total: int, weights: list[float]) -> None:
    parts = apportion(total, weights)

    assert sum(parts) == total
    if sum(weights):
        for part, weight in zip(parts, weights, strict=True):
            assert abs(part - total * weight / sum(weights)) <= 1 + total * 1e-12


batches = st.builds(
    lambda start, length, shares: Busy(start, start + length, tuple(shares)),
    st.floats(0, 10),
    st.floats(0, 3),
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1e5)), min_size=1, max_size=4),
)


@given(st.lists(batches, max_size=20), st.lists(st.tuples(st.floats(0.001, 2), st.integers(-5, 2000)), max_size=20))
def test_models_and_idle_add_up_to_the_counter_always(reports: list[Busy], windows: list[tuple[float, int]]) -> None:
    ledger, now, counter, given_out, rises = Ledger(0.0, 0), 0.0, 0, 0, 0
    for busy in reports:
        ledger.report(busy)

    for seconds, energy in windows:
        now, counter = now + seconds, counter + energy
        parts = ledger.settle(now, counter)
        given_out, rises = given_out + sum(parts.values()), rises + max(0, energy)
        assert min(parts.values()) >= 0

    assert given_out == rises


def test_energy_with_nothing_running_is_idle_and_teaches_the_idle_power() -> None:
    ledger = Ledger(0.0, 0)

    parts = ledger.settle(2.0, 240_000)

    assert parts == {IDLE: 240_000}
    assert ledger.idle_watts == pytest.approx(120.0)


def test_a_busy_window_gives_idle_its_power_and_batches_the_rest_by_busy_time_and_cost() -> None:
    ledger = Ledger(0.0, 0, idle_watts=100.0)
    ledger.report(Busy(0.0, 0.3, (("a", 30.0), ("b", 10.0))))
    ledger.report(Busy(0.3, 0.4, (("b", 5.0),)))

    parts = ledger.settle(1.0, 300_000)

    assert parts[IDLE] == 60_000  # 100 W for the 0.6 s that nothing ran
    assert parts["a"] == 135_000  # 240 J * 0.3 / 0.4 * 30 / 40
    assert parts["b"] == 105_000
    assert ledger.running_watts == pytest.approx(600.0)


def test_a_batch_across_windows_is_paid_in_each_by_its_part() -> None:
    ledger = Ledger(0.0, 0, idle_watts=0.0)
    ledger.report(Busy(0.5, 1.5, (("a", 1.0),)))

    first, second = ledger.settle(1.0, 1000), ledger.settle(2.0, 1500)

    assert (first["a"], second["a"]) == (1000, 500)


def test_idle_never_takes_more_than_there_is() -> None:
    ledger = Ledger(0.0, 0, idle_watts=1000.0)
    ledger.report(Busy(0.0, 0.1, (("a", 1.0),)))

    assert ledger.settle(1.0, 10) == {IDLE: 10, "a": 0}


def test_batches_of_a_counter_that_is_never_read_take_bounded_memory() -> None:
    ledger = Ledger(0.0, 0)
    for number in range(BATCHES_KEPT + 10):
        ledger.report(Busy(number, number + 1, (("old" if number < 10 else "new", 1.0),)))

    assert ledger.settle(BATCHES_KEPT + 10, 1000) == {IDLE: 0, "new": 1000}


def test_a_counter_that_falls_starts_again() -> None:
    ledger = Ledger(0.0, 5000)

    assert ledger.settle(1.0, 100) == {IDLE: 0}
    assert ledger.settle(2.0, 150) == {IDLE: 50}
