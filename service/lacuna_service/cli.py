"""The commands: serve, check, info, version."""

import inspect
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from lacuna_service.settings import PREFIX, Settings

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, help="Serve sparse networks over HTTP."
)


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
def version() -> None:
    """Print the version."""
    typer.echo(program_version())


def program_version() -> str:
    """The version of the installed distribution."""
    try:
        return installed_version("lacuna")
    except PackageNotFoundError:
        return "0+unknown"
