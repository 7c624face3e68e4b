"""The command `lacuna-client`: label files, make a sample scan, look at a server."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from lacuna_client.batch import Done, Job, clashes, run
from lacuna_client.client import Client
from lacuna_client.errors import LacunaError
from lacuna_client.simulate import CLASSES, Scan, simulate_scan

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Client of the Lacuna inference service.")


class Kind(StrEnum):
    """What to write for each file."""

    NPY = "npy"
    LABEL = "label"
    PLY = "ply"


Url = Annotated[str, typer.Option(envvar="LACUNA_URL", help="Address of the server.")]
ApiKey = Annotated[str | None, typer.Option(envvar="LACUNA_API_KEY", help="Key, if the server asks for one.")]
Timeout = Annotated[float, typer.Option(help="Longest wait for one answer, seconds.", min=0.001)]


@app.command()
def infer(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    files: Annotated[list[Path], typer.Argument(help="Point clouds: .bin .pcd .ply .npy .las .laz")],
    out: Annotated[Path, typer.Option(help="Folder for the answers.")] = Path("labels"),
    to: Annotated[Kind, typer.Option(help="Labels as .npy or SemanticKITTI .label, or a coloured .ply.")] = Kind.NPY,
    input_format: Annotated[
        str | None, typer.Option("--format", help="Format of the files, if not as their suffix says.")
    ] = None,
    columns: Annotated[int | None, typer.Option(help="Columns of .bin files, if not the model's own.", min=1)] = None,
    parallel: Annotated[int, typer.Option(help="Requests in flight.", min=1, max=256)] = 4,
    url: Url = "http://localhost:8000",
    api_key: ApiKey = None,
    timeout_s: Timeout = 60.0,
) -> None:
    """Label point-cloud files. Goes on after errors; exits with 1 if any file failed, and names it."""
    job = Job(model, out, to.value, input_format, columns)
    if clashing := clashes(job, files):
        raise typer.BadParameter(f"{clashing[0]} would overwrite another answer or an input", param_hint="FILES")
    with Client(url, api_key, timeout_s) as client:
        failed = [done for done in with_progress(client, job, files, parallel) if done.error is not None]
    console = Console(stderr=True)
    for done in failed:
        console.print(
            f"failed: {done.source}: {done.error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
    Console(markup=False, soft_wrap=True).print(f"{len(files) - len(failed)} of {len(files)} files labelled in {out}")
    raise typer.Exit(1 if failed else 0)


def with_progress(client: Client, job: Job, files: list[Path], parallel: int) -> list[Done]:
    """Run the job behind a progress bar on stderr."""
    looks = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*looks, console=Console(stderr=True)) as progress:
        return list(progress.track(run(client, job, files, parallel), total=len(files), description=job.model))


@app.command()
def sample(
    out: Annotated[Path, typer.Argument(help="File to write: float32 x, y, z, intensity, as KITTI has it.")] = Path(
        "scan.bin"
    ),
    seed: Annotated[int, typer.Option(help="Which street; the same seed gives the same scan.", min=0)] = 0,
    labels: Annotated[
        Path | None, typer.Option(help="Also write the true classes here: .npy (uint8) or .label (uint32).")
    ] = None,
) -> None:
    """Write a generated 64-beam LiDAR scan of a street."""
    if labels is not None and labels.suffix not in {".npy", ".label"}:
        raise typer.BadParameter(f"{labels} ends neither in .npy nor in .label", param_hint="--labels")
    scan = simulate_scan(seed)
    out.write_bytes(scan.points.astype("<f4").tobytes())
    if labels is not None:
        write_labels(scan, labels)
    found = ", ".join(f"{name} {int(np.sum(scan.labels == index))}" for index, name in enumerate(CLASSES))
    Console(markup=False, highlight=False, soft_wrap=True).print(f"{out}: {len(scan.points)} points: {found}")


def write_labels(scan: Scan, path: Path) -> None:
    """The true classes, in one of two forms."""
    if path.suffix == ".npy":
        np.save(path, scan.labels, allow_pickle=False)
    else:
        path.write_bytes(scan.labels.astype("<u4").tobytes())


@app.command()
def status(url: Url = "http://localhost:8000", api_key: ApiKey = None, timeout_s: Timeout = 10.0) -> None:
    """Show a server and its models. Exits with 1 if the server cannot be reached or is not ready."""
    with Client(url, api_key, timeout_s) as client:
        try:
            server, models, ready = client.server_metadata(), client.index(), client.is_ready()
        except LacunaError as error:
            Console(stderr=True).print(f"failed: {error}", style="red", markup=False, soft_wrap=True)
            raise typer.Exit(1) from error
    state = "ready" if ready else "not ready"
    table = Table("model", "version", "state", "reason")
    for row in models:
        table.add_row(*(Text(str(row.get(key, ""))) for key in ("name", "version", "state", "reason")))
    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print(f"{server.get('name')} {server.get('version')} at {url}: {state}")
    Console().print(table)
    raise typer.Exit(0 if ready else 1)


def main() -> None:
    """Entry point of the command."""
    app()
