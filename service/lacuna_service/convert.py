"""Model folders made of weights that users have: `lacuna convert`."""

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

if TYPE_CHECKING:
    from lacuna_kernels import Model, convert
    from lacuna_kernels.convert import LayerReport

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Make a model folder of weights that you have.")

Activation = Literal["relu", "leaky_relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh"]
To = Annotated[Path, typer.Option(help="The folder to write, NAME/VERSION, such as models/mlp/1. It must not exist.")]
Layers = Annotated[
    str | None,
    typer.Option(
        help="Layers and functions (those of --activation, softmax, argmax) in order: 'fc1 relu norm fc2 softmax'. "
        "A layer is called what stands before .weight, .factors.0 and the like in the file. By default all layers "
        "in the order of the file (of a safetensors file: by name), with --activation between the linear ones."
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
        typer.Option(
            help="Patterns of ksmm's layers, right-most first: 'a,b,c,d a,b,c,d' for all, or for each its own: "
            "--patterns 'fc1=a,b,c,d a,b,c,d' --patterns 'fc2=a,b,c,d'."
        ),
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

    with _told():
        _check_target(to)
        hints = convert.Hints(
            patterns={name: convert.parse_chain(text) for name, text in _by_layer(patterns).items()},
            layout=layout,
            out_features={name: _number(text) for name, text in _by_layer(out_features).items()},
            descending=decreasing_stride or (),
            shuffled=shuffle or (),
            largest=merge,
        )
        model = _network(checkpoint, hints, layers, activation, source, in_features)
        _write(model, to)
    for line in _nodes(model):
        typer.echo(line)


@app.command()
def dense(
    source: Annotated[Path, typer.Argument(help="A model folder with linear nodes, or a checkpoint.")],
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
        typer.Option(help="Layers with a larger relative error stay dense. Any error is taken by default.", min=0),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Layer to factorise, by its name in the network, such as linear0 (the table has all); wildcards may "
            "be used, and the option again. All by default."
        ),
    ] = None,
    layers: Layers = None,
    activation: Between = None,
) -> None:
    """Factorise dense linear layers into chains; report error and parameters layer by layer."""
    from lacuna_kernels import convert, load_model  # noqa: PLC0415  see above
    from lacuna_service.check import version_folder  # noqa: PLC0415

    if source.is_dir() and (layers is not None or activation is not None):
        raise typer.BadParameter("--layers and --activation are for checkpoints; a model folder has its graph")
    if not source.exists():
        raise typer.BadParameter(f"{source} does not exist; give a model folder (NAME, NAME/VERSION) or a checkpoint")
    reports: list[LayerReport] = []
    with _told():
        _check_target(to)
        rule = convert.chain_rule(chain, rank, blocks)
        if source.is_dir():
            folder = version_folder(source)
            model, options = load_model(folder), folder / "serving.toml"
        else:
            model, options = _network(source, convert.Hints(), layers, activation), None
        names = convert.linear_layers(model)
        with typer.progressbar(length=len(names), label=f"{len(names)} linear layers", file=sys.stderr) as bar:

            def heard(report: "LayerReport") -> None:
                reports.append(report)
                bar.update(1)

            sparse = convert.sparsify(model, rule, tolerance=tolerance, only=only or ["*"], on_layer=heard)
        _write(sparse, to, options)
    for line in table(reports):
        typer.echo(line)
    if all(report.kept for report in reports):
        typer.echo(f"NO LAYER WAS FACTORISED: {to} is as dense as {source}; the table says why", err=True)


def _network(
    checkpoint: Path,
    hints: "convert.Hints",
    layers: str | None,
    activation: str | None,
    source: str | None = None,
    in_features: int | None = None,
) -> "Model":
    """The layers of a checkpoint as a network, in the order that is told, or their own."""
    from lacuna_kernels import convert  # noqa: PLC0415  see above

    found = convert.Layers(convert.read_checkpoint(checkpoint), hints, source)
    if layers is None and checkpoint.suffix.lower() == ".safetensors" and len(found) > 1:
        typer.echo(f"the file keeps no order of layers; by name: {' '.join(found)} (--layers tells another)", err=True)
    steps = layers.split() if layers is not None else convert.in_order(found, activation)
    model = convert.sequence(found, steps, in_features)
    if not set(steps) & set(get_args(Activation)) and len(linear := _linear(model)) > 1:
        typer.echo(
            f"WARNING: no activation stands between the {len(linear)} linear layers; --activation relu puts one behind "
            "each but the last, --layers where it says",
            err=True,
        )
    return model


