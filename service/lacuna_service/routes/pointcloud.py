"""`POST .../pointcloud`: a point-cloud file in, the label of every point out."""

import time
from colorsys import hsv_to_rgb
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import orjson
import torch
from numpy.typing import NDArray

from lacuna_kernels import Axis, Graph, Value
from lacuna_service.body import BYTES_PASSED_PER_PARSED, offload, preferences
from lacuna_service.codecs.columns import clip
from lacuna_service.codecs.pointcloud import decode, encode_npy, encode_ply, format_of
from lacuna_service.engine import Answer, Engine, ServedModel
from lacuna_service.errors import BadRequest, NotAcceptable
from lacuna_service.metrics import Metrics
from lacuna_service.routes.endpoint import ClientWatch, Exchange, ModelEndpoint
from lacuna_service.routes.replies import Reply

ANSWERS = {
    "application/json": "json",
    "application/x-npy": "npy",
    "application/npy": "npy",
    "application/x-ply": "ply",
    "application/ply": "ply",
    "model/x-ply": "ply",
    "model/ply": "ply",
}
GOLDEN = 0.618033988749895
COLUMNS_LIMIT = 64


@dataclass(frozen=True, slots=True)
class Labelling:
    """How a network labels points: its cloud input with the columns, and the output with its classes and colours."""

    cloud: str
    columns: tuple[str, ...]
    output: str
    classes: tuple[str, ...]
    colours: NDArray[np.uint8]

    @classmethod
    def of(cls, model: ServedModel) -> "Labelling":
        """Find them in a graph; raises BadRequest if it does not label the points of one cloud."""
        graph = model.graph
        inputs = graph.input_value_types
        output = next(
            (name for name, kind in graph.output_types.items() if kind.axis is Axis.POINT and not kind.shape), None
        )
        if len(inputs) != 1 or output is None or not (kind := next(iter(inputs.values()))).columns:
            raise BadRequest(f"model {model.name!r} does not label the points of one cloud: use its /infer")
        classes = _classes(graph, output)
        colours = graph.outputs[output].colors or _palette(len(classes))
        return cls(next(iter(inputs)), kind.columns, output, classes, np.array(colours, np.uint8))


class PointCloud(ModelEndpoint):
    """Files of every format that `codecs.pointcloud` reads, answered as JSON, NPY or a coloured PLY."""

    def __init__(self, engine: Engine, metrics: Metrics, body_limit_bytes: int) -> None:
        super().__init__(engine, metrics, body_limit_bytes)
        self._labellings: WeakKeyDictionary[ServedModel, Labelling] = WeakKeyDictionary()

    async def answer(self, exchange: Exchange) -> Reply:
        """Answer with one label a point, in the order of the file."""
        model, began = exchange.model, time.perf_counter()
        labelling, kind = self._labelling(model), accepted(exchange.headers.get("accept"))
        form = format_of(exchange.headers.get("content-type"), exchange.query.get("format"))
        cloud = await offload(
            len(exchange.body) // (BYTES_PASSED_PER_PARSED if form == "bin" else 1),
            decode,
            memoryview(exchange.body),
            form,
            labelling.columns,
            columns_in_bin=_columns(exchange.query.get("columns")),
            limit_points=model.config.max_batch_cost,
        )
        points = np.require(cloud.points, np.float32, ["C", "A", "W"])
        value = Value(torch.from_numpy(points), torch.from_numpy(np.array([0, len(points)])))
        exchange.spent("decode", began)

        with ClientWatch(exchange.receive):
            answer = await self.engine.infer(model, {labelling.cloud: value})
        exchange.items = answer.items
        exchange.seconds |= {"queue": answer.queue_seconds, "compute": answer.compute_seconds}

        began = time.perf_counter()
        labels = answer.values[labelling.output].data.numpy()
        size = labels.nbytes // BYTES_PASSED_PER_PARSED if kind == "npy" else len(points) * 8
        reply = await offload(size, encode, kind, exchange, answer, labelling, points, labels)
        exchange.spent("encode", began)
        return reply

    def _labelling(self, model: ServedModel) -> Labelling:
        found = self._labellings.get(model)
        if found is None:
            found = self._labellings[model] = Labelling.of(model)
        return found


def encode(
    kind: str,
    exchange: Exchange,
    answer: Answer,
    labelling: Labelling,
    points: NDArray[np.float32],
    labels: NDArray[np.integer[Any]],
) -> Reply:
    """Write labels [n] of points [n, columns] as `kind`: json, npy or ply."""
    if kind == "npy":
        return Reply(encode_npy(labels), "application/x-npy")
    if kind == "ply":
        return Reply(encode_ply(points, labels, labelling.colours), "application/x-ply")
    counts = np.bincount(labels, minlength=len(labelling.classes)).tolist()
    document: dict[str, object] = {
        "model_name": exchange.model.name,
        "model_version": exchange.model.version,
        "points": len(points),
        "classes": labelling.classes,
        "labels": labels,
        "counts": dict(zip(labelling.classes, counts, strict=True)),
    }
    if parameters := exchange.parameters(answer):
        document["parameters"] = parameters
    return Reply(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY))


def accepted(accept: str | None) -> str:
    """The form of the answer that an Accept header likes best: json, npy or ply; raises NotAcceptable."""
    for media in preferences(accept or "*/*"):
        for name, kind in ANSWERS.items():
            if media in (name, "*/*", name.partition("/")[0] + "/*"):
                return kind
    raise NotAcceptable(
        f"Accept {clip(accept or '')}: an answer can be application/json, application/x-npy, application/x-ply"
    )


def _columns(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and 3 <= int(text[:9]) <= COLUMNS_LIMIT):
        raise BadRequest(f"?columns={clip(text)} must be a whole number from 3 to {COLUMNS_LIMIT}")
    return int(text)


def _classes(graph: Graph, output: str) -> tuple[str, ...]:
    """The names of the classes, or their numbers where the graph names none."""
    named = graph.outputs[output].classes
    return tuple(map(str, range(graph.class_count(output)))) if named is None else named


def _palette(classes: int) -> list[tuple[int, int, int]]:
    """Colours that differ for neighbours: hues a golden section apart."""
    hues = (hsv_to_rgb(index * GOLDEN % 1, 0.65, 0.95) for index in range(classes))
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in hues]
