"""cuBLAS as a way to multiply by a factor: on the CPU, as torch computes the same there."""

from dataclasses import replace

import pytest
import torch

from lacuna_kernels import Precision
from lacuna_kernels.cuda.kronecker import cublas
from lacuna_kernels.cuda.kronecker.choose import candidates
from lacuna_kernels.cuda.kronecker.cublas import Cublas
from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.cuda.kronecker.way import PLAIN, Epilogue, Operands, Sums
from lacuna_kernels.ops.activation import Activation, activate
from lacuna_kernels.ops.kronecker_linear import KSPattern, ks_matmul
from tests.kernels.factors import H200, LIMIT, relative_error, turned

WIDE = Problem(KSPattern(8, 1024, 1024, 4), 25088, Precision.TF32, Layout.LAST)
CASES = [((3, 130, 128, 1), Layout.FIRST)]
CASES += [(p, Layout.LAST) for p in ((3, 128, 130, 1), (2, 128, 129, 5), (5, 130, 128, 2))]


def multiply(pattern, layout, precision, rows=11, epilogue=PLAIN):
    """Return y, before which stands not a number, and the exact sums, a row a vector."""
    p, way = KSPattern(*pattern), Cublas()
    problem = Problem(p, rows, precision, layout)
    x = torch.randn(rows, p.width_in).to(problem.dtype)
    values = torch.randn(p.values).to(problem.dtype)
    y = turned(torch.full((rows, p.width_out), torch.nan).to(problem.dtype), layout)
    if epilogue.residual is not None:
        y.copy_(turned(epilogue.residual, layout))
        epilogue = replace(epilogue, residual=y)
    way.launch(None, problem, way.pack(values), Operands(turned(x, layout), y, epilogue))
    return turned(y, layout), ks_matmul(x.double(), values.double())


@pytest.mark.parametrize("precision", [Precision.TF32, Precision.FP16, Precision.BF16])
@pytest.mark.parametrize("pattern, layout", CASES)
def test_every_layout_agrees_with_float64(pattern, layout, precision):
    for rows in (0, 1, 11):
        y, sums = multiply(pattern, layout, precision, rows)
        assert relative_error(y, sums) < LIMIT[precision]


@pytest.mark.parametrize("activation", [None, *Activation])
@pytest.mark.parametrize("pattern, layout", CASES)
def test_the_epilogue_with_the_residual_where_y_will_be(pattern, layout, activation):
    width = KSPattern(*pattern).width_out
    bias, residual = torch.randn(width), torch.randn(11, width)
    y, sums = multiply(pattern, layout, Precision.TF32, 11, Epilogue(bias, residual, activation, 0.2))
    expected = sums + bias.double() + residual.double()
    assert relative_error(y, expected if activation is None else activate(expected, activation, 0.2)) < 1e-6


@pytest.mark.parametrize("precision", [Precision.TF32, Precision.FP16, Precision.BF16])
def test_torchs_switch_is_set_for_the_product_alone(monkeypatch, precision):
    name, wanted = cublas._SWITCHES[precision]
    before, seen = getattr(torch.backends.cuda.matmul, name), []

    def fails(*_, **__):
        seen.append(getattr(torch.backends.cuda.matmul, name))
        raise RuntimeError("out of memory")

    monkeypatch.setattr(torch, "baddbmm", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        multiply((2, 128, 129, 5), Layout.LAST, precision)

    assert before != wanted
    assert seen == [wanted]
    assert getattr(torch.backends.cuda.matmul, name) == before


def test_wide_blocks_are_for_cublas_only_where_the_host_knows_the_rows():
    chosen, counted = candidates(WIDE, H200), candidates(replace(WIDE, counted=True), H200)
    assert chosen[0].sums(WIDE) is Sums.CUBLAS
    assert counted == chosen[1:]


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("precision", [Precision.TF32, Precision.FP16, Precision.BF16])
def test_few_rows_are_not_for_cublas(precision, layout):
    for pattern in (KSPattern(4, 256, 256, 1), WIDE.pattern, KSPattern(64, 768, 768, 1)):
        assert candidates(Problem(pattern, 1, precision, layout), H200)[0].sums(WIDE) is not Sums.CUBLAS


def test_fp32_and_strides_that_no_view_has_are_not_for_cublas():
    assert not Cublas().fits(replace(WIDE, precision=Precision.FP32), H200)
    assert not Cublas().fits(replace(WIDE, layout=Layout.FIRST), H200)


@pytest.mark.parametrize(
    ("precision", "layout", "wide", "narrow"),
    [
        (Precision.TF32, Layout.FIRST, (16, 768, 192, 1), (64, 768, 768, 1)),
        (Precision.TF32, Layout.LAST, (4, 512, 512, 32), (4, 384, 384, 32)),
        (Precision.TF32, Layout.LAST, (32, 1024, 256, 1), (32, 1024, 256, 2)),
        (Precision.BF16, Layout.FIRST, (12, 512, 512, 1), (64, 768, 768, 1)),
        (Precision.BF16, Layout.LAST, (12, 512, 512, 1), (12, 512, 512, 2)),
        (Precision.FP16, Layout.LAST, (6, 128, 512, 1), (6, 512, 128, 1)),
    ],
    ids=str,
)
def test_blocks_are_for_cublas_where_it_was_as_fast_as_any(precision, layout, wide, narrow):
    names = [candidates(Problem(KSPattern(*p), 25088, precision, layout), H200)[0].name for p in (wide, narrow)]

    assert names[0] == "cublas" != names[1]
