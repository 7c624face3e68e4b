"""Train `lidar-minkunet` on generated 64-beam scans of streets; nothing real is seen in training.

    python deploy/training/train_lidar.py --minutes 7      # a GPU and 16 cores
    python deploy/training/evaluate_lidar.py --baseline

Scans are generated while it trains, in a fixed order; the network sees each once.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from lidar_scans import Labelled, training_batches
from torch import Tensor
from torch.nn import functional
from training_walk import training_walk

from lacuna_client.simulate import CLASSES
from lacuna_kernels import Graph, Model, Value, random_weights, save_model
from lacuna_kernels.zoo import minkunet

FOLDER = Path(__file__).parents[1] / "models" / "lidar-minkunet"
CHANNELS = (16, 32, 48, 64, 96, 64, 48, 32, 32)
BLOCKS = (1,) * 8
VOXEL_SIZE_M = 0.15
COLORS = ((128, 64, 128), (244, 35, 232), (180, 160, 110), (70, 130, 255), (255, 40, 40), (60, 170, 60), (255, 220, 0))
CLASS_WEIGHTS = (1.0, 1.0, 1.0, 1.5, 4.0, 1.0, 3.0)
RATE, DECAY, AVERAGE = 4e-3, 0.02, 0.997
SEED = 0


def network() -> Graph:
    """The shipped network."""
    return minkunet(CLASSES, CHANNELS, BLOCKS, voxel_size_m=VOXEL_SIZE_M, colors=COLORS, scores=True)


@dataclass(slots=True)
class Trainer:
    """Weights, optimizer and a running average of the weights, which is what is kept in the end."""

    graph: Graph
    device: torch.device
    weights: dict[str, Tensor] = field(init=False)
    average: dict[str, Tensor] = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    steps: int = 0

    def __post_init__(self) -> None:
        start = {name: weight.to(self.device) for name, weight in random_weights(self.graph, SEED).items()}
        for name, weight in start.items():
            if name.endswith(("norm.weight", "norm.bias", ".running_mean", ".running_var")):
                weight.fill_(1 if name.endswith(("norm.weight", ".running_var")) else 0)
        self.weights = {name: w if ".running_" in name else w.requires_grad_() for name, w in start.items()}
        self.average = {name: weight.detach().clone() for name, weight in start.items()}
        kernels = [w for w in self.weights.values() if w.requires_grad and w.ndim > 1]
        rest = [w for w in self.weights.values() if w.requires_grad and w.ndim == 1]
        groups = [{"params": kernels, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, RATE, fused=self.device.type == "cuda")

    def step(self, batch: Labelled, progress: float) -> Tensor:
        """One step at the rate for this share of the training time; returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = RATE * rate_at(progress)
        points = Value(batch.points.data.to(self.device), batch.points.offsets.to(self.device))  # type: ignore[union-attr]
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        logits = training_walk(self.graph, self.weights, {"points": points}, dtype)["logits"].data.float()
        loss = segmentation_loss(logits, batch.labels.to(self.device))
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.steps += 1
        self._keep()
        return loss.detach()

    @torch.no_grad()
    def _keep(self) -> None:
        self.weights["stem1.weight"][:, :2] = 0  # x and y say nothing of a class: the scan may be anywhere
        pace = max(1 - AVERAGE, 1 / self.steps)
        for name, weight in self.weights.items():
            self.average[name].lerp_(weight, pace)


def rate_at(progress: float) -> float:
    """Rise over the first twentieth, then fall along a cosine."""
    if progress < 0.05:
        return progress / 0.05
    return 0.5 + 0.5 * float(torch.cos(torch.tensor((progress - 0.05) / 0.95 * torch.pi)))


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Weighted cross entropy, and what each present class lacks of full overlap (soft Dice)."""
    weights = torch.tensor(CLASS_WEIGHTS, device=logits.device)
    entropy = functional.cross_entropy(logits, labels, weights, label_smoothing=0.02)
    chance, truth = logits.softmax(1), functional.one_hot(labels, len(CLASS_WEIGHTS)).float()
    overlap = (2 * (chance * truth).sum(0) + 1) / (chance.sum(0) + truth.sum(0) + 1)
    present = truth.sum(0) > 0
    return entropy + (1 - overlap)[present].mean()


def train(trainer: Trainer, batches: Iterator[Labelled], seconds: float, folder: Path) -> None:
    """Train for so long; tell how it goes and how long scans were waited for, and keep what there is now and then."""
    start, losses, waited = time.monotonic(), [], 0.0
    while (passed := time.monotonic() - start) < seconds:
        batch = next(batches)
        waited += time.monotonic() - start - passed
        losses.append(trainer.step(batch, passed / seconds))
        if trainer.steps % 100 == 0:
            mean = torch.stack(losses).mean()
            print(f"{passed:5.0f} s, step {trainer.steps}, loss {mean:.4f}, waited {waited:.0f} s", flush=True)
            losses = []
        if trainer.steps % 500 == 0:
            save(trainer.graph, trainer.average, folder)


def save(graph: Graph, weights: dict[str, Tensor], folder: Path) -> None:
    """Write the model folder: kernels in fp16, all that is added or divided by in fp32."""
    halves = {name: w.half() if w.ndim > 1 else w for name, w in weights.items()}
    save_model(Model(graph, {name: w.cpu().contiguous() for name, w in halves.items()}), folder)


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=7)
    parser.add_argument("--batch", type=int, default=4, help="scans a step")
    parser.add_argument("--processes", type=int, default=15, help="that generate scans")
    parser.add_argument("--out", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    trainer = Trainer(network(), torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    batches = training_batches(arguments.batch, arguments.processes)
    next(batches)  # the clock starts when scans flow
    train(trainer, batches, 60 * arguments.minutes, arguments.out / "1")
    save(trainer.graph, trainer.average, arguments.out / "1")
    print(f"{trainer.steps} steps of {arguments.batch} scans")


if __name__ == "__main__":
    main()
