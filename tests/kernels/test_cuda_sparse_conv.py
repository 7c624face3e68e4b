"""Sparse convolutions on a GPU against float64, and against one another bit for bit."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from lacuna_kernels import Precision
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.precision import DTYPES as DTYPE_OF
from lacuna_kernels.cuda.precision import NATIVE
from lacuna_kernels.cuda.sparse_conv import PackedWeight, pack_weight, sparse_conv
from lacuna_kernels.cuda.sparse_conv_choice import (
    PORTABLE,
    RESIDENT_TILES,
    TF32_TILES,
    WGMMA_TILES,
    ConvShape,
    candidates,
)
from lacuna_kernels.cuda.sparse_conv_hopper import ResidentTile, WgmmaTile
from lacuna_kernels.cuda.sparse_conv_tiles import Tf32Tile, Tile
from lacuna_kernels.ops.activation import Activation, activate
from tests.cases import assert_close, tolerance
from tests.kernels.device_sites import (
    DTYPES,
    SPARE,
    SUBMANIFOLD,
    counted,
    expected_conv,
    map_of,
    mapped,
    operands,
    poisoned,
    random_map,
    random_sites,
    sites_on_device,
    sums_for,
)

pytestmark = pytest.mark.gpu

WIDTHS = [(1, 1), (3, 5), (5, 19), (19, 96), (4, 32), (32, 32), (96, 96), (192, 128), (64, 33), (130, 257), (512, 512)]


HOPPER_KINDS = [tile for tile in WGMMA_TILES if tile.n != 64]
KINDS = [None, *HOPPER_KINDS, *(TF32_TILES[i] for i in (0, 3, -1))]
"""Tiles that most tests are run with: the portable one that a layer takes, some of Hopper, some for fp32 alone."""


def packed_for(
    device: Device,
    weight: Tensor,
    dtype: torch.dtype,
    tile: Tile | None,
    *,
    aligned: bool = True,
    beside: Tensor | None = None,
) -> PackedWeight:
    """Pack a weight for a tile; skips what the tile cannot do."""
    if isinstance(tile, WgmmaTile | ResidentTile) and not (device.limits.hopper and aligned and dtype.itemsize == 2):
        pytest.skip(f"{tile} is for 16 bits, aligned, on Hopper")
    if isinstance(tile, Tf32Tile) and dtype is not torch.float32:
        pytest.skip(f"{tile} is for fp32")
    return pack_weight(weight, dtype, tile, beside)


def allowed(dtype: torch.dtype, tile: Tile | None, terms: int) -> float:
    """The tolerance of what the tile computes in."""
    rounds = isinstance(tile, Tf32Tile) and tile.products == 1
    return tolerance(Precision.TF32 if rounds else NATIVE[dtype], terms)


def best_of(precision: Precision, ci: int, co: int) -> Tile:
    """The portable tile that the rule takes."""
    return candidates(ConvShape(ci, co, DTYPE_OF[precision], tf32=precision is Precision.TF32))[0]


def nothing_in_the_first_tile(rows: Tensor) -> Tensor:
    """The same map, where some 300 rows have no offset at all."""
    return torch.where(torch.arange(rows.shape[1]) < 300, -1, rows)


@pytest.mark.parametrize("ci, co", WIDTHS)
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("precision", Precision)
def test_a_convolution_agrees_with_float64(device, precision, parts, ci, co):
    rows, dtype, tile = random_map(27, 400, 333, 0.2), DTYPE_OF[precision], best_of(precision, ci, co)
    x, weight = operands(ci, co, 27, 400, dtype)
    y = poisoned(333 + SPARE, co, dtype=dtype)

    kernel_map, packed = map_of(rows, len(y), parts=parts), pack_weight(weight, dtype, tile)
    sparse_conv(device, x, packed, kernel_map, counted(333), y, **sums_for(kernel_map, packed, y))

    assert_close(y[:333], expected_conv(x, weight, rows), tolerance(precision, 27 * ci))
    assert bool(y[333:].isnan().all())


@pytest.mark.parametrize("k", [1, 2, 8, 31, 32, 33, 64, 125, 343])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tile", KINDS, ids=str)
def test_a_kernel_may_have_any_volume(device, dtype, k, tile):
    rows = nothing_in_the_first_tile(random_map(k, 200, 500, 0.1))
    x, weight = operands(16, 24, k, 200, dtype)
    y, kernel_map = poisoned(520, 24, dtype=dtype), map_of(rows, 520, shuffled=False)

    sparse_conv(device, x, packed_for(device, weight, dtype, tile), kernel_map, counted(500), y)

    assert_close(y[:500], expected_conv(x, weight, rows), allowed(dtype, tile, 16 * k))


@pytest.mark.parametrize("ci, co", [(32, 64), (5, 19), (96, 7)])
@pytest.mark.parametrize("m", [0, 1, 63, 64, 65, 129, 1000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tile", KINDS, ids=str)
def test_without_a_map_it_is_a_linear_layer(device, dtype, m, ci, co, tile):
    x, weight = operands(ci, co, 1, m, dtype)
    bias, y = torch.randn(co, device="cuda"), poisoned(1100, co, dtype=dtype)
    packed = packed_for(device, weight, dtype, tile, aligned=ci % 8 == 0)

    sparse_conv(device, x, packed, None, counted(m), y, bias=bias)

    assert_close(y[:m], x[:m].double() @ weight[0].double() + bias.double(), allowed(dtype, tile, ci))
    assert bool(y[m:].isnan().all())


@pytest.mark.parametrize("activation", [None, *Activation], ids=str)
@pytest.mark.parametrize("co", [32, 19])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tile", KINDS, ids=str)
def test_the_epilogue_adds_bias_and_residual_and_applies_the_activation(device, dtype, co, activation, tile):
    rows = random_map(8, 100, 200, 0.3)
    x, weight = operands(24, co, 8, 100, dtype)
    bias, residual = torch.randn(co, device="cuda"), torch.randn(200, co, device="cuda").to(dtype)
    y = residual.clone()
    sums = expected_conv(x, weight, rows) + bias.double() + residual.double()
    packed, kernel_map = packed_for(device, weight, dtype, tile), map_of(rows, 200)

    sparse_conv(device, x, packed, kernel_map, counted(200), y, bias=bias, residual=y, activation=activation, slope=0.2)

    assert_close(y, activate(sums, activation, 0.2), allowed(dtype, tile, 24 * 8))


@pytest.mark.parametrize("start", [8, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tile", KINDS, ids=str)
def test_inputs_and_outputs_may_be_columns_of_wider_matrices(device, dtype, start, tile):
    rows = random_map(27, 150, 150, 0.2)
    x, weight = operands(48, 40, 27, 150, dtype)
    wide_x, wide_y = poisoned(155, 64, dtype=dtype), poisoned(150, 56, dtype=dtype)
    wide_x[:, start : start + 48] = x
    y, packed = wide_y[:, start : start + 40], packed_for(device, weight, dtype, tile, aligned=start % 8 == 0)

    sparse_conv(
        device,
        *(wide_x[:, start : start + 48], packed, map_of(rows, 150), counted(150), y),
        residual=wide_x[:150, start : start + 40],
    )

    expected = expected_conv(x, weight, rows) + x[:150, :40].double()
    assert_close(y, expected, allowed(dtype, tile, 27 * 48))
    assert bool(wide_y[:, :start].isnan().all()) and bool(wide_y[:, start + 40 :].isnan().all())


def tiles_for(device: Device, precision: Precision, ci: int) -> list[Tile]:
    """All that can take so many channels of a matrix of its own."""
    hopper = WGMMA_TILES if device.limits.hopper and ci % 8 == 0 and DTYPE_OF[precision].itemsize == 2 else ()
    return [*PORTABLE[precision], *hopper]


@pytest.mark.parametrize("ci, co", [(48, 40), (20, 40), (64, 128), (96, 256), (136, 300), (8, 1)])
@pytest.mark.parametrize(
    "k, outputs, parts", [(27, 700, 1), (27, 700, 3), (27, 1, 3), (40, 129, 1), (8, 1, 1), (1, 256, 1)]
)
@pytest.mark.parametrize("precision", Precision)
def test_every_tile_gives_the_same_bits(device, precision, ci, co, k, outputs, parts):
    rows, dtype = random_map(k, 500, outputs, 0.15 if parts == 1 else 0.04), DTYPE_OF[precision]
    x, weight = operands(ci, co, k, 500, dtype)
    kernel_map, first = map_of(rows, outputs + SPARE, parts=parts), None

    for tile, told in product(tiles_for(device, precision, ci), [True, False]):
        if not told and tile not in WGMMA_TILES:
            continue  # others have but one order of tiles
        y = poisoned(outputs + SPARE, co, dtype=dtype)
        packed = pack_weight(weight, dtype, tile)
        given = sums_for(kernel_map, packed, y)
        used = kernel_map if told else replace(kernel_map, tiles=None)
        sparse_conv(device, x, packed, used, counted(outputs), y, **given)
        assert not bool(given["progress"].any())
        if first is None:
            first = y
            assert_close(y[:outputs], expected_conv(x, weight, rows), tolerance(precision, k * ci))
        assert torch.equal(y[:outputs], first[:outputs]), tile
        assert bool(y[outputs:].isnan().all()), tile


@pytest.mark.parametrize("precision, most", [(Precision.FP32, 1e-6), (Precision.TF32, 5e-4)])
@pytest.mark.parametrize("ci", [32, 256])
def test_a_layer_is_as_accurate_as_its_precision(device, precision, most, ci):
    rows = random_map(27, 2000, 1500, 0.5)
    x, weight = operands(ci, 128, 27, 2000, torch.float32)
    expected = expected_conv(x, weight, rows)

    for tile in PORTABLE[precision]:
        y = poisoned(1500, 128)
        sparse_conv(device, x, pack_weight(weight, torch.float32, tile), map_of(rows, 1500), counted(1500), y)
        assert float((y.double() - expected).norm() / expected.norm()) < most, tile


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tile", KINDS, ids=str)
def test_a_cloud_gives_the_same_bits_alone_and_in_a_batch_of_any_capacity(device, dtype, tile, parts):
    alone = random_sites((3000,), 12)
    others = random_sites((500, 0, 700), 9, seed=1)
    batch = torch.cat([others[others[:, 0] == 0], alone + torch.tensor([1, 0, 0, 0]), others[others[:, 0] == 2]]).int()
    features = torch.randn(len(batch), 32, device="cuda").to(dtype)
    _, weight = operands(32, 96, 27, 1, dtype)
    start = int((batch[:, 0] == 0).sum())
    results = []
    for coordinates, x in ((batch, features), (alone, features[start : start + len(alone)].clone())):
        sites = sites_on_device(device, coordinates, 4)
        y = poisoned(sites.capacity, 96, dtype=dtype)
        packed = packed_for(device, weight, dtype, tile)
        kernel_map = mapped(device, sites, sites, SUBMANIFOLD[0], parts=parts)
        sparse_conv(device, x, packed, kernel_map, sites.count, y, **sums_for(kernel_map, packed, y))
        results.append(y[: len(coordinates)])

    assert torch.equal(results[0][start : start + len(alone)], results[1])


@pytest.mark.parametrize("likely", [1, 100, 5000])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tile", KINDS, ids=str)
def test_a_shortcut_is_one_offset_more_however_many_rows_are_likely(device, dtype, tile, parts, likely):
    rows = random_map(27, 700, 1500, 0.2 if parts == 1 else 0.05)
    x, weight = operands(64, 96, 27, 700, dtype)
    wide, beside = poisoned(1500, 88, dtype=dtype), (torch.randn(72, 96, device="cuda") * 0.1).to(dtype)
    wide[:, 8:80] = torch.randn(1500, 72, device="cuda").to(dtype)
    packed = packed_for(device, weight, dtype, tile, beside=beside)
    y = poisoned(1500 + SPARE, 96, dtype=dtype)

    kernel_map = map_of(rows, len(y), parts=parts)
    given = {"shortcut": wide[:, 8:80], "likely": likely, "settled": True, **sums_for(kernel_map, packed, y)}
    sparse_conv(device, x, packed, kernel_map, counted(1500), y, **given)

    sums = expected_conv(x, weight, rows) + wide[:, 8:80].double() @ beside.double()
    assert_close(y[:1500], sums, allowed(dtype, tile, 27 * 64 + 72))
    assert bool(y[1500:].isnan().all())


@pytest.fixture
def hopper(device: Device) -> Device:
    if not device.limits.hopper:
        pytest.skip("runs on Hopper")
    return device


@pytest.mark.parametrize("k", [1, 8, 27, 28])
@pytest.mark.parametrize("outputs", [0, 1, 63, 64, 65, 1000, 30_000])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("tile", RESIDENT_TILES, ids=str)
def test_weights_that_stay_give_what_float64_gives(hopper, tile, dtype, outputs, k):
    if k > tile.offsets:
        pytest.skip(f"{tile} has room for {tile.offsets}")
    ci, co, inputs = tile.k - (0, 3, 12)[outputs % 3], tile.n - outputs % 2 * 5, 400
    rows = (
        nothing_in_the_first_tile(random_map(k, inputs, outputs, 0.2))
        if outputs > 500
        else random_map(k, inputs, outputs, 0.2)
    )
    x, weight = operands(ci, co, k, inputs, dtype)
    bias, rest = torch.randn(co, device="cuda"), torch.zeros(len(x), -ci % tile.piece, dtype=dtype, device="cuda")
    padded = torch.cat([x, rest, poisoned(len(x), 16, dtype=dtype)], 1)  # nothing after the last piece is read
    start = 3 if outputs % 2 else 8
    wide = poisoned(outputs + SPARE, co + 16, dtype=dtype)
    y, residual = wide[:, start : start + co], torch.randn(outputs + SPARE, co, device="cuda").to(dtype)
    sums = expected_conv(x, weight, rows) + bias.double() + residual[:outputs].double()
    given = {"bias": bias, "residual": residual, "activation": Activation.RELU}

    packed, kernel_map = pack_weight(weight, dtype, tile), map_of(rows, len(y))
    sparse_conv(hopper, padded[:, :ci], packed, kernel_map, counted(outputs), y, **given)
    assert_close(y[:outputs], sums.relu(), allowed(dtype, tile, k * ci))
    assert int(wide.isnan().sum()) == wide.numel() - outputs * co

    given = {"bias": bias, "residual": y, "activation": Activation.TANH, "likely": 100, "settled": True}
    y[:] = residual
    sparse_conv(hopper, padded[:, :ci], packed, kernel_map, counted(outputs), y, **given)
    assert_close(y[:outputs], sums.tanh(), allowed(dtype, tile, k * ci))

    wide = poisoned(outputs + SPARE, co + 16)  # as the last layer of a network has it
    y, given = wide[:, start : start + co], {"bias": bias, "residual": residual}
    sparse_conv(hopper, padded[:, :ci], packed, kernel_map, counted(outputs), y, **given)
    assert_close(y[:outputs], sums, tolerance(Precision.FP32, k * ci))
    assert int(wide.isnan().sum()) == wide.numel() - outputs * co


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("ci, co", [(16, 16), (32, 64), (64, 64)])
def test_weights_that_stay_give_the_same_bits_with_any_tile_and_anywhere(hopper, ci, co, dtype):
    sites = sites_on_device(hopper, random_sites((3000, 500), 12), 4)
    kernel_map, n = mapped(hopper, sites, sites, SUBMANIFOLD[0]), 3500
    x, weight = operands(ci, co, 27, n, dtype)
    room = 1 << 15  # for all blocks
    found = []
    for tile in [tile for tile in RESIDENT_TILES if tile.k == ci and tile.n >= co]:
        for likely in (1, 3500, room):
            y = poisoned(sites.capacity, co, dtype=dtype)
            packed = pack_weight(weight, dtype, tile)
            sparse_conv(hopper, x, packed, kernel_map, sites.count, y, likely=min(likely, len(y)))
            found.append(y[: int(sites.count)])

    assert all(torch.equal(y, found[0]) for y in found)


@pytest.mark.parametrize(
    "tile, parts", [*product(HOPPER_KINDS, (1, 3)), *((RESIDENT_TILES[i], 1) for i in (0, 4, 8))], ids=str
)
def test_a_launch_beside_the_one_before_reads_what_that_one_wrote(device, tile, parts):
    rows, count = random_map(27, 3000, 3000, 0.2 if parts == 1 else 0.05), counted(3000)
    kernel_map, channels = map_of(rows, 3000, parts=parts), tile.n if isinstance(tile, ResidentTile) else 96
    x, weight = operands(channels, channels, 27, 3000, torch.float16)
    packed = packed_for(device, weight * 0.2, torch.float16, tile)

    def chain(*, settled: bool) -> Tensor:
        y, z = x[:3000].clone(), poisoned(3000, channels, dtype=torch.float16)
        own = [sums_for(kernel_map, packed, y) for _ in range(2)]
        with torch.cuda.stream(device.stream):
            device.stream.wait_stream(torch.cuda.default_stream())
            for _ in range(20):
                for a, b, sums in ((y, z, own[0]), (z, y, own[1])):
                    given = {"residual": a, "likely": 500, "settled": settled, **sums}
                    sparse_conv(device, a, packed, kernel_map, count, b, activation=Activation.TANH, **given)
        device.stream.synchronize()
        return y

    assert torch.equal(chain(settled=True), chain(settled=False))
