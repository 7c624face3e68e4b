"""The steps that come before the convolutions of a grid: sites of all levels, and the maps between them."""

from collections.abc import Sequence
from dataclasses import dataclass

from lacuna_kernels.cuda.site_steps import cleared_tables, kernel_map_task, map_name, sites_task, source_of
from lacuna_kernels.cuda.steps import Stage, Writer, sites_name
from lacuna_kernels.cuda.tasks import Task, at_once, in_lanes
from lacuna_kernels.ops.sparse_conv import SparseConv
from lacuna_kernels.types import Level

_LANES = 12


@dataclass(frozen=True, slots=True)
class _Sites:
    """The levels whose sites are made at once, how, and then the kernel maps that lead from or to them."""

    levels: Sequence[Level]
    sites: Sequence[Task]
    maps: Sequence[Task]

    def stage(self, writer: Writer, name: str) -> Stage:
        """As a plan has it, its maps in lanes."""
        lanes = in_lanes(self.maps, [f"{name}.{lane}" for lane in range(_LANES)])
        counts = [sites_name(level, "count") for level in self.levels]
        return Stage(at_once(writer.device, self.sites), at_once(writer.device, lanes), counts)


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
    own: Sequence[Task]
    stages: Sequence[_Sites]

    @classmethod
    def of(cls, writer: Writer, grid: Level, means: Task) -> "Front":
        """Collect it from the layers to come; `means` makes the features."""
        levels, maps = [[grid], list[Level]()], dict[str, tuple[Task, int]]()
        layers = [layer for layer in writer.layers if isinstance(layer.node, SparseConv)]
        for layer in (layer for layer in layers if writer.level(layer.output).grid == grid.name):
            node = layer.node
            assert isinstance(node, SparseConv)
            level_in, level_out = writer.level(node.inputs[0]), writer.level(layer.output)
            if node.mode in ("strided", "generative"):
                if source_of(level_out)[0] == grid:
                    levels[1].append(level_out)
                else:
                    levels.append([level_out])
            key = map_name(node, level_in, level_out)
            if key is not None and key not in maps:
                last = max(at for at, made in enumerate(levels) if level_in in made or level_out in made)
                maps[key] = kernel_map_task(writer, key, node, level_in, level_out), last
        made = [level for stage in levels[1:] for level in stage]
        at_stage = [[task for task, after in maps.values() if after == at] for at in range(len(levels))]
        stages = [
            _Sites(stage, [sites_task(writer, level) for level in stage], after)
            for stage, after in zip(levels[1:], at_stage[1:], strict=True)
        ]
        return cls(means, cleared_tables(writer, made), at_stage[0], stages)


def write_front(writer: Writer, name: str, grid: Level, place: Task, means: Task) -> None:
    """Write the steps that make the sites of a grid; those of all levels, and maps; and features and maps of the grid.

    The levels are made beside what reads nothing but the grid: the first convolutions.

    place  makes the sites of the grid, and beside it tables are cleared
    """
    device, front = writer.device, Front.of(writer, grid, means)
    own = in_lanes(front.own, [f"{name}:lane"])
    stages = [sites.stage(writer, f"{name}:lane {at}") for at, sites in enumerate(front.stages)]
    placed, now = at_once(device, [place, front.clear]), at_once(device, [means, *own])
    writer.add(f"place {name}", placed.reads, placed.writes, placed.run)
    if stages:
        writer.add_with(name, now, stages)
    else:
        writer.add(name, now.reads, now.writes, now.run)
