"""The steps that come before the convolutions of a grid: sites of all levels, and the maps between them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.site_steps import cleared_tables, kernel_map_task, map_name, sites_task, source_of
from lacuna_kernels.cuda.steps import Buffers, Work, Writer, sites_name
from lacuna_kernels.cuda.tasks import Task, at_once, in_lanes, made_by, read_by
from lacuna_kernels.ops.sparse_conv import SparseConv
from lacuna_kernels.types import Level

_LANES = 12


@dataclass(frozen=True, slots=True)
class Stage:
    """Sites that are made at once, and then the kernel maps that lead from or to them."""

    sites: Sequence[Task]
    then: Sequence[Task]


@dataclass(frozen=True, slots=True)
class Front:
    """What has to be made before the convolutions of a grid.

    means   the features of its sites
    clear   the tables of all levels that are made of it
    own     kernel maps between its sites
    levels  all that are made of it
    stages  their sites: those that are made of the grid's, all at once, then those of others, one after the other
    """

    means: Task
    clear: Task
    own: Sequence[Task]
    levels: Sequence[Level]
    stages: Sequence[Stage]

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
            Stage([sites_task(writer, level) for level in stage], after)
            for stage, after in zip(levels[1:], at_stage[1:], strict=True)
        ]
        return cls(means, cleared_tables(writer, made), at_stage[0], made, stages)


def write_front(writer: Writer, name: str, grid: Level, place: Task, means: Task) -> None:
    """Write the steps that make the sites of a grid; those of all levels, and maps; and features and maps of the grid.

    The levels are made beside what reads nothing but the grid: the first convolutions.

    place  makes the sites of the grid, and beside it tables are cleared
    """
    device, front = writer.device, Front.of(writer, grid, means)
    own = in_lanes(front.own, [f"{name}:lane"])
    stages = [
        Stage(stage.sites, in_lanes(stage.then, [f"{name}:lane {at}.{lane}" for lane in range(_LANES)]))
        for at, stage in enumerate(front.stages)
    ]
    placed, now = at_once(device, [place, front.clear]), at_once(device, [means, *own])
    writer.add(f"place {name}", placed.reads, placed.writes, placed.run)
    levels = [task for stage in stages for task in (*stage.sites, *stage.then)]
    if levels:
        counts = [sites_name(level, "count") for level in front.levels]
        writer.add_with(name, now, Work(read_by(levels), made_by(levels), partial(_run_stages, device, stages)), counts)
    else:
        writer.add(name, now.reads, now.writes, now.run)


def _run_stages(device: Device, stages: Sequence[Stage], b: Buffers) -> None:
    """The sites of the first, then its maps beside the stages after it, which begin first as they take longest."""
    stage, *later = stages
    device.at_once([partial(task.run, b) for task in stage.sites])
    longest = [partial(_run_stages, device, later, b)] if later else []
    device.at_once([*longest, *(partial(lane.run, b) for lane in stage.then)])
