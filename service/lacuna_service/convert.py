"""Model folders made of weights that users have: `lacuna convert`."""

import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

if TYPE_CHECKING:
    from lacuna_kernels import Model
    from lacuna_kernels.convert import LayerReport

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Make a model folder of weights that you have.")

Activation = Literal["relu", "leaky_relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh"]
To = Annotated[Path, typer.Option(help="The folder to write, NAME/VERSION, such as models/mlp/1. It must not exist.")]
Layers = Annotated[
    str | None,
    typer.Option(
        help="Layers of the checkpoint and functions, in order, such as 'fc1 relu norm fc2 softmax'. By default all "
        "layers in the order of the file (of a safetensors file: by name), with --activation between the linear ones."
    ),
]
Between = Annotated[
    Activation | None, typer.Option(help="What stands behind every linear layer but the last. Nothing by default.")
]


@app.command()
def kronecker(
    checkpoint: Annotated[Path, typer.Argument(help="Trained factors: safetensors, a torch file of tensors, or npz.")],
    to: To,
    source: Annotated[
        Literal["ksmm", "lazylinop", "monarch"] | None,
        typer.Option(help="Whose layers these are, where the names of the tensors leave it open."),
    ] = None,
    layers: Layers = None,
    activation: Between = None,
    patterns: Annotated[
        list[str] | None,
        typer.Option(help="Patterns of ksmm's layers, right-most first: 'a,b,c,d a,b,c,d', or 'LAYER=a,b,c,d ...'."),
    ] = None,
    layout: Annotated[
        Literal["values", "bmm", "kernel", "dense"] | None,
        typer.Option(help="How ksmm's factors are laid out, if their shapes leave it open."),
    ] = None,
    in_features: Annotated[
        int | None, typer.Option(help="Width of the input, if the first layer pads it.", min=1)
    ] = None,
    out_features: Annotated[
        list[str] | None, typer.Option(help="LAYER=N: outputs that are kept of a layer without bias.")
    ] = None,
    decreasing_stride: Annotated[
        list[str] | None, typer.Option(help="Butterfly layers with increasing_stride=False; wildcards may be used.")
    ] = None,
    shuffle: Annotated[
        list[str] | None, typer.Option(help="BlockdiagLinear layers with shuffle=True; wildcards may be used.")
    ] = None,
    merge: Annotated[
        int, typer.Option(help="Multiply neighbouring factors while blocks stay within that size, such as 32.", min=0)
    ] = 0,
) -> None:
    """Take trained Kronecker-sparse factors as they are: of ksmm, lazylinop, Monarch, torch_butterfly."""
    from lacuna_kernels import convert  # noqa: PLC0415  torch takes a second, and --help needs none of it

    def make() -> "Model":
        hints = convert.Hints(
            {name: convert.parse_chain(text) for name, text in _by_layer(patterns).items()},
            layout,
            {name: _number(text) for name, text in _by_layer(out_features).items()},
            decreasing_stride or (),
            shuffle or (),
            merge,
        )
        found = convert.Layers(convert.read_checkpoint(checkpoint), hints, source)
        steps = layers.split() if layers is not None else convert.in_order(found, activation)
        return convert.sequence(found, steps, in_features)

    _check_target(to)
    model = _told(make)
    _write(model, to)
    for line in _nodes(model):
        typer.echo(line)


