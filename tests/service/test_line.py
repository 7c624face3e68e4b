"""The line that requests wait in, and the forecast of how long a batch takes."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lacuna_service.forecast import ENOUGH, Forecast
from lacuna_service.tickets import Line, Ticket

LOOP = asyncio.new_event_loop()
LOOP.close()  # the tickets' futures are never waited for


class LineMachine(RuleBasedStateMachine):
    """The line against a plain sorted list."""

    def __init__(self) -> None:
        super().__init__()
        self.line, self.model, self.clock = Line(), [], 0

    @rule(cost=st.integers(0, 50), priority=st.integers(1, 10))
    def add(self, cost, priority):
        self.clock += 1
        ticket = Ticket({}, 1, cost, float(self.clock), priority, asyncio.Future(loop=LOOP))
        self.line.add(ticket)
        self.model.append(ticket)
        self.model.sort(key=lambda t: (t.priority, t.arrived))

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data):
        ticket = data.draw(st.sampled_from(self.model))
        assert self.line.remove(ticket)
        assert not self.line.remove(ticket)
        self.model.remove(ticket)

    @rule(limit=st.integers(1, 80))
    def take(self, limit):
        taken = self.line.take(limit)
        assert taken == self.model[: len(taken)]  # in order, none overtakes
        assert len(taken) == 1 or sum(t.cost for t in taken) <= limit
        rest = self.model[len(taken) :]
        assert not rest or sum(t.cost for t in taken) + rest[0].cost > limit  # as full as it can be
        assert bool(taken) == bool(self.model)
        self.model = rest

    @invariant()
    def counts_agree(self):
        assert len(self.line) == len(self.model)
        assert self.line.cost == sum(t.cost for t in self.model)
        assert self.line.oldest() == min((t.arrived for t in self.model), default=float("inf"))
        for priority in (1, 2, 10):
            assert self.line.cost_before(priority) == sum(t.cost for t in self.model if t.priority <= priority)


TestLine = LineMachine.TestCase
TestLine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_forecast_finds_the_line_that_batches_lie_on():
    forecast = Forecast()
    for step in range(40):
        cost = 1 + step % 7
        forecast.observe(cost, 0.002 + 0.0005 * cost)

    assert forecast.seconds(100) == pytest.approx(0.002 + 0.05, rel=1e-6)
    assert forecast.seconds(100, batches=4) == pytest.approx(0.008 + 0.05, rel=1e-6)


def test_forecast_follows_a_device_that_has_become_slower():
    forecast = Forecast()
    for seconds in [0.001] * 500 + [0.1] * 300:
        forecast.observe(1, seconds)

    assert forecast.seconds(1) == pytest.approx(0.1, rel=0.01)


def test_forecast_says_nothing_before_it_has_seen_enough():
    forecast = Forecast()
    for _ in range(ENOUGH - 1):
        forecast.observe(1, 9.0)
    assert forecast.seconds(1000) == 0.0

    forecast.observe(1, 9.0)
    assert forecast.seconds(1) == pytest.approx(9.0)


@given(
    st.lists(st.tuples(st.integers(0, 2**21), st.floats(0, 100)), min_size=ENOUGH, max_size=60), st.integers(0, 2**21)
)
def test_forecast_is_never_negative_and_grows_with_cost(seen, cost):
    forecast = Forecast()
    for one, seconds in seen:
        forecast.observe(one, seconds)

    assert 0.0 <= forecast.seconds(cost) <= forecast.seconds(cost + 1)
