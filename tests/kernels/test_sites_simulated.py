"""The kernels that make sites, run on the CPU thread by thread: tests/kernels/simulated.py."""

import pytest
import torch

from lacuna_kernels.cuda import coordinates as on_device
from lacuna_kernels.cuda.coordinates import FREE, SiteBuffer, output_sites, output_work, pack_geometry, table_slots
from lacuna_kernels.ops import coordinates as reference
from lacuna_kernels.ops.sparse_conv import active_sites
from lacuna_kernels.types import Level
from tests.kernels.device_sites import GENERATIVE, NONSENSE, STRIDED, nonsense, random_sites
from tests.kernels.simulated import SimulatedDevice

ITEMS = 4
SPARE = 5


def scan_on_the_cpu(device, values, running, count, work, total):
    """As exclusive_scan, whose threads wait for one another."""
    used, (whole, most, overflow) = int(count), total
    sums = values[:used].cumsum(0).int()
    running[:used] = sums - values[:used]
    whole[0] = min(int(values[:used].sum()), most)
    overflow[0] |= int(values[:used].sum()) > most


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sites")


@pytest.fixture(autouse=True)
def plain_scan(monkeypatch):
    monkeypatch.setattr(on_device, "exclusive_scan", scan_on_the_cpu)


def made(folder, coordinates, geometry, shape, capacity, seed):
    """The output sites that the kernels make, and the overflow flag; rows past the inputs are nonsense."""
    room = nonsense(len(coordinates) + SPARE, 4)
    room[: len(coordinates)] = coordinates
    count = torch.tensor([len(coordinates)], dtype=torch.int32)
    inputs = SiteBuffer(room, count, nonsense(ITEMS + 1), nonsense(1))
    sites = SiteBuffer(nonsense(capacity, 4), nonsense(1), nonsense(ITEMS + 1), nonsense(table_slots(capacity)))
    overflow = torch.zeros(1, dtype=torch.int32)
    device = SimulatedDevice(folder, 1, seed, plain=True)
    work = nonsense(output_work(len(room), capacity))
    output_sites(device, inputs, sites, pack_geometry(geometry, shape), work, overflow)
    return sites, bool(overflow)


@pytest.mark.parametrize("shape", [None, (4, 5, 6)], ids=["unbounded", "bounded"])
@pytest.mark.parametrize("geometry", [*STRIDED, *GENERATIVE], ids=str)
def test_sites_of_a_level_are_those_of_the_reference_and_in_its_order(folder, geometry, shape):
    level = Level("made", geometry.stride, shape, "grid", geometry=geometry)
    for seed, points in enumerate([(60, 1, 0, 40), (0, 0, 0, 0), (1, 0, 0, 0)]):
        coordinates = random_sites(points, 5, seed=seed)
        expected = active_sites(coordinates, level)

        sites, overflow = made(folder, coordinates, geometry, shape, len(expected) + SPARE, seed)

        m = len(expected)
        assert not overflow
        assert int(sites.count) == m
        assert torch.equal(sites.coordinates[:m], expected)
        assert bool((sites.coordinates[m:] == NONSENSE).all())
        assert torch.equal(sites.offsets.long(), reference.count_offsets(expected, ITEMS))
        assert sorted(sites.table[sites.table != FREE].tolist()) == list(range(m))


@pytest.mark.parametrize("geometry", [STRIDED[1], GENERATIVE[1]], ids=str)
def test_too_many_sites_raise_the_flag_and_stay_in_their_room(folder, geometry):
    sites, overflow = made(folder, random_sites((200,), 50), geometry, None, 100, 0)

    assert overflow
    assert int(sites.count) <= 100
    assert bool((sites.table < 100).all())
