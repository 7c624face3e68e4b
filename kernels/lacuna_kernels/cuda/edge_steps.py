"""Steps of the op on nodes and the edges between them."""

import torch

from lacuna_kernels.cuda.arena import BufferSpec
from lacuna_kernels.cuda.edges import EdgeBuffer, PairBuffer, edge_sums, pair_edges, pairs_work
from lacuna_kernels.cuda.fusion import Layer
from lacuna_kernels.cuda.kernel_map import map_shapes
from lacuna_kernels.cuda.precision import DTYPES
from lacuna_kernels.cuda.site_steps import kernel_map_buffers, kernel_map_in
from lacuna_kernels.cuda.sparse_conv import are_whole_pieces, sparse_conv
from lacuna_kernels.cuda.sparse_conv_choice import ConvShape, candidates
from lacuna_kernels.cuda.sparse_steps import are_aligned, packed
from lacuna_kernels.cuda.steps import Buffers, Writer, ints
from lacuna_kernels.graph import Precision
from lacuna_kernels.ops.relational_graph_conv import RelationalGraphConv


def relational_graph_conv(writer: Writer, layer: Layer) -> None:
    """y = f(bias + residual + sum over relations r of pairs[map[r]] @ weight[r] + x @ root)."""
    node, device, dtype = layer.node, writer.device, DTYPES[layer.precision]
    assert isinstance(node, RelationalGraphConv)
    x, edges = writer.converted(node.inputs[0], dtype), node.inputs[1]
    residual = None if layer.residual is None else writer.converted(layer.residual, dtype)
    pairs, key = _pairs(writer, edges), f"{edges}:map"
    count, y, sums = writer.count_of(layer.output), layer.output, f"{layer.output}:pairs"
    channels, bias = writer.types[node.inputs[0]].channels, writer.weights.bias(layer)
    aligned = are_aligned(writer, [x], dtype) and are_whole_pieces(channels, dtype=dtype)
    tf32 = layer.precision is Precision.TF32
    relations = len(layer.weights["weight"])
    shape = ConvShape(channels, node.out_channels, dtype, aligned, writer.room.points, tf32=tf32, volume=relations)
    weight = packed(writer, layer, candidates(shape, device.limits)[0], beside="root")

    def run(b: Buffers) -> None:
        edge_sums(device, b[x], PairBuffer(*(b[name] for name in pairs)), b[sums], mean=node.aggregate == "mean")
        sparse_conv(
            device,
            *(b[sums], weight, kernel_map_in(b, key), b[count], b[y]),
            bias=bias,
            residual=None if residual is None else b[residual],
            shortcut=b[x] if node.root else None,
            activation=layer.activation,
            slope=layer.slope,
        )

    reads = [x, *([] if residual is None else [residual]), count, *pairs, *kernel_map_buffers(key)]
    made = {sums: BufferSpec((writer.room.points, channels), dtype)}
    writer.add(y, reads, writer.output(layer) | made, run)


def _pairs(writer: Writer, edges: str) -> list[str]:
    """Names of the buffers of the pairs of an edge input, which are made, with the map to them, on first use."""
    names = [f"{edges}:{part}" for part in ("sources", "starts", "pairs")]
    if not writer.once(names[0]):
        return names
    device, kind, room = writer.device, writer.types[edges], writer.room.points
    nodes, work, key = kind.points, f"{edges}:work", f"{edges}:map"
    given = [edges, f"{edges}:count", f"{edges}:offsets", f"{nodes}:count", f"{nodes}:offsets"]

    def run(b: Buffers) -> None:
        lists, pairs = EdgeBuffer(*(b[name] for name in given)), PairBuffer(*(b[name] for name in names))
        pair_edges(device, lists, kind.relations, pairs, kernel_map_in(b, key), b[work])

    made = dict(zip(names, map(ints, (room, room + 1, 1)), strict=True))
    shapes = map_shapes(kind.relations, room)
    made |= {f"{key}:{part}": BufferSpec(shape, torch.int32) for part, shape in shapes.items()}
    writer.add(f"pair {edges}", given, made | {work: ints(pairs_work(room, room))}, run)
    return names
