"""The commands: serve, check, convert, tune, info, version."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from lacuna_service.convert import app as convert
from lacuna_service.errors import ServiceError
from lacuna_service.settings import PREFIX, Settings
from lacuna_service.version import program_version

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, help="Serve sparse networks over HTTP."
)
app.add_typer(convert, name="convert")


def flag_of(name: str) -> str:
    """The flag of a setting."""
    return "--" + name.replace("_", "-")


def variable_of(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def with_settings(command: Callable[[Settings], None]) -> Callable[..., None]:
    """Make a command of typer's that takes every setting as a flag or a variable, and passes on the Settings."""

    def run(**given: Any) -> None:
        try:
            settings = Settings(**given)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = str(first["loc"][0])
            raise typer.BadParameter(f"{flag_of(name)} ({variable_of(name)}): {first['msg']}") from error
        command(settings)

    parameters = [_option(name, field) for name, field in Settings.model_fields.items()]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    vars(run)["__signature__"] = inspect.Signature(parameters)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    several = name == "model"
    flags = flag_of(name) + (f"/--no-{name.replace('_', '-')}" if field.annotation is bool else "")
    option = typer.Option(
        flags, envvar=variable_of(name), help=field.description, show_default=field.default is not None
    )
    kind = list[str] if several else field.annotation
    default = list(field.default) if several else field.default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


@app.command()
@with_settings
def serve(settings: Settings) -> None:
    """Serve a repository of models over HTTP until SIGTERM or Ctrl-C."""
    from lacuna_service.server import run  # noqa: PLC0415  torch takes a second, and --help needs none of it

    raise typer.Exit(run(settings))


@app.command()
def check(
    model: Annotated[Path, typer.Argument(help="Model folder: NAME, for its newest version, or NAME/VERSION.")],
    inputs: Annotated[Path, typer.Option(help="Safetensors file of inputs, named as over HTTP.")],
    expected: Annotated[Path, typer.Option(help="Safetensors file of what the outputs should be, by name.")],
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where to run.", envvar=variable_of("device"))
    ] = "auto",
    precision: Annotated[
        Literal["fp32", "tf32", "fp16", "bf16"] | None,
        typer.Option(help="That of serving.toml, or fp32, by default; a CPU has fp32 only."),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Largest relative L2 error. By default 1e-4 in fp32, 1e-2 in tf32, 2e-2 in fp16, 1e-1 in bf16."
        ),
    ] = None,
    agreement: Annotated[float, typer.Option(help="Smallest share of equal labels.")] = 0.999,
) -> None:
    """Compare a model folder's answers with your own. Exit status: 0 if all agree, 1 if not, 2 if it cannot be told."""
    from lacuna_kernels import KernelsError, Precision, gpu_count, load_model  # noqa: PLC0415  see serve
    from lacuna_service import check as checking  # noqa: PLC0415

    try:
        folder = checking.version_folder(model)
        chosen = Precision(precision) if precision else checking.serving_config(folder, load_model(folder)).precision
        if chosen is not Precision.FP32 and (device == "cpu" or (device == "auto" and not gpu_count())):
            typer.echo(f"a CPU computes in fp32, not in {chosen}")
            chosen = Precision.FP32
        limit = checking.TOLERANCE[chosen] if tolerance is None else tolerance
        wanted = checking.read_tensors(expected)
        ours = checking.answer(folder, checking.read_tensors(inputs), device, chosen)
    except (KernelsError, ServiceError) as error:
        typer.echo(f"cannot tell: {error}", err=True)
        raise typer.Exit(2) from error
    results = checking.compare(ours, wanted, limit, agreement)
    typer.echo(f"{folder} in {chosen}: passes up to a relative L2 of {limit:g}, from {agreement:.2%} of equal labels")
    for result in results:
        typer.echo(str(result))
    raise typer.Exit(0 if results and all(result.passed for result in results) else 1)


