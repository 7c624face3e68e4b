"""By what output rows of a kernel map are sorted; the maps themselves: test_cuda_sites.py."""

import pytest
import torch

from lacuna_kernels.cuda.offset_slots import offset_slots, parts_of
from lacuna_kernels.ops.coordinates import submanifold_geometry
from lacuna_kernels.types import Geometry, Triple

CELLS = Geometry((2, 2, 2), (2, 2, 2), (0, 0, 0), (1, 1, 1))


def offset_bits(geometry: Geometry) -> torch.Tensor:
    return offset_slots(geometry)[:, 1]


def strided(size: Triple) -> Geometry:
    return Geometry(size, (2, 2, 2), (1, 1, 1), (1, 1, 1))


@pytest.mark.parametrize("size", [(3, 3, 3), (5, 5, 5), (7, 7, 7), (3, 1, 1), (1, 3, 5)], ids=str)
def test_bits_rise_with_the_distance_from_the_middle_which_has_none(size: Triple):
    bits = offset_bits(submanifold_geometry(size, (1, 1, 1)))

    offsets = torch.cartesian_prod(*map(torch.arange, size)) - torch.tensor(size) // 2
    distance = offsets.pow(2).sum(1)
    assert torch.equal(bits == -1, distance == 0)
    for nearer, further in zip(*(distance.unique()[i : i - 1 or None] for i in (0, 1)), strict=True):
        assert bits[distance == nearer].max() <= bits[distance == further].min()


@pytest.mark.parametrize(
    "geometry", [*map(strided, [(3, 3, 3), (5, 5, 5), (1, 1, 1), (3, 1, 1)]), CELLS], ids=lambda g: str(g.kernel_size)
)
def test_every_offset_of_other_convolutions_has_a_bit_and_all_bits_are_used(geometry: Geometry):
    bits = offset_bits(geometry)

    assert sorted(set(bits.tolist())) == list(range(min(16, geometry.volume)))


def test_where_most_offsets_are_there_the_furthest_have_a_bit_each():
    geometry = submanifold_geometry((3, 3, 3), (1, 1, 1))
    bits = offset_slots(geometry, dense=True)[:, 1]

    distance = (torch.cartesian_prod(*[torch.arange(3)] * 3) - 1).pow(2).sum(1)
    assert sorted(bits[bits >= 0].tolist()) == list(range(16))
    assert set(distance[bits >= 8].tolist()) == {3}
    assert set(distance[bits < 0].tolist()) == {0, 1, 2}
    assert int((bits < 0).sum()) == 11


def test_few_offsets_have_the_same_bits_where_most_are_there():
    plane = submanifold_geometry((3, 1, 3), (1, 1, 1))

    assert torch.equal(offset_slots(plane, dense=True), offset_slots(plane))


def test_a_submanifold_convolution_of_one_offset_has_no_bits():
    assert offset_bits(submanifold_geometry((1, 1, 1), (1, 1, 1))).tolist() == [-1]


def test_a_bit_is_for_few_offsets():
    counts = torch.bincount(offset_bits(submanifold_geometry((5, 5, 5), (1, 1, 1))) + 1)

    assert counts[0] == 1
    assert counts[1:].min() >= 7
    assert counts[1:].max() <= 8


def test_parts_are_planes_along_z_and_the_middle_one_comes_last():
    geometry = submanifold_geometry((3, 3, 3), (1, 1, 1))
    assert [parts_of(geometry, stride) for stride in (1, 4, 8, 16)] == [1, 1, 3, 3]
    assert parts_of(geometry, 8, dense=True) == 1

    slots = offset_slots(geometry, 3).view(3, 9, 2)

    assert [set((part[:, 0] % 3).tolist()) for part in slots] == [{0}, {2}, {1}]
    assert slots[:, :, 0].flatten().sort().values.tolist() == list(range(27))
    assert [sorted({*part[:, 1].tolist()}) for part in slots] == [[*range(8)], [*range(8, 16)], [-1, *range(16, 24)]]


def test_the_furthest_of_a_part_sets_its_highest_bit():
    slots = offset_slots(strided((3, 3, 3)), 3).view(3, 9, 2)

    for part, (offsets, bits) in enumerate(zip(slots[:, :, 0], slots[:, :, 1], strict=True)):
        x, y = offsets // 9 - 1, offsets // 3 % 3 - 1
        assert sorted(set(bits.tolist())) == [*range(8 * part, 8 * part + 8)]
        assert bits[x.abs() + y.abs() == 2].min() > bits[x.abs() + y.abs() < 2].max()


@pytest.mark.parametrize("size", [(5, 5, 5), (3, 1, 1), (2, 2, 2), (3, 3, 1)], ids=str)
def test_other_kernels_are_in_one_part(size: Triple):
    assert parts_of(strided(size), 8) == 1
