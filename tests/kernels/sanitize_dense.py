"""Run every variant of the elementwise and argmax kernels once, on few rows; for compute-sanitizer."""

from itertools import product

import torch

from lacuna_kernels.cuda.argmax import argmax
from lacuna_kernels.cuda.elementwise import elementwise
from tests.kernels.sanitized import every_variant_of

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SOURCES = {"argmax.cu", "elementwise.cu"}


def main() -> None:
    with every_variant_of(SOURCES) as device:
        count = torch.tensor([5], dtype=torch.int32, device="cuda")
        scale = torch.ones(3, device="cuda")
        for source, result in product(DTYPES, repeat=2):
            x, y = torch.ones(9, 12, dtype=source, device="cuda"), torch.empty(9, 30, dtype=result, device="cuda")
            elementwise(device, y[:, 18:], x, count, plus=x, affine=(scale, scale), inner=4)
        for dtype in DTYPES:
            labels = torch.empty(9, dtype=torch.int32, device="cuda")
            argmax(device, torch.ones(9, 19, dtype=dtype, device="cuda"), count, labels)


if __name__ == "__main__":
    main()
