"""What the benchmark of sparse-convolution networks measures: networks, their clouds, types, and sizes of batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product

import torch
from torch import Tensor

from bench.scans import frames, sweeps
from lacuna_kernels import Batch, Graph, Precision, Value, collate, random_weights
from lacuna_kernels.zoo import NECK_CHANNELS, centerpoint_encoder, minkunet, spvcnn

SPARSE, SWEEPS = 10, 10
"""Of CenterPoint: every tenth point of a KITTI scan, in ten sweeps, are some 100,000 voxels in its range."""


@dataclass(frozen=True, slots=True)
class Network:
    """What is measured, what a cloud is made of, and whether spconv can run it.

    sparse  a frame has every so many-th point of a scan
    sweeps  of a frame that a cloud has, with their age as a column; 0: it is a frame
    """

    build: Callable[[], Graph]
    sparse: int = 1
    sweeps: int = 0
    peer: bool = True

    def clouds(self, scans: Sequence[Tensor]) -> Iterator[Tensor]:
        """Endless clouds, no two alike."""
        for frame in frames([scan[:: self.sparse] for scan in scans]):
            yield sweeps(frame, self.sweeps) if self.sweeps else frame


NETWORKS = {
    "minkunet42": Network(lambda: minkunet(19)),
    "minkunet18": Network(lambda: minkunet(19, blocks=(1,) * 8)),
    "spvcnn": Network(lambda: spvcnn(19), peer=False),
    "centerpoint": Network(centerpoint_encoder, SPARSE, SWEEPS),
    "centerpoint_neck": Network(lambda: centerpoint_encoder(neck=NECK_CHANNELS), SPARSE, SWEEPS, peer=False),
}
WHOLE, BATCHES = ("minkunet42", "centerpoint"), (1, 2, 4, 8)
"""Networks that are measured with several clouds at a time, and how many."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One network in one type, on so many clouds at a time."""

    network: str
    precision: Precision
    clouds: int

    def __str__(self) -> str:
        return f"{self.network} {self.precision} x{self.clouds}"


def default_cells() -> list[Cell]:
    """Two networks in fp16 by sizes of batches; the other types, and the other networks, by a cloud each."""
    others = [Precision.BF16, Precision.TF32, Precision.FP32]
    return [
        *(Cell(network, Precision.FP16, clouds) for network, clouds in product(WHOLE, BATCHES)),
        *(Cell(WHOLE[0], precision, 1) for precision in others),
        *(Cell(network, Precision.FP16, 1) for network in NETWORKS if network not in WHOLE),
    ]


def weights_of(graph: Graph) -> dict[str, Tensor]:
    """Random ones, the first layer's small: metres are features too, and fp16 has to hold what comes of them."""
    weights = random_weights(graph, 0)
    first = next(node.name for node in graph.nodes if node.op == "sparse_conv")
    return {**weights, f"{first}.weight": weights[f"{first}.weight"] / 16}


def batches_of(network: Network, scans: Sequence[Tensor], size: int, number: int) -> Iterator[Batch]:
    """So many batches of clouds."""
    clouds = network.clouds(scans)
    for _ in range(number):
        parts = list(islice(clouds, size))
        yield collate([{"points": Value(part, torch.tensor([0, len(part)]))} for part in parts])
