"""Launches of src/voxelize.cu: points to sites, and where every point went."""

from dataclasses import dataclass

from torch import Tensor

from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.coordinates import SiteBuffer, add_sites, numbering_buffers, numbering_work
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.scan import blocks
from lacuna_kernels.types import Triple

PLACE, INSERT, FIRST, NUMBER, VOXELS_OF_POINTS, SITE_OF_POINTS = (
    Variant("voxelize.cu", name)
    for name in ("place_points", "insert_points", "first_points", "number_voxels", "voxels_of_points", "site_of_points")
)
VARIANTS = (PLACE, INSERT, FIRST, NUMBER, VOXELS_OF_POINTS, SITE_OF_POINTS)

THREADS = 256


@dataclass(frozen=True, slots=True)
class PointBuffer:
    """A batch of clouds, with room for some points; rows at or past the count mean nothing.

    points   fp32 [capacity, columns], of which x, y, z come first
    count    int32 [1], points in use
    offsets  int32 [items + 1], where the points of each item begin; items that are not there begin at the count
    """

    points: Tensor
    count: Tensor
    offsets: Tensor


@dataclass(frozen=True, slots=True)
class PlacementBuffer:
    """Where the points of a cloud lie in a grid.

    position        fp32 [points, 3], in voxels from the origin, before rounding down
    voxels          int32 [points, 4] as (item, x, y, z); item -1 for a point outside the grid's range
    voxel_of_point  int32 [points], row among the sites; -1 for a point outside
    """

    position: Tensor
    voxels: Tensor
    voxel_of_point: Tensor


@dataclass(frozen=True, slots=True)
class Grid:
    """Where voxels lie: origin and size in metres; cells inside the range by axis, None without a range."""

    origin_m: tuple[float, float, float]
    voxel_size_m: tuple[float, float, float]
    cells: Triple | None = None


def placing_work(points: int) -> int:
    """Numbers of int32 that `voxelize` needs to work with."""
    return points + numbering_work(points)


def voxelize(
    device: Device,
    cloud: PointBuffer,
    grid: Grid,
    placement: PlacementBuffer,
    sites: SiteBuffer,
    work: Tensor,
    overflow: Tensor,
) -> None:
    """Launch the placing of points and the numbering of voxels by their first point; as ops.voxelize has it.

    Points that limits.check_request would refuse count as outside the range. `placement.voxel_of_point` is left to
    `voxels_of_points`.

    work      int32 [placing_work(points)], kept for `voxels_of_points`
    overflow  int32 [1], becomes 1 if there are more voxels than room; which of them are then made is left open, but
              no row lies at or past the room
    """
    points = len(cloud.points)
    slots, (bits, sums) = work[:points], numbering_buffers(work[points:], points)
    launch, candidates = ((blocks(points, THREADS), 1, 1), (THREADS, 1, 1)), sites.candidates
    device.kernel(PLACE)(
        *launch,
        *(cloud.points, cloud.points.stride(0), cloud.count, cloud.offsets, len(cloud.offsets) - 1),
        *map(float, grid.origin_m),
        *map(float, grid.voxel_size_m),
        *(grid.cells or (-1, -1, -1)),
        *(placement.position, placement.voxels, sites.table, sites.table.numel() // 4),
    )
    device.kernel(INSERT)(
        *launch,
        *(placement.voxels, cloud.count, *candidates, slots, overflow),
    )
    tiles = (len(sums), 1, 1), (THREADS, 1, 1)
    device.kernel(FIRST)(*tiles, cloud.count, slots, candidates[0], bits, sums)
    device.kernel(NUMBER)(
        *tiles,
        *(placement.voxels, cloud.count, slots, candidates[0], bits, sums, *sites.made_by(overflow)),
    )
    add_sites(device, sites, overflow)


def voxels_of_points(
    device: Device, cloud: PointBuffer, placement: PlacementBuffer, sites: SiteBuffer, work: Tensor
) -> None:
    """Launch the writing of `placement.voxel_of_point`, by what `voxelize` left in its `work` and the sites' table."""
    points = len(cloud.points)
    slots = work[:points]
    grid, block = (blocks(points, THREADS), 1, 1), (THREADS, 1, 1)
    device.kernel(VOXELS_OF_POINTS)(grid, block, slots, cloud.count, sites.candidates[0], placement.voxel_of_point)


def site_of_points(
    device: Device, placement: PlacementBuffer, count: Tensor, sites: SiteBuffer, stride: Triple, result: Tensor
) -> None:
    """Launch the search for the site of a level, of some stride, that holds each point: int32 [points], -1 for none.

    count  int32 [1], points in use
    """
    device.kernel(SITE_OF_POINTS)(
        (blocks(len(result), THREADS), 1, 1),
        (THREADS, 1, 1),
        *(placement.voxels, count, *stride, *sites.found_by, result),
    )
