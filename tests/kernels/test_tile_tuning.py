"""Tiles are measured layer by layer on what the layers before made of real clouds, and plans go by what was found."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from lacuna_kernels import (
    CapacityExceeded,
    DeviceInfo,
    Graph,
    Options,
    Precision,
    TunedGroup,
    Value,
    collate,
    gpu_count,
    parse_graph,
    random_weights,
)
from lacuna_kernels.cuda import backend as backend_module
from lacuna_kernels.cuda import tile_tuning
from lacuna_kernels.cuda.backend import Builder, CudaBackend
from lacuna_kernels.cuda.blueprint import Blueprint, draw
from lacuna_kernels.cuda.capacity import Capacity, Sizes
from lacuna_kernels.cuda.compiler import Compiler
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.fusion import fuse
from lacuna_kernels.cuda.measurement import Measurement, Objective
from lacuna_kernels.cuda.sparse_conv_choice import ConvShape, candidates
from lacuna_kernels.cuda.sparse_conv_tiles import Tile
from lacuna_kernels.cuda.steps import OVERFLOW, Step, Weights
from lacuna_kernels.cuda.tile_table import Group, TileEntry, TileTable, contenders, name_of
from lacuna_kernels.cuda.tile_tuning import LAUNCHES, Convolutions, Findings, Scan, Trial, mean, turns
from lacuna_kernels.cuda.tuned import Tuned, add_to_table, read_table, table_path
from lacuna_kernels.cuda.tuning import LIKELY
from lacuna_kernels.types import Batch
from lacuna_kernels.zoo import minkunet
from tests.kernels.factors import H200

WIDE = Group(ConvShape(256, 256, torch.float16, aligned=True, rows=16384, stride=8, volume=27), "submanifold")
NARROW = Group(ConvShape(4, 32, torch.float16, aligned=False, rows=16384, stride=8, volume=27), "submanifold")


def names(group: Group) -> list[str]:
    return [name_of(tile) for tile in contenders(group.shape, H200)]


def test_every_group_has_each_of_its_tiles_in_turn_the_rules_first() -> None:
    tables = list(turns([WIDE, NARROW, WIDE], H200))

    for group in (WIDE, NARROW):
        found = [table.best(group) for table in tables]
        assert found == names(group) + [None] * (len(tables) - len(names(group)))
    assert len(tables) == max(len(names(WIDE)), len(names(NARROW)))
    assert list(turns([], H200)) == []


def test_the_mean_has_joules_if_all_were_metered() -> None:
    found = [Measurement(seconds=1.0, joules=2.0), Measurement(seconds=3.0, joules=6.0)]

    assert mean(found) == Measurement(seconds=2.0, joules=4.0)
    assert mean([*found, Measurement(seconds=5.0)]) == Measurement(seconds=3.0)


def findings(objective: Objective = Objective.LATENCY) -> Findings:
    """Of two layers of a group, the second tile was faster; of one of another, the rule's."""
    found = Findings(objective)
    for group, tile, seconds in (
        *((WIDE, 0, 4e-6), (WIDE, 0, 2e-6), (NARROW, 0, 1e-6)),
        *((WIDE, 1, 1e-6), (WIDE, 1, 3e-6), (NARROW, 1, 5e-6)),
    ):
        joules = None if tile and group is NARROW else 10 * seconds
        found.add(Trial(group, names(group)[tile], lambda: None, []), Measurement(seconds=seconds, joules=joules))
    return found


@pytest.mark.parametrize(("objective", "unit"), [(Objective.LATENCY, 1), (Objective.ENERGY, 10)])
def test_what_the_best_tiles_save_is_told_group_by_group(objective: Objective, unit: float) -> None:
    scan = Scan(Capacity(1 << 17, 16), {}, {"a": WIDE, "b": NARROW, "c": WIDE})

    first, second = findings(objective).summary([scan, scan])

    best, rule = names(WIDE)[1], names(NARROW)[0]
    assert first == TunedGroup(1 << 17, str(WIDE), 2, pytest.approx(unit * 3e-6), pytest.approx(unit * 2e-6), best)
    assert second == TunedGroup(1 << 17, str(NARROW), 1, pytest.approx(unit * 1e-6), pytest.approx(unit * 1e-6), rule)


def test_entries_are_means_over_layers_and_batches() -> None:
    entries = findings().entries

    assert [entry.key for entry in entries.values()] == [WIDE.key, NARROW.key]
    assert entries[WIDE.key].tiles[names(WIDE)[1]].seconds == pytest.approx(2e-6)
    assert entries[WIDE.key].best == names(WIDE)[1]


