"""Batch-size-first matrices as the copy engine of a Hopper GPU takes them: some l of some k (or j) of some rows."""

from dataclasses import dataclass

from torch import Tensor

from lacuna_kernels.cuda.tensor_map import Swizzle, tensor_map
from lacuna_kernels.ops.kronecker_linear import KSPattern

_VECTOR_BYTES = 16
_SWIZZLES = {16: Swizzle.NONE, 32: Swizzle.BYTES_32, 64: Swizzle.BYTES_64, 96: Swizzle.NONE, 128: Swizzle.BYTES_128}


@dataclass(frozen=True, slots=True)
class Boxes:
    """Boxes that lie as [piece][row][bytes of a piece] in shared memory, swizzled within pieces but of 96.

    depth        neighbouring l of a box
    whole        whether they are all of d, so that (k, l) of one row are contiguous
    piece_bytes  contiguous bytes of a row: those of depth; if whole, a divisor of what a box has of a row
    size         bytes of an element
    """

    depth: int
    whole: bool
    piece_bytes: int
    size: int = 2

    def fits(self, pattern: KSPattern, side: int) -> bool:
        """Whether the blocks of a row are made of whole pieces, or l start at whole vectors."""
        if self.whole:
            return side * pattern.d * self.size % self.piece_bytes == 0
        return pattern.d * self.size % _VECTOR_BYTES == 0

    def map(self, matrix: Tensor, pattern: KSPattern, side: int, rows: int, side_box: int) -> bytes:
        """Describe a matrix [n, a*side*d] by boxes of so many rows by side_box of k or j."""
        a, d, piece, size = pattern.a, pattern.d, self.piece_bytes, self.size
        width = a * side * d * size
        if self.whole:
            sizes = (piece // size, len(matrix), side * d * size // piece, a)
            strides = (width, piece, side * d * size)
            box = (piece // size, rows, side_box * d * size // piece, 1)
        else:
            sizes, strides = (d, len(matrix), side, a), (width, d * size, side * d * size)
            box = (self.depth, rows, side_box, 1)
        return tensor_map(matrix, sizes, strides, box, _SWIZZLES[piece])
