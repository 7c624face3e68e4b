"""Train `digits-kronecker` and its dense twin on scikit-learn's handwritten digits, and compare them.

    python deploy/training/train_digits.py                    # trains both, writes the model folder, prints the figures
    python deploy/training/train_digits.py --seeds 5          # the same for five seeds, writes nothing
    python deploy/training/train_digits.py --dense FOLDER     # the same, but writes the dense twin, to FOLDER

Takes half a minute a seed on one core. The held-out fifth is used for the printed figures only.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional

from lacuna_kernels import Batch, Graph, Model, Value, Weights, random_weights, save_model, walk
from lacuna_kernels.zoo import dense_mlp, kronecker_mlp

FOLDER = Path(__file__).parents[1] / "models" / "digits-kronecker"
NAMES = ("pixels", "digit", "probabilities")
CLASSES = [str(digit) for digit in range(10)]
WIDTHS = (64, 256, 256)
LAYERS = ([(1, 16, 8, 8), (8, 32, 16, 1)], [(16, 16, 16, 1), (1, 16, 16, 16)])
FIXED = ("running_mean", "running_var", "scale.weight", "scale.bias")
STEPS, BATCH, RATE, DECAY = 3000, 256, 3e-3, 0.02


@dataclass(frozen=True, slots=True)
class Digits:
    """Images fp32 [n, 64] of 8 x 8 pixels 0..16, row by row, and their digits int64 [n]."""

    pixels: Tensor
    digits: Tensor


def split() -> tuple[Digits, Digits]:
    """All 1,797 digits: four fifths to train on, one fifth held out, each with its share of every digit."""
    pixels, digits = load_digits(return_X_y=True)
    parts = train_test_split(pixels, digits, test_size=0.2, random_state=0, stratify=digits)
    train_x, test_x, train_y, test_y = (torch.from_numpy(part) for part in parts)
    return Digits(train_x.float(), train_y), Digits(test_x.float(), test_y)


def initial_weights(graph: Graph, train: Digits, seed: int) -> dict[str, Tensor]:
    """Random weights, but for the first batch norm: it subtracts the mean image and divides all by one deviation."""
    weights = random_weights(graph, seed)
    mean = train.pixels.mean(0)
    weights |= {
        "scale.running_mean": mean,
        "scale.running_var": (train.pixels - mean).square().mean().expand(64).clone(),
    }
    return weights | {"scale.weight": torch.ones(64), "scale.bias": torch.zeros(64)}


def moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, scale and shift each image a little, and add noise."""
    n = len(images)
    turn = torch.randn(n, generator=generator) * 0.12
    size = 1 + torch.randn(n, generator=generator) * 0.08
    shift = torch.randn(n, 2, 1, generator=generator) * 0.12
    rotation = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], 1).reshape(n, 2, 2) * size[:, None, None]
    grid = functional.affine_grid(torch.cat([rotation, shift], 2), [n, 1, 8, 8], align_corners=False)
    warped = functional.grid_sample(images.reshape(n, 1, 8, 8), grid, align_corners=False).reshape(n, 64)
    return warped + torch.randn(n, 64, generator=generator) * 0.8


def train_model(graph: Graph, train: Digits, seed: int) -> dict[str, Tensor]:
    """Adam with decoupled decay and a falling rate, the same for every graph; what is trained is the reference walk."""
    weights = initial_weights(graph, train, seed)
    learned = [weights[name].requires_grad_() for name in weights if not name.endswith(FIXED)]
    optimizer = torch.optim.AdamW(learned, RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        rows = torch.randint(len(train.digits), (BATCH,), generator=generator)
        batch = {"pixels": Value(moved(train.pixels[rows], generator))}
        loss = functional.nll_loss(
            walk(graph, weights, batch)["probabilities"].data.clamp(min=1e-7).log(), train.digits[rows]
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return {name: weight.detach() for name, weight in weights.items()}


def accuracy(graph: Graph, weights: Weights, data: Digits) -> float:
    """Share of images whose digit is right."""
    batch: Batch = {"pixels": Value(data.pixels)}
    return float((walk(graph, weights, batch)["digit"].data == data.digits).float().mean())


def sample_request(data: Digits) -> dict[str, object]:
    """Open Inference Protocol v2 request with the first held-out digit."""
    pixels = {"name": "pixels", "shape": [1, 64], "datatype": "FP32", "data": data.pixels[0].tolist()}
    return {"inputs": [pixels]}


def main() -> None:
    """Train, print, and write the folder if it is the one seed of the shipped model, and nothing else is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="train with seeds 0, 1, ... (default: 0 only, and save)")
    parser.add_argument("--dense", type=Path, help="folder to write the dense twin of seed 0 to, and no other")
    arguments = parser.parse_args()
    ships = arguments.seeds == 1 and not arguments.dense
    train, held_out = split()
    sparse = kronecker_mlp(LAYERS, CLASSES, normalise=True, names=NAMES)
    dense = dense_mlp(WIDTHS, CLASSES, normalise=True, names=NAMES)
    for seed in range(arguments.seeds):
        for name, graph in (("kronecker-sparse", sparse), ("dense twin", dense)):
            weights = train_model(graph, train, seed)
            parameters = sum(weight.numel() for key, weight in weights.items() if not key.startswith("scale."))
            shares = [accuracy(graph, weights, part) for part in (train, held_out)]
            print(
                f"seed {seed} {name}: {parameters} parameters, train {shares[0]:.4f}, held out {shares[1]:.4f}",
                flush=True,
            )
            if ships and graph is sparse:
                save_model(Model(graph, weights), FOLDER / "1")
            if arguments.dense and seed == 0 and graph is dense:
                save_model(Model(graph, weights), arguments.dense)
    if ships:
        (FOLDER / "sample.json").write_text(json.dumps(sample_request(held_out)) + "\n")


if __name__ == "__main__":
    main()
