"""Steps of the ops that need no coordinates: elementwise ones, linear ones, and those that torch computes."""

from itertools import accumulate
from math import prod

import torch
from torch import Tensor

from lacuna_kernels.cuda.arena import BufferSpec
from lacuna_kernels.cuda.argmax import argmax as launch_argmax
from lacuna_kernels.cuda.capacity import Capacity
from lacuna_kernels.cuda.elementwise import elementwise
from lacuna_kernels.cuda.fusion import Layer, Part
from lacuna_kernels.cuda.kronecker.choose import Stage
from lacuna_kernels.cuda.kronecker.problem import Problem
from lacuna_kernels.cuda.kronecker.way import Epilogue, Operands
from lacuna_kernels.cuda.kronecker_linear import Chain
from lacuna_kernels.cuda.layer_norm import layer_norm as launch_layer_norm
from lacuna_kernels.cuda.precision import DTYPES
from lacuna_kernels.cuda.steps import Buffers, Writer, flat, vectors
from lacuna_kernels.ops.activation import Activation, ActivationNode
from lacuna_kernels.ops.context import Context
from lacuna_kernels.ops.image import Conv2d
from lacuna_kernels.ops.kronecker_linear import KroneckerLinear, KSPattern
from lacuna_kernels.ops.linear import Linear, tokens_per_row
from lacuna_kernels.ops.norm import BatchNorm, LayerNorm, batch_norm_affine
from lacuna_kernels.ops.select_features import SelectFeatures, select
from lacuna_kernels.ops.tokens import Attention
from lacuna_kernels.types import Axis, Value, ValueType

LINEAR = (KroneckerLinear, Linear)
"""Layers of factors."""

TENSOR_CORE_OPS = (Attention, Conv2d)
"""Torch computes these in the layer's precision; everything else of its in fp32."""


def kronecker_linear(writer: Writer, layer: Layer) -> None:
    """y = f(K_L ... K_1 x + bias + residual)."""
    dtype, kind, device = DTYPES[layer.precision], writer.types[layer.output], writer.device
    (x, *residual) = [writer.converted(name, dtype) for name in layer.inputs]
    count = None if kind.axis is Axis.SEQUENCE else writer.count_of(layer.output)  # counts know nothing of tokens

    weights = writer.weights

    def pack(stage: Stage) -> Tensor:
        key = (layer.output, stage.way.packing, stage.first, len(stage.problems), dtype)
        factors = factors_of(layer)
        return weights.make(key, lambda: weights.keep(stage.pack([f.to(weights.place, dtype) for f in factors])))

    chain = Chain.of(device.limits, problems_of(layer, kind, writer.room), pack, writer.tuned.factors)
    between = {f"{layer.output}:between{i}": BufferSpec((size,), dtype) for i, size in enumerate(chain.between)}
    scratch = {f"{layer.output}:scratch": BufferSpec((chain.scratch_bytes,), torch.uint8)}
    bias = writer.weights.bias(layer)

    def run(b: Buffers) -> None:
        added = vectors(b[residual[0]]) if residual else None
        epilogue = Epilogue(bias, added, layer.activation, layer.slope)
        first, second = (b[name] for name in between)
        counted = None if count is None else b[count]
        operands = Operands(vectors(b[x]), vectors(b[layer.output]), epilogue, counted, b[f"{layer.output}:scratch"])
        chain.launch(device, operands, (first, second))

    reads = [x, *residual] if count is None else [x, *residual, count]
    writer.add(layer.output, reads, writer.output(layer) | between | scratch, run)


def factors_of(layer: Layer) -> list[Tensor]:
    """The factors, fp32 on the CPU, in order of application; a dense layer is one factor without any structure."""
    if isinstance(layer.node, KroneckerLinear):
        return [layer.weights[f"factors.{i}"] for i in range(len(layer.node.patterns))]
    weight = layer.weights["weight"]
    return [weight.view(1, *weight.shape, 1)]


def problems_of(layer: Layer, kind: ValueType, room: Capacity) -> list[Problem]:
    """What the choice of kernels for a layer's factors depends on; `kind` is the type of its output."""
    rows = room.of(kind) * prod(kind.shape[:-1])
    return [Problem(KSPattern(*factor.shape), rows, layer.precision, counted=True) for factor in factors_of(layer)]


def activation(writer: Writer, layer: Layer) -> None:
    """y = f(x)."""
    assert isinstance(layer.node, ActivationNode)
    (x,) = layer.node.inputs
    device, count = writer.device, writer.count_of(x)
    kind, slope = Activation(layer.node.op), layer.node.negative_slope

    def run(b: Buffers) -> None:
        elementwise(device, flat(b[layer.output]), flat(b[x]), b[count], activation=kind, slope=slope)

    writer.add(layer.output, [x, count], writer.output(layer), run)


