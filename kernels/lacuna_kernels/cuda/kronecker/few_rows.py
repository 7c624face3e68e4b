"""Few rows, 16 bits, batch-size-first, Hopper: a factor spread over the device, or a chain in one cluster of blocks.

What is multiplied by so few rows takes no longer than its values take to arrive, so all that counts is latency.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil

import torch
from torch import Tensor

from lacuna_kernels.cuda.activation import ACTIVATION_CODES, ELEMENTS
from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device, DeviceLimits
from lacuna_kernels.cuda.kronecker.few_rows_program import LONGEST, ROUTES_BYTES, TILE_ROWS, Link, Program, pack
from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.cuda.kronecker.way import PLAIN, Epilogue, Operands, Sums
from lacuna_kernels.cuda.precision import DTYPES
from lacuna_kernels.graph import Precision
from lacuna_kernels.ops.kronecker_linear import KSPattern

PRECISIONS = (Precision.FP16, Precision.BF16)
_WARPS = 16
_CLUSTER = 16
_CLUSTERS = 7  # of 16 blocks, at once on one GPU: not every part of it has 16 multiprocessors to spare
_MOST_SHARED_BYTES = 227 * 1024
_MOST_ROWS = 512
_LARGEST_WIDTH = 1 << 16  # what a Divisor can divide


def _fits(problem: Problem, limits: DeviceLimits) -> bool:
    widths = max(problem.pattern.width_in, problem.pattern.width_out)
    few = 0 < problem.rows <= _MOST_ROWS and widths < _LARGEST_WIDTH
    return few and limits.hopper and problem.precision in PRECISIONS and problem.layout is Layout.FIRST


def _variants(precision: Precision, tiles: int, stages: int, cluster: int) -> tuple[Variant, ...]:
    if precision not in PRECISIONS:
        return ()
    constants = (
        ("ELEMENT", ELEMENTS[DTYPES[precision]]),
        ("TILES", tiles),
        ("STAGES", stages),
        ("WIDE", int(cluster > 1)),
    )
    return (Variant("ks_few_rows.cu", "ks_few_rows", constants, ("sm_90a",), _MOST_SHARED_BYTES, cluster),)


def _launch(
    device: Device, variant: Variant, program: Program, links: Sequence[Link], operands: Operands, rows: int
) -> None:
    groups = ceil(rows / (program.tiles * TILE_ROWS))
    blocks = program.team if program.gather else program.deals[0].blocks
    device.kernel(variant)(
        (blocks, groups, 1),
        (32 * program.warps, 1, 1),
        program.encode(links),
        operands.x,
        operands.y,
        operands.count,
        rows,
        int(operands.x.dtype is torch.float32),
        int(operands.y.dtype is torch.float32),
        shared_bytes=program.shared_bytes,
    )


def _link(values: int, routes: int, epilogue: Epilogue, y: int) -> Link:
    bias, residual = (0 if tensor is None else tensor.data_ptr() for tensor in (epilogue.bias, epilogue.residual))
    return Link(values, routes, bias, residual, y, ACTIVATION_CODES[epilogue.activation], epilogue.negative_slope)


@dataclass(frozen=True, slots=True)
class FewRows:
    """One factor, spread over all multiprocessors, for groups of 8 * `tiles` rows."""

    tiles: int
    stages: int
    packing = "few rows"

    @property
    def name(self) -> str:
        """The rows of a group, and how far ahead values are fetched."""
        return f"few rows {TILE_ROWS * self.tiles}x{self.stages}"

    def variants(self, precision: Precision) -> tuple[Variant, ...]:
        """One a type."""
        return _variants(precision, self.tiles, self.stages, 1)

    def sums(self, problem: Problem) -> Sums:
        """mma.m16n8k16 over k upwards."""
        return Sums.MMA

    def program(self, pattern: KSPattern, rows: int, limits: DeviceLimits) -> Program:
        """As many blocks as find room at once, each with the same part of the values for all groups of rows."""
        groups = ceil(rows / (TILE_ROWS * self.tiles))
        team = max(1, limits.multiprocessors // groups)
        return Program((pattern,), team, self.tiles, _WARPS, self.stages, gather=False)

    def fits(self, problem: Problem, limits: DeviceLimits) -> bool:
        """Few rows of any width under 65536; what a block reads of x must fit its shared memory."""
        if not _fits(problem, limits):
            return False
        return self.program(problem.pattern, problem.rows, limits).shared_bytes <= limits.shared_bytes

    def seconds(self, problem: Problem, limits: DeviceLimits) -> float:
        """Latencies, values and x by way of the second-level cache, and features of y, far apart if d is large."""
        pattern, rows = problem.pattern, problem.rows
        program = self.program(pattern, rows, limits)
        (deal,) = program.deals
        waves = ceil(deal.blocks * ceil(rows / (TILE_ROWS * self.tiles)) / limits.multiprocessors)
        bytes_of_block = deal.share * deal.k_tiles * 512 + deal.pitch * self.tiles
        steps = deal.k_tiles * ceil(deal.share / _WARPS)
        scattered = rows * pattern.width_out * 0.45e-12 * min(pattern.d, 48) if pattern.d > 1 else 0.0
        return 1.5e-6 + waves * (bytes_of_block / 55e9 + steps * (40 + 60 / self.stages) * 1e-9) + scattered

    def scratch_bytes(self, problem: Problem) -> int:
        """None."""
        return 0

    def pack(self, values: Tensor) -> Tensor:
        """Fragments, then routes: uint8."""
        routes = Program((KSPattern(*values.shape),), 1, 1, _WARPS, 1, gather=False).routes(values.device)
        return torch.cat([pack(values), routes[0].flatten().view(torch.uint8)])

    def launch(self, device: Device, problem: Problem, packed: Tensor, operands: Operands) -> None:
        """Enqueue; see Way."""
        program = self.program(problem.pattern, problem.rows, device.limits)
        values = packed.data_ptr()
        routes = values + program.deals[0].values_bytes()
        link = _link(values, routes, operands.epilogue, operands.y.data_ptr())
        _launch(device, self.variants(problem.precision)[0], program, [link], operands, problem.rows)


@dataclass(frozen=True, slots=True)
class FewRowsChain:
    """Several factors: a cluster of 16 blocks takes 8 * `tiles` rows through all of them."""

    tiles: int
    stages: int
    packing = "few rows chain"

    @property
    def name(self) -> str:
        """The rows of a cluster."""
        return f"few rows chain {TILE_ROWS * self.tiles}x{self.stages}"

    def variants(self, precision: Precision) -> tuple[Variant, ...]:
        """One a type."""
        return _variants(precision, self.tiles, self.stages, _CLUSTER)

    def sums(self, problem: Problem) -> Sums:
        """mma.m16n8k16 over k upwards."""
        return Sums.MMA

    def program(self, patterns: Sequence[KSPattern]) -> Program:
        """What a cluster does."""
        return Program(tuple(patterns), _CLUSTER, self.tiles, _WARPS, self.stages, gather=True)

    def fits(self, problems: Sequence[Problem], limits: DeviceLimits) -> bool:
        """As a factor alone, with room for the features between all factors."""
        if len(problems) > LONGEST - 1 or not all(_fits(problem, limits) for problem in problems):
            return False
        return self.program([problem.pattern for problem in problems]).shared_bytes <= limits.shared_bytes

    def seconds(self, problems: Sequence[Problem], limits: DeviceLimits) -> float:
        """Latencies, and all values through the few multiprocessors of one cluster."""
        program = self.program([problem.pattern for problem in problems])
        waves = ceil(ceil(problems[0].rows / (TILE_ROWS * self.tiles)) / _CLUSTERS)
        values = sum(deal.share * deal.k_tiles * 512 for deal in program.deals) / 70e9
        steps = sum(deal.k_tiles * ceil(deal.share / _WARPS) for deal in program.deals) * 30e-9
        return 1.1e-6 + waves * (len(problems) * (0.7e-6 + self.tiles * 0.1e-6) + max(values, steps))

    def scratch_bytes(self, problems: Sequence[Problem]) -> int:
        """None: what is between factors stays in shared memory."""
        return 0

    def pack(self, factors: Sequence[Tensor]) -> Tensor:
        """Fragments of all factors, then routes of all: uint8."""
        routes = self.program([KSPattern(*values.shape) for values in factors]).routes(factors[0].device)
        return torch.cat([*(pack(v) for v in factors), *(r.flatten().view(torch.uint8) for r in routes)])

    def launch(self, device: Device, problems: Sequence[Problem], packed: Tensor, operands: Operands) -> None:
        """Enqueue; see ChainWay."""
        self.launch_layers(device, problems, packed, operands, {})

    def launch_layers(
        self,
        device: Device,
        problems: Sequence[Problem],
        packed: Tensor,
        operands: Operands,
        epilogues: Mapping[int, Epilogue],
    ) -> None:
        """Enqueue factors of several layers: epilogues are those of factors before the last, by index.

        x may be fp32, which is rounded first, and so may y, to which rounded values are widened.
        """
        program = self.program([problem.pattern for problem in problems])
        sizes = [deal.values_bytes() for deal in program.deals] + [deal.items * ROUTES_BYTES for deal in program.deals]
        places = [packed.data_ptr() + start for start in accumulate(sizes, initial=0)]
        each = {**epilogues, len(problems) - 1: operands.epilogue}
        links = [_link(places[i], places[len(problems) + i], each.get(i, PLAIN), 0) for i in range(len(problems))]
        _launch(device, self.variants(problems[0].precision)[0], program, links, operands, problems[0].rows)


WAYS = (FewRows(1, 3), FewRows(1, 8), FewRows(2, 3))
CHAIN_WAYS = (FewRowsChain(1, 3), FewRowsChain(2, 3))
