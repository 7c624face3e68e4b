"""Run every variant of the elementwise, layer norm and argmax kernels once, on few rows; for compute-sanitizer."""

from itertools import product

import torch

from lacuna_kernels.cuda.argmax import argmax
from lacuna_kernels.cuda.elementwise import elementwise
from lacuna_kernels.cuda.layer_norm import layer_norm
from tests.kernels.sanitized import noted

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SOURCES = {"argmax.cu", "elementwise.cu", "layer_norm.cu"}


def main() -> None:
    with noted() as device:
        count = torch.tensor([5], dtype=torch.int32, device="cuda")
        scale = torch.ones(3, device="cuda")
        for source, result in product(DTYPES, repeat=2):
            x, y = torch.ones(9, 12, dtype=source, device="cuda"), torch.empty(9, 30, dtype=result, device="cuda")
            elementwise(device, y[:, 18:], x, count, plus=x, affine=(scale, scale), inner=4)
        for dtype in DTYPES:
            labels = torch.empty(9, dtype=torch.int32, device="cuda")
            argmax(device, torch.ones(9, 19, dtype=dtype, device="cuda"), count, labels)
            for features in (19, 48):
                x, affine = torch.ones(18, features, dtype=dtype, device="cuda"), torch.ones(features, device="cuda")
                layer_norm(device, x, x, affine, affine, 1e-5, count, tokens=2)


if __name__ == "__main__":
    main()
