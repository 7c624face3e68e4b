"""What `lacuna tune` takes and says of sparse convolutions: clouds from files, and what the tuned kernels are worth."""

from collections.abc import Sequence
from itertools import cycle, groupby, islice
from pathlib import Path

import numpy as np
import torch

from lacuna_kernels import Axis, Batch, Graph, InputError, Precision, TunedGroup, Value, check_request, collate, cost
from lacuna_service.codecs.pointcloud import FORMATS, decode
from lacuna_service.config import ServingConfig
from lacuna_service.errors import BadRequest, ServiceError, TooLarge
from lacuna_service.info import columns

MOST_BATCHES = 8
"""More samples than these take are left out, at even distances: they would add time, and little to the means."""

HEADINGS = ("sparse convolutions", "layers", "rule", "tuned", "rule / tuned", "kernel")


def read_samples(
    path: Path | None,
    graph: Graph,
    config: ServingConfig,
    precision: Precision,
    clouds: int,
    columns_in_bin: int | None,
) -> list[Batch]:
    """Read a file, or a folder's, of point clouds into batches of so many clouds, as a model's requests have them.

    path            None for no samples, which models without sparse convolutions do not take
    clouds          of a batch; the last one begins again with the first samples
    columns_in_bin  float32 columns of a .bin, if not the model's own

    Raises BadRequest, which says what is missing, or what is wrong with which file; TooLarge if a batch is over the
    model's max_batch_cost.
    """
    convolutions = [node.name for node in graph.nodes if node.op == "sparse_conv"]
    if path is None:
        if convolutions:
            raise BadRequest(
                f"the model has {len(convolutions)} sparse convolutions, which are measured on real clouds: "
                f"--samples PATH is missing, a file or a folder of point clouds ({', '.join(FORMATS)})"
            )
        if clouds > 1 or columns_in_bin is not None:
            raise BadRequest("--batch and --columns are about samples, and there are none: leave them out")
        return []
    if not convolutions:
        raise BadRequest("--samples are for sparse convolutions, and the model has none: leave them out")
    files = _spread(sample_files(path), MOST_BATCHES * clouds)
    samples = [_read(file, graph, config.max_batch_cost, precision, columns_in_bin) for file in files]
    starts = range(0, len(files), clouds)
    batches: list[Batch] = [collate(list(islice(cycle(samples), start, start + clouds))) for start in starts]
    for start, batch in zip(starts, batches, strict=True):
        if cost(batch) > config.max_batch_cost:
            raise TooLarge(
                f"{clouds} samples from {files[start]} on are {cost(batch)} points in one batch, "
                f"and the model's max_batch_cost is {config.max_batch_cost}: a smaller --batch may fit"
            )
    return batches


def sample_files(path: Path) -> list[Path]:
    """The file itself, or those of a folder whose names end like point clouds; raises BadRequest if there are none."""
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if _format(file) in FORMATS and file.is_file())
        if found:
            return found
        raise BadRequest(f"{path} holds no point clouds: none of its files ends in {_endings()}")
    if not path.is_file():
        raise BadRequest(f"there is no {path}: --samples is a file or a folder of point clouds")
    if _format(path) not in FORMATS:
        raise BadRequest(f"{path} is not known as a point cloud: it should end in {_endings()}")
    return [path]


def _format(file: Path) -> str:
    return file.suffix.lower().removeprefix(".")


def _endings() -> str:
    return ", ".join(f".{name}" for name in FORMATS)


def _spread(files: Sequence[Path], most: int) -> list[Path]:
    if len(files) <= most:
        return list(files)
    return [files[index * len(files) // most] for index in range(most)]


def _cloud_of(graph: Graph) -> tuple[str, tuple[str, ...]]:
    """Name and columns of the one input."""
    inputs = graph.input_value_types
    if len(inputs) != 1 or (kind := next(iter(inputs.values()))).axis is not Axis.POINT:
        taken = ", ".join(f"{name!r} ({kind})" for name, kind in inputs.items())
        raise BadRequest(f"--samples are for models that take one cloud; this one takes {taken}")
    return next(iter(inputs)), kind.columns


def _read(file: Path, graph: Graph, limit_points: int, precision: Precision, columns_in_bin: int | None) -> Batch:
    """A cloud as the service would take it."""
    name, wanted = _cloud_of(graph)
    try:
        body = file.read_bytes()
        cloud = decode(body, _format(file), wanted, columns_in_bin=columns_in_bin, limit_points=limit_points)
        points = np.require(cloud.points, np.float32, ["C", "A", "W"])
        batch = {name: Value(torch.from_numpy(points), torch.tensor([0, len(points)]))}
        check_request(graph, batch, precision)
    except (OSError, InputError) as error:
        raise BadRequest(f"{file}: {error}") from error
    except ServiceError as error:
        raise type(error)(f"{file}: {error}") from error
    if not len(points):
        raise BadRequest(f"{file} has no points to measure anything on")
    return batch


def summary(groups: Sequence[TunedGroup], objective: str) -> list[str]:
    """What the tuned kernels are worth: a line each group, and one for all of a network, for plans of each size."""
    lines = list[str]()
    for points, same in groupby(groups, key=lambda group: group.points):
        lines += ["", f"on plans for {points} points:", *_table(list(same), objective)]
    return lines


def _table(groups: Sequence[TunedGroup], objective: str) -> list[str]:
    rows = [(g.name, str(g.layers), *_compared(g.rule, g.best, objective), g.kernel) for g in groups]
    rule, best = (sum(group.layers * getattr(group, which) for group in groups) for which in ("rule", "best"))
    worst = max(groups, key=lambda group: group.rule / group.best)
    layers = str(sum(group.layers for group in groups))
    return [
        *columns([HEADINGS, *rows, ("all", layers, *_compared(rule, best, objective), "")], range(1, 5)),
        f"the rule is at worst {worst.rule / worst.best:.2f} times the best: {worst.name}",
    ]


def _compared(rule: float, best: float, objective: str) -> tuple[str, str, str]:
    return _amount(rule, objective), _amount(best, objective), f"{rule / best:.2f}"


def _amount(cost: float, objective: str) -> str:
    """Seconds or joules for people."""
    return f"{1e6 * cost:.1f} us" if objective == "latency" else f"{1e3 * cost:.3f} mJ"