def batch_norm(writer: Writer, layer: Layer) -> None:
    """y = x * scale + shift, by channel."""
    assert isinstance(layer.node, BatchNorm)
    (x,) = layer.node.inputs
    device, count, kind = writer.device, writer.count_of(x), writer.types[x]
    scale, shift = batch_norm_affine(layer.weights, layer.node.eps)
    put = writer.weights.upload
    held = writer.weights.make((layer.output, "affine"), lambda: (put(scale), put(shift)))
    inner = prod(kind.shape[1:]) if kind.axis is Axis.IMAGE else 1

    def run(b: Buffers) -> None:
        elementwise(device, flat(b[layer.output]), flat(b[x]), b[count], affine=held, inner=inner)

    writer.add(layer.output, [x, count], writer.output(layer), run)


def layer_norm(writer: Writer, layer: Layer) -> None:
    """y = (x - mean) / sqrt(variance + eps) * weight + bias, over the features of each vector."""
    assert isinstance(layer.node, LayerNorm)
    x = writer.converted(layer.node.inputs[0], DTYPES[layer.precision])
    device, count, eps = writer.device, writer.count_of(layer.output), layer.node.eps
    tokens = tokens_per_row(writer.types[layer.output])
    weight, bias = (writer.weights.get(layer, name, torch.float32) for name in ("weight", "bias"))

    def run(b: Buffers) -> None:
        y = vectors(b[layer.output])
        launch_layer_norm(device, y, vectors(b[x]), weight, bias, eps, b[count], tokens)

    writer.add(layer.output, [x, count], writer.output(layer), run)


def add(writer: Writer, layer: Layer) -> None:
    """y = x_0 + x_1 + ..., two at a time, in order."""
    precision = DTYPES[layer.precision]
    first, *others = [writer.converted(name, precision) for name in layer.node.inputs]
    device, count = writer.device, writer.count_of(layer.output)

    def run(b: Buffers) -> None:
        y, total = flat(b[layer.output]), flat(b[first])
        for other in others:
            elementwise(device, y, total, b[count], plus=flat(b[other]))
            total = y

    writer.add(layer.output, [first, *others, count], writer.output(layer), run)


def concat(writer: Writer, layer: Layer) -> None:
    """Copy to their columns those inputs that were not written there in the first place."""
    kind, count, device = writer.types[layer.output], writer.count_of(layer.output), writer.device
    if kind.axis is Axis.SEQUENCE:
        reference(writer, layer)
        return
    names = layer.node.inputs
    ends = [*accumulate(prod(writer.types[name].shape) for name in names)]
    to_copy = [
        (name, start, end)
        for name, start, end in zip(names, [0, *ends], ends, strict=False)
        if writer.parts.get(name) != Part(layer.output, start, end - start)
    ]

    def run(b: Buffers) -> None:
        y = flat(b[layer.output])
        for name, start, end in to_copy:
            elementwise(device, y[:, start:end], flat(b[name]), b[count])

    writer.add(layer.output, [*names, count], writer.output(layer), run)


def argmax(writer: Writer, layer: Layer) -> None:
    """Index of the largest feature of each row, or of the site of each point."""
    (x,) = layer.node.inputs
    device, count = writer.device, writer.count_of(layer.output)
    if writer.types[x].axis is Axis.SEQUENCE:
        reference(writer, layer)
        return
    rows = None if layer.grid is None else f"{writer.level(layer.grid).grid}:voxel_of_point"

    def run(b: Buffers) -> None:
        launch_argmax(device, b[x], b[count], b[layer.output], None if rows is None else b[rows])

    writer.add(layer.output, [x, count, *([] if rows is None else [rows])], writer.output(layer), run)


def select_features(writer: Writer, layer: Layer) -> None:
    """y[:, j] = x[:, indices[j]], by torch, with the indices held on the device."""
    assert isinstance(layer.node, SelectFeatures)
    (x,), node = layer.node.inputs, layer.node
    held = writer.weights
    index = held.make((layer.output, "indices"), lambda: held.keep(torch.tensor(node.indices).to(held.place)))

    def run(b: Buffers) -> None:
        b[layer.output].copy_(select(b[x], index))

    writer.add(layer.output, [x], writer.output(layer), run)


def reference(writer: Writer, layer: Layer) -> None:
    """What the op means, computed by torch inside the captured graph, for all rows there is room for."""
    native = isinstance(layer.node, TENSOR_CORE_OPS)
    dtype = DTYPES[layer.precision] if native else torch.float32
    names = [writer.converted(name, dtype) if native else name for name in layer.node.inputs]
    weights = {key: writer.weights.get(layer, key, dtype) for key in layer.weights}
    context = Context(writer.types)

    def run(b: Buffers) -> None:
        inputs = [Value(b[name].to(dtype)) for name in names]
        b[layer.output].copy_(layer.node.reference(inputs, weights, context).data)

    writer.add(layer.output, names, writer.output(layer), run)
