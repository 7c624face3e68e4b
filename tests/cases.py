"""Shapes and tolerances that tests of every backend share."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lacuna_kernels import DType, Precision, Value

_ROUNDOFF = {Precision.FP32: 2.0**-24, Precision.TF32: 2.0**-11, Precision.FP16: 2.0**-11, Precision.BF16: 2.0**-8}
_SIGMAS = 8


def tolerance(precision: Precision | torch.dtype = Precision.FP32, terms: int = 1, layers: int = 1) -> float:
    """Largest error to expect of a sum of `terms` products after `layers` such layers, relative to the output's RMS.

    Operands rounded to `precision` give products with independent relative errors, so the sum's error relative to
    the sum's RMS does not grow with `terms`; sums kept in fp32 add the fp32 roundoff times sqrt(terms). Errors of
    layers add up as sqrt(layers). The factor 8 turns a standard deviation into the largest of some million values.
    """
    if isinstance(precision, torch.dtype):
        precision = {torch.float32: Precision.FP32, torch.float16: Precision.FP16, torch.bfloat16: Precision.BF16}[
            precision
        ]
    once = 2 * _ROUNDOFF[precision] + _ROUNDOFF[Precision.FP32] * terms**0.5
    return float(_SIGMAS * once * layers**0.5)


def assert_close(actual: Tensor, expected: Tensor, relative: float) -> None:
    """Fail if any element is off by more than `relative` of its own size plus `relative` of the expected RMS.

    Whole numbers must be equal. NaN, infinity and other shapes fail.
    """
    assert actual.shape == expected.shape, f"shape {list(actual.shape)}, expected {list(expected.shape)}"
    if not expected.is_floating_point():
        assert torch.equal(actual.cpu(), expected.cpu()), (
            f"{int((actual.cpu() != expected.cpu()).sum())} numbers differ"
        )
        return
    actual, expected = actual.cpu().double(), expected.cpu().double()
    assert bool(torch.isfinite(actual).all()), "some numbers are not finite"
    if not expected.numel():
        return
    error = (actual - expected).abs()
    allowed = relative * (expected.abs() + expected.square().mean().sqrt())
    worst = int((error - allowed).argmax())
    assert bool((error <= allowed).all()), (
        f"{int((error > allowed).sum())} of {error.numel()} numbers are off, the worst by {error.flatten()[worst]:.3g} "
        f"where {allowed.flatten()[worst]:.3g} is allowed"
    )


def assert_labels_follow(labels: Tensor, scores: Tensor, relative: float) -> None:
    """Fail if a label's score is not within `relative` of the row's best, relative to the RMS of the scores."""
    best = scores.amax(-1)
    chosen = scores.gather(-1, labels.long()[..., None])[..., 0]
    gap = (best - chosen).double()
    assert bool((gap <= relative * (best.abs() + scores.double().square().mean().sqrt())).all()), (
        f"a label's score is {float(gap.max()):.3g} under the best one"
    )


@dataclass(frozen=True, slots=True)
class CloudCase:
    """A batch of clouds: points per cloud, and where they lie."""

    name: str
    points: tuple[int, ...]
    spread_m: float = 3.0
    centre_m: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __str__(self) -> str:
        return self.name

    def value(self, columns: int = 4, seed: int = 0) -> Value:
        """Random points, normally distributed: fp32 [sum(points), columns] with offsets."""
        rng = np.random.default_rng(seed)
        data = rng.normal(size=(sum(self.points), columns)).astype(np.float32)
        data[:, :3] = data[:, :3] * self.spread_m + np.float32(self.centre_m)
        offsets = np.concatenate([[0], np.cumsum(self.points)]).astype(np.int64)
        return Value(torch.from_numpy(data), torch.from_numpy(offsets))


CLOUDS = [
    CloudCase("one cloud", (500,)),
    CloudCase("ragged", (300, 1, 700, 40)),
    CloudCase("empty among others", (0, 200, 0, 100, 0)),
    CloudCase("only empty", (0,)),
    CloudCase("one point", (1,)),
    CloudCase("all in one voxel", (64, 64), spread_m=1e-4, centre_m=(0.51, 0.52, 0.53)),
    CloudCase("negative coordinates", (400, 100), centre_m=(-50.0, -50.0, -20.0)),
    CloudCase("far away", (200, 200), centre_m=(1e6, -1e6, 1e5)),
]


@dataclass(frozen=True, slots=True)
class GraphCase:
    """A batch of graphs: nodes and edges of each, kinds of edges, and how many of the nodes edges lead to at most."""

    name: str
    nodes: tuple[int, ...]
    edges: tuple[int, ...]
    relations: int = 4
    targets: int = 2**31 - 1

    def __str__(self) -> str:
        return self.name

    def batch(self, features: int, seed: int = 0) -> dict[str, Value]:
        """Random features fp32 [sum(nodes), features] and edges int32 [sum(edges), 3], by `nodes` and `edges`."""
        rng = np.random.default_rng(seed)
        data = rng.normal(size=(sum(self.nodes), features)).astype(np.float32)
        edges = [
            np.stack([rng.integers(0, most, count) for most in (nodes, min(nodes, self.targets), self.relations)], 1)
            for nodes, count in zip(self.nodes, self.edges, strict=True)
            if count
        ]
        joined = np.concatenate([np.zeros((0, 3)), *edges]).astype(np.int32)
        return {"nodes": _ragged(data, self.nodes), "edges": _ragged(joined, self.edges)}


def _ragged(data: np.ndarray, lengths: tuple[int, ...]) -> Value:
    return Value(torch.from_numpy(data), torch.tensor([0, *lengths]).cumsum(0))


GRAPHS = [
    GraphCase("one graph", (200,), (900,)),
    GraphCase("ragged", (50, 1, 300, 7), (200, 3, 1000, 0)),
    GraphCase("empty among others", (0, 40, 0), (0, 100, 0)),
    GraphCase("only empty", (0,), (0,)),
    GraphCase("no edges", (30, 20), (0, 0)),
    GraphCase("one node with edges to itself", (1,), (9,), relations=2),
    GraphCase("one relation", (100, 30), (300, 60), relations=1),
    GraphCase("300 relations", (80, 100), (700, 900), relations=300),
    GraphCase("all edges lead to two nodes", (500, 90), (3000, 700), relations=3, targets=2),
]

DTYPES = [DType.FP32, DType.FP16, DType.BF16]
