"""Comparing a model folder's answers with a user's own, output by output: `lacuna check`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lacuna_kernels import DeviceKind, Model, Options, Precision, check_request, cost, load_model, open_backend
from lacuna_service.config import ServingConfig, parse_config
from lacuna_service.errors import BadRequest
from lacuna_service.signature import Signature

TOLERANCE = {Precision.FP32: 1e-4, Precision.TF32: 1e-2, Precision.FP16: 2e-2, Precision.BF16: 1e-1}
"""Relative L2 error that is taken for rounding, by the precision of the products, over some tens of layers."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How one output compares with what was expected.

    max_abs_error, relative_l2  of numbers: |ours - expected| at most, and sqrt(sum of squares) over the expected's
    agreement                   share of equal labels: of whole numbers, or of the largest of each row of scores
    problem                     why the two cannot be compared at all
    """

    name: str
    passed: bool
    max_abs_error: float | None = None
    relative_l2: float | None = None
    agreement: float | None = None
    problem: str = ""

    def __str__(self) -> str:
        verdict = "pass" if self.passed else "FAIL"
        if self.problem:
            return f"{verdict}  {self.name}: {self.problem}"
        parts = []
        if self.max_abs_error is not None and self.relative_l2 is not None:
            parts.append(f"max abs error {self.max_abs_error:.3e}, relative L2 {self.relative_l2:.3e}")
        if self.agreement is not None:
            parts.append(f"labels agree {self.agreement:.4%}")
        return f"{verdict}  {self.name}: {', '.join(parts)}"


def serving_config(folder: Path, model: Model) -> ServingConfig:
    """What the folder's serving.toml asks for; raises BadRequest if it cannot be read."""
    path = folder / "serving.toml"
    try:
        return parse_config(path.read_text(encoding="utf-8") if path.exists() else "", model.graph)
    except (ValueError, OSError) as error:
        raise BadRequest(f"{path}: {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; raises BadRequest if it is none."""
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        how = f"safetensors.torch.save_file({{name: tensor, ...}}, '{path.stem}.safetensors') writes one"
        raise BadRequest(f"{path} is no safetensors file ({error}); {how}") from error


def version_folder(folder: Path) -> Path:
    """The folder itself if it holds a model.json, else its newest version; raises BadRequest."""
    if (folder / "model.json").is_file():
        return folder
    versions = [path for path in folder.glob("*/") if path.name.isdigit() and (path / "model.json").is_file()]
    if not versions:
        raise BadRequest(f"{folder} holds neither model.json nor versions 1, 2, ... that do")
    return max(versions, key=lambda path: int(path.name))


def answer(folder: Path, inputs: Mapping[str, Tensor], device: DeviceKind, precision: Precision) -> dict[str, Tensor]:
    """What a model folder answers to tensors named as over HTTP; raises KernelsError or BadRequest."""
    model = load_model(folder)
    signature = Signature(model.graph)
    known = {spec.name: spec for spec in signature.inputs}
    if unknown := sorted(inputs.keys() - known.keys()):
        raise BadRequest(f"input {unknown[0]!r} is not known; the model takes {', '.join(map(str, known.values()))}")
    batch = signature.values(inputs)
    check_request(model.graph, batch, precision)
    size = max(1, cost(batch))
    backend = open_backend(device)
    try:
        program = backend.compile(model.graph, model.weights, Options(precision, max_cost=size, initial_cost=size))
        try:
            return signature.tensors(program.submit(batch).result().values)
        finally:
            program.close()
    finally:
        backend.close()


def compare(
    ours: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float, agreement: float
) -> list[Comparison]:
    """Compare every expected tensor; sites are matched by their coordinates where both sides give them."""
    ours, expected = _sites_in_order(ours, expected), _sites_in_order(expected, expected)
    unknown = f"the model has no such output; it gives {', '.join(ours)}"
    return [
        _compare(name, ours[name], wanted, tolerance, agreement)
        if name in ours
        else Comparison(name, passed=False, problem=unknown)
        for name, wanted in expected.items()
    ]


def _compare(name: str, ours: Tensor, expected: Tensor, tolerance: float, agreement: float) -> Comparison:
    if ours.shape != expected.shape:
        return Comparison(name, passed=False, problem=f"shape {list(ours.shape)}, expected {list(expected.shape)}")
    if not ours.is_floating_point():
        share = _share(ours.long() == expected.long())
        return Comparison(name, passed=share >= agreement, agreement=share)
    ours, expected = ours.double(), expected.double()
    if not bool(torch.isfinite(ours).all()):
        return Comparison(name, passed=False, problem="the model's answer is not finite")
    error = ours - expected
    relative = float(error.norm()) / (float(expected.norm()) or 1.0)
    worst = float(error.abs().max()) if error.numel() else 0.0
    labels = _share(ours.argmax(-1) == expected.argmax(-1)) if ours.ndim > 1 and ours.shape[-1] > 1 else None
    return Comparison(name, relative <= tolerance, worst, relative, labels)


def _share(equal: Tensor) -> float:
    return float(equal.double().mean()) if equal.numel() else 1.0


def _sites_in_order(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sort the rows of site outputs by coordinate, where the expected tensors say them: their order has no meaning."""
    ordered = dict(tensors)
    for name in expected:
        place = f"{name}_COORDINATES"
        if place in expected and name in tensors and place in tensors and len(tensors[name]) == len(tensors[place]):
            rows = torch.unique(tensors[place].long(), dim=0, return_inverse=True)[1].argsort(stable=True)
            ordered[name], ordered[place] = tensors[name][rows], tensors[place][rows]
    return ordered