class FakeSlot:
    """Buffers of a plan that say which steps have run."""

    def __init__(self, overflow: bool = False) -> None:
        self.buffers: dict[str, Any] = {"ran": [], OVERFLOW: torch.tensor([int(overflow)])}
        self.closed = False

    def run(self, steps: Sequence[Step]) -> None:
        for step in steps:
            step.run(self.buffers)

    def close(self) -> None:
        self.buffers, self.closed = {}, True


class FakePlans:
    """Stand for drawing plans of a grid, two layers of one group, and one of another; and keep what was drawn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, overflows: int = 0) -> None:
        self.tables, self.slots, self.rooms = list[TileTable](), list[FakeSlot](), list[Capacity]()
        self.overflows = overflows
        monkeypatch.setattr(Convolutions, "_drawn", self.drawn)
        monkeypatch.setattr(Convolutions, "_loaded", self.loaded)

    def drawn(self, room: Capacity, table: TileTable) -> SimpleNamespace:
        self.rooms.append(room)
        self.tables.append(table)
        steps = [
            SimpleNamespace(name=name, run=lambda b, name=name: b["ran"].append(name))
            for name in ("grid", "a", "b", "c")
        ]
        return SimpleNamespace(steps=steps, convolutions={"a": NARROW, "b": WIDE, "c": WIDE})

    def loaded(self, blueprint: SimpleNamespace, batch: Batch) -> FakeSlot:
        self.slots.append(FakeSlot(len(self.slots) < self.overflows))
        return self.slots[-1]


def convolutions(graph: Graph | None = None) -> Convolutions:
    device = cast(Device, SimpleNamespace(limits=H200, index=0, end_beside=lambda: None))
    return Convolutions(device, graph or minkunet(5, width=0.25), [], Weights(torch.device("cpu")))


def test_each_layer_is_launched_after_those_before_it_through_each_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    plans, network = FakePlans(monkeypatch), convolutions()
    scan = network.scan(Capacity(1 << 14, 16), {})
    seen = []

    for trial in network.trials(scan):
        ran = list(plans.slots[-1].buffers["ran"])
        trial.launch()
        assert plans.slots[-1].buffers["ran"] == [*ran, ran[-1]]
        plans.slots[-1].buffers["ran"].pop()
        seen.append((trial.group, trial.tile, ran))

    assert len(seen) == scan.trials(H200) == len(names(NARROW)) + 2 * len(names(WIDE))
    assert [tile for group, tile, ran in seen if ran == ["grid", "a"]] == names(NARROW)
    assert [tile for group, tile, ran in seen if ran == ["grid", "a", "b"]] == names(WIDE)
    assert [tile for group, tile, ran in seen if ran == ["grid", "a", "b", "c"]] == names(WIDE)
    assert all(slot.closed for slot in plans.slots)


def test_more_sites_than_room_make_a_larger_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    plans, graph = FakePlans(monkeypatch, overflows=1), spreading()

    scan = convolutions(graph).scan(Capacity(1 << 14, 16), {})

    assert [room.growth for room in plans.rooms] == [2, 4]
    assert scan.room == Capacity(1 << 14, 16, growth=4)
    FakePlans(monkeypatch, overflows=1)
    with pytest.raises(CapacityExceeded):
        convolutions(minkunet(5, width=0.25)).scan(Capacity(1 << 14, 16), {})


def spreading() -> Graph:
    """A level may have more sites than there are points."""
    cube = {"op": "sparse_conv", "out_channels": 8, "kernel_size": [3, 3, 3]}
    nodes = [
        {"name": "grid", "op": "voxelize", "inputs": ["points"], "voxel_size_m": [0.3, 0.3, 0.3]},
        {"name": "y", "inputs": ["grid"], "mode": "strided", "padding": [1, 1, 1], **cube},
    ]
    inputs = {"points": {"axis": "point", "columns": ["x", "y", "z", "intensity"]}}
    return parse_graph({"format": 1, "inputs": inputs, "nodes": nodes, "outputs": {"y": {}}})


def test_energy_is_metered_of_what_is_not_far_slower_than_other_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    limits, times = [], iter([2e-6, 1e-6, 3e-6])

    def timed(launches: list[object], meter: object, most_seconds: float) -> Measurement:
        assert len(launches) == LAUNCHES
        limits.append(most_seconds)
        return Measurement(seconds=next(times))

    monkeypatch.setattr(tile_tuning, "timed", timed)
    others = list[float]()
    for tile in names(WIDE)[:3]:
        Trial(WIDE, tile, lambda: None, others).measure(lambda: 0.0)

    assert limits == [float("inf"), pytest.approx(LIKELY * 2e-6), pytest.approx(LIKELY * 1e-6)]


GRAPH = parse_graph(
    minkunet(5, (32, 64, 64, 96, 128, 128, 96, 64, 64), (1,) * 8, voxel_size_m=0.5).model_dump(mode="json")
    | {"outputs": {"labels": {}, "logits": {}}}
)
WEIGHTS = random_weights(GRAPH, 0)
OPTIONS = Options(Precision.FP16, max_cost=1 << 17, initial_cost=1 << 14)
CONVOLUTIONS = sum(layer.node.op == "sparse_conv" for layer in fuse(GRAPH, WEIGHTS, OPTIONS.precision))
"""Without those that are shortcuts of others."""


def clouds(points: int, seed: int) -> dict[str, Value]:
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(points, 4, generator=generator) * torch.tensor([8.0, 8.0, 2.0, 0.3])
    return {"points": Value(data, torch.tensor([0, points]))}


ONE, TWO = clouds(9000, 1), collate([clouds(20_000, 2), clouds(3000, 3)])


@pytest.fixture
def paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CudaBackend:
    """A backend that draws plans for an H200 and runs none: launches take as long as the length of the tile's name."""
    plain = Convolutions._drawn

    def drawn(self: Convolutions, room: Capacity, table: TileTable) -> Blueprint:
        plan = plain(self, room, table)
        return replace(plan, steps=[replace(step, run=lambda buffers: None) for step in plan.steps])

    def measured(self: Trial, meter: object) -> Measurement:
        return Measurement(seconds=1e-6 * len(self.tile), joules=None if meter is None else 1e-3 / len(self.tile))

    monkeypatch.setattr(Convolutions, "_drawn", drawn)
    monkeypatch.setattr(Convolutions, "_loaded", lambda *given: FakeSlot())
    monkeypatch.setattr(Trial, "measure", measured)
    monkeypatch.setattr(backend_module, "Weights", lambda place: Weights(torch.device("cpu")))
    monkeypatch.setattr(backend_module, "tasks", lambda *given: [])
    opened = object.__new__(CudaBackend)
    compiler = SimpleNamespace(cache=tmp_path)
    device = SimpleNamespace(limits=H200, index=0, compiler=compiler, end_beside=lambda: None)
    opened._device = cast(Device, device)
    opened._builder = cast(Builder, SimpleNamespace(run=lambda job: SimpleNamespace(result=job)))
    opened.device = DeviceInfo(0, "Some GPU", None, 0)
    return opened


