"""Which kind of layer some tensors of a checkpoint are."""

from lacuna_kernels.convert import butterfly, ksmm, lazylinop, monarch, torch_layers
from lacuna_kernels.convert.layers import Hints, Layer, Tensors, grouped, matches, merged
from lacuna_kernels.errors import ConversionError

SOURCES = ("ksmm", "lazylinop", "monarch", "butterfly")


def read_layers(tensors: Tensors, hints: Hints, source: str | None = None) -> dict[str, Layer]:
    """The layers of a checkpoint by name, in the order of the file; permutations become `select_features`.

    source  one of SOURCES: the only kind of structured layer to expect; None: whichever the names of tensors say

    Raises ConversionError with the keys of the first layer that is of no known kind.
    """
    layers: dict[str, Layer] = {}
    for name, leaves in grouped(tensors).items():
        layer = merged(_read(name, leaves, hints, source), hints.largest)
        if matches(name, hints.shuffled):
            layers[f"{name}.shuffle"] = select_layer(f"{name}.shuffle", monarch.shuffle(layer), layer.narrowest)
        layers[name] = layer
    return layers


def select_layer(name: str, indices: list[int], narrowest: int) -> Layer:
    """A layer that picks all of its features by their place; it takes from `narrowest` of them on."""
    width = len(indices)
    return Layer(name, "select_features", {"indices": indices}, {}, width, width, narrowest, width)


def _read(name: str, leaves: Tensors, hints: Hints, source: str | None) -> Layer:
    if set(leaves) == {"permutation"}:
        indices = butterfly.permutation_of(name, leaves)
        return select_layer(name, indices, len(indices))
    if source in (None, "ksmm") and ksmm.owns(leaves):
        return ksmm.read(name, leaves, hints)
    if source in (None, "monarch") and monarch.owns(leaves, told=source is not None):
        return monarch.read(name, leaves, hints)
    if source in (None, "butterfly") and butterfly.owns(leaves):
        return butterfly.read(name, leaves, hints)
    if source in (None, "lazylinop") and lazylinop.owns(leaves, told=source is not None):
        return lazylinop.read(name, leaves, hints)
    if torch_layers.owns(leaves):
        return torch_layers.read(name, leaves)
    found = ", ".join(f"{leaf} {list(tensor.shape)}" for leaf, tensor in list(leaves.items())[:8])
    raise ConversionError(
        f"layer {name!r} is of no known kind{f' beside {source}' if source else ''}: it has {found}. Known are "
        "factors.N (ksmm), ks_values.N (lazylinop), blkdiag1 and blkdiag2, or weight [k, q, p] with --source monarch "
        "(fly), twiddle and permutation (torch_butterfly), and weight and bias of Linear, BatchNorm1d and LayerNorm"
    )
