"""Sparse convolutions by Hopper's tensor cores, run on the CPU: tests/kernels/simulated.py."""

import pytest
import torch

from lacuna_kernels.cuda.sparse_conv import pack_weight, sparse_conv
from lacuna_kernels.cuda.sparse_conv_hopper import ResidentTile, WgmmaTile
from lacuna_kernels.ops.activation import Activation, activate
from lacuna_kernels.ops.sparse_conv import gather_multiply_add
from tests.cases import assert_close, tolerance
from tests.kernels.device_sites import map_of, nonsense, random_map, sums_for
from tests.kernels.simulated import SimulatedDevice, guarded

TILES = [WgmmaTile(64, 64, 2, 96, 1), WgmmaTile(128, 32, 3, 128, 1)]
INPUTS = 50
SPARE = 9
"""Rows of y past the count, which are left alone."""


@pytest.mark.parametrize("k, outputs, ci, co", [(27, 150, 32, 40), (8, 64, 104, 64), (40, 70, 8, 5), (5, 1, 72, 64)])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_convolution_agrees_with_the_reference(folder, k, outputs, ci, co, seed):
    torch.manual_seed(seed)
    tile, dtype = TILES[seed], (torch.float16, torch.bfloat16)[seed]
    rows = random_map(k, INPUTS, outputs, 0.15)
    x, weight = torch.randn(INPUTS, ci).to(dtype), (torch.randn(k, ci, co) * ci**-0.5).to(dtype)
    bias, residual = torch.randn(co), torch.randn(outputs + SPARE, co).to(dtype)
    y, memory = guarded(outputs + SPARE, co, dtype)
    count = torch.tensor([outputs], dtype=torch.int32)
    added = {"bias": bias, "residual": residual, "activation": Activation.RELU}

    packed, kernel_map = pack_weight(weight, dtype, tile), map_of(rows, len(y), nonsense, told=bool(seed))
    sparse_conv(
        SimulatedDevice(folder, 1, seed), x, packed, kernel_map, count, y, likely=max(1, outputs - 20 * seed), **added
    )

    sums = gather_multiply_add(x.double(), weight.double(), rows) + bias.double() + residual[:outputs].double()
    assert_close(y[:outputs], activate(sums, Activation.RELU, 0.0), tolerance(dtype, k * ci))
    assert int(memory.isnan().sum()) == len(memory) - outputs * co


@pytest.mark.parametrize("bringers", [96, 128])
@pytest.mark.parametrize("first", [5, 6])
@pytest.mark.parametrize("seed", range(4))
def test_a_block_looks_up_the_next_tile_while_rows_of_the_last_one_are_still_read(folder, seed, first, bringers):
    torch.manual_seed(seed)
    tile, outputs = WgmmaTile(64, 32, 3, bringers, 1), 128
    rows = random_map(27, INPUTS, outputs, 0.5)
    rows[first:, 64:] = -1  # of the tile that comes first
    x, weight = torch.randn(INPUTS, 32).half(), (torch.randn(27, 32, 32) * 0.1).half()
    y, count = guarded(outputs, 32, torch.float16)[0], torch.tensor([outputs], dtype=torch.int32)

    packed = pack_weight(weight, torch.float16, tile)
    kernel_map = map_of(rows, outputs, nonsense, shuffled=False, told=False)
    sparse_conv(SimulatedDevice(folder, 1, seed), x, packed, kernel_map, count, y, likely=1)

    assert_close(y, gather_multiply_add(x.double(), weight.double(), rows), tolerance(torch.float16, 27 * 32))


@pytest.mark.parametrize("outputs, density, likely", [(150, 0.03, 500), (150, 0.03, 64), (70, 0.3, 70), (1, 0.0, 1)])
@pytest.mark.parametrize("seed", [0, 1])
def test_parts_of_the_offsets_are_summed_up_by_themselves_and_added(folder, outputs, density, likely, seed):
    torch.manual_seed(seed)
    tile, dtype, co = TILES[seed], torch.float16, 44
    rows = random_map(27, INPUTS, outputs, density)
    x, weight = torch.randn(INPUTS, 32).to(dtype), (torch.randn(27, 32, co) * 0.2).to(dtype)
    residual = torch.randn(outputs + SPARE, co).to(dtype)
    y, memory = guarded(outputs + SPARE, co, dtype)
    count = torch.tensor([outputs], dtype=torch.int32)

    packed, kernel_map = pack_weight(weight, dtype, tile), map_of(rows, len(y), nonsense, parts=3, told=not seed)
    given = sums_for(kernel_map, packed, y)
    for _ in range(2):  # the second finds that all is as the first found it
        device = SimulatedDevice(folder, 1, seed)
        sparse_conv(device, x, packed, kernel_map, count, y, residual=residual, likely=likely, **given)

        sums = gather_multiply_add(x.double(), weight.double(), rows) + residual[:outputs].double()
        assert_close(y[:outputs], sums, tolerance(dtype, 27 * 32))
        assert int(memory.isnan().sum()) == len(memory) - outputs * co
        assert not bool(given["progress"].any())


