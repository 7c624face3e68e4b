"""The values that flow through a network: how they are shaped, typed, batched and split again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import gcd

import torch
from torch import Tensor

from lacuna_kernels.errors import InputError

Triple = tuple[int, int, int]


class Axis(StrEnum):
    """What the first axis of a value counts, and so how a batch is split again."""

    ROW = "row"  # [n, features]
    SEQUENCE = "sequence"  # [n, tokens, features]
    IMAGE = "image"  # [n, channels, height, width]
    POINT = "point"  # [points, columns], ragged: offsets [n + 1]; points of a cloud, or nodes of a graph
    EDGE = "edge"  # [edges, 3], ragged: offsets [n + 1]; (source, target, relation), nodes by number in their item
    SITE = "site"  # [sites, channels], ragged: offsets [n + 1], with coordinates [sites, 4]
    CLOUD = "cloud"  # [n, ...], one row per cloud

    @property
    def ragged(self) -> bool:
        """Whether the items of a batch differ in length, so that offsets are needed."""
        return self in (Axis.POINT, Axis.EDGE, Axis.SITE)


class DType(StrEnum):
    """Element types; the names are those of the model format."""

    BOOL = "bool"
    UINT8 = "uint8"
    INT32 = "int32"
    INT64 = "int64"
    FP16 = "fp16"
    BF16 = "bf16"
    FP32 = "fp32"

    @property
    def torch(self) -> torch.dtype:
        """The same type in torch."""
        return _TORCH[self]

    @property
    def is_float(self) -> bool:
        """Whether values of this type are computed with."""
        return self in (DType.FP16, DType.BF16, DType.FP32)

    @property
    def size(self) -> int:
        """Bytes per element."""
        return self.torch.itemsize


_TORCH = {
    DType.BOOL: torch.bool,
    DType.UINT8: torch.uint8,
    DType.INT32: torch.int32,
    DType.INT64: torch.int64,
    DType.FP16: torch.float16,
    DType.BF16: torch.bfloat16,
    DType.FP32: torch.float32,
}


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a strided convolution reaches from output sites to input sites: input = output*stride - padding + k*dilation.

    floor_sites  whether outputs are floor(input / stride) instead of every site with a contributing input
    generative   whether it leads the other way, to every output = input*stride - padding + k*dilation
    """

    kernel_size: Triple
    stride: Triple
    padding: Triple
    dilation: Triple
    floor_sites: bool = False
    generative: bool = False

    @property
    def volume(self) -> int:
        """Number of kernel offsets."""
        return self.kernel_size[0] * self.kernel_size[1] * self.kernel_size[2]

    @property
    def fan_out(self) -> Triple:
        """The most output sites that one input site can feed, by axis."""
        if self.floor_sites:
            return (1, 1, 1)
        if self.generative:
            return self.kernel_size
        axes = zip(self.kernel_size, self.stride, self.dilation, strict=True)
        x, y, z = (-(-k // (s // gcd(s, d))) for k, s, d in axes)
        return (x, y, z)


@dataclass(frozen=True, slots=True)
class Level:
    """A set of active sites, named by the node that made it; two site values may be added only on the same level.

    stride         voxels of the finest level per step of this one, by axis
    spatial_shape  number of cells by axis if the network bounds it, else None: any coordinate
    grid           name of the voxelize node at the root
    parent         the level that this one was made of, and how; None at the root
    """

    name: str
    stride: Triple
    spatial_shape: Triple | None
    grid: str
    parent: "Level | None" = None
    geometry: Geometry | None = None


@dataclass(frozen=True, slots=True)
class ValueType:
    """What is known of a value before there is a batch.

    shape      sizes after the first axis, so (features,), (tokens, features), (channels, height, width)
    columns    names of the features of an input cloud, else ()
    level      the set of sites, for site values only
    points     name of the input cloud that a point value follows, a site value was made of, or edges join the points of
    relations  how many kinds of edges there may be, for edges only
    """

    axis: Axis
    shape: tuple[int, ...]
    dtype: DType = DType.FP32
    columns: tuple[str, ...] = ()
    level: Level | None = None
    points: str | None = None
    relations: int = 0

    @property
    def channels(self) -> int:
        """Features of one row, point, site or token; the channel count of an image."""
        if not self.shape:
            return 1
        return self.shape[0] if self.axis is Axis.IMAGE else self.shape[-1]

    def __str__(self) -> str:
        first = {Axis.POINT: "points", Axis.SITE: "sites", Axis.EDGE: "edges"}.get(self.axis, "n")
        return f"{self.axis} [{', '.join([first, *map(str, self.shape)])}] {self.dtype}"


@dataclass(frozen=True, slots=True)
class Value:
    """One value of a batch.

    data         [n, ...] for dense axes, [points, ...], [edges, 3] or [sites, ...] for ragged ones
    offsets      int64 [n + 1]: item i owns rows offsets[i] to offsets[i + 1] of data; ragged axes only
    coordinates  int32 [sites, 4] as (item, x, y, z) in steps of the level's stride; site values only
    """

    data: Tensor
    offsets: Tensor | None = None
    coordinates: Tensor | None = None

    @property
    def items(self) -> int:
        """How many rows, sequences, images, clouds or graphs the batch holds."""
        return self.data.shape[0] if self.offsets is None else self.offsets.shape[0] - 1  # len() takes microseconds


Batch = Mapping[str, Value]


def cost(batch: Batch) -> int:
    """Cost of a batch: points for clouds, nodes or edges for graphs, else rows, of the largest input."""
    return max((value.data.shape[0] for value in batch.values()), default=0)


def check_batch(batch: Batch, types: Mapping[str, ValueType]) -> int:
    """Check a batch against the inputs of a program and return how many items it holds.

    Raises InputError with the numbers: names, dtypes, shapes, offsets, item counts that differ, edges to nowhere.
    """
    if missing := sorted(types.keys() - batch.keys()):
        raise InputError(f"input {missing[0]!r} is missing; the model needs {sorted(types)}")
    if extra := sorted(batch.keys() - types.keys()):
        raise InputError(f"input {extra[0]!r} is not known; the model needs {sorted(types)}")
    for name, value in batch.items():
        _check_value(name, value, types[name])
    counts = {name: value.items for name, value in batch.items()}
    if len(set(counts.values())) > 1:
        raise InputError(f"the inputs of one batch must hold equally many items, got {counts}")
    for name, kind in types.items():
        if kind.axis is Axis.EDGE and kind.points is not None:
            _check_edges(name, batch[name], kind, batch[kind.points])
    return next(iter(counts.values()), 0)


def _check_value(name: str, value: Value, kind: ValueType) -> None:
    if value.data.dtype is not kind.dtype.torch:
        raise InputError(f"input {name!r} has type {value.data.dtype}, it must be {kind.dtype.torch}")
    if tuple(value.data.shape[1:]) != kind.shape:
        raise InputError(f"input {name!r} has shape {list(value.data.shape)}, it must be {kind}")
    if kind.axis.ragged:
        check_offsets(name, value, "edges" if kind.axis is Axis.EDGE else "points")


def _check_edges(name: str, edges: Value, kind: ValueType, nodes: Value) -> None:
    """Check that every edge joins nodes of its own item, and that its relation is one of those there are."""
    assert edges.offsets is not None and nodes.offsets is not None
    item = torch.repeat_interleave(edges.offsets.diff())
    there = nodes.offsets.diff()[item]
    outside = ((edges.data[:, :2] < 0) | (edges.data[:, :2] >= there[:, None])).any(1)
    if bool(outside.any()):
        bad = int(outside.nonzero()[0, 0])
        source, target, _ = edges.data[bad].tolist()
        of, count = int(item[bad]), int(there[bad])
        numbers = f"nodes 0 to {count - 1}" if count else "no nodes"
        raise InputError(
            f"input {name!r} has {int(outside.sum())} edges to nowhere, the first is edge {bad}: it leads from node "
            f"{source} to node {target}, and item {of} of {kind.points!r} has {numbers}"
        )
    unknown = (edges.data[:, 2] < 0) | (edges.data[:, 2] >= kind.relations)
    if bool(unknown.any()):
        bad = int(unknown.nonzero()[0, 0])
        raise InputError(
            f"input {name!r} has {int(unknown.sum())} edges of unknown relations, the first is edge {bad} (item "
            f"{int(item[bad])}): its relation is {int(edges.data[bad, 2])}, it must be 0 to {kind.relations - 1}"
        )


def check_offsets(name: str, value: Value, what: str = "points") -> None:
    """Check that offsets start at 0, never fall, and end at the number of points, or what it is; raises InputError."""
    if value.offsets is None or value.offsets.ndim != 1 or len(value.offsets) < 1:
        raise InputError(f"input {name!r} needs offsets [items + 1]")
    offsets = value.offsets.tolist()  # mostly a few, for which torch's operations would take longer
    if offsets[0] != 0 or offsets[-1] != len(value.data) or sorted(offsets) != offsets:
        raise InputError(
            f"offsets of {name!r} must rise from 0 to its {len(value.data)} {what}, "
            f"got {len(offsets)} numbers from {offsets[0]} to {offsets[-1]}"
        )


def collate(batches: Sequence[Batch]) -> dict[str, Value]:
    """Join batches with the same input names into one, in order; `split` undoes it."""
    if len(batches) == 1:
        return dict(batches[0])
    return {name: _join([batch[name] for batch in batches]) for name in batches[0]}


def outline(batches: Sequence[Batch]) -> Batch:
    """What `collate` would give, without the data of several batches: of that there is but the shape and the type."""
    if len(batches) == 1:
        return batches[0]
    return {name: _outline([batch[name] for batch in batches]) for name in batches[0]}


def _outline(values: Sequence[Value]) -> Value:
    first, rows = values[0].data, sum(value.data.shape[0] for value in values)
    return Value(torch.empty(rows, *first.shape[1:], dtype=first.dtype, device="meta"), _join_offsets(values))


def _join(values: Sequence[Value]) -> Value:
    return Value(torch.cat([value.data for value in values]), _join_offsets(values))


def _join_offsets(values: Sequence[Value]) -> Tensor | None:
    lists = [value.offsets for value in values if value.offsets is not None]
    if not lists:
        return None
    joined, start = [torch.zeros(1, dtype=torch.int64)], 0
    for offsets in lists:
        joined.append(offsets[1:] + start)
        start += int(offsets[-1])
    return torch.cat(joined)


def split(batch: Batch, items: Sequence[int]) -> list[dict[str, Value]]:
    """Split a batch of sum(items) items into one batch per entry of `items`; tensors are views, sites renumbered."""
    if len(items) == 1:
        return [dict(batch)]
    parts: list[dict[str, Value]] = [{} for _ in items]
    for name, value in batch.items():
        start = 0
        for part, count in zip(parts, items, strict=True):
            part[name] = _slice(value, start, start + count)
            start += count
    return parts


def _slice(value: Value, start: int, stop: int) -> Value:
    if value.offsets is None:
        return Value(value.data[start:stop])
    offsets = value.offsets[start : stop + 1]
    low, high = int(offsets[0]), int(offsets[-1])
    coordinates = value.coordinates
    if coordinates is not None:
        coordinates = coordinates[low:high] - torch.tensor([start, 0, 0, 0], dtype=torch.int32)
    return Value(value.data[low:high], offsets - low, coordinates)
