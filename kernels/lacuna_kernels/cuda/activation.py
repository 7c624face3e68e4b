"""How kernels are told which activation their epilogue applies, and of which type their matrices are."""

import torch

from lacuna_kernels.ops.activation import Activation

ACTIVATION_CODES: dict[Activation | None, int] = {
    None: 0,
    Activation.RELU: 1,
    Activation.LEAKY_RELU: 2,
    Activation.GELU: 3,
    Activation.GELU_TANH: 4,
    Activation.SILU: 5,
    Activation.SIGMOID: 6,
    Activation.TANH: 7,
}
"""The values of `enum Activation` in src/activation.cuh."""

ELEMENTS: dict[torch.dtype, str] = {
    torch.float32: "float",
    torch.float16: "__half",
    torch.bfloat16: "__nv_bfloat16",
}
"""What the constant ELEMENT of src/element.cuh is for a tensor's type."""
