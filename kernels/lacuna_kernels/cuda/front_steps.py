"""The steps that come before the convolutions of a grid: sites of all levels, and the maps between them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.fusion import Layer
from lacuna_kernels.cuda.kernel_map import make_maps
from lacuna_kernels.cuda.key_order import MOST_ORDERINGS
from lacuna_kernels.cuda.precision import DTYPES
from lacuna_kernels.cuda.site_steps import MapTask, cleared_tables, kernel_map_task, map_name, sites_task, source_of
from lacuna_kernels.cuda.sparse_conv_choice import ConvShape, resident
from lacuna_kernels.cuda.steps import Buffers, Stage, Work, Writer, ints, sites_name
from lacuna_kernels.cuda.tasks import Task, at_once
from lacuna_kernels.cuda.tile_order import MOST_MAPS, order_tiles
from lacuna_kernels.ops.sparse_conv import SparseConv
from lacuna_kernels.types import Level


@dataclass(frozen=True, slots=True)
class LevelStage:
    """The levels whose sites are made at once, how, and then the kernel maps that lead from or to them."""

    levels: Sequence[Level]
    sites: Sequence[Task]
    maps: Sequence[MapTask]

    def stage(self, device: Device, name: str, others: Sequence[MapTask] = ()) -> Stage:
        """As a plan has it; `name` is that of what its maps work with. Tiles of others, too, are put in order last."""
        counts = [sites_name(level, "count") for level in self.levels]
        maps, tiles = maps_task(device, self.maps, name), tiles_task(device, [*others, *self.maps])
        return Stage(at_once(device, self.sites), at_once(device, [maps]), tiles, counts)


@dataclass(frozen=True, slots=True)
class Front:
    """What has to be made before the convolutions of a grid.

    means   the features of its sites
    clear   the tables of all levels that are made of it
    own     kernel maps between its sites
    stages  the levels that are made of it: those that are made of its own sites, all at once, then those of others,
            one after the other
    """

    means: Task
    clear: Task
    own: Sequence[MapTask]
    stages: Sequence[LevelStage]

    @classmethod
    def of(cls, writer: Writer, grid: Level, means: Task) -> "Front":
        """Collect it from the layers to come; `means` makes the features."""
        levels, maps = [[grid], list[Level]()], dict[str, tuple[MapTask, int]]()
        layers = [*_convolutions(writer, grid)]
        told = {key for key, layer in layers if _may_be_told(writer, layer)}
        for key, layer in layers:
            node = layer.node
            assert isinstance(node, SparseConv)
            level_in, level_out = writer.level(node.inputs[0]), writer.level(layer.output)
            if node.mode in ("strided", "generative"):
                if source_of(level_out)[0] == grid:
                    levels[1].append(level_out)
                else:
                    levels.append([level_out])
            if key is not None and key not in maps:
                last = max(at for at, made in enumerate(levels) if level_in in made or level_out in made)
                maps[key] = kernel_map_task(writer, key, node, level_in, level_out, told=key in told), last
        made = [level for stage in levels[1:] for level in stage]
        at_stage = [[task for task, after in maps.values() if after == at] for at in range(len(levels))]
        stages = [
            LevelStage(stage, [sites_task(writer, level) for level in stage], after)
            for stage, after in zip(levels[1:], at_stage[1:], strict=True)
            if stage
        ]
        return cls(means, cleared_tables(writer, made), at_stage[0], stages)


def _convolutions(writer: Writer, grid: Level) -> Iterator[tuple[str | None, Layer]]:
    """The sparse convolutions to come on levels of a grid, and the names of their maps."""
    for layer in writer.layers:
        node = layer.node
        if isinstance(node, SparseConv) and writer.level(layer.output).grid == grid.name:
            yield map_name(node, writer.level(node.inputs[0]), writer.level(layer.output)), layer


def _may_be_told(writer: Writer, layer: Layer) -> bool:
    """Whether a convolution may take tiles of `wgmma`, which may be told an order: unless all its weights stay."""
    (volume, ci, co), dtype = layer.weights["weight"].shape, DTYPES[layer.precision]
    shortcut = len(layer.weights.get("shortcut", ()))
    shape = ConvShape(ci, co, dtype, shortcut=shortcut, volume=volume, readable=True)
    return writer.device.limits.hopper and dtype.itemsize == 2 and not resident(shape)


def write_front(writer: Writer, name: str, grid: Level, place: Task, means: Task) -> None:
    """Write the steps that make the sites of a grid; those of all levels, and maps; and features and maps of the grid.

    The levels are made beside what reads nothing but the grid: the first convolutions. The order of tiles is waited for
    by itself: most of the first to read a map do without.

    place  makes the sites of the grid, and beside it tables are cleared
    """
    device, front = writer.device, Front.of(writer, grid, means)
    own = maps_task(device, front.own, f"{name}:maps")
    levels = list(front.stages)
    if not levels and any(one.tiles for one in front.own):
        levels.append(LevelStage([], [], []))  # for their order alone
    stages = [one.stage(device, f"{name}:maps {at}", [] if at else front.own) for at, one in enumerate(levels)]
    placed, now = at_once(device, [place, front.clear]), at_once(device, [means, own])
    writer.add(f"place {name}", placed.reads, placed.writes, placed.run)
    if stages:
        writer.add_with(name, now, stages)
    else:
        writer.add(name, now.reads, now.writes, now.run)


def maps_task(device: Device, maps: Sequence[MapTask], name: str) -> Task:
    """Kernel maps that do not depend on one another, as many at a time as may be, the longest first.

    name  that of the buffers they work with, one after another
    """
    longest = sorted(maps, key=lambda one: -one.work)
    turns = [longest[at : at + MOST_ORDERINGS] for at in range(0, len(longest), MOST_ORDERINGS)]
    works = {f"{name}.{lane}:work": ints(one.work) for lane, one in enumerate(longest[:MOST_ORDERINGS])}

    def run(b: Buffers) -> None:
        for turn in turns:
            make_maps(device, [one.job(b, b[work][: one.work]) for one, work in zip(turn, works, strict=False)])

    made = {key: spec for one in maps for key, spec in one.makes.items()}
    return Task(list(dict.fromkeys(key for one in maps for key in one.reads)), made | works, run)


def tiles_task(device: Device, maps: Sequence[MapTask]) -> Work | None:
    """The order of the tiles of kernel maps, as many at a time as may be; None if there is nothing to order."""
    tasks = [one.tiles for one in maps if one.tiles is not None]

    def run(b: Buffers) -> None:
        for at in range(0, len(tasks), MOST_MAPS):
            order_tiles(device, [one.order(b) for one in tasks[at : at + MOST_MAPS]])

    made = {key: spec for one in tasks for key, spec in one.makes.items()}
    return Work(list(dict.fromkeys(key for one in tasks for key in one.reads)), made, run) if tasks else None