@app.command()
def dense(
    source: Annotated[Path, typer.Argument(help="A model folder with linear nodes, or a checkpoint of an MLP.")],
    to: To,
    chain: Annotated[
        str,
        typer.Option(help="monarch, square-dyadic, balanced-N (N factors), or 'a,b,c,d a,b,c,d', the first to meet x."),
    ] = "monarch",
    rank: Annotated[int, typer.Option(help="Rank between any two factors: more parameters, less error.", min=1)] = 1,
    blocks: Annotated[
        int | None, typer.Option(help="Blocks of a Monarch factor; by default near the square roots.", min=1)
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Layers with a larger relative error stay dense. Any error is taken by default."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Layers to factorise; wildcards may be used. All by default.")
    ] = None,
    layers: Layers = None,
    activation: Between = None,
) -> None:
    """Factorise dense linear layers into chains; report error and parameters layer by layer."""
    from lacuna_kernels import convert, load_model  # noqa: PLC0415  see above
    from lacuna_service.check import version_folder  # noqa: PLC0415

    folder = _told(lambda: version_folder(source)) if source.is_dir() else None

    def read() -> "Model":
        if folder is not None:
            return load_model(folder)
        found = convert.Layers(convert.read_checkpoint(source), convert.Hints())
        return convert.sequence(found, layers.split() if layers is not None else convert.in_order(found, activation))

    _check_target(to)
    if folder is not None and (layers is not None or activation is not None):
        raise typer.BadParameter("--layers and --activation are for checkpoints; a model folder has its graph")
    model = _told(read)
    rule = _told(lambda: convert.chain_rule(chain, rank, blocks))
    names = convert.linear_layers(model)
    reports: list[LayerReport] = []
    with typer.progressbar(length=len(names), label=f"{len(names)} linear layers", file=sys.stderr) as bar:

        def heard(report: "LayerReport") -> None:
            reports.append(report)
            bar.update(1)

        sparse = _told(lambda: convert.sparsify(model, rule, tolerance=tolerance, only=only or ["*"], on_layer=heard))
    _write(sparse, to)
    if folder is not None and (options := folder / "serving.toml").is_file():
        shutil.copyfile(options, to / options.name)
    for line in table(reports):
        typer.echo(line)


def table(reports: Sequence["LayerReport"]) -> list[str]:
    """What became of the linear layers, a line each under a heading, and the sums."""
    rows = [("layer", "shape", "chain", "relative error", "dense", "parameters", "")]
    for report in reports:
        error = "" if report.relative_error is None else f"{report.relative_error:.3e}"
        shape = f"{report.shape[0]} x {report.shape[1]}"
        note = f"kept dense: {report.kept}" if report.kept else ""
        counts = (f"{report.dense_parameters:,}", f"{report.parameters:,}")
        rows.append((report.name, shape, report.chain, error, *counts, note))
    sums = (sum(report.dense_parameters for report in reports), sum(report.parameters for report in reports))
    rows.append(("total", "", "", "", f"{sums[0]:,}", f"{sums[1]:,}", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    numbers = (3, 4, 5)
    return [
        "  ".join(
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _nodes(model: "Model") -> list[str]:
    """A line for each node: what it is, what comes out, and its chain."""
    lines = [f"input x {model.graph.types['x']}"]
    for node in model.graph.nodes:
        chain = " ".join(",".join(map(str, pattern)) for pattern in getattr(node, "patterns", ()))
        then = getattr(node, "activation", None)
        parts = [node.name, node.op, str(model.graph.types[node.name]), chain, str(then) if then else ""]
        lines.append("  ".join(part for part in parts if part))
    return lines


def _told(step: Callable[[], T]) -> T:
    """Run a step; what can be known to be wrong is said, and the exit status is 2."""
    from lacuna_kernels import KernelsError  # noqa: PLC0415  see above
    from lacuna_service.errors import ServiceError  # noqa: PLC0415

    try:
        return step()
    except (KernelsError, ServiceError) as error:
        typer.echo(f"cannot convert: {error}", err=True)
        raise typer.Exit(2) from error


def _check_target(to: Path) -> None:
    if not re.fullmatch(r"[1-9]\d*", to.name):
        raise typer.BadParameter(f"--to must be NAME/VERSION with a version from 1 on, such as {to / '1'}")
    if to.exists():
        raise typer.BadParameter(f"--to: {to} exists; a version that is served must not change, so give the next one")


def _write(model: "Model", to: Path) -> None:
    from lacuna_kernels import save_model  # noqa: PLC0415  see above

    try:
        save_model(model, to)
    except OSError as error:
        typer.echo(f"cannot write: {error}", err=True)
        raise typer.Exit(2) from error
    typer.echo(f"wrote {to}: {sum(weight.numel() for weight in model.weights.values()):,} parameters")


def _by_layer(given: Sequence[str] | None) -> Mapping[str, str]:
    """LAYER=TEXT, or TEXT for every layer, which is under the name ""."""
    split = [text.rpartition("=") for text in given or ()]
    return {layer: text for layer, _, text in split}


def _number(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise typer.BadParameter(f"--out-features must be LAYER=N, got {text!r}")
    return int(text)
