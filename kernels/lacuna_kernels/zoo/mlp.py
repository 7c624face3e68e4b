"""Multilayer perceptrons on rows: with Kronecker-sparse hidden layers, and their dense twins."""

from collections.abc import Sequence

from lacuna_kernels.graph import Graph
from lacuna_kernels.ops.kronecker_linear import KSPattern
from lacuna_kernels.zoo.draft import Draft, class_names

Pattern = tuple[int, int, int, int]
Names = tuple[str, str, str]
DEFAULT_NAMES: Names = ("features", "label", "probabilities")


def kronecker_mlp(
    layers: Sequence[Sequence[Pattern]],
    classes: int | Sequence[str],
    *,
    activation: str = "relu",
    normalise: bool = False,
    names: Names = DEFAULT_NAMES,
) -> Graph:
    """Classifier of rows: hidden layers that are chains of Kronecker-sparse factors, then a dense head.

    layers     per hidden layer its patterns (a, b, c, d), the first to meet x first; widths follow from them
    normalise  whether a batch norm scales the inputs first
    names      of the input, of the output that is the class, and of the probabilities
    """
    draft, x = _begin(KSPattern(*layers[0][0]).width_in, normalise, names)
    for index, patterns in enumerate(layers, 1):
        x = draft.add(f"hidden{index}", "kronecker_linear", x, patterns=list(patterns), activation=activation)
    return _classify(draft, x, classes, names)


def dense_mlp(
    widths: Sequence[int],
    classes: int | Sequence[str],
    *,
    activation: str = "relu",
    normalise: bool = False,
    names: Names = DEFAULT_NAMES,
) -> Graph:
    """The same classifier with dense hidden layers: widths are those of the input and of each hidden layer."""
    draft, x = _begin(widths[0], normalise, names)
    for index, width in enumerate(widths[1:], 1):
        x = draft.add(f"hidden{index}", "linear", x, out_features=width, activation=activation)
    return _classify(draft, x, classes, names)


def _begin(features: int, normalise: bool, names: Names) -> tuple[Draft, str]:
    draft = Draft(**{names[0]: {"axis": "row", "dtype": "fp32", "shape": [features]}})
    return draft, draft.add("scale", "batch_norm", names[0]) if normalise else names[0]


def _classify(draft: Draft, x: str, classes: int | Sequence[str], names: Names) -> Graph:
    count, told = class_names(classes)
    logits = draft.add("head", "linear", x, out_features=count)
    draft.add(names[1], "argmax", logits)
    draft.add(names[2], "softmax", logits)
    return draft.graph(**{names[1]: told, names[2]: told})
