"""Which op becomes which steps."""

from collections.abc import Callable, Mapping

from lacuna_kernels.cuda import dense_steps as dense
from lacuna_kernels.cuda import edge_steps
from lacuna_kernels.cuda import sparse_steps as sparse
from lacuna_kernels.cuda.fusion import Layer
from lacuna_kernels.cuda.steps import Writer
from lacuna_kernels.errors import Unsupported
from lacuna_kernels.graph import Graph, Node
from lacuna_kernels.ops.activation import ActivationNode
from lacuna_kernels.ops.classify import Argmax
from lacuna_kernels.ops.combine import Add, Concat
from lacuna_kernels.ops.devoxelize import Devoxelize
from lacuna_kernels.ops.global_pool import GlobalPool
from lacuna_kernels.ops.kronecker_linear import KroneckerLinear
from lacuna_kernels.ops.linear import Linear
from lacuna_kernels.ops.norm import BatchNorm, LayerNorm
from lacuna_kernels.ops.point_to_voxel import PointToVoxel
from lacuna_kernels.ops.relational_graph_conv import RelationalGraphConv
from lacuna_kernels.ops.select_features import SelectFeatures
from lacuna_kernels.ops.sparse_conv import SparseConv
from lacuna_kernels.ops.sparse_to_bev import SparseToBev
from lacuna_kernels.ops.voxelize import Voxelize

Lower = Callable[[Writer, Layer], None]


def linear(writer: Writer, layer: Layer) -> None:
    """A dense layer: on sites it may be a convolution."""
    if not sparse.linear(writer, layer):
        dense.kronecker_linear(writer, layer)


OWN: Mapping[type[Node], Lower] = {
    ActivationNode: dense.activation,
    Add: dense.add,
    Argmax: dense.argmax,
    BatchNorm: dense.batch_norm,
    Concat: dense.concat,
    Devoxelize: sparse.devoxelize,
    GlobalPool: sparse.global_pool,
    KroneckerLinear: dense.kronecker_linear,
    LayerNorm: dense.layer_norm,
    Linear: linear,
    PointToVoxel: sparse.point_to_voxel,
    RelationalGraphConv: edge_steps.relational_graph_conv,
    SparseConv: sparse.sparse_conv,
    SparseToBev: sparse.sparse_to_bev,
    Voxelize: sparse.voxelize,
}
"""Ops with kernels of ours."""

HELD: Mapping[type[Node], Lower] = {SelectFeatures: dense.select_features}
"""Ops that torch computes with what is held on the device: a graph cannot capture a copy from the host."""

ROWWISE_OPS = frozenset({"softmax"})
"""Ops that torch computes for any axis, since every row is computed alone."""


def lowering(graph: Graph, node: Node) -> Lower:
    """Return what writes the steps of a node; raises Unsupported naming the node."""
    if type(node) in OWN:
        return OWN[type(node)]
    if type(node) in HELD:
        return HELD[type(node)]
    kinds = [*graph.input_types(node), graph.types[node.name]]
    if node.op in ROWWISE_OPS or not any(kind.axis.ragged for kind in kinds):
        return dense.reference
    raise Unsupported(f"node {node.name!r} ({node.op}): no CUDA kernel computes it")


def check_supported(graph: Graph) -> None:
    """Raise Unsupported naming the first node that CUDA cannot run."""
    for node in graph.nodes:
        lowering(graph, node)
