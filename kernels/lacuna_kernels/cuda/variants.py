"""The kernels that are shipped: what CI compiles and what an image's cache is filled with."""

from lacuna_kernels.cuda.compiler import Variant

SHIPPED: tuple[Variant, ...] = ()
"""Each wrapper beside this file names its own in VARIANTS; they are joined here."""
