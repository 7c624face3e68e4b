"""Networks of weights trained elsewhere: Kronecker-sparse factors as they are, dense layers factorised."""

from lacuna_kernels.convert.chains import parse_chain
from lacuna_kernels.convert.checkpoint import read_checkpoint
from lacuna_kernels.convert.dense import LayerReport, chain_rule, linear_layers, sparsify
from lacuna_kernels.convert.layers import Hints
from lacuna_kernels.convert.network import in_order, sequence
from lacuna_kernels.convert.read import SOURCES, Layers

__all__ = [
    "SOURCES",
    "Hints",
    "LayerReport",
    "Layers",
    "chain_rule",
    "in_order",
    "linear_layers",
    "parse_chain",
    "read_checkpoint",
    "sequence",
    "sparsify",
]
