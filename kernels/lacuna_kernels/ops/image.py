"""Dense 2-D convolutions on images and bird's-eye views."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from lacuna_kernels.graph import Cost, Node, Size
from lacuna_kernels.ops.activation import Activation, activate, floats
from lacuna_kernels.ops.context import Context
from lacuna_kernels.types import Axis, Value, ValueType

Step = Annotated[int, Field(ge=1, le=1024)]
Padding = Annotated[int, Field(ge=0, le=1024)]


class Conv2d(Node):
    """Dense 2-D convolution, as torch.nn.Conv2d (conv2d) or torch.nn.ConvTranspose2d (conv_transpose2d).

    conv2d            weight [out_channels, channels / groups, *kernel_size]
    conv_transpose2d  weight [channels, out_channels / groups, *kernel_size]
    bias [out_channels]
    """

    op: Literal["conv2d", "conv_transpose2d"]
    out_channels: Size
    kernel_size: tuple[Step, Step]
    stride: tuple[Step, Step] = (1, 1)
    padding: tuple[Padding, Padding] = (0, 0)
    groups: Step = 1
    bias: bool = True
    activation: Activation | None = None

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        if self.out_channels % self.groups:
            raise ValueError(f"{self.groups} groups do not divide {self.out_channels} output channels")
        return self

    def infer_type(self, inputs: Sequence[ValueType]) -> ValueType:
        """Image of the size that torch gives."""
        kind = floats(inputs[0])
        if kind.axis is not Axis.IMAGE:
            raise ValueError(f"needs an image, got {kind}")
        if kind.channels % self.groups:
            raise ValueError(f"{self.groups} groups do not divide {kind.channels} input channels")
        height, width = (self._size_out(size, axis) for axis, size in enumerate(kind.shape[1:]))
        if min(height, width) < 1:
            raise ValueError(f"an image of {kind.shape[1:]} leaves no pixel for kernel {self.kernel_size}")
        return replace(kind, shape=(self.out_channels, height, width))

    def _size_out(self, size: int, axis: int) -> int:
        kernel, stride, padding = self.kernel_size[axis], self.stride[axis], self.padding[axis]
        if self.op == "conv_transpose2d":
            return (size - 1) * stride - 2 * padding + kernel
        return (size + 2 * padding - kernel) // stride + 1

    def weight_shapes(self, inputs: Sequence[ValueType]) -> dict[str, tuple[int, ...]]:
        """Weight as torch has it, and bias."""
        ci, co = inputs[0].channels, self.out_channels
        first, second = (co, ci // self.groups) if self.op == "conv2d" else (ci, co // self.groups)
        shapes: dict[str, tuple[int, ...]] = {"weight": (first, second, *self.kernel_size)}
        return shapes | ({"bias": (co,)} if self.bias else {})

    def cost(self, inputs: Sequence[ValueType], rows: int) -> Cost:
        """2 * pixels * kernel * in * out / groups FLOP; of the output's pixels, or the input's when transposed."""
        (ci, *size_in), (co, *size_out) = inputs[0].shape, self.infer_type(inputs).shape
        pixels_in, pixels_out = rows * size_in[0] * size_in[1], rows * size_out[0] * size_out[1]
        weight = self.kernel_size[0] * self.kernel_size[1] * ci * co // self.groups
        pixels = pixels_out if self.op == "conv2d" else pixels_in
        return Cost(2 * pixels * weight, 4 * (pixels_in * ci + pixels_out * co + weight))

    def reference(self, inputs: Sequence[Value], weights: Mapping[str, Tensor], context: Context) -> Value:
        """Return torch's convolution."""
        (x,) = inputs
        convolve = functional.conv2d if self.op == "conv2d" else functional.conv_transpose2d
        y = convolve(
            x.data,
            weights["weight"],
            weights.get("bias"),
            stride=self.stride,
            padding=self.padding,
            groups=self.groups,
        )
        return Value(activate(y, self.activation))
