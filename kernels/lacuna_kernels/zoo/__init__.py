"""Builders of known networks, as graphs without weights: the widths and depths are yours."""

from lacuna_kernels.zoo.centerpoint import NECK_CHANNELS, centerpoint_encoder
from lacuna_kernels.zoo.gpt2 import GPT2_MEDIUM_CHAINS, gpt2
from lacuna_kernels.zoo.minkunet import minkunet
from lacuna_kernels.zoo.mlp import dense_mlp, kronecker_mlp
from lacuna_kernels.zoo.rgcn import rgcn
from lacuna_kernels.zoo.spvcnn import spvcnn
from lacuna_kernels.zoo.transformer import Chains, Part
from lacuna_kernels.zoo.unet import MINKUNET_CHANNELS
from lacuna_kernels.zoo.vit import VIT_S16_CHAINS, vit

__all__ = [
    "GPT2_MEDIUM_CHAINS",
    "MINKUNET_CHANNELS",
    "NECK_CHANNELS",
    "VIT_S16_CHAINS",
    "Chains",
    "Part",
    "centerpoint_encoder",
    "dense_mlp",
    "gpt2",
    "kronecker_mlp",
    "minkunet",
    "rgcn",
    "spvcnn",
    "vit",
]