@pytest.mark.parametrize("objective", Objective)
def test_plans_of_the_sizes_that_were_tuned_take_the_best_tiles(
    paper: CudaBackend, tmp_path: Path, taken: list[Tile], objective: Objective
) -> None:
    seen, shown = list[tuple[int, int]](), list[str]()

    def progress(done: int, total: int, what: str) -> None:
        seen.append((done, total))
        shown.append(what)

    tuning = paper.tune(
        GRAPH, WEIGHTS, OPTIONS, [1 << 14], [ONE, TWO, ONE], objective, lambda: 0.0, progress, lambda text: None
    )

    assert [done for done, _ in seen] == list(range(len(seen))) and seen[-1] == (len(seen) - 1,) * 2
    assert len(seen) - 1 >= 3 * 2 * CONVOLUTIONS
    assert shown[0] == "submanifold 27 x 4 -> 32 at stride 1" and shown[-1] == ""
    assert [group.points for group in tuning.groups] == sorted(group.points for group in tuning.groups)
    assert sum(group.layers for group in tuning.groups) == 2 * CONVOLUTIONS  # two sizes of plans
    pick = min if objective is Objective.LATENCY else max
    for room in (Capacity(1 << 14, 16), Capacity(1 << 15, 16)):
        taken.clear()
        groups = convolutions_of(paper, room, read_table(tmp_path, "Some GPU"))
        lengths = [pick(len(name_of(tile)) for tile in contenders(g.shape, H200)) for g in groups.values()]
        assert [len(name_of(tile)) for tile in taken] == lengths
    taken.clear()
    groups = convolutions_of(paper, Capacity(1 << 16, 16), read_table(tmp_path, "Some GPU"))
    assert taken == [candidates(group.shape, H200)[0] for group in groups.values()]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A kernel cache with what was compiled before, and a table of its own."""
    if not gpu_count():
        pytest.skip("no CUDA device, or no pycuda")
    for compiled in Compiler().cache.iterdir():
        if compiled.name != "tuned":
            (tmp_path / compiled.name).symlink_to(compiled)
    return tmp_path


@pytest.fixture
def backend(cache: Path) -> Iterator[CudaBackend]:
    opened = CudaBackend(0, cache=cache)
    yield opened
    opened.close()


def outputs(backend: CudaBackend, batch: Batch) -> dict[str, torch.Tensor]:
    """What a program that is compiled now gives."""
    program = backend.compile(GRAPH, WEIGHTS, OPTIONS)
    try:
        return {name: value.data for name, value in program.submit(batch).result().values.items()}
    finally:
        program.close()


@pytest.mark.gpu
@pytest.mark.parametrize("objective", Objective)
def test_a_network_is_tuned_on_clouds_and_the_table_gone_by(
    backend: CudaBackend, cache: Path, taken: list[Tile], monkeypatch: pytest.MonkeyPatch, objective: Objective
) -> None:
    monkeypatch.setattr("lacuna_kernels.cuda.tuning._ENERGY_SECONDS", 0.01)
    seen, joules, limits = list[tuple[int, int]](), iter(range(10**7)), backend._device.limits
    sizes = Sizes.of(GRAPH, OPTIONS.max_cost)
    rooms = [sizes.served(9000, 1, OPTIONS.initial_cost), sizes.served(23_000, 2, OPTIONS.initial_cost)]

    tuning = backend.tune(
        GRAPH,
        WEIGHTS,
        OPTIONS,
        [1 << 14],
        [ONE, TWO],
        objective,
        lambda: float(next(joules)),
        lambda done, total, what: seen.append((done, total)),
        lambda text: None,
    )

    tiles = read_table(cache, backend.device.name).tiles
    assert tuning.path == table_path(cache, backend.device.name)
    assert [done for done, _ in seen] == list(range(len(seen)))
    assert seen[-1][0] == seen[-1][1] > len(tiles.entries)
    assert {group.points for group in tuning.groups} == {room.points for room in rooms} == {1 << 14, 1 << 15}
    assert len(tuning.groups) == len(tiles.entries)
    assert sum(group.layers for group in tuning.groups) == 2 * CONVOLUTIONS
    assert all(0 < group.best <= group.rule for group in tuning.groups)
    for entry in tiles.entries.values():
        metered = [found.joules is not None for found in entry.tiles.values()]
        assert entry.objective is objective
        measured = {*entry.tiles}
        assert len(measured) >= 2 or all(name.startswith("resident ") for name in measured)  # which may have no other
        assert metered[0] is (objective is Objective.ENERGY) and any(metered) is metered[0]
    groups = convolutions_of(backend, rooms[0])
    taken.clear()
    backend.compile(GRAPH, WEIGHTS, OPTIONS).close()
    assert taken == [tiles.tile(group, limits) for group in groups.values()]


def convolutions_of(backend: CudaBackend, room: Capacity, tuned: Tuned | None = None) -> dict[str, Group]:
    """The groups of a plan, on paper."""
    device, held = cast(Device, SimpleNamespace(limits=backend._device.limits)), Weights(torch.device("cpu"))
    return dict(draw(device, GRAPH, fuse(GRAPH, WEIGHTS, OPTIONS.precision), held, room, tuned).convolutions)


@pytest.mark.gpu
@pytest.mark.parametrize("turn", [1, -1])
def test_other_tiles_than_the_rules_give_the_same_bits(
    backend: CudaBackend, cache: Path, taken: list[Tile], turn: int
) -> None:
    limits, room = backend._device.limits, Sizes.of(GRAPH, OPTIONS.max_cost).served(9000, 1, OPTIONS.initial_cost)
    expected = outputs(backend, ONE)
    by_rule, groups = list(taken), convolutions_of(backend, room)
    assert by_rule == [candidates(group.shape, limits)[0] for group in groups.values()]
    named = {group: contenders(group.shape, limits) for group in groups.values()}
    wanted = {group: tiles[turn % len(tiles)] for group, tiles in named.items()}
    one = Measurement(seconds=1e-6)
    entries = [TileEntry.of(group, Objective.LATENCY, {name_of(tile): one}) for group, tile in wanted.items()]
    add_to_table(cache, backend.device.name, entries)
    taken.clear()

    found = outputs(backend, ONE)

    assert taken == [wanted[group] for group in groups.values()]
    others = [len(named[group]) > 1 for group in groups.values()]
    assert [tile != rule for tile, rule in zip(taken, by_rule, strict=True)] == others
    assert sum(others) > len(others) / 2
    assert found.keys() == expected.keys() == {"labels", "logits"}
    assert bool(expected["logits"].any())
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.gpu
def test_a_sample_over_the_limit_is_refused(backend: CudaBackend) -> None:
    options, objective = replace(OPTIONS, max_cost=1 << 14), Objective.LATENCY

    with pytest.raises(CapacityExceeded, match="a sample of 23000 is over the limit of 16384"):
        backend.tune(
            GRAPH, WEIGHTS, options, [1 << 14], [ONE, TWO], objective, None, lambda *_: None, lambda text: None
        )