@app.command()
def tune(
    model: Annotated[Path, typer.Argument(help="Model folder: NAME, for its newest version, or NAME/VERSION.")],
    rows: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Batch to measure linear layers for, in rows or points; may be given again. By default all sizes that "
            "are served: powers of two up to max_batch_cost.",
        ),
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option(
            help="Point cloud, or folder of some, in any format that is served, to measure sparse convolutions on."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples at a time.")] = 1,
    columns: Annotated[
        int | None, typer.Option(min=3, help="Columns of a .bin sample, if not the model's own.")
    ] = None,
    objective: Annotated[
        Literal["latency", "energy"], typer.Option(help="What the best kernel has least of: device time, or joules.")
    ] = "latency",
    precision: Annotated[
        Literal["fp32", "tf32", "fp16", "bf16"] | None, typer.Option(help="That of serving.toml by default.")
    ] = None,
    device: Annotated[int, typer.Option(min=0, help="Index of the GPU.")] = 0,
) -> None:
    """Measure the kernels for a model's linear layers and sparse convolutions on this GPU.

    Programs compiled from then on take the best.

    The table lies in the kernel cache, by the GPU's name. Exit status: 0 if it was written, else 2.
    """
    from lacuna_kernels import KernelsError, Options, Precision, cost, load_model  # noqa: PLC0415  see serve
    from lacuna_kernels import tune as measure  # noqa: PLC0415
    from lacuna_service.check import serving_config, version_folder  # noqa: PLC0415
    from lacuna_service.config import plan_costs  # noqa: PLC0415
    from lacuna_service.power import energy_counter  # noqa: PLC0415
    from lacuna_service.tuning import read_samples, summary  # noqa: PLC0415

    try:
        folder = version_folder(model)
        loaded = load_model(folder)
        config = serving_config(folder, loaded)
        chosen = Precision(precision) if precision else config.precision
        options = Options(chosen, config.max_batch_cost, config.first_plan_cost)
        costs = rows or plan_costs(config, loaded.graph)
        clouds = read_samples(samples, loaded.graph, config, chosen, batch, columns)
        typer.echo(f"{folder} in {chosen}, batches of {', '.join(map(str, costs))}")
        if clouds:
            typer.echo(f"samples, {batch} at a time: {', '.join(str(cost(each)) for each in clouds)} points")
        with typer.progressbar(label="opening the GPU", length=1, show_pos=True) as bar:

            def progress(done: int, total: int, what: str) -> None:
                bar.length, bar.label = total, what or "done"
                bar.update(done - bar.pos)
                bar.render_progress()  # also where update has nothing to add

            def notice(text: str) -> None:
                typer.echo(f"\n{text}", err=True)  # beside the bar

            tuning = measure(
                loaded,
                options,
                costs,
                objective,
                samples=clouds,
                index=device,
                meter=energy_counter,
                progress=progress,
                notice=notice,
            )
    except (KernelsError, ServiceError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error
    for line in summary(tuning.groups, objective):
        typer.echo(line)
    typer.echo(f"written to {tuning.path}")


@app.command()
def info(
    model: Annotated[Path, typer.Argument(help="Model folder: NAME, for its newest version, or NAME/VERSION.")],
    rows: Annotated[int, typer.Option(help="Rows or points that the cost is for.", min=1)] = 1,
) -> None:
    """Show a model's inputs, outputs, nodes, parameters and cost, and the memory that it would take on a GPU."""
    from lacuna_kernels import KernelsError, load_model  # noqa: PLC0415  see serve
    from lacuna_service.check import serving_config, version_folder  # noqa: PLC0415
    from lacuna_service.info import describe, memory  # noqa: PLC0415

    try:
        folder = version_folder(model)
        loaded = load_model(folder)
        config = serving_config(folder, loaded)  # so that a wrong serving.toml is told here too
        typer.echo(describe(loaded, rows))
        typer.echo(memory(loaded, config))
    except (KernelsError, ServiceError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(program_version())
