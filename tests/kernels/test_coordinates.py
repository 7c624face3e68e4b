"""Sets of coordinates against dictionaries: exact for any int32, in the order of first occurrence."""

from itertools import product

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lacuna_kernels.ops import coordinates as sites
from lacuna_kernels.ops.coordinates import SiteIndex, unique_first
from lacuna_kernels.types import Geometry
from tests.kernels.clouds import triples

LOW, HIGH = -(2**31), 2**31 - 1
Site = tuple[int, int, int, int]

extreme = st.sampled_from([LOW, LOW + 1, -(2**30), -1, 0, 1, 2**30, HIGH - 1, HIGH])
anywhere = st.one_of(extreme, st.integers(LOW, HIGH))
far_sites = st.lists(st.tuples(anywhere, anywhere, anywhere, anywhere), max_size=30)
near = st.integers(-3, 3)
near_sites = st.lists(st.tuples(st.integers(0, 2), near, near, near), max_size=40)
geometries = st.builds(Geometry, triples(1, 3), triples(1, 3), triples(0, 2), triples(1, 2))
quick = settings(deadline=None, max_examples=60)


def tensor(rows: list[Site], dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor(rows, dtype=dtype).reshape(-1, 4)


def grouped(rows: list[Site]) -> list[Site]:
    """Different sites, item by item, as a batch has them."""
    return sorted(dict.fromkeys(rows), key=lambda row: row[0])


def reaches(output: Site, offset: tuple[int, ...], g: Geometry) -> Site:
    """The input site that an output reads through a kernel offset."""
    item, *cell = output
    x, y, z = (cell[a] * g.stride[a] - g.padding[a] + offset[a] * g.dilation[a] for a in range(3))
    return (item, x, y, z)


@quick
@given(far_sites, far_sites, st.lists(st.tuples(*[st.integers(2 * LOW, 2 * HIGH)] * 4), max_size=10))
def test_an_index_finds_the_first_row_of_any_int32_and_nothing_else(rows, others, beyond):
    first: dict[Site, int] = {}
    for row, site in enumerate(rows):
        first.setdefault(site, row)
    neighbours = [(i, x + 1, y, z - 1) for i, x, y, z in rows]
    queries = rows + others + beyond + neighbours

    found = SiteIndex(tensor(rows)).find(tensor(queries, torch.int64))

    assert found.tolist() == [first.get(query, -1) for query in queries]


def test_an_index_is_exact_where_a_packed_key_would_overflow():
    corners = list(product((LOW, HIGH), repeat=4))

    found = SiteIndex(tensor(corners)).find(tensor([*corners, (0, 0, 0, 0), (LOW, LOW, LOW, LOW + 1)]))

    assert found.tolist() == [*range(16), -1, -1]


@quick
@given(st.one_of(near_sites, far_sites))
def test_unique_first_keeps_the_order_of_first_occurrence(rows):
    kept, inverse = unique_first(tensor(rows))

    different = list(dict.fromkeys(rows))
    assert [rows[row] for row in kept.tolist()] == different
    assert kept.tolist() == [rows.index(site) for site in different]
    assert [different[place] for place in inverse.tolist()] == rows


def test_kernel_offsets_run_through_z_fastest():
    offsets = sites.kernel_offsets((2, 3, 2))

    assert [(x * 3 + y) * 2 + z for x, y, z in offsets] == list(range(12))


@quick
@given(near_sites, near_sites, geometries)
def test_a_kernel_map_says_which_input_an_output_reads(inputs, outputs, g):
    inputs, outputs = grouped(inputs), grouped(outputs)

    found = sites.kernel_map(tensor(inputs), tensor(outputs), g)

    rows = {site: row for row, site in enumerate(inputs)}
    offsets = sites.kernel_offsets(g.kernel_size)
    assert found.tolist() == [[rows.get(reaches(output, k, g), -1) for output in outputs] for k in offsets]


@quick
@given(near_sites, geometries, st.one_of(st.none(), triples(1, 3)))
def test_contributing_sites_stand_in_the_order_of_input_and_offset(inputs, g, spatial_shape):
    inputs = grouped(inputs)

    found = sites.contributing_sites(tensor(inputs), g, spatial_shape)

    expected: dict[Site, None] = {}
    for (item, *cell), offset in product(inputs, sites.kernel_offsets(g.kernel_size)):
        moved = [cell[a] + g.padding[a] - offset[a] * g.dilation[a] for a in range(3)]
        x, y, z = (moved[a] // g.stride[a] for a in range(3))
        fits = all(moved[a] % g.stride[a] == 0 for a in range(3))
        inside = spatial_shape is None or all(0 <= c < n for c, n in zip((x, y, z), spatial_shape, strict=True))
        if fits and inside:
            expected.setdefault((item, x, y, z))
    assert [tuple(site) for site in found.tolist()] == list(expected)


@quick
@given(st.one_of(near_sites, far_sites), triples(1, 4))
def test_floor_sites_round_down_also_below_zero(inputs, stride):
    found = sites.floor_sites(tensor(inputs), stride)

    x, y, z = stride
    expected = dict.fromkeys((i, p // x, q // y, r // z) for i, p, q, r in inputs)
    assert [tuple(site) for site in found.tolist()] == list(expected)


@quick
@given(near_sites, geometries)
def test_an_inverse_map_holds_the_same_pairs(inputs, g):
    fine = tensor(grouped(inputs))
    coarse = sites.contributing_sites(fine, g, None)
    forward = sites.kernel_map(fine, coarse, g)

    back = sites.inverse_map(forward, len(fine))

    def pairs(table: Tensor) -> set[tuple[int, int, int]]:
        k, column = (table >= 0).nonzero(as_tuple=True)
        return set(zip(k.tolist(), column.tolist(), table[k, column].tolist(), strict=True))

    assert {(k, coarse, fine) for k, fine, coarse in pairs(back)} == pairs(forward)
    assert back.shape == (g.volume, len(fine))


@quick
@given(near_sites, geometries)
def test_the_sites_of_a_batch_are_those_of_each_item_alone_one_after_the_other(inputs, g):
    batch = tensor(grouped(inputs))
    alone = [batch[batch[:, 0] == item] for item in range(3)]

    together = sites.contributing_sites(batch, g, None)

    assert torch.equal(together, torch.cat([sites.contributing_sites(part, g, None) for part in alone]))
    floors = torch.cat([sites.floor_sites(part, g.stride) for part in alone])
    assert torch.equal(sites.floor_sites(batch, g.stride), floors)


def test_offsets_count_the_sites_of_every_item_also_of_empty_ones():
    coordinates = tensor([(1, 0, 0, 0), (1, 2, 0, 0), (3, 0, 0, 0)])

    assert sites.count_offsets(coordinates, 5).tolist() == [0, 0, 2, 2, 3, 3]
    assert sites.count_offsets(tensor([]), 2).tolist() == [0, 0, 0]
