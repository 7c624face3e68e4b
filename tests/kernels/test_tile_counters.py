"""Launches that may run at once count their tiles by different counters."""

import pytest

from lacuna_kernels import DeviceError
from lacuna_kernels.cuda.kronecker import tf32, tma
from lacuna_kernels.cuda.tile_counters import COUNTERS, TileCounters
from lacuna_kernels.graph import Precision


def test_launches_of_a_stream_share_a_counter_that_no_other_stream_has():
    counters = TileCounters()

    assert counters.of(7) == counters.of(7) != counters.of(0)


def test_what_is_captured_has_a_counter_of_its_own():
    counters = TileCounters()
    streams, first, second = {counters.of(0), counters.of(7)}, counters.take(), counters.take()
    seen = []
    for counter in (first, second):
        with counters.replaced(7, counter):
            seen.append(counters.of(7))

    assert len({*streams, *seen}) == 4
    assert {counters.of(0), counters.of(7)} == streams


def test_a_capture_that_fails_leaves_the_stream_its_counter():
    counters = TileCounters()
    own, counter = counters.of(7), counters.take()
    with pytest.raises(KeyError), counters.replaced(7, counter):
        raise KeyError

    assert counters.of(7) == own


def test_counters_come_back_with_what_took_them_and_none_is_given_twice():
    counters = TileCounters()
    taken = [counters.take() for _ in range(COUNTERS)]

    assert sorted(counter.index for counter in taken) == [*range(COUNTERS)]
    with pytest.raises(DeviceError, match=f"all {COUNTERS} counters"):
        counters.take()
    with pytest.raises(DeviceError):
        counters.of(7)

    given_back = taken.pop().index
    assert counters.take().index == given_back


@pytest.mark.parametrize("way", [*tf32.WAYS, *tma.WAYS], ids=lambda way: f"{way.name} {way.packing}")
def test_kernels_have_as_many_as_the_host_gives_out(way):
    variants = [variant for precision in Precision for variant in way.variants(precision)]
    assert variants and all(dict(variant.constants)["COUNTERS"] == COUNTERS for variant in variants)
