"""Two factors in one kernel on Hopper: what lies between them never goes to device memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from lacuna_kernels.cuda.activation import ACTIVATION_CODES, ELEMENTS
from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.device import Device, DeviceLimits
from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.cuda.kronecker.way import Operands, Sums
from lacuna_kernels.cuda.precision import DTYPES
from lacuna_kernels.cuda.tensor_map import Promotion, Swizzle, tensor_map
from lacuna_kernels.graph import Precision
from lacuna_kernels.ops.kronecker_linear import KSPattern

_TEAM = 8  # blocks of a cluster
_THREADS = 512
_TEAM_GROUPS = 2 * _TEAM  # warpgroups of a team for each factor
_TILE = 32  # rows that a team takes at a time
_PIECE = 64  # outputs that one product makes, and columns of x that one copy brings
_SIZE = 2  # bytes of an element


@dataclass(frozen=True, slots=True)
class Team:
    """A cluster of 8 blocks holds the weights of both factors in its registers, and takes 32 rows at a time.

    Each factor has at most 262144 weights, and outputs by the 1024.

    first   (a, b, c, 1), b and c multiples of 64
    second  (1, b, c, d), b a multiple of 64, c of 16, d 16, 32 or 64
    batch   pieces of 64 outputs whose columns of x are copied at once
    stages  copies of x under way for each of a block's two warpgroups of the first factor
    z, y    buffers of what lies between, and of what comes out
    """

    first: KSPattern
    second: KSPattern
    batch: int
    stages: int
    z: int
    y: int

    @property
    def name(self) -> str:
        """By its patterns."""
        return "team " + " ".join(",".join(map(str, pattern.values)) for pattern in (self.first, self.second))

    @property
    def packing(self) -> str:
        """The order of the weights depends on the patterns alone."""
        return self.name

    @property
    def shared_bytes(self) -> int:
        """As the kernel lays it out: rings of x, buffers of z and y, barriers."""
        own_l = self.second.d // _TEAM
        x = 2 * self.stages * self.batch * _TILE * self.first.c * _SIZE
        z = self.z * own_l * self.second.c * _TILE * _SIZE
        y = self.y * own_l * self.second.b * _TILE * _SIZE
        return x + z + y + 32 * self.stages + 16 * (self.z + self.y) + 1024

    def variants(self, precision: Precision) -> tuple[Variant, ...]:
        """One a 16-bit type."""
        dtype = DTYPES[precision]
        if dtype.itemsize != _SIZE:
            return ()
        constants: dict[str, int | str] = {
            "ELEMENT": ELEMENTS[dtype],
            "FIRST_M": self.first.width_out // _PIECE // _TEAM_GROUPS,
            "FIRST_K": self.first.c,
            "FIRST_B": self.first.b,
            "SECOND_M": self.second.width_out // _PIECE // _TEAM_GROUPS,
            "SECOND_K": self.second.c,
            "WIDTH_L": self.second.d,
            "BATCH": self.batch,
            "STAGES": self.stages,
            "Z_BUFFERS": self.z,
            "Y_BUFFERS": self.y,
            "SHARED_BYTES": self.shared_bytes,
        }
        return (Variant("ks_chain.cu", "ks_chain", tuple(constants.items()), ("sm_90a",), self.shared_bytes),)

    def sums(self, problem: Problem) -> Sums:
        """On the tensor cores."""
        return Sums.MMA

    def fits(self, problems: Sequence[Problem], limits: DeviceLimits) -> bool:
        """These two patterns, batch-size-first, in 16 bits."""
        return (
            [problem.pattern for problem in problems] == [self.first, self.second]
            and all(problem.layout is Layout.FIRST and problem.aligned for problem in problems)
            and bool(self.variants(problems[0].precision))
            and limits.hopper
            and limits.shared_bytes >= self.shared_bytes
        )

    def seconds(self, problems: Sequence[Problem], limits: DeviceLimits) -> float:
        """Reading the weights, then a team's tiles one after the other; from measurements on an H200."""
        tiles = ceil(ceil(problems[0].rows / _TILE) / _teams(limits))
        first, second = self.first.width_out / _PIECE, self.second.width_out / _PIECE
        return 8e-6 + tiles * (0.71e-6 + 0.0083e-6 * first + 0.018e-6 * second)

    def scratch_bytes(self, problems: Sequence[Problem]) -> int:
        """None."""
        return 0

    def pack(self, factors: Sequence[Tensor]) -> Tensor:
        """The weights of the first factor, then the second, in pieces of 64 outputs.

        Outputs of the first are inputs (k, l) of the second: in a piece neighbouring k of one l lie side by side.
        """
        first, second = factors
        d = self.second.d
        outputs = first.flatten(0, 1).view(-1, _PIECE // d, d, self.first.c).transpose(1, 2).flatten(0, 2)
        return torch.cat([_fragments(outputs), _fragments(second[0].permute(2, 0, 1).flatten(0, 1))])

    def launch(self, device: Device, problems: Sequence[Problem], packed: Tensor, operands: Operands) -> None:
        """Enqueue; see ChainWay."""
        rows, epilogue = problems[0].rows, operands.epilogue
        if not rows:
            return
        device.kernel(self.variants(problems[0].precision)[0])(
            (_TEAM * min(ceil(rows / _TILE), _teams(device.limits)), 1, 1),
            (_THREADS, 1, 1),
            self._tiles_of(operands.x),
            packed,
            packed[self.first.nonzeros :],
            epilogue.bias,
            epilogue.residual,
            operands.y,
            operands.count,
            rows,
            ACTIVATION_CODES[epilogue.activation],
            float(epilogue.negative_slope),
        )

    def _tiles_of(self, x: Tensor) -> bytes:
        """The tensor map of x [rows, width] in planes of 64 columns; a copy brings 32 rows of some planes."""
        rows, width = x.shape
        pitch, planes = width * _SIZE, self.batch * self.first.c // _PIECE
        sizes, strides = (_PIECE, rows, width // _PIECE, 1), (pitch, _PIECE * _SIZE, pitch * rows)
        return tensor_map(x, sizes, strides, (_PIECE, _TILE, planes, 1), Swizzle.BYTES_128, Promotion.BYTES_256)


def _teams(limits: DeviceLimits) -> int:
    """Clusters of 8 blocks, a multiprocessor each, that run at once; they do not cross the borders of a GPU's parts.

    15 on an H200 of 132 multiprocessors. One team too many would wait until all others are done.
    """
    return max(1, limits.multiprocessors // _TEAM - 1)


def _fragments(weights: Tensor) -> Tensor:
    """Weights [outputs, k] in the order of wgmma's registers: [outputs / 64][k / 16][128 threads][8], flat."""
    warp, half, row, quad, pair = 4, 2, 8, 4, 2
    pieces = weights.reshape(-1, warp, half, row, weights.shape[1] // 16, half, quad, pair)
    return pieces.permute(0, 4, 1, 3, 6, 5, 2, 7).reshape(-1)


CHAIN_WAYS = (
    Team(KSPattern(64, 64, 64, 1), KSPattern(1, 64, 256, 16), batch=2, stages=4, z=3, y=3),
    Team(KSPattern(16, 64, 256, 1), KSPattern(1, 64, 64, 16), batch=1, stages=4, z=2, y=2),
    Team(KSPattern(64, 64, 64, 1), KSPattern(1, 64, 64, 64), batch=1, stages=8, z=2, y=3),
)
"""The two factors of GPT-2-medium's second linear layer, either way, and of a Monarch matrix of 4096."""
