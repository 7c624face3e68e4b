"""Measuring the ways that fit a network's factors: what `lacuna tune` does, never done while serving."""

from collections.abc import Callable, Iterator, Sequence
from math import inf
from statistics import median
from time import monotonic

import torch
from torch import Tensor

from lacuna_kernels.cuda.device import Device, DeviceLimits
from lacuna_kernels.cuda.kronecker.choose import Stage, candidates, fused
from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.cuda.kronecker.table import Entry, key_of
from lacuna_kernels.cuda.kronecker.way import Alone, Operands, Way
from lacuna_kernels.cuda.measurement import Measurement, Objective

MOST_WAYS = 8
"""Of the ways that fit, so many are measured: those of the best predictions."""
LIKELY = 1.6
"""What is predicted to take so many times as long as the best prediction is not measured.

Nor is the energy of what was found to take so many times as long as the fastest."""

_CACHE_BYTES = 1 << 27
_REPEATS = 15
_ENERGY_SECONDS = 2.0

Meter = Callable[[], float]
"""The joules that the GPU has used since it was switched on."""


def contenders(problem: Problem, limits: DeviceLimits) -> list[Way]:
    """The ways that are worth measuring, the likely fastest first."""
    ways = candidates(problem, limits)[:MOST_WAYS]
    most = LIKELY * ways[0].seconds(problem, limits)
    return [way for way in ways if way.seconds(problem, limits) <= most]


def tasks(
    chains: Sequence[Sequence[Problem]], runs: Sequence[Sequence[Problem]], limits: DeviceLimits
) -> Iterator[list[Stage]]:
    """The stages that compete with each other, for one factor or for the same neighbouring factors; each once.

    chains  the factors of layers, of which any neighbours may be taken at once
    runs    the factors of several layers, which may be taken all at once
    """
    neighbours = [c[start:end] for c in chains for end in range(1, len(c) + 1) for start in range(end)]
    for problems in {key_of(found): found for found in [*neighbours, *runs]}.values():
        if len(problems) == 1:
            yield [Stage(Alone(way), 0, tuple(problems), limits) for way in contenders(problems[0], limits)]
        elif found := fused(problems, 0, len(problems), limits):
            yield found


def measure(device: Device, stages: Sequence[Stage], objective: Objective, meter: Meter | None) -> Entry:
    """Time each stage, and measure its energy if that is the objective; on a thread and stream that may capture.

    Raises DeviceError if a kernel cannot be compiled.
    """
    ways = {
        stage.way.name: _measured(device, stage, meter if objective is Objective.ENERGY else None) for stage in stages
    }
    return Entry.of(stages[0].problems, objective, ways)


def _measured(device: Device, stage: Stage, meter: Meter | None) -> Measurement:
    first, last = stage.problems[0], stage.last
    copies = max(2, min(64, 1 + _CACHE_BYTES // max(1, first.bytes)))
    launches = [
        _launch(device, stage, _matrix(first, first.pattern.width_in), _matrix(last, last.pattern.width_out))
        for _ in range(copies)
    ]
    return timed(launches, meter)


def timed(launches: Sequence[Callable[[], None]], meter: Meter | None, most_seconds: float = inf) -> Measurement:
    """Measure launches, one after the other in a captured graph, and return what one of them takes.

    meter         None to measure no energy
    most_seconds  the energy of slower ones is not measured either

    On a thread and stream that may capture.
    """
    stream = torch.cuda.current_stream()
    for launch in launches:
        launch()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin(capture_error_mode="thread_local")
    for launch in launches:
        launch()
    graph.capture_end()
    seconds = _seconds(graph) / len(launches)
    if meter is None or seconds > most_seconds:
        return Measurement(seconds=seconds)
    return Measurement(seconds=seconds, joules=_joules(graph, meter) / len(launches))


def _matrix(problem: Problem, width: int) -> Tensor:
    shape = (problem.rows, width) if problem.layout is Layout.FIRST else (width, problem.rows)
    return torch.randn(shape, device="cuda").to(problem.dtype)


def _launch(device: Device, stage: Stage, x: Tensor, y: Tensor) -> Callable[[], None]:
    factors = [(torch.randn(p.pattern.values, device="cuda") * p.pattern.c**-0.5).to(p.dtype) for p in stage.problems]
    packed = stage.way.pack(factors)
    scratch = torch.empty(stage.scratch_bytes, dtype=torch.uint8, device="cuda")
    return lambda: stage.launch(device, packed, Operands(x, y, scratch=scratch))


def _seconds(graph: torch.cuda.CUDAGraph) -> float:
    times = []
    for _ in range(_REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(float(start.elapsed_time(end)) / 1000)
    return median(times)


def _joules(graph: torch.cuda.CUDAGraph, meter: Meter) -> float:
    stream, replays = torch.cuda.current_stream(), 0
    stream.synchronize()
    start, before = monotonic(), meter()
    while monotonic() - start < _ENERGY_SECONDS:
        for _ in range(10):
            graph.replay()
        replays += 10
        stream.synchronize()
    return (meter() - before) / replays
