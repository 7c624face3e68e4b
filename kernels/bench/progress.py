"""How far a benchmark is."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def shown(jobs: Sequence[T], name: Callable[[T], str]) -> Iterator[T]:
    """The jobs, with a bar on stderr if that is a terminal and rich, which is of the extra `dev`, is there."""
    try:
        from rich.console import Console  # noqa: PLC0415  of the tools, not of what they measure
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )
    except ImportError:
        yield from jobs
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("measuring", total=len(jobs))
        for job in jobs:
            bar.update(task, description=name(job))
            yield job
            bar.advance(task)
