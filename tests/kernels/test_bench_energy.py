"""The benchmarks' reading of an energy counter, which moves some ten times a second; without a GPU."""

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from bench import energy
from bench.energy import Ticks, watched


class Clock:
    """Time that passes when it is told to, and a counter of 300 W (900 W at first) that moves every 0.1 s."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def millijoules(self) -> int:
        tick = int(self.now * 10 + 1e-9)
        return 90_000 * min(tick, 1) + 30_000 * max(tick - 1, 0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(energy, "time", SimpleNamespace(perf_counter=found.perf_counter))
    return found


def look_for(clock: Clock, ticks: Ticks, seconds: float) -> None:
    for _ in range(round(seconds / 0.01)):
        clock.now += 0.01
        ticks.look()


def test_power_is_what_the_counter_says_between_its_ticks_after_the_first(clock: Clock):
    ticks = Ticks(clock.millijoules)
    look_for(clock, ticks, 0.57)
    (t0, e0), (t1, e1) = ticks.ends()
    assert t0 > 0.15
    assert (t1 - t0, (e1 - e0) / 1000) == (pytest.approx(0.3, abs=0.011), 90)


def test_a_counter_that_stands_still_is_said_to(clock: Clock):
    ticks = Ticks(lambda: 7)
    look_for(clock, ticks, 1.0)
    with pytest.raises(RuntimeError, match="moved 0 times"):
        ticks.ends()


def test_a_counter_is_read_by_another_thread_while_something_runs():
    readers, read_often = set[str](), threading.Event()

    def millijoules() -> int:
        readers.add(threading.current_thread().name)
        if len(readers) > 1:
            read_often.set()
        return time.perf_counter_ns()

    with watched(millijoules):
        assert read_often.wait(10)
    assert readers == {threading.current_thread().name, "energy_0"}
    assert "energy_0" not in [thread.name for thread in threading.enumerate()]


def test_what_goes_wrong_with_a_reading_is_raised():
    readings = iter([1, 2])

    with pytest.raises(RuntimeError, match="no more"), watched(lambda: next_of(readings)):
        time.sleep(0.1)


def next_of(readings: Iterator[int]) -> int:
    for reading in readings:
        return reading
    raise RuntimeError("no more")