def _linear(model: "Model") -> list[str]:
    """The names of the linear nodes, dense or Kronecker-sparse."""
    return [node.name for node in model.graph.nodes if node.op in ("linear", "kronecker_linear")]


def table(reports: Sequence["LayerReport"]) -> list[str]:
    """What became of the linear layers, a line each under a heading, and the sums."""
    from lacuna_service.info import columns  # noqa: PLC0415  see above

    rows = [("layer", "shape", "chain", "relative error", "dense", "parameters", "")]
    for report in reports:
        error = "" if report.relative_error is None else f"{report.relative_error:.3e}"
        shape = f"{report.shape[0]} x {report.shape[1]}"
        note = f"kept dense: {report.kept}" if report.kept else ""
        counts = (f"{report.dense_parameters:,}", f"{report.parameters:,}")
        rows.append((report.name, shape, report.chain, error, *counts, note))
    sums = (sum(report.dense_parameters for report in reports), sum(report.parameters for report in reports))
    rows.append(("total", "", "", "", f"{sums[0]:,}", f"{sums[1]:,}", ""))
    return columns(rows, numbers=(3, 4, 5))


def _nodes(model: "Model") -> list[str]:
    """A line for each node: what it is, what comes out, and its chain."""
    lines = []
    for node in model.graph.nodes:
        chain = " ".join(",".join(map(str, pattern)) for pattern in getattr(node, "patterns", ()))
        then = getattr(node, "activation", None)
        parts = [node.name, node.op, str(model.graph.types[node.name]), chain, str(then) if then else ""]
        lines.append("  ".join(part for part in parts if part))
    return lines


@contextmanager
def _told() -> Iterator[None]:
    """What can be known to be wrong is said, and the exit status is 2."""
    from lacuna_kernels import KernelsError  # noqa: PLC0415  see above
    from lacuna_service.errors import ServiceError  # noqa: PLC0415

    try:
        yield
    except (KernelsError, ServiceError, OSError) as error:
        typer.echo(f"cannot convert: {error}", err=True)
        raise typer.Exit(2) from error


def _check_target(to: Path) -> None:
    from lacuna_service.repository import NAME, VERSION  # noqa: PLC0415  see above

    if not VERSION.fullmatch(to.name) or not NAME.fullmatch(to.absolute().parent.name):
        raise typer.BadParameter(
            "--to must be NAME/VERSION, a name of letters, digits, '_', '.' and '-' and a version from 1 on, "
            f"such as models/mlp/1, got {to}"
        )
    if to.exists():
        raise typer.BadParameter(f"--to: {to} exists; a version that is served must not change, so give the next one")
    parent = next(path for path in to.absolute().parents if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise typer.BadParameter(f"--to: {parent} is no folder that can be written to")


def _write(model: "Model", to: Path, options: Path | None = None) -> None:
    """Write a version folder, and a serving.toml if there is one to go along: whole, or not at all."""
    from lacuna_kernels import save_model  # noqa: PLC0415  see above
    from lacuna_service.info import ends  # noqa: PLC0415

    unfinished = to.with_name(f".{to.name}.{os.getpid()}")  # a server that looks at the folder does not see it
    try:
        save_model(model, unfinished)
        if options is not None and options.is_file():
            shutil.copyfile(options, unfinished / options.name)
        unfinished.rename(to)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    typer.echo(f"wrote {to}: {sum(weight.numel() for weight in model.weights.values()):,} parameters")
    for line in ends(model):
        typer.echo(line)


def _by_layer(given: Sequence[str] | None) -> Mapping[str, str]:
    """LAYER=TEXT, one or more in a string, or TEXT for every layer, which is under the name ""."""
    entries = [entry for text in given or () for entry in re.split(r"(?<=\d)\s+(?=\S+=)", text)]
    return {layer: text for layer, _, text in (entry.rpartition("=") for entry in entries)}


def _number(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise typer.BadParameter(f"--out-features must be LAYER=N, got {text!r}")
    return int(text)
