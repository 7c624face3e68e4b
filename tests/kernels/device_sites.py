"""Clouds, sites and maps on a GPU, with room to spare that is filled with nonsense, so that nothing may rely on it."""

import torch
from torch import Tensor

from lacuna_kernels.cuda.coordinates import SiteBuffer, pack_geometry, strided_sites, strided_work, table_slots
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.kernel_map import KernelMap, forward_map, inverse_map, map_shapes
from lacuna_kernels.cuda.voxelize import Grid, PlacementBuffer, PointBuffer, voxelize, voxelize_work
from lacuna_kernels.types import Geometry, Triple, Value

SPARE = 77
SPARE_ITEMS = 3
NONSENSE = 0x7B7B7B7B
ONCE = Geometry((1, 1, 1), (1, 1, 1), (0, 0, 0), (1, 1, 1), floor_sites=True)


def ints(*shape: int) -> Tensor:
    """Nonsense where a kernel should write: int32."""
    return torch.full(shape, NONSENSE, dtype=torch.int32, device="cuda")


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """NaN where a kernel should write."""
    return torch.full(shape, torch.nan, dtype=dtype, device="cuda")


def flag() -> Tensor:
    """An overflow flag, down."""
    return torch.zeros(1, dtype=torch.int32, device="cuda")


def counted(number: int) -> Tensor:
    """A count on the device."""
    return torch.tensor([number], dtype=torch.int32, device="cuda")


def cloud_on_device(cloud: Value, spare: int = SPARE, spare_items: int = SPARE_ITEMS) -> PointBuffer:
    assert cloud.offsets is not None
    n = len(cloud.data)
    points = poisoned(n + spare, cloud.data.shape[1])
    points[:n] = cloud.data.cuda()
    offsets = torch.cat([cloud.offsets, cloud.offsets.new_full((spare_items,), n)]).int().cuda()
    return PointBuffer(points, counted(n), offsets)


def room_for_sites(capacity: int, items: int) -> SiteBuffer:
    return SiteBuffer(ints(capacity, 4), ints(1), ints(items + SPARE_ITEMS + 1), ints(table_slots(capacity)))


def room_for_placement(points: int) -> PlacementBuffer:
    return PlacementBuffer(poisoned(points, 3), ints(points, 4), ints(points))


def voxelized(
    device: Device, cloud: PointBuffer, grid: Grid, capacity: int | None = None
) -> tuple[PlacementBuffer, SiteBuffer, Tensor]:
    """Sites of a cloud, where its points went, and the overflow flag."""
    points = len(cloud.points)
    sites = room_for_sites(points if capacity is None else capacity, len(cloud.offsets) - 1 - SPARE_ITEMS)
    placement, overflow = room_for_placement(points), flag()
    voxelize(device, cloud, grid, placement, sites, ints(voxelize_work(points, len(sites.table))), overflow)
    return placement, sites, overflow


def strided(
    device: Device, inputs: SiteBuffer, geometry: Geometry, shape: Triple | None, capacity: int
) -> tuple[SiteBuffer, Tensor]:
    """Output sites of a strided convolution, and the overflow flag."""
    sites, overflow = room_for_sites(capacity, len(inputs.offsets) - 1 - SPARE_ITEMS), flag()
    work = ints(strided_work(inputs.capacity, capacity))
    strided_sites(device, inputs, sites, pack_geometry(geometry, shape).cuda(), work, overflow)
    return sites, overflow


def sites_on_device(device: Device, coordinates: Tensor, items: int) -> SiteBuffer:
    """A given set of sites, int32 [n, 4] sorted by item."""
    n = len(coordinates)
    room = ints(n + SPARE, 4)
    room[:n] = coordinates.cuda()
    given = SiteBuffer(room, counted(n), ints(items + SPARE_ITEMS + 1), ints(1))
    return strided(device, given, ONCE, None, n + SPARE)[0]


def mapped(
    device: Device, inputs: SiteBuffer, outputs: SiteBuffer, geometry: Geometry, *, backward: bool = False
) -> KernelMap:
    """The kernel map of a convolution, or of the one that undoes it (inputs coarse, outputs fine)."""
    rows, present = map_shapes(geometry.volume, outputs.capacity)
    result = KernelMap(ints(*rows), ints(*present))
    make = inverse_map if backward else forward_map
    make(device, inputs, outputs, pack_geometry(geometry).cuda(), result)
    return result
