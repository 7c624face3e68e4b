"""Kernel maps on the device: which input row every output row reads through every offset."""

from dataclasses import dataclass

from torch import Tensor

from lacuna_kernels.cuda.compiler import Variant
from lacuna_kernels.cuda.coordinates import SiteBuffer
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.scan import blocks

FORWARD, INVERSE = Variant("kernel_map.cu", "forward_map"), Variant("kernel_map.cu", "inverse_map")
VARIANTS = (FORWARD, INVERSE)

GROUP = 64
THREADS = 256
BITS = 32


@dataclass(frozen=True, slots=True)
class KernelMap:
    """A kernel map; rows at or past the count of the output sites mean nothing.

    rows     int32 [k, capacity], the input row of each offset and output row, -1 for none
    present  int32 [ceil(capacity / 64), ceil(k / 32)]: bit k % 32 of word k / 32 tells whether any of 64 rows has it
    """

    rows: Tensor
    present: Tensor


def map_shapes(volume: int, capacity: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of `rows` and `present`."""
    return (volume, capacity), (blocks(capacity, GROUP), blocks(volume, BITS))


def forward_map(device: Device, inputs: SiteBuffer, outputs: SiteBuffer, geometry: Tensor, result: KernelMap) -> None:
    """Launch the map of a submanifold (inputs are the outputs) or strided convolution.

    geometry  int32 [17] on the device, from `pack_geometry`
    """
    _launch(FORWARD, device, inputs, outputs, geometry, result)


def inverse_map(device: Device, coarse: SiteBuffer, fine: SiteBuffer, geometry: Tensor, result: KernelMap) -> None:
    """Launch the map that leads back from the coarse sites of a strided convolution to its fine ones.

    A generative convolution leads from its inputs, the coarse sites, to its outputs in the same way.

    geometry  that of the strided or generative convolution
    """
    _launch(INVERSE, device, coarse, fine, geometry, result)


def _launch(
    variant: Variant, device: Device, inputs: SiteBuffer, outputs: SiteBuffer, geometry: Tensor, result: KernelMap
) -> None:
    groups, words = result.present.shape
    device.kernel(variant)(
        (groups, words, 1),
        (THREADS, 1, 1),
        *(outputs.coordinates, outputs.count, geometry, inputs.coordinates, inputs.table, inputs.mask),
        *(result.rows, outputs.capacity, result.present),
    )
