"""By what output rows of a kernel map are sorted; the maps themselves: test_cuda_sites.py."""

import pytest
import torch

from lacuna_kernels.cuda.kernel_map import offset_bits
from lacuna_kernels.ops.coordinates import submanifold_geometry
from lacuna_kernels.types import Geometry, Triple

CELLS = Geometry((2, 2, 2), (2, 2, 2), (0, 0, 0), (1, 1, 1))


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


def test_a_submanifold_convolution_of_one_offset_has_no_bits():
    assert offset_bits(submanifold_geometry((1, 1, 1), (1, 1, 1))).tolist() == [-1]


def test_a_bit_is_for_few_offsets():
    counts = torch.bincount(offset_bits(submanifold_geometry((5, 5, 5), (1, 1, 1))) + 1)

    assert counts[0] == 1
    assert counts[1:].min() >= 7
    assert counts[1:].max() <= 8
