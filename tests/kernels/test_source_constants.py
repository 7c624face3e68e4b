"""What sources define and launches count on has the same value in both."""

import re
import struct

from lacuna_kernels.cuda import coordinates, kernel_map, key_order, sparse_conv_hopper, tile_order
from lacuna_kernels.cuda.compiler import SOURCES


def defined(source: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"#define (\w+) (\d+)", (SOURCES / source).read_text())}


def test_bins_that_are_few_are_added_up_where_they_are_read() -> None:
    assert defined("key_order.cu")["FEW_BINS"] == key_order._FEW_BINS


def test_maps_are_ordered_so_many_at_a_time_and_packed_alike() -> None:
    source = (SOURCES / "ordering.cuh").read_text()

    assert defined("ordering.cuh")["MOST_ORDERINGS"] == key_order.MOST_ORDERINGS
    assert f"sizeof(Ordering) == {struct.calcsize(key_order._FORMAT)}" in source


def test_tiles_of_so_many_maps_are_ordered_at_a_time_and_packed_alike() -> None:
    source, said = (SOURCES / "tile_order.cu").read_text(), defined("tile_order.cu")

    assert said["MOST_MAPS"] == tile_order.MOST_MAPS
    assert said["THREADS"] == tile_order._THREADS
    assert f"sizeof(TileOrder) == {struct.calcsize(tile_order._FORMAT)}" in source


def test_keys_have_so_many_bits() -> None:
    assert defined("ordering.cuh")["KEY_BITS"] == key_order.KEY_BITS


def test_weights_that_stay_begin_alike() -> None:
    source = (SOURCES / "sparse_conv_resident.cu").read_text()

    assert f"MOST_OFFSETS = {sparse_conv_hopper._MOST_RESIDENT}," in source
    assert f"WEIGHTS = {sparse_conv_hopper._BESIDE_WEIGHTS};" in source


def test_a_block_numbers_so_many_candidates() -> None:
    said = defined("numbering.cuh")

    assert said["THREADS"] * said["TURNS"] == coordinates.TILE


def test_buckets_have_so_many_entries() -> None:
    assert defined("hash.cuh")["BUCKET"] == coordinates.BUCKET


def test_so_many_threads_look_up_a_site() -> None:
    assert 32 // (4 * defined("kernel_map.cu")["SEARCHES"]) == kernel_map._SITE_THREADS[kernel_map.NEAR]


def test_places_are_grouped_alike() -> None:
    assert defined("map_places.cuh")["GROUP"] == kernel_map.GROUP
