"""Time the sparse convolutions of MinkUNet-42 on a scan, layer by layer, and the making of its sites and maps.

python kernels/bench/bench_sparse.py SCAN.bin [--columns 4] [--voxel 0.05] [--dtype fp16] [--tiles] [--clouds 1]

SCAN.bin holds fp32 points, x y z first. Times are medians over replays of a CUDA graph. "effective" counts the products
whose input is there; "executed" those of the tiles, which have an offset if any of their rows does. Tiles are made in
the order of their rows, never the longest first, as in a program some are.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import torch

from bench import timing
from bench.gpu import need_gpu
from lacuna_kernels import DType
from lacuna_kernels.cuda.coordinates import (
    FREE,
    TABLES,
    SiteBuffer,
    numbering_work,
    output_sites,
    pack_geometry,
    table_slots,
)
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.kernel_map import (
    GROUP,
    KernelMap,
    MapJob,
    Offsets,
    make_maps,
    map_work,
)
from lacuna_kernels.cuda.key_order import MOST_ORDERINGS
from lacuna_kernels.cuda.offset_slots import PARTS, offset_slots, parts_of
from lacuna_kernels.cuda.row_means import row_means, row_means_work
from lacuna_kernels.cuda.sparse_conv import PROGRESS, are_whole_pieces, pack_weight, part_sums, sparse_conv
from lacuna_kernels.cuda.sparse_conv_choice import FP32_TILES, MMA_TILES, WGMMA_TILES, ConvShape, candidates, resident
from lacuna_kernels.cuda.sparse_conv_hopper import WgmmaTile, piece_of
from lacuna_kernels.cuda.sparse_conv_tiles import MmaTile, Tile
from lacuna_kernels.cuda.voxelize import Grid, PlacementBuffer, PointBuffer, placing_work, voxelize, voxels_of_points
from lacuna_kernels.ops.coordinates import submanifold_geometry
from lacuna_kernels.types import Geometry

LEVELS = 5
CUBE = submanifold_geometry((3, 3, 3), (1, 1, 1))
HALVING = Geometry((2, 2, 2), (2, 2, 2), (0, 0, 0), (1, 1, 1))
MORE_TILES = [
    *(
        MmaTile(128, 32, 64, (8, 1)),
        MmaTile(64, 32, 64, (4, 1)),
        MmaTile(64, 64, 64, (2, 2)),
        MmaTile(64, 96, 64, (2, 2)),
    ),
    *(MmaTile(64, 128, 32, (2, 2), 4), MmaTile(64, 128, 64, (2, 4)), MmaTile(128, 128, 64, (4, 2))),
]
MORE_WGMMA = [
    WgmmaTile(64, 96, 3, 128, 3),
    *(WgmmaTile(128, 64, 4, 128, 2), WgmmaTile(64, 64, 4, 128, 3), WgmmaTile(128, 32, 4, 128, 2)),
]


@dataclass(frozen=True, slots=True)
class Layer:
    """Some equal convolutions of the network: the map it reads through, and how often it is there."""

    map: str
    ci: int
    co: int
    times: int

    def __str__(self) -> str:
        return f"{self.map:10} {self.ci:3} -> {self.co:3} x{self.times}"


LAYERS = [
    *(Layer("cube 0", 4, 32, 1), Layer("cube 0", 32, 32, 1)),
    *(Layer("down 1", 32, 32, 1), Layer("cube 1", 32, 32, 4)),
    *(Layer("down 2", 32, 32, 1), Layer("cube 2", 32, 64, 1), Layer("cube 2", 64, 64, 3), Layer("one 2", 32, 64, 1)),
    *(
        Layer("down 3", 64, 64, 1),
        Layer("cube 3", 64, 128, 1),
        Layer("cube 3", 128, 128, 3),
        Layer("one 3", 64, 128, 1),
    ),
    *(Layer("down 4", 128, 128, 1), Layer("cube 4", 128, 256, 1), Layer("cube 4", 256, 256, 3)),
    *(Layer("one 4", 128, 256, 1), Layer("up 3", 256, 256, 1), Layer("cube 3", 384, 256, 1)),
    *(Layer("cube 3", 256, 256, 3), Layer("one 3", 384, 256, 1), Layer("up 2", 256, 128, 1)),
    *(Layer("cube 2", 192, 128, 1), Layer("cube 2", 128, 128, 3), Layer("one 2", 192, 128, 1)),
    *(Layer("up 1", 128, 96, 1), Layer("cube 1", 128, 96, 1), Layer("cube 1", 96, 96, 3), Layer("one 1", 128, 96, 1)),
    *(Layer("up 0", 96, 96, 1), Layer("cube 0", 128, 96, 1), Layer("cube 0", 96, 96, 3), Layer("one 0", 128, 96, 1)),
    Layer("one 0", 96, 19, 1),
]


def ints(*shape: int) -> torch.Tensor:
    """Room for int32."""
    return torch.zeros(shape, dtype=torch.int32, device="cuda")


class Frontend:
    """Sites of all levels and the maps between them, from points, in buffers with room for all points."""

    def __init__(self, device: Device, points: torch.Tensor, clouds: int, voxel_m: float, dtype: torch.dtype) -> None:
        self.device, n = device, len(points) * clouds
        offsets = torch.arange(clouds + 1, dtype=torch.int32, device="cuda") * len(points)
        self.cloud = PointBuffer(
            points.repeat(clouds, 1).cuda(), torch.full((1,), n, dtype=torch.int32).cuda(), offsets
        )
        self.grid = Grid((0, 0, 0), (voxel_m,) * 3)
        self.placement = PlacementBuffer(torch.zeros(n, 3, device="cuda"), ints(n, 4), ints(n))
        self.levels = [self._room(n, clouds) for _ in range(LEVELS)]
        self.maps = {f"cube {level}": self._map(CUBE, n, 1 << level) for level in range(LEVELS)}
        self.maps |= {f"down {level}": self._map(HALVING, n) for level in range(1, LEVELS)}
        self.maps |= {f"up {level}": self._map(HALVING, n) for level in range(LEVELS - 1)}
        self.features = torch.zeros(n, points.shape[1], dtype=dtype, device="cuda")
        self.work = [ints(placing_work(n)), ints(row_means_work(n, n)), ints(numbering_work(n))]
        self.map_work = [ints(map_work(CUBE.volume, n, PARTS)) for _ in range(MOST_ORDERINGS)]
        self.offsets = {
            (g, parts): Offsets(g, pack_geometry(g).cuda(), offset_slots(g, parts).cuda())
            for g, parts in ((CUBE, 1), (CUBE, PARTS), (HALVING, 1))
        }
        self.overflow = ints(1)

    @staticmethod
    def _room(n: int, items: int) -> SiteBuffer:
        return SiteBuffer(ints(n, 4), ints(1), ints(items + 1), ints(TABLES, table_slots(n)), ints(n, 8))

    @staticmethod
    def _map(geometry: Geometry, capacity: int, stride: int = 1) -> KernelMap:
        return KernelMap.made(geometry.volume, capacity, ints, parts_of(geometry, stride))

    def voxelize(self) -> None:
        voxelize(self.device, self.cloud, self.grid, self.placement, self.levels[0], self.work[0], self.overflow)
        voxels_of_points(self.device, self.cloud, self.placement, self.levels[0], self.work[0])

    def means(self) -> None:
        row_of_point, count, work = self.placement.voxel_of_point, self.cloud.count, self.work[1]
        row_means(self.device, self.cloud.points, row_of_point, count, self.features, self.levels[0].count, work)

    def sites(self) -> None:
        for fine, coarse in zip(self.levels, self.levels[1:], strict=False):
            coarse.table.fill_(FREE)
            packed = self.offsets[HALVING, 1].packed
            output_sites(self.device, fine, coarse, HALVING, packed, self.work[2], self.overflow)

    def make_maps(self) -> None:
        """As many at a time as may be."""
        made = []
        for level, sites in enumerate(self.levels):
            cube = self.maps[f"cube {level}"]
            made.append((sites, sites, self.offsets[CUBE, cube.parts], cube, False))
        for level, (fine, coarse) in enumerate(zip(self.levels, self.levels[1:], strict=False)):
            offsets = self.offsets[HALVING, 1]
            made.append((fine, coarse, offsets, self.maps[f"down {level + 1}"], False))
            made.append((coarse, fine, offsets, self.maps[f"up {level}"], True))
        for at in range(0, len(made), MOST_ORDERINGS):
            turn = zip(made[at:], self.map_work, strict=False)
            make_maps(self.device, [MapJob(*given, work, backward) for (*given, backward), work in turn])

    def run(self) -> None:
        """Everything, in order."""
        for part in (self.voxelize, self.means, self.sites, self.make_maps):
            part()


def milliseconds(device: Device, launch: Callable[[], None]) -> float:
    """Median time of one launch."""
    with torch.cuda.stream(device.stream):
        launch()
        return timing.milliseconds(lambda _: launch(), copies=1, most=11)


def pairs(kernel_map: KernelMap, count: int, tile_m: int) -> tuple[int, int]:
    """Pairs of output row and offset whose input is there, and those that tiles of tile_m places work through."""
    effective = executed = 0
    planes = [None] if kernel_map.parts == 1 else [0, 2, 1]  # of 27 offsets, see `offset_slots`
    for part, plane in enumerate(planes):
        own = slice(None) if plane is None else slice(plane, None, 3)
        first = 0 if part == kernel_map.parts - 1 else int(kernel_map.ones[part])
        here = (kernel_map.rows[own] >= 0)[:, first:count] & told(kernel_map, part)[own, first:count]
        there = torch.nn.functional.pad(here, (first % tile_m, -count % tile_m))
        effective += int(there.sum())
        executed += int(there.view(len(there), -1, tile_m).any(2).sum()) * tile_m
    return effective, executed


def told(kernel_map: KernelMap, part: int) -> torch.Tensor:
    """Where a map tells what an offset leads to: bool [k, places], whole groups of which any place has the offset."""
    offsets = torch.arange(len(kernel_map.rows), device=kernel_map.rows.device)
    bits = kernel_map.present[part][:, offsets // 32] >> offsets % 32 & 1
    return bits.T.bool().repeat_interleave(GROUP, 1)


class Bench:
    """One layer after the other on the maps of a scan."""

    def __init__(self, front: Frontend, dtype: torch.dtype) -> None:
        self.front, self.dtype = front, dtype
        self.counts = [int(level.count) for level in front.levels]

    def _count(self, name: str) -> int:
        return self.counts[int(name[-1])]

    def _likely_rows(self, layer: Layer) -> int:
        """What a plan knows of the rows: the points and the stride of the level."""
        return len(self.front.cloud.points) >> int(layer.map[-1])

    def launch(self, layer: Layer, tile: Tile) -> Callable[[], None]:
        """A launch of the layer, on random features."""
        sites = self.front.levels[int(layer.map[-1])]
        kernel_map = self.front.maps.get(layer.map)
        volume = 1 if kernel_map is None else len(kernel_map.rows)
        x = torch.randn(sites.capacity, layer.ci, device="cuda").to(self.dtype)
        weight = torch.randn(volume, layer.ci, layer.co, device="cuda") * layer.ci**-0.5
        y = torch.empty(sites.capacity, layer.co, dtype=self.dtype, device="cuda")
        packed, bias = pack_weight(weight, self.dtype, tile), torch.zeros(layer.co, device="cuda")
        sums = None
        if kernel_map is not None and kernel_map.parts > 1:
            sums = torch.empty(part_sums(kernel_map.parts, len(y), packed), device="cuda")
        given = {
            "bias": bias,
            "likely": self._likely_rows(layer),
            "sums": sums,
        }
        turns = cycle([ints(PROGRESS), ints(PROGRESS)])  # one launch may begin before the one before it has ended

        def launch() -> None:
            device, progress = self.front.device, next(turns)
            sparse_conv(device, x, packed, kernel_map, sites.count, y, settled=True, progress=progress, **given)

        return launch

    def shape(self, layer: Layer) -> ConvShape:
        """What a plan knows of it."""
        rows, single = self._likely_rows(layer), layer.map.startswith(("up", "one"))
        aligned, stride = are_whole_pieces(layer.ci), 1 << int(layer.map[-1])
        kernel_map = self.front.maps.get(layer.map)
        split = kernel_map is not None and kernel_map.parts > 1
        volume, readable = 1 if kernel_map is None else len(kernel_map.rows), layer.ci % piece_of(layer.ci) == 0
        where = {"stride": stride, "split": split, "volume": volume, "readable": readable}
        return ConvShape(layer.ci, layer.co, self.dtype, aligned, rows, single, **where)

    def best(self, layer: Layer) -> Tile:
        """What a plan would choose."""
        return candidates(self.shape(layer), self.front.device.limits)[0]

    def measure(self, layer: Layer, tile: Tile) -> float:
        """Time and print; milliseconds of all its occurrences."""
        time = milliseconds(self.front.device, self.launch(layer, tile))
        kernel_map, count = self.front.maps.get(layer.map), self._count(layer.map)
        effective, executed = (count, count) if kernel_map is None else pairs(kernel_map, count, tile.m)
        tflop = 2e-12 * layer.ci * layer.co
        rates = f"{tflop * effective / time * 1e3:6.1f} effective {tflop * executed / time * 1e3:6.1f} executed TFLOP/s"
        print(f"{layer!s:28} {time * 1e3:8.1f} us  {rates}  {tile}")
        return time * layer.times


def tiles_to_try(layer: Layer, shape: ConvShape, best: Tile, hopper: bool) -> Iterator[Tile]:
    """All tiles that waste no more output channels than the best, and others whose weights stay."""
    yield best
    dtype = shape.dtype
    tiles: list[Tile] = [*FP32_TILES]
    if dtype is not torch.float32:
        tiles = [*MMA_TILES, *MORE_TILES]
        if hopper and are_whole_pieces(layer.ci) and layer.ci >= 32:
            tiles = [*tiles, *WGMMA_TILES, *MORE_WGMMA]
        if hopper:
            yield from (tile for tile in resident(shape) if tile != best)
    padded = -(-layer.co // best.n) * best.n
    yield from (t for t in tiles if t != best and -(-layer.co // t.n) * t.n <= padded and t.k <= max(64, layer.ci))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--columns", type=int, default=4)
    parser.add_argument("--voxel", type=float, default=0.05, help="metres")
    parser.add_argument("--clouds", type=int, default=1, help="copies of the scan in a batch")
    parser.add_argument("--dtype", default="fp16")
    parser.add_argument("--tiles", action="store_true", help="try other tiles too")
    options = parser.parse_args()
    need_gpu()
    device, dtype = Device(), DType(options.dtype).torch
    points = torch.from_numpy(np.fromfile(options.scan, np.float32).reshape(-1, options.columns))
    front = Frontend(device, points, options.clouds, options.voxel, dtype)
    front.run()
    bench = Bench(front, dtype)
    print(f"sites by level: {bench.counts}, overflow {int(front.overflow)}")
    parts = (front.voxelize, front.means, front.sites, front.make_maps)
    for part in parts:
        print(f"{part.__name__:12} {milliseconds(device, part) * 1e3:8.1f} us")
    chosen = 0.0
    for layer in LAYERS:
        best = bench.best(layer)
        tiles = tiles_to_try(layer, bench.shape(layer), best, device.limits.hopper) if options.tiles else [best]
        times = [bench.measure(layer, tile) for tile in tiles]
        chosen += times[0]
    print(f"all convolutions, {dtype}: {chosen:.3f} ms; sites and maps {milliseconds(device, front.run):.3f} ms")
    device.close()


if __name__ == "__main__":
    main()
