"""Figures of `lidar-minkunet` for its model card: held-out streets, a per-point baseline, and a real scan.

python deploy/training/evaluate_lidar.py --scans 100 --baseline --real SCAN.bin --picture kitti.png
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lidar_figures import Floats, Labels, baseline, confusion, intersection_over_union, real_shares
from lidar_picture import draw

from lacuna_client.simulate import CLASSES, simulate_scan
from lacuna_kernels import Model, Value, load_model, walk

FOLDER = Path(__file__).parents[1] / "models" / "lidar-minkunet" / "1"
Labeller = Callable[[Floats], Labels]


def labeller(model: Model, device: torch.device) -> Labeller:
    """Give points to the network and return a class each."""
    weights = {name: weight.to(device) for name, weight in model.weights.items()}

    def label(points: Floats) -> Labels:
        cloud = Value(torch.from_numpy(points).to(device), torch.tensor([0, len(points)], device=device))
        with torch.inference_mode():
            found: Labels = walk(model.graph, weights, {"points": cloud})["labels"].data.cpu().numpy()
        return found

    return label


def main() -> None:
    """Print what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=FOLDER)
    parser.add_argument("--scans", type=int, default=100, help="held-out streets: seeds 0, 1, ...")
    parser.add_argument("--baseline", action="store_true", help="train and judge the per-point classifier too")
    parser.add_argument("--real", type=Path, help="a scan as KITTI stores it, without labels")
    parser.add_argument("--picture", type=Path, help="where to draw the real scan")
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    label = labeller(model, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    scans = [simulate_scan(seed) for seed in range(arguments.scans)]
    if scans:
        counts = np.asarray(sum(confusion(scan.labels, label(scan.points)) for scan in scans))
        by_class = intersection_over_union(counts)
        print(f"mIoU {by_class.mean():.4f} on {len(scans)} held-out streets")
        print("  ".join(f"{name} {share:.3f}" for name, share in zip(CLASSES, by_class, strict=True)))
        print("confusion in % of the truth, by row\n", np.round(100 * counts / counts.sum(1, keepdims=True), 1))
    if arguments.baseline:
        print(f"per-point baseline on (z, range, intensity): mIoU {baseline(scans):.4f}")
    if arguments.real:
        points = np.fromfile(arguments.real, np.float32).reshape(-1, 4)
        labels = label(points)
        print(real_shares(points, labels))
        print("  ".join(f"{name} {(labels == index).mean():.3f}" for index, name in enumerate(CLASSES)))
        if arguments.picture:
            draw(points, labels, model.graph.outputs["labels"].colors or ()).save(arguments.picture, optimize=True)


if __name__ == "__main__":
    main()