def test_sums_of_parts_may_be_too_large_for_fp16_if_the_whole_is_not(folder):
    rows = torch.full((27, 1), -1)
    rows[[12, 13], 0] = torch.tensor([0, 1])  # below it and itself: in the first part and in the last
    x, weight = torch.zeros(2, 32).half(), torch.zeros(27, 32, 32).half()
    x[0, 0], x[1, 0] = 40_000, -36_000
    weight[12:14, 0] = 2
    y, kernel_map = guarded(1, 32, torch.float16)[0], map_of(rows, 1, nonsense, parts=3)
    packed = pack_weight(weight, torch.float16, TILES[0])

    given = sums_for(kernel_map, packed, y)
    sparse_conv(
        SimulatedDevice(folder, 1, 0), x, packed, kernel_map, torch.ones(1, dtype=torch.int32), y, likely=3, **given
    )

    assert y.tolist() == [[8000.0] * 32]


@pytest.mark.parametrize("outputs", [0, 1, 65, 200])
def test_without_a_map_it_is_a_linear_layer_on_columns_of_a_wider_matrix(folder, outputs):
    wide, weight = torch.randn(outputs + 1, 56).half(), (torch.randn(1, 40, 70) * 0.2).half()
    y, memory = guarded(outputs + SPARE, 70, torch.float16)

    packed = pack_weight(weight, torch.float16, TILES[0])
    count = torch.tensor([outputs], dtype=torch.int32)
    sparse_conv(SimulatedDevice(folder, 1, 0), wide[:, 8:48], packed, None, count, y)

    expected = wide[:outputs, 8:48].double() @ weight[0].double()
    assert_close(y[:outputs], expected, tolerance(torch.float16, 40))
    assert int(memory.isnan().sum()) == len(memory) - outputs * 70


@pytest.mark.parametrize("seed", [0, 1])
def test_a_shortcut_is_one_offset_more(folder, seed):
    torch.manual_seed(seed)
    tile, dtype, outputs, k = TILES[seed], torch.float16, 70, 9
    rows = random_map(k, INPUTS, outputs, 0.2)
    x, weight = torch.randn(INPUTS, 40).to(dtype), (torch.randn(k, 40, 66) * 0.1).to(dtype)
    wide, beside = torch.randn(outputs, 88).to(dtype), (torch.randn(72, 66) * 0.1).to(dtype)
    y, memory = guarded(outputs + SPARE, 66, dtype)
    count = torch.tensor([outputs], dtype=torch.int32)

    packed, kernel_map = pack_weight(weight, dtype, tile, beside), map_of(rows, len(y), nonsense)
    sparse_conv(SimulatedDevice(folder, 1, seed), x, packed, kernel_map, count, y, shortcut=wide[:, 8:80])

    sums = gather_multiply_add(x.double(), weight.double(), rows) + wide[:, 8:80].double() @ beside.double()
    assert_close(y[:outputs], sums, tolerance(dtype, k * 40 + 72))
    assert int(memory.isnan().sum()) == len(memory) - outputs * 66


@pytest.mark.parametrize("k, outputs, co", [(27, 150, 13), (27, 260, 16), (8, 64, 32), (1, 70, 24), (32, 1, 8)])
@pytest.mark.parametrize("most, seed", [(16, 0), (32, 1), (64, 0)])
def test_weights_that_stay_give_what_the_reference_gives(folder, k, outputs, most, co, seed):
    torch.manual_seed(seed)
    tile, dtype = ResidentTile(most, min(most, 32), 4, 1 + seed), (torch.float16, torch.bfloat16)[seed]
    co, ci, rows = min(co, most), most - (0, 3, 12)[outputs % 3], random_map(k, INPUTS, outputs, 0.15)
    x, weight = torch.randn(INPUTS, ci).to(dtype), (torch.randn(k, ci, co) * ci**-0.5).to(dtype)
    before, rest = torch.full((INPUTS, 8), torch.nan), torch.zeros(INPUTS, -ci % tile.piece)
    wide = torch.cat([before.to(dtype), x, rest.to(dtype), before.to(dtype)], 1)  # nothing after the last piece is read
    bias, residual = torch.randn(co), torch.randn(outputs + SPARE, co).to(dtype)
    y, memory = guarded(outputs + SPARE, co, torch.float32 if (k + seed) % 2 else dtype)  # as the last layer has it
    count = torch.tensor([outputs], dtype=torch.int32)
    added = {"bias": bias, "residual": residual, "activation": Activation.RELU}

    packed, kernel_map = pack_weight(weight, dtype, tile), map_of(rows, len(y), nonsense)
    sparse_conv(SimulatedDevice(folder, 2, seed), wide[:, 8 : 8 + ci], packed, kernel_map, count, y, **added)

    sums = gather_multiply_add(x.double(), weight.double(), rows) + bias.double() + residual[:outputs].double()
    assert_close(y[:outputs], activate(sums, Activation.RELU, 0.0), tolerance(dtype, k * ci))
    assert int(memory.isnan().sum()) == len(memory) - outputs * co
