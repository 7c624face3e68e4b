"""Time Kronecker-sparse factors on a GPU against dense and batched products.

python kernels/bench/bench_kronecker.py 1,48,48,128 64,64,64,1 [--rows 25088] [--dtype fp16] [--tiles 3]

Times are medians over replays of a CUDA graph whose launches walk through several copies of the operands, so that
nothing is found in the cache by luck. Each result is checked first. roof: FLOP / rate or bytes / 4.3 TB/s, whichever
is longer, with the rates measured on an H200.
"""

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor

from lacuna_kernels import DType
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.kronecker_linear import ks_matmul, limits_of
from lacuna_kernels.cuda.kronecker_tiles import Tile, candidates
from lacuna_kernels.ops import kronecker_linear as reference
from lacuna_kernels.ops.kronecker_linear import KSPattern

FLOP_PER_SECOND = {torch.float32: 137e12, torch.float16: 770e12, torch.bfloat16: 770e12}
BYTES_PER_SECOND = 4.3e12
LIMIT = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
LARGEST_DENSE = 2**28
Launch = Callable[[int], object]


def milliseconds(device: Device, launch: Launch, copies: int, repeats: int = 15) -> float:
    """Median time of one launch; `launch(i)` uses the operands of copy i."""
    stream = device.new_stream()
    with torch.cuda.stream(stream):
        for copy in range(copies):
            launch(copy)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for copy in range(copies):
            launch(copy)
    times: list[float] = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / copies)
    return median(times)


def dense(values: Tensor) -> Tensor:
    """The factor K as a matrix, [a*b*d, a*c*d]."""
    a, b, c, d = values.shape
    blocks = torch.zeros(a, b, d, a, c, d, dtype=values.dtype, device=values.device)
    blocks.diagonal(dim1=0, dim2=3).diagonal(dim1=1, dim2=3)[:] = values.permute(1, 2, 0, 3)
    return blocks.view(a * b * d, a * c * d)


def batched(x: Tensor, values: Tensor, y: Tensor) -> None:
    """The product by torch.bmm over the a*d blocks, with the permutations it needs."""
    a, b, c, d = values.shape
    blocks = x.view(-1, a, c, d).permute(1, 3, 0, 2).reshape(a * d, -1, c)
    out = torch.bmm(blocks, values.permute(0, 3, 2, 1).reshape(a * d, c, b))
    y.copy_(out.view(a, d, -1, b).permute(2, 0, 3, 1).reshape(y.shape))


def bench(device: Device, pattern: KSPattern, rows: int, dtype: torch.dtype, tiles: int) -> None:
    """Check and time our best guesses, and the two library ways; one line each."""
    size = dtype.itemsize
    traffic = size * (rows * (pattern.width_in + pattern.width_out) + pattern.nonzeros)
    roof = 1e3 * max(2 * rows * pattern.nonzeros / FLOP_PER_SECOND[dtype], traffic / BYTES_PER_SECOND)
    copies = min(32, max(2, 2**29 // traffic + 1))
    xs = [torch.randn(rows, pattern.width_in, device="cuda").to(dtype) for _ in range(copies)]
    values = (torch.randn(pattern.values, device="cuda") * pattern.c**-0.5).to(dtype)
    ys = [torch.empty(rows, pattern.width_out, dtype=dtype, device="cuda") for _ in range(copies)]
    few = slice(0, min(rows, 512))
    expected = reference.ks_matmul(xs[0][few].double(), values.double())

    def line(name: str, launch: Launch) -> None:
        ys[0].fill_(torch.nan)
        launch(0)
        error = float((ys[0][few].double() - expected).norm() / expected.norm())
        assert error < LIMIT[dtype] and not bool(ys[0].isnan().any()), f"{name} is wrong: relative L2 {error:.2g}"
        time = milliseconds(device, launch, copies)
        print(f"{tuple(pattern.values)!s:22} {name:28} {time:9.4f} ms   {roof / time:5.2f} of the roof ({roof:.4f} ms)")

    def ours(tile: Tile, copy: int) -> None:
        ks_matmul(device, xs[copy], values, ys[copy], tile=tile)

    for tile in candidates(pattern, dtype, rows, limits_of(device))[:tiles]:
        name = f"{tile.method} {tile.n} x {tile.b} x {tile.d}"
        line(name, partial(ours, tile))
    line("bmm and permutations", lambda copy: batched(xs[copy], values, ys[copy]))
    if pattern.width_in * pattern.width_out <= LARGEST_DENSE:
        matrix = dense(values).T
        line("dense", lambda copy: torch.mm(xs[copy], matrix, out=ys[copy]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("patterns", nargs="+", metavar="A,B,C,D")
    parser.add_argument("--rows", type=int, default=25_088)
    parser.add_argument("--dtype", type=DType, default=DType.FP16, choices=[DType.FP32, DType.FP16, DType.BF16])
    parser.add_argument("--tiles", type=int, default=1, help="how many of our tiles to time, best guess first")
    options = parser.parse_args()
    device = Device()
    with torch.cuda.stream(device.stream):
        for text in options.patterns:
            a, b, c, d = map(int, text.split(","))
            bench(device, KSPattern(a, b, c, d), options.rows, options.dtype.torch, options.tiles)
    device.close()


if __name__ == "__main__":
    main()
