"""The values of a factor as scaled fp16 halves: what the kernel is given, without a GPU."""

from math import ceil

import pytest
import torch
from torch import Tensor

from lacuna_kernels import Precision
from lacuna_kernels.cuda.kronecker.halves import WAYS, Halves
from lacuna_kernels.ops.kronecker_linear import KSPattern

FP32, TF32 = (next(way for way in WAYS if way.precision is precision) for precision in (Precision.FP32, Precision.TF32))
FOURS = next(way for way in WAYS if way.precision is Precision.FP32 and way.run == 3)


def unpacked(way: Halves, packed: Tensor, pattern: KSPattern) -> Tensor:
    """The values that the kernel multiplies by, in float64."""
    a, b, c, d = pattern.values
    steps, sixteens, halves = ceil(c / 16), ceil(b / 16), 1 if way is TF32 else 2
    eights = 2 * sixteens if way is FOURS else ceil(b / 8)
    scales = packed[-4 * a * b * d :].view(torch.float32).view(a, b, 1, d).double()
    parts = packed[: -4 * a * b * d].view(torch.float16).view(a, d, steps, eights, halves, 2, 8, 8).double().sum(4)
    lanes = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7]).argsort()
    parts = parts[..., lanes]  # i l step eight k/8 j k
    if way is FOURS:
        columns = torch.tensor([0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15]).argsort()
        in_order = parts.view(a, d, steps, sixteens, 2, 2, 8, 8).transpose(4, 5).flatten(5, 6)[..., columns, :]
        parts = in_order.unflatten(5, (2, 8)).transpose(4, 5).flatten(3, 4)
    else:
        parts = parts[..., lanes, :]
    values = parts.permute(0, 3, 5, 2, 4, 6, 1).reshape(a, eights * 8, steps * 16, d)
    assert not values[:, b:].any()
    assert not values[:, :, c:].any()
    return values[:, :b, :c] * scales * 2.0**-14


@pytest.mark.parametrize("pattern", [(1, 8, 16, 1), (2, 5, 3, 7), (3, 48, 40, 2)], ids=str)
@pytest.mark.parametrize(("way", "bits"), [(FP32, 22), (FOURS, 22), (TF32, 11)], ids=["fp32", "by fours", "tf32"])
def test_packed_halves_add_up_to_the_values(way, bits, pattern):
    values = torch.randn(pattern, dtype=torch.float32)

    found = unpacked(way, way.pack(values), KSPattern(*pattern))

    assert bool(
        ((found - values).abs() <= values.abs() * 2.0**-bits + values.abs().amax(2, keepdim=True) * 2.0**-39).all()
    )


def test_columns_of_any_size_keep_their_bits():
    pattern = KSPattern(1, 61, 20, 2)
    values = torch.randn(pattern.values) * 10.0 ** torch.arange(-30, 31).view(1, -1, 1, 1)

    found = unpacked(FP32, FP32.pack(values), pattern)

    largest = values.abs().amax(2, keepdim=True)
    assert bool(((found - values).abs() <= largest * 2.0**-22).all())


def test_values_of_zero_stay_zero():
    values = torch.zeros(2, 8, 16, 2)

    assert not unpacked(FP32, FP32.pack(values), KSPattern(2, 8, 16, 2)).any()
