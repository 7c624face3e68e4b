"""Builders of known networks, as graphs without weights: the widths and depths are yours."""

from lacuna_kernels.zoo.centerpoint import centerpoint_encoder
from lacuna_kernels.zoo.minkunet import MINKUNET_CHANNELS, minkunet
from lacuna_kernels.zoo.mlp import dense_mlp, kronecker_mlp

__all__ = ["MINKUNET_CHANNELS", "centerpoint_encoder", "dense_mlp", "kronecker_mlp", "minkunet"]
