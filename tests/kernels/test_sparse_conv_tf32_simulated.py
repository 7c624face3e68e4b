"""Sparse convolutions of fp32 by tensor cores that multiply tf32, run on the CPU: tests/kernels/simulated.py."""

import pytest
import torch
from torch import Tensor

from lacuna_kernels import Precision
from lacuna_kernels.cuda.precision import round_to_tf32
from lacuna_kernels.cuda.sparse_conv import pack_weight, sparse_conv
from lacuna_kernels.cuda.sparse_conv_tiles import Tf32Tile
from lacuna_kernels.ops.activation import Activation, activate
from lacuna_kernels.ops.sparse_conv import gather_multiply_add
from tests.cases import assert_close, tolerance
from tests.kernels.device_sites import map_of, nonsense, random_map, sums_for
from tests.kernels.simulated import SimulatedDevice, guarded

ROUNDED = [Tf32Tile(64, 32, 32, (2, 1), 3), Tf32Tile(32, 96, 16, (1, 2), 2)]
WHOLE = [Tf32Tile(32, 32, 32, (2, 1), 2, 3), Tf32Tile(64, 96, 16, (2, 3), 4, 3)]
INPUTS = 50
SPARE = 9
"""Rows of y past the count, which are left alone."""
FP32 = torch.float32


def exact_for(tile: Tf32Tile, *operands: Tensor) -> list[Tensor]:
    """The operands as the tile multiplies them, in float64."""
    return [(round_to_tf32(x) if tile.products == 1 else x).double() for x in operands]


@pytest.mark.parametrize(
    "k, outputs, ci, co, seed",
    [
        (27, 40, 32, 40, 0),
        (4, 33, 96, 96, 1),
        (40, 64, 3, 5, 0),
        (3, 40, 130, 65, 1),
        (5, 1, 4, 32, 0),
        (2, 9, 1, 1, 1),
    ],
)
@pytest.mark.parametrize("tile", [*ROUNDED, *WHOLE], ids=str)
def test_a_convolution_agrees_with_the_reference(folder, k, outputs, ci, co, seed, tile):
    torch.manual_seed(seed)
    rows = random_map(k, INPUTS, outputs, 0.15)
    x, weight = torch.randn(INPUTS, ci), torch.randn(k, ci, co) * ci**-0.5
    bias, residual = torch.randn(co), torch.randn(outputs + SPARE, co)
    y, memory = guarded(outputs + SPARE, co, FP32)
    count, activation = torch.tensor([outputs], dtype=torch.int32), list(Activation)[(ci + seed) % len(Activation)]
    added = {"bias": bias, "residual": residual, "activation": activation, "slope": 0.2}

    packed, kernel_map = pack_weight(weight, FP32, tile), map_of(rows, len(y), nonsense)
    sparse_conv(SimulatedDevice(folder, 1, seed), x, packed, kernel_map, count, y, **added)

    sums = gather_multiply_add(*exact_for(tile, x, weight), rows) + bias.double() + residual[:outputs].double()
    assert_close(y[:outputs], activate(sums, activation, 0.2), tolerance(Precision.FP32, k * ci))
    assert int(memory.isnan().sum()) == len(memory) - outputs * co


@pytest.mark.parametrize("outputs, density", [(1, 0.0), (140, 0.03)])
@pytest.mark.parametrize("tile", [ROUNDED[0], WHOLE[1]], ids=str)
def test_parts_of_the_offsets_are_summed_up_by_themselves_and_added(folder, outputs, density, tile):
    rows = random_map(27, INPUTS, outputs, density)
    x, weight = torch.randn(INPUTS, 20), torch.randn(27, 20, 44) * 0.2
    bias, count = torch.randn(44), torch.tensor([outputs], dtype=torch.int32)
    y, memory = guarded(outputs, 44, FP32)  # no rows to spare, so that there are as few blocks as can be

    packed, kernel_map = pack_weight(weight, FP32, tile), map_of(rows, len(y), nonsense, parts=3)
    given = sums_for(kernel_map, packed, y)
    sparse_conv(SimulatedDevice(folder, 1, 0), x, packed, kernel_map, count, y, bias=bias, **given)

    sums = gather_multiply_add(*exact_for(tile, x, weight), rows) + bias.double()
    assert_close(y, sums, tolerance(Precision.FP32, 27 * 20))
    assert int(memory.isnan().sum()) == len(memory) - outputs * 44
    assert not bool(given["progress"].any())


@pytest.mark.parametrize("outputs", [0, 1, 65])
@pytest.mark.parametrize("start", [8, 3], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("tile", [ROUNDED[0], WHOLE[1]], ids=str)
def test_without_a_map_it_is_a_linear_layer_on_columns_of_a_wider_matrix(folder, outputs, start, tile):
    wide, weight = torch.randn(outputs + 1, 56), torch.randn(1, 40, 70) * 0.2
    y, memory = guarded(outputs + SPARE, 70, FP32)

    count, x = torch.tensor([outputs], dtype=torch.int32), wide[:, start : start + 40]
    sparse_conv(SimulatedDevice(folder, 1, 0), x, pack_weight(weight, FP32, tile), None, count, y)

    inputs, values = exact_for(tile, x[:outputs], weight[0])
    assert_close(y[:outputs], inputs @ values, tolerance(Precision.FP32, 40))
    assert int(memory.isnan().sum()) == len(memory) - outputs * 70


@pytest.mark.parametrize("beside", [72, 5], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("tile", [ROUNDED[1], WHOLE[0]], ids=str)
def test_a_shortcut_is_one_offset_more(folder, beside, tile):
    outputs, k = 70, 9
    rows = random_map(k, INPUTS, outputs, 0.2)
    x, weight = torch.randn(INPUTS, 40), torch.randn(k, 40, 66) * 0.1
    wide, further = torch.randn(outputs, 88), torch.randn(beside, 66) * 0.1
    y, memory = guarded(outputs + SPARE, 66, FP32)

    count, shortcut = torch.tensor([outputs], dtype=torch.int32), wide[:, 8 : 8 + beside]
    packed, kernel_map = pack_weight(weight, FP32, tile, further), map_of(rows, len(y), nonsense)
    sparse_conv(SimulatedDevice(folder, 1, 1), x, packed, kernel_map, count, y, shortcut=shortcut)

    inputs, values, own, its = exact_for(tile, x, weight, shortcut, further)
    assert_close(
        y[:outputs], gather_multiply_add(inputs, values, rows) + own @ its, tolerance(Precision.FP32, k * 40 + beside)
    )
    assert int(memory.isnan().sum()) == len(memory) - outputs * 66


@pytest.mark.parametrize("tiles", [ROUNDED, WHOLE], ids=["rounded", "whole"])
def test_every_tile_gives_the_same_bits(folder, tiles):
    rows = random_map(9, INPUTS, 65, 0.3)
    x, weight = torch.randn(INPUTS, 52), torch.randn(9, 52, 70) * 0.1
    count, found = torch.tensor([65], dtype=torch.int32), []

    for tile in tiles:
        y, _ = guarded(65, 70, FP32)
        packed, kernel_map = pack_weight(weight, FP32, tile), map_of(rows, len(y), nonsense)
        sparse_conv(SimulatedDevice(folder, 1, 0), x, packed, kernel_map, count, y)
        found.append(y)

    assert all(torch.equal(y, found[0]) for y in found)
