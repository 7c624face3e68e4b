"""fp32 values as the sum of halves of 11 bits each, in fp16: fp16_halves.cuh."""

import torch
from torch import Tensor

_LARGEST = 14
"""The largest of the values that share a scale becomes 2^14 to 2^15 before it is rounded to fp16."""
_SMALLEST = -98
"""Exponents under this one are scaled as this one is: there are no larger powers of two."""


def halves_of(values: Tensor, halves: int) -> tuple[Tensor, Tensor]:
    """Split values fp32 [a, b, c, d]; return fp16 [halves, a, b, c, d] and scales fp32 [a, b, d].

    The values of one (i, j, l) are scaled by a power of two, so that the largest becomes 2^14 to 2^15; the scales, by
    which sums are multiplied at the end, take that back. One half has 11 bits of a value, two have 22.
    """
    largest = values.abs().amax(2, keepdim=True)
    exponent = (torch.frexp(largest).exponent - 1).clamp(min=_SMALLEST)
    scaled = torch.ldexp(values, _LARGEST - exponent)
    big = scaled.half()
    split = torch.stack([big, (scaled - big.float()).half()][:halves])
    return split, torch.ldexp(torch.ones_like(largest), exponent)[:, :, 0].contiguous()
