"""Run every variant of the elementwise and argmax kernels once, on few rows; for compute-sanitizer."""

import sys
from itertools import product

import torch

from lacuna_kernels.cuda.argmax import argmax
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.elementwise import elementwise

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def main() -> None:
    device = Device()
    count = torch.tensor([5], dtype=torch.int32, device="cuda")
    scale = torch.ones(3, device="cuda")
    for source, result in product(DTYPES, repeat=2):
        x, y = torch.ones(9, 12, dtype=source, device="cuda"), torch.empty(9, 30, dtype=result, device="cuda")
        elementwise(device, y[:, 18:], x, count, plus=x, affine=(scale, scale), inner=4)
    for dtype in DTYPES:
        labels = torch.empty(9, dtype=torch.int32, device="cuda")
        argmax(device, torch.ones(9, 19, dtype=dtype, device="cuda"), count, labels)
    torch.cuda.synchronize()
    device.close()
    sys.stdout.write("all variants ran\n")


if __name__ == "__main__":
    main()
