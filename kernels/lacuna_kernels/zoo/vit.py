"""Vision transformers (arXiv 2010.11929), dense or with Kronecker-sparse linear layers."""

from collections.abc import Collection, Sequence

from lacuna_kernels.graph import Graph
from lacuna_kernels.zoo.draft import Draft, class_names
from lacuna_kernels.zoo.transformer import Block, Chains, Part

VIT_S16_CHAINS = Chains(
    attention=[(2, 48, 192, 1), (1, 192, 48, 2)],
    up=[(6, 64, 64, 1), (1, 768, 192, 2)],
    down=[(1, 192, 768, 2), (6, 64, 64, 1)],
)
"""For 384 features, from "Fast inference with Kronecker-sparse matrices", arXiv 2405.15013; down is up transposed."""

NORM_EPS = 1e-6
"""As the code of arXiv 2010.11929 and timm have it; torch's default is 1e-5."""


def vit(
    classes: int | Sequence[str] = 1000,
    *,
    kronecker: Collection[Part] = (),
    image_size: int = 224,
    patch_size: int = 16,
    width: int = 384,
    hidden: int = 1536,
    heads: int = 6,
    layers: int = 12,
    chains: Chains = VIT_S16_CHAINS,
) -> Graph:
    """Classifier of images [3, image_size, image_size], by default ViT-S/16; outputs label and probabilities.

    kronecker  the parts of each block whose linear layers are chains of factors; by default none, a dense network
    """
    draft = Draft(images={"axis": "image", "dtype": "fp32", "shape": [3, image_size, image_size]})
    patch = (patch_size, patch_size)
    x = draft.add("patches", "conv2d", "images", out_channels=width, kernel_size=patch, stride=patch)
    x = draft.add("sequence", "image_to_sequence", x)
    x = draft.add("class_token", "prepend_token", x)
    x = draft.add("positions", "position_embedding", x)
    block = Block(width, hidden, heads, "gelu", causal=False, norm_eps=NORM_EPS, chains=chains, kronecker=kronecker)
    for layer in range(1, layers + 1):
        x = block.add(draft, f"block{layer}", x)
    x = draft.add("norm", "layer_norm", x, eps=NORM_EPS)
    x = draft.add("pooled", "select_token", x, index=0)
    count, told = class_names(classes)
    x = draft.add("logits", "linear", x, out_features=count)
    draft.add("label", "argmax", x)
    draft.add("probabilities", "softmax", x)
    return draft.graph(label=told, probabilities=told)
