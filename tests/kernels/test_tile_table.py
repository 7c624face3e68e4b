"""What was measured of sparse convolutions overrides the rule that chooses tiles, and only that."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from pydantic import ValidationError

from lacuna_kernels import Graph, Precision, random_weights
from lacuna_kernels.cuda.blueprint import Blueprint, draw
from lacuna_kernels.cuda.capacity import Capacity, Sizes
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.fusion import fuse
from lacuna_kernels.cuda.kronecker.problem import Problem
from lacuna_kernels.cuda.kronecker.table import Entry
from lacuna_kernels.cuda.measurement import Measurement, Objective
from lacuna_kernels.cuda.sparse_conv import pack_weight, sparse_conv
from lacuna_kernels.cuda.sparse_conv_choice import (
    FP32_TILES,
    MMA_TILES,
    RESIDENT_TILES,
    TF32_TILES,
    WGMMA_TILES,
    ConvShape,
    candidates,
)
from lacuna_kernels.cuda.sparse_conv_hopper import ResidentTile, WgmmaTile
from lacuna_kernels.cuda.sparse_conv_tiles import MmaTile, Tf32Tile, Tile
from lacuna_kernels.cuda.steps import Weights
from lacuna_kernels.cuda.tile_table import Group, TileEntry, TileTable, contenders, name_of
from lacuna_kernels.cuda.tuned import Tuned, add_to_table, read_table, table_path
from lacuna_kernels.ops.kronecker_linear import KSPattern
from lacuna_kernels.zoo import minkunet
from tests.kernels.device_sites import DTYPES, map_of, nonsense, random_map
from tests.kernels.factors import H200
from tests.kernels.simulated import SimulatedDevice

HALF = torch.float16
AMPERE = replace(H200, architecture="sm_80")
WIDE = Group(ConvShape(256, 256, HALF, aligned=True, rows=16384, stride=8, volume=27), "submanifold")
NARROW = Group(ConvShape(32, 32, HALF, aligned=True, rows=131072, stride=1, volume=27), "submanifold")
MINKUNET = minkunet(19)
KITTI = Capacity(1 << 17, 16)


def entry(group: Group, seconds: dict[str, float], objective: Objective = Objective.LATENCY) -> TileEntry:
    return TileEntry.of(group, objective, {name: Measurement(seconds=time) for name, time in seconds.items()})


def other_tile(group: Group) -> Tile:
    """The one that is measured last, which the rule does not take."""
    *_, last = contenders(group.shape, H200)
    return last


def other_tiles(plan: Blueprint) -> dict[str, Tile]:
    """Such a tile for each sparse convolution of a plan."""
    return {name: other_tile(group) for name, group in plan.convolutions.items()}


def table_of(plan: Blueprint) -> TileTable:
    """A table in which that is the best for each of them."""
    groups = dict.fromkeys(plan.convolutions.values())
    return TileTable().with_entries([entry(group, {name_of(other_tile(group)): 1e-6}) for group in groups])


def drawn(graph: Graph, room: Capacity, tiles: TileTable | None = None) -> Blueprint:
    """A plan on paper for an H200, in fp16."""
    layers = fuse(graph, random_weights(graph, 0), Precision.FP16)
    device, weights = cast(Device, SimpleNamespace(limits=H200)), Weights(torch.device("cpu"))
    return draw(device, graph, layers, weights, room, Tuned(tiles=tiles or TileTable()))


@pytest.mark.parametrize(
    "ci, co", [(4, 32), (19, 96), (32, 32), (96, 19), (96, 96), (128, 256), (256, 256), (384, 256)]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("limits", [H200, AMPERE], ids=["Hopper", "Ampere"])
@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "unaligned"])
def test_the_rule_comes_first_and_no_tile_pads_absurdly(ci, co, dtype, limits, aligned):
    shape = ConvShape(ci, co, dtype, aligned, 16384)

    tiles = contenders(shape, limits)

    assert tiles[0] == candidates(shape, limits)[0]
    assert len({*tiles}) == len(tiles) >= 2
    assert all(-(-co // tile.n) * tile.n < 2 * (co + 32) for tile in tiles[1:])
    for tile in tiles:
        tile.variant(dtype, aligned)  # raises if it takes 16 bytes at a time
        assert isinstance(tile, Tf32Tile) is (dtype is torch.float32)
        assert not isinstance(tile, WgmmaTile) or (aligned and limits.hopper)


def test_what_was_measured_of_offsets_in_one_part_says_nothing_of_several():
    split = Group(replace(WIDE.shape, split=True), WIDE.kind)

    assert split.key != WIDE.key
    assert split.key._replace(split=False) == WIDE.key


def test_tiles_of_hopper_and_portable_ones_compete_where_both_run():
    assert {*contenders(WIDE.shape, H200)} == {*MMA_TILES, *WGMMA_TILES}
    assert {*contenders(WIDE.shape, AMPERE)} == {*MMA_TILES}
    assert {*contenders(replace(WIDE.shape, dtype=torch.float32), H200)} == {*FP32_TILES}
    assert {*contenders(replace(WIDE.shape, dtype=torch.float32, tf32=True), H200)} == {*TF32_TILES}
    assert {tile.n for tile in contenders(NARROW.shape, H200)} == {32, 64}


def test_what_can_be_read_in_pieces_has_entries_of_its_own():
    assert Group(replace(NARROW.shape, readable=True), NARROW.kind).key == NARROW.key._replace(readable=True)


def test_what_adds_up_otherwise_competes_with_its_like_alone():
    shape = replace(NARROW.shape, readable=True)

    assert {*contenders(shape, H200)} == {tile for tile in RESIDENT_TILES if tile.k == 32 and tile.n >= 32}
    assert {*contenders(shape, AMPERE)} == {*contenders(NARROW.shape, AMPERE)}


def test_names_are_as_tables_have_them():
    names = [name_of(tile) for tile in (*FP32_TILES, *TF32_TILES, *MMA_TILES, *WGMMA_TILES, *RESIDENT_TILES)]

    assert len({*names}) == len(names)
    assert name_of(Tf32Tile(128, 96, 16, (4, 2), 4)) == "tf32 m=128 n=96 k=16 warps=4x2 stages=4"
    assert name_of(FP32_TILES[1]) == "tf32 m=128 n=96 k=16 warps=4x3 stages=4 products=3"
    assert name_of(MmaTile(128, 96, 64, (4, 2))) == "mma m=128 n=96 k=64 warps=4x2"
    assert name_of(MmaTile(64, 96, 32, (2, 2), 4)) == "mma m=64 n=96 k=32 warps=2x2 stages=4"
    assert name_of(WgmmaTile(128, 256, 4, 128, 1)) == "wgmma m=128 n=256 stages=4 bringers=128 blocks=1"
    assert name_of(ResidentTile(32, 64, 2, 5)) == "resident k=32 n=64 stages=2 warpgroups=5"


def test_a_property_that_is_added_with_a_default_leaves_names_as_they_were():
    @dataclass(frozen=True, slots=True)
    class MmaTile:
        m: int
        splits: int = 1

    assert [name_of(cast(Tile, tile)) for tile in (MmaTile(64), MmaTile(64, 2))] == ["mma m=64", "mma m=64 splits=2"]


def test_the_tile_that_was_measured_best_is_taken():
    rule, *others = contenders(WIDE.shape, H200)
    table = TileTable().with_entries([entry(WIDE, {name_of(rule): 2e-6, name_of(others[3]): 1e-6})])

    assert table.tile(WIDE, H200) == others[3]
    assert table.tile(NARROW, H200) is None


def test_by_energy_the_joules_decide_of_those_that_were_metered():
    first, second, third = map(name_of, contenders(WIDE.shape, H200)[:3])
    tiles = {
        first: Measurement(seconds=2e-6, joules=2.0),
        second: Measurement(seconds=3e-6, joules=1.0),
        third: Measurement(seconds=1e-6),
    }

    assert TileEntry.of(WIDE, Objective.ENERGY, tiles).best == second
    assert TileEntry.of(WIDE, Objective.LATENCY, tiles).best == third
    assert TileEntry.of(WIDE, Objective.ENERGY, {third: tiles[third]}).best is None


@pytest.mark.parametrize("name", ["gone m=1", name_of(WGMMA_TILES[0])], ids=["gone", "of another GPU"])
def test_a_tile_that_there_is_not_leaves_the_rule(name):
    table = TileTable().with_entries([entry(WIDE, {name: 1e-9, name_of(MMA_TILES[0]): 1e-6})])

    assert table.tile(WIDE, AMPERE) is None


@pytest.mark.parametrize(
    "other",
    [
        replace(WIDE, shape=replace(WIDE.shape, volume=8)),
        replace(WIDE, kind="strided"),
        *(
            replace(WIDE, shape=replace(WIDE.shape, **change))
            for change in (
                *(
                    {"ci": 128},
                    {"co": 128},
                    {"dtype": torch.bfloat16},
                    {"tf32": True},
                    {"aligned": False},
                    {"single": True},
                ),
                *({"rows": 16385}, {"stride": 4}, {"shortcut": 64}),
            )
        ),
    ],
    ids=str,
)
def test_other_groups_are_left_to_the_rule(other: Group):
    table = TileTable().with_entries([entry(WIDE, {name_of(MMA_TILES[0]): 1e-6})])

    assert table.best(other) is None
    assert table.best(replace(WIDE, shape=replace(WIDE.shape, rows=8193))) == name_of(MMA_TILES[0])


def test_a_table_is_read_as_it_was_written_beside_factors(tmp_path: Path):
    factor = Problem(KSPattern(2, 64, 64, 4), 1000, Precision.FP16)
    factors = Entry.of([factor], Objective.LATENCY, {"some": Measurement(seconds=1.0)})
    tiles = TileEntry.of(WIDE, Objective.ENERGY, {"some": Measurement(seconds=1.5e-5, joules=0.25)})

    add_to_table(tmp_path, "GPU", [factors])
    add_to_table(tmp_path, "GPU", [tiles])

    assert read_table(tmp_path, "GPU") == Tuned().with_entries([factors, tiles])
    replaced = entry(WIDE, {"other": 1e-6})
    add_to_table(tmp_path, "GPU", [replaced])
    assert read_table(tmp_path, "GPU") == Tuned().with_entries([factors, replaced])


def test_a_file_of_before_there_were_convolutions_is_still_read(tmp_path: Path):
    factor = Problem(KSPattern(2, 64, 64, 4), 1000, Precision.FP16)
    factors = Entry.of([factor], Objective.LATENCY, {"some": Measurement(seconds=1.0)})
    path = table_path(tmp_path, "GPU")
    path.parent.mkdir()
    path.write_text(json.dumps({"format": 1, "gpu": "GPU", "entries": [factors.model_dump(mode="json")]}))

    assert read_table(tmp_path, "GPU") == Tuned().with_entries([factors])
    add_to_table(tmp_path, "GPU", [entry(WIDE, {"some": 1e-6})])
    assert read_table(tmp_path, "GPU") == Tuned().with_entries([factors, entry(WIDE, {"some": 1e-6})])


@pytest.mark.parametrize("change", [{"ci": 0}, {"kind": "round"}, {"tiles": {"some": {"seconds": 0.0}}}, {"more": 1}])
def test_what_nobody_can_have_measured_is_refused(change: dict[str, object]):
    right = entry(WIDE, {"some": 1.0}).model_dump()

    with pytest.raises(ValidationError):
        TileEntry.model_validate(right | change)


def test_every_convolution_of_a_plan_has_its_group():
    plan = drawn(MINKUNET, KITTI)
    groups = {str(group) for group in plan.convolutions.values()}

    assert len(plan.convolutions) == 42
    assert plan.convolutions.keys() <= {step.name for step in plan.steps}
    assert {
        "submanifold 27 x 4 -> 32 at stride 1",
        "strided 8 x 128 -> 128 at stride 16",
        "inverse 8 x 256 -> 256 at stride 8",
        "submanifold 27 x 256 + 384 -> 256 at stride 8",
        "submanifold 27 x 256 -> 256 at stride 16",
    } <= groups
    assert len(groups) == len({group.key for group in plan.convolutions.values()})


@pytest.mark.parametrize(("points", "clouds"), [(123_389, 1), (9_000, 1), (123_389 * 2, 2), (900_000, 8)])
def test_what_is_tuned_is_found_when_it_is_served(points: int, clouds: int):
    """The plan for a sample is that which a program has at the start, or makes when such a batch comes."""
    sizes = Sizes.of(MINKUNET, 1 << 20)
    at_the_start = sizes.first(1 << 17)
    made = at_the_start if at_the_start.holds(sizes.capacity(points, clouds)) else sizes.capacity(points, clouds)

    tuned = drawn(MINKUNET, sizes.served(points, clouds, initial_cost=1 << 17))
    served = drawn(MINKUNET, replace(made, growth=8), table_of(tuned))

    assert table_of(served) == table_of(tuned)
    assert {group.key for group in served.convolutions.values()} == table_of(tuned).entries.keys()


def test_a_plan_takes_the_tiles_of_the_table(tmp_path: Path, taken: list[Tile]):
    rule = drawn(MINKUNET, KITTI)
    assert taken == [candidates(group.shape, H200)[0] for group in rule.convolutions.values()]
    add_to_table(tmp_path, "GPU", list(table_of(rule).entries.values()))
    taken.clear()

    drawn(MINKUNET, KITTI, read_table(tmp_path, "GPU").tiles)

    assert taken == list(other_tiles(rule).values())


def test_plans_of_other_sizes_are_left_to_the_rule():
    table = table_of(drawn(MINKUNET, KITTI))

    larger = drawn(MINKUNET, Capacity(1 << 18, 16), table)

    assert not [group for group in larger.convolutions.values() if table.best(group)]


def test_tiles_give_the_same_bits(folder: Path):
    """Of Hopper, run on the CPU; all of them on a GPU in test_cuda_sparse_conv.py."""
    rows = random_map(27, 50, 70, 0.15)
    x, weight = torch.randn(50, 72).half(), (torch.randn(27, 72, 40) * 0.1).half()
    kernel_map, count = map_of(rows, 70, nonsense), torch.tensor([70], dtype=torch.int32)
    tiles = [WgmmaTile(64, 64, 2, 96, 1), WgmmaTile(128, 32, 3, 128, 1), WgmmaTile(128, 64, 3, 128, 1, 2)]
    found = [torch.zeros(70, 40, dtype=HALF) for _ in tiles]

    for tile, y in zip(tiles, found, strict=True):
        sparse_conv(SimulatedDevice(folder, 1, 0), x, pack_weight(weight, HALF, tile), kernel_map, count, y)

    assert bool(found[0].any())
    assert all(torch.equal(y, found[0]) for y in found)
