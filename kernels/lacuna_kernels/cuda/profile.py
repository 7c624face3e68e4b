"""How long each step of a plan takes, inside a captured graph like the one that serves."""

import statistics
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lacuna_kernels.cuda.steps import Step

REPEATS = 20


def profile(steps: Sequence[Step], buffers: Mapping[str, Tensor]) -> list[tuple[str, float]]:
    """Return (name, seconds) of every step: medians over replays; on a thread and stream that may capture.

    The buffers' inputs must hold a batch. Needs a torch whose events can be recorded inside a graph (2.8 or later).
    """
    marks = [torch.cuda.Event(enable_timing=True, external=True) for _ in range(len(steps) + 1)]  # type: ignore  # newer than torch's types
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    stream.synchronize()
    graph.capture_begin(capture_error_mode="thread_local")
    marks[0].record(stream)
    for step, mark in zip(steps, marks[1:], strict=True):
        step.run(buffers)
        mark.record(stream)
    graph.capture_end()
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(REPEATS):
        graph.replay()
        stream.synchronize()
        for index, kept in enumerate(times):
            kept.append(float(marks[index].elapsed_time(marks[index + 1])) / 1000)
    return [(step.name, statistics.median(kept)) for step, kept in zip(steps, times, strict=True)]
