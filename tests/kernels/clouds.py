"""Small clouds and grids that tests of the sparse ops share."""

from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from lacuna_kernels import Value

Triple = tuple[int, int, int]


def cloud_at(items: Sequence[Sequence[Triple]], features: int = 2, seed: int = 0) -> Value:
    """One point in the middle of every given unit cell, item by item, with random features: [points, 3 + features]."""
    cells = torch.tensor([cell for item in items for cell in item], dtype=torch.float32).reshape(-1, 3) + 0.5
    generator = torch.Generator().manual_seed(seed)
    data = torch.cat([cells, torch.randn(len(cells), features, generator=generator)], 1)
    counts = torch.tensor([len(item) for item in items], dtype=torch.int64)
    return Value(data, torch.cat([counts.new_zeros(1), counts.cumsum(0)]))


def rows_by_site(value: Value) -> dict[tuple[int, ...], Tensor]:
    """The rows of a site value by (item, x, y, z); fails if a site is there twice."""
    assert value.coordinates is not None
    rows = {tuple(site): row for site, row in zip(value.coordinates.tolist(), value.data, strict=True)}
    assert len(rows) == len(value.data)
    return rows


def cells(low: int = -4, high: int = 4, most: int = 25) -> st.SearchStrategy[list[Triple]]:
    """Different cells of a small cube, in any order."""
    axis = st.integers(low, high)
    return st.lists(st.tuples(axis, axis, axis), max_size=most, unique=True)


def triples(low: int, high: int) -> st.SearchStrategy[Triple]:
    """Three numbers, each from low to high."""
    axis = st.integers(low, high)
    return st.tuples(axis, axis, axis)
