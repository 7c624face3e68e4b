"""Run every way to multiply by Kronecker-sparse factors on small sizes that miss the tile; for compute-sanitizer.

Its argument says which of the PARTS that share the ways out this is, from 0 on: sanitize_kronecker.py 0.
"""

import sys
from itertools import product
from math import ceil

import torch

from lacuna_kernels import Precision
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.kronecker import tf32
from lacuna_kernels.cuda.kronecker.choose import CHAIN_WAYS, WAYS
from lacuna_kernels.cuda.kronecker.exchange import Exchange
from lacuna_kernels.cuda.kronecker.exchange_halves import ExchangeHalves
from lacuna_kernels.cuda.kronecker.few_rows import FewRowsChain
from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.cuda.kronecker.way import PLAIN, ChainWay, Epilogue, Operands, Way
from lacuna_kernels.ops.activation import Activation
from lacuna_kernels.ops.kronecker_linear import KSPattern
from tests.kernels.sanitized import noted

SOURCES = {
    "ks_chain.cu",
    "ks_few_rows.cu",
    "ks_matmul_columns.cu",
    "ks_matmul_exchange.cu",
    "ks_matmul_exchange_halves.cu",
    "ks_matmul_halves.cu",
    "ks_matmul_last.cu",
    "ks_matmul_mma.cu",
    "ks_matmul_planes.cu",
    "ks_matmul_simt.cu",
    "ks_matmul_tf32.cu",
    "ks_matmul_tma.cu",
    "ks_turn.cu",
}

PATTERNS = [(2, 2, 3, 5), (1, 65, 33, 9), (2, 40, 72, 1)]
PATTERNS += [(1, 48, 32, d) for d in (12, 8, 6, 4, 3, 2, 16, 32)]
PATTERNS += [(2, 72, 40, 2), (1, 40, 24, 4), (1, 72, 40, 8)]
PATTERNS += [(1, 72, 64, d) for d in (2, 3, 4, 6, 8, 12, 16, 24, 40)]
"""Some with vectors of 16 bytes and some without."""
LONG = [(1, 40, 288, d) for d in (2, 3, 4, 6, 8, 12, 16, 24, 32)]
"""For teams: more stages of x than there is room for, so that all are used again."""
ENOUGH = 3
"""Patterns of a way in a precision and a layout, spread over all that fit, with an epilogue and without in turns."""
PARTS = 12
"""Processes that share the ways out."""
ROWS = 72
CHAINS = [[(3, 40, 24, 1), (1, 24, 40, 3)], [(16, 64, 256, 1), (1, 64, 64, 16)]]
CHAINS += [[(64, 64, 64, 1), second] for second in ((1, 64, 256, 16), (1, 64, 64, 64))]
CHAIN_ROWS, TEAM_ROWS = 20, 150
"""Of few rows, and so many that a team uses all its buffers again."""
SMALL_CHAINS = 2
"""Of a way for any chain: racecheck takes minutes for the wider ones."""


def multiply(device: Device, way: Way, problem: Problem, plain: bool = False) -> None:
    """Launch with a count, and every part of the epilogue or none."""
    pattern, dtype = problem.pattern, problem.dtype
    shapes = [(problem.rows, width) for width in (pattern.width_in, pattern.width_out)]
    x, y = (torch.ones(s if problem.layout is Layout.FIRST else s[::-1], dtype=dtype, device="cuda") for s in shapes)
    epilogue = PLAIN if plain else Epilogue(torch.ones(pattern.width_out, device="cuda"), y, Activation.RELU)
    count = torch.tensor([problem.rows - 1], dtype=torch.int32, device="cuda")
    packed = way.pack(torch.ones(pattern.values, dtype=dtype, device="cuda"))
    scratch = torch.zeros(way.scratch_bytes(problem), dtype=torch.uint8, device="cuda")
    way.launch(device, problem, packed, Operands(x, y, epilogue, count, scratch))


def multiply_chain(device: Device, way: ChainWay, problems: list[Problem], kind: torch.dtype) -> None:
    """As `multiply`, for two factors in one launch, from and to elements of a kind."""
    dtype, width, rows = problems[0].dtype, problems[-1].pattern.width_out, problems[0].rows
    x, y = (torch.ones(rows, w, dtype=kind, device="cuda") for w in (problems[0].pattern.width_in, width))
    residual = y if kind is dtype else y.to(dtype)
    epilogue = Epilogue(torch.ones(width, device="cuda"), residual, Activation.RELU)
    count = torch.tensor([rows - 1], dtype=torch.int32, device="cuda")
    packed = way.pack([torch.ones(p.pattern.values, dtype=dtype, device="cuda") for p in problems])
    scratch = torch.zeros(way.scratch_bytes(problems), dtype=torch.uint8, device="cuda")
    way.launch(device, problems, packed, Operands(x, y, epilogue, count, scratch))


def main(part: int) -> None:
    """Launch each way of a part on patterns that it fits, in each precision and layout, and each chain."""
    with noted() as device:
        for way, precision, layout in product(WAYS[part::PARTS], Precision, Layout):
            problems, long = (
                [Problem(KSPattern(*pattern), ROWS, precision, layout) for pattern in patterns]
                for patterns in (PATTERNS, LONG if isinstance(way, Exchange | ExchangeHalves) else [])
            )
            fitting = [problem for problem in problems if way.fits(problem, device.limits)]
            chosen = fitting[:: ceil(len(fitting) / ENOUGH) or 1]
            chosen += [problem for problem in long if way.fits(problem, device.limits)][:1]
            for number in range(max(2, len(chosen)) if chosen else 0):
                multiply(device, way, chosen[number % len(chosen)], plain=number % 2 == 1)
        for tall in tf32.WAYS[part::PARTS]:  # whole tiles leave otherwise than those that rows end in, here two a block
            problem = Problem(KSPattern(2, 40, 72, 1), 12 * tall.rows + 8, tall.precision, tall.layout)
            if tall.fits(problem, device.limits):
                multiply(device, tall, problem)
        for chain_way, precision in product(CHAIN_WAYS[part::PARTS], Precision):
            few = isinstance(chain_way, FewRowsChain)
            for patterns in CHAINS[:SMALL_CHAINS] if few else CHAINS:
                rows = CHAIN_ROWS if few else TEAM_ROWS
                problems = [Problem(KSPattern(*pattern), rows, precision) for pattern in patterns]
                if chain_way.fits(problems, device.limits):
                    for kind in (problems[0].dtype, torch.float32) if few else (problems[0].dtype,):
                        multiply_chain(device, chain_way, problems, kind)


if __name__ == "__main__":
    main(int(sys.argv[1]))
