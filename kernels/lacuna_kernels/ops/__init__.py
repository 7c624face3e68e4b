"""The ops of the graph format: one file a family, each with its attributes, shape rule, cost and reference."""

from typing import Annotated, Any, Union, get_args

from pydantic import Field, ValidationError, create_model

from lacuna_kernels.errors import GraphError
from lacuna_kernels.graph import MAX_NODES, Graph, Node
from lacuna_kernels.ops.activation import ActivationNode
from lacuna_kernels.ops.classify import Argmax, Softmax
from lacuna_kernels.ops.combine import Add, Concat
from lacuna_kernels.ops.devoxelize import Devoxelize
from lacuna_kernels.ops.global_pool import GlobalPool
from lacuna_kernels.ops.image import Conv2d
from lacuna_kernels.ops.kronecker_linear import KroneckerLinear
from lacuna_kernels.ops.linear import Linear
from lacuna_kernels.ops.norm import BatchNorm, LayerNorm
from lacuna_kernels.ops.point_to_voxel import PointToVoxel
from lacuna_kernels.ops.relational_graph_conv import RelationalGraphConv
from lacuna_kernels.ops.select_features import SelectFeatures
from lacuna_kernels.ops.sparse_conv import SparseConv
from lacuna_kernels.ops.sparse_to_bev import SparseToBev
from lacuna_kernels.ops.tokens import Attention, ImageToSequence, PositionEmbedding, PrependToken, SelectToken
from lacuna_kernels.ops.voxelize import Voxelize

OPS: tuple[type[Node], ...] = (
    ActivationNode,
    Add,
    Argmax,
    Attention,
    BatchNorm,
    Concat,
    Conv2d,
    Devoxelize,
    GlobalPool,
    ImageToSequence,
    KroneckerLinear,
    LayerNorm,
    Linear,
    PointToVoxel,
    PositionEmbedding,
    PrependToken,
    RelationalGraphConv,
    SelectFeatures,
    SelectToken,
    Softmax,
    SparseConv,
    SparseToBev,
    Voxelize,
)

AnyNode = Annotated[Union[OPS], Field(discriminator="op")]  # type: ignore[valid-type]  # noqa: UP007  made of a tuple
GraphFile = create_model(
    "GraphFile", __base__=Graph, nodes=(tuple[AnyNode, ...], Field(min_length=1, max_length=MAX_NODES))
)
"""The graph with its ops resolved: what `model.json` holds."""


def parse_graph(document: Any) -> Graph:
    """Turn a decoded `model.json` into a valid graph; raises GraphError naming the node and the field."""
    try:
        graph = GraphFile.model_validate(document)
    except ValidationError as error:
        raise GraphError(_first_error(error, document)) from error
    graph.validate_whole()
    return graph


def json_schema() -> dict[str, Any]:
    """JSON Schema of `model.json`."""
    return GraphFile.model_json_schema()


def _first_error(error: ValidationError, document: Any) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    place = [str(step) for step in first["loc"]]
    where = ".".join(place)
    if place[:1] == ["nodes"] and len(place) > 1:
        node = document["nodes"][int(place[1])]
        name = node.get("name", place[1]) if isinstance(node, dict) else place[1]
        where = f"node {name!r}" + (f", {'.'.join(place[3:])}" if place[3:] else "")
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where or 'graph'}: {_in_words(first, place, document)}{more}"


def _in_words(first: Any, place: list[str], document: Any) -> str:
    """What is wrong with one field, in the words of JSON."""
    if first["type"] == "extra_forbidden" and place[:1] == ["nodes"] and len(place) > 2:
        op = document["nodes"][int(place[1])]["op"]
        known = next(kind.model_fields for kind in OPS if op in get_args(kind.model_fields["op"].annotation))
        return f"{op} has no such field; it has {', '.join(known)}"
    if first["type"] == "tuple_type":
        return "must be a list, such as [3, 3, 3]"
    return str(first["msg"]).removeprefix("Value error, ")
