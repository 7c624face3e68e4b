"""Layers of torch.nn that a state dict tells apart by its tensors: Linear, BatchNorm1d, LayerNorm."""

from lacuna_kernels.convert.layers import Hints, Layer, Tensors
from lacuna_kernels.errors import ConversionError

COUNTER = "num_batches_tracked"
BATCH_NORM = {"weight", "bias", "running_mean", "running_var"}
LAYER_NORM = {"weight", "bias"}


def owns(leaves: Tensors, *, told: bool) -> bool:
    """Whether a layer's tensors are those of a linear layer or a norm with weights."""
    names = set(leaves) - {COUNTER}
    if "weight" not in names or not names <= BATCH_NORM:
        return False
    if leaves["weight"].ndim == 2:
        return names <= {"weight", "bias"}
    return leaves["weight"].ndim == 1 and names in (BATCH_NORM, LAYER_NORM)


def read(name: str, leaves: Tensors, hints: Hints) -> Layer:
    """The layer; a norm gets torch's default eps, 1e-5, which no state dict says."""
    weights = {leaf: tensor.float() for leaf, tensor in leaves.items() if leaf != COUNTER}
    if leaves["weight"].ndim == 2:
        width_out, width_in = leaves["weight"].shape
        attributes = {"out_features": width_out, "bias": "bias" in leaves}
        return Layer(name, "linear", attributes, weights, width_in, width_out, width_in, width_out)
    width = len(leaves["weight"])
    op = "batch_norm" if "running_mean" in leaves else "layer_norm"
    if op == "batch_norm" and bool((weights["running_var"] < 0).any()):
        raise ConversionError(f"layer {name!r}: a variance is below 0")
    return Layer(name, op, {}, weights, width, width, width, width)
