"""Sparse convolution: submanifold, strided, inverse and generative.

Definitions: Graham, Engelcke and van der Maaten, arXiv 1711.10275; dataflows as in TorchSparse++, arXiv 2311.12863.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from lacuna_kernels.graph import Cost, Node, Size
from lacuna_kernels.ops import coordinates as sites
from lacuna_kernels.ops.activation import Activation, activate
from lacuna_kernels.ops.context import Context
from lacuna_kernels.ops.coordinates import COORDINATE_LIMIT, Cells
from lacuna_kernels.types import Axis, Geometry, Level, Triple, Value, ValueType

KernelStep = Annotated[int, Field(ge=1, le=64)]
Padding = Annotated[int, Field(ge=0, le=64)]
ONES: Triple = (1, 1, 1)


class SparseConv(Node):
    """y = f(sum over offsets k of x[map[k]] @ weight[k] + bias) on the active sites of a level.

    weight [k, channels, out_channels] with k = (kx*Ky + ky)*Kz + kz; bias [out_channels]
    An output site reads input sites output*stride - padding + (kx, ky, kz)*dilation.

    submanifold  outputs are the inputs; stride 1, padding dilation*(K - 1)/2, K odd
    strided      outputs are all sites with a contributing input, inside the level's spatial shape if it has one;
                 with sites "floor" they are floor(input / stride), as in MinkowskiEngine
    inverse      undoes the strided node `of`: restores its input sites, reads back through its map, same offsets
    generative   a transposed convolution whose outputs are all sites input*stride - padding + (kx, ky, kz)*dilation,
                 inside the level's spatial shape if it has one, on a level that is finer by the stride

    spatial_shape  for strided and generative: cells of the input grid by axis, where it is not what the level says
    """

    op: Literal["sparse_conv"]
    out_channels: Size
    mode: Literal["submanifold", "strided", "inverse", "generative"] = "submanifold"
    kernel_size: tuple[KernelStep, KernelStep, KernelStep] | None = None
    stride: tuple[KernelStep, KernelStep, KernelStep] | None = None
    padding: tuple[Padding, Padding, Padding] | None = None
    dilation: tuple[KernelStep, KernelStep, KernelStep] | None = None
    sites: Literal["contributing", "floor"] | None = None
    spatial_shape: tuple[Cells, Cells, Cells] | None = None
    of: str | None = None
    bias: bool = False
    activation: Activation | None = None

    @model_validator(mode="after")
    def _check_mode(self) -> Self:
        given = {key for key in ("stride", "padding", "sites", "spatial_shape") if getattr(self, key) is not None}
        if self.mode == "inverse":
            given |= {key for key in ("kernel_size", "dilation") if getattr(self, key) is not None}
            if self.of is None:
                raise ValueError("an inverse convolution names the strided node that it undoes in `of`")
        elif self.kernel_size is None:
            raise ValueError(f"a {self.mode} convolution needs kernel_size, three numbers")
        takes = {"strided": given, "generative": {"stride", "padding", "spatial_shape"}}.get(self.mode, set())
        if given - takes:
            raise ValueError(f"a {self.mode} convolution takes no {sorted(given - takes)[0]}")
        if self.mode != "inverse" and self.of is not None:
            raise ValueError(f"a {self.mode} convolution takes no `of`")
        if self.mode == "submanifold" and any(k % 2 == 0 for k in self.kernel_size or ()):
            raise ValueError(f"a submanifold convolution needs an odd kernel_size, got {self.kernel_size}")
        return self

    @property
    def geometry(self) -> Geometry:
        """How outputs reach inputs, or in a generative one inputs outputs; an inverse has that of what it undoes."""
        assert self.kernel_size is not None
        size, dilation = self.kernel_size, self.dilation or ONES
        if self.mode == "submanifold":
            return sites.submanifold_geometry(size, dilation)
        stride, padding = self.stride or ONES, self.padding or (0, 0, 0)
        return Geometry(size, stride, padding, dilation, self.sites == "floor", self.mode == "generative")

    def infer_type(self, inputs: Sequence[ValueType]) -> ValueType:
        """Sites of the same, a coarser, a finer or the restored level, with out_channels features."""
        (kind,) = inputs
        if kind.axis is not Axis.SITE or kind.level is None or len(kind.shape) != 1 or not kind.dtype.is_float:
            raise ValueError(f"needs features on sites, got {kind}")
        return replace(kind, shape=(self.out_channels,), level=self._level_out(kind.level), columns=())

    def _level_out(self, level: Level) -> Level:
        if self.mode == "submanifold":
            return level
        if self.mode == "inverse":
            if level.name != self.of or level.parent is None:
                raise ValueError(f"undoes {self.of!r}, but its input lies on the sites of {level.name!r}")
            if level.geometry is None or level.geometry.generative:
                raise ValueError(f"undoes {self.of!r}, which is no strided convolution")
            return level.parent
        geometry = self.geometry
        stride = finer(level.stride, geometry.stride) if geometry.generative else coarser(level.stride, geometry.stride)
        shape = output_shape(self.spatial_shape or level.spatial_shape, geometry)
        return Level(self.name, stride, shape, level.grid, level, geometry)

    def volume(self, kind: ValueType) -> int:
        """Number of kernel offsets, given the type of the input."""
        if self.mode != "inverse":
            return self.geometry.volume
        assert kind.level is not None and kind.level.geometry is not None
        return kind.level.geometry.volume

    def weight_shapes(self, inputs: Sequence[ValueType]) -> dict[str, tuple[int, ...]]:
        """Weight [k, channels, out_channels], and bias."""
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.volume(inputs[0]), inputs[0].channels, self.out_channels)}
        return shapes | ({"bias": (self.out_channels,)} if self.bias else {})

    def cost(self, inputs: Sequence[ValueType], rows: int) -> Cost:
        """At most 2 * rows * k * in * out FLOP, reached if every neighbour is there; rows in and out taken as equal."""
        k, ci, co = self.volume(inputs[0]), inputs[0].channels, self.out_channels
        return Cost(2 * rows * k * ci * co, 4 * (rows * (ci + co) + k * ci * co))

    def reference(self, inputs: Sequence[Value], weights: Mapping[str, Tensor], context: Context) -> Value:
        """Gather, multiply and add, offset by offset."""
        (x,) = inputs
        level_in, level_out = context.types[self.inputs[0]].level, context.types[self.name].level
        assert level_in is not None and level_out is not None
        out = self._sites_out(x, level_out, context)
        y = gather_multiply_add(x.data, weights["weight"], self._map(x, out, level_in, level_out, context))
        if self.bias:
            y = y + weights["bias"]
        return Value(activate(y, self.activation), out.offsets, out.coordinates)

    def _sites_out(self, x: Value, level: Level, context: Context) -> Value:
        if level.name not in context.sites:
            assert x.coordinates is not None
            coordinates = active_sites(x.coordinates, level)
            context.sites[level.name] = Value(coordinates, sites.count_offsets(coordinates, x.items), coordinates)
        return context.sites[level.name]

    def _map(self, x: Value, out: Value, level_in: Level, level_out: Level, context: Context) -> Tensor:
        if self.mode == "inverse":
            assert level_in.geometry is not None
            forward = _forward_map(out, x, (level_out.name, level_in.name), level_in.geometry, context)
            return sites.inverse_map(forward, len(out.data))
        return _forward_map(x, out, (level_in.name, level_out.name), self.geometry, context)


def _forward_map(x: Value, out: Value, levels: tuple[str, str], g: Geometry, context: Context) -> Tensor:
    def build() -> Tensor:
        assert x.coordinates is not None and out.coordinates is not None
        return sites.kernel_map(x.coordinates, out.coordinates, g)

    return context.map((*levels, g), build)


def active_sites(coordinates: Tensor, level: Level) -> Tensor:
    """Output sites int32 [m, 4] of the strided or generative node that made `level`, from its input sites."""
    g = level.geometry
    assert g is not None
    if g.generative:
        return sites.generated_sites(coordinates, g, level.spatial_shape)
    if g.floor_sites:
        return sites.floor_sites(coordinates, g.stride)
    return sites.contributing_sites(coordinates, g, level.spatial_shape)


def gather_multiply_add(x: Tensor, weight: Tensor, kernel_map: Tensor) -> Tensor:
    """Sum over k of x[map[k]] @ weight[k]: x [n, ci], weight [k, ci, co], map int64 [k, m] with -1; returns [m, co]."""
    y = x.new_zeros(kernel_map.shape[1], weight.shape[2])
    for k, rows in enumerate(kernel_map):
        out = (rows >= 0).nonzero()[:, 0]
        if len(out):
            y = y.index_add(0, out, x[rows[out]] @ weight[k])
    return y


def coarser(stride: Triple, by: Triple) -> Triple:
    """The stride of a level with one site for so many; raises ValueError if a step passes the largest coordinate."""
    x, y, z = (a * b for a, b in zip(stride, by, strict=True))
    if max(x, y, z) >= COORDINATE_LIMIT:
        raise ValueError(f"strides come to {(x, y, z)} voxels, they must be less than {COORDINATE_LIMIT}")
    return (x, y, z)


def finer(stride: Triple, by: Triple) -> Triple:
    """The stride of a level with so many sites for one; raises ValueError if a step were no whole voxels."""
    if any(a % b for a, b in zip(stride, by, strict=True)):
        raise ValueError(f"its input has a site every {stride} voxels, which stride {by} does not divide")
    x, y, z = (a // b for a, b in zip(stride, by, strict=True))
    return (x, y, z)


def output_shape(spatial_shape: Triple | None, g: Geometry) -> Triple | None:
    """Cells of the output grid by axis, as of a dense convolution, also transposed; ValueError if none are left."""
    if spatial_shape is None:
        return None
    reach = [g.dilation[i] * (g.kernel_size[i] - 1) + 1 - 2 * g.padding[i] for i in range(3)]
    if g.generative:
        x, y, z = ((spatial_shape[i] - 1) * g.stride[i] + reach[i] for i in range(3))
    else:
        x, y, z = ((spatial_shape[i] - reach[i]) // g.stride[i] + 1 for i in range(3))
    if min(x, y, z) < 1:
        raise ValueError(f"a grid of {spatial_shape} cells leaves none for kernel {g.kernel_size}, stride {g.stride}")
    return (x, y, z)
