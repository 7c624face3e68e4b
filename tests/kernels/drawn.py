"""Plans and their fronts on paper: no step is run, so of a device only its limits are asked for."""

from types import SimpleNamespace
from typing import cast

import torch

from lacuna_kernels import Precision, random_weights
from lacuna_kernels.cuda.arena import BufferSpec
from lacuna_kernels.cuda.blueprint import Blueprint, draw
from lacuna_kernels.cuda.capacity import Capacity
from lacuna_kernels.cuda.device import Device, DeviceLimits
from lacuna_kernels.cuda.front_steps import Front
from lacuna_kernels.cuda.fusion import fuse
from lacuna_kernels.cuda.on_paper import H200
from lacuna_kernels.cuda.steps import Weights, Writer, levels_of
from lacuna_kernels.cuda.tasks import Task
from lacuna_kernels.graph import Graph


def drawn(
    graph: Graph, room: Capacity | None = None, precision: Precision = Precision.FP16, limits: DeviceLimits = H200
) -> Blueprint:
    """A plan of a network."""
    layers = fuse(graph, random_weights(graph, 0), precision)
    return draw(_device(limits), graph, layers, Weights(torch.device("cpu")), room or Capacity(1000, 4))


def writer_of(graph: Graph, room: Capacity | None = None) -> Writer:
    """What writes a plan in fp16, before its first step."""
    layers = fuse(graph, random_weights(graph, 0), Precision.FP16)
    return Writer(_device(H200), graph.types, Weights(torch.device("cpu")), room or Capacity(1000, 4), layers)


def front_of(writer: Writer, graph: Graph) -> Front:
    """What comes before the convolutions of its first grid."""
    means = Task([], {"features": BufferSpec((1,), torch.float32)}, lambda b: None)
    return Front.of(writer, levels_of(graph.types)[0], means)


def _device(limits: DeviceLimits) -> Device:
    return cast(Device, SimpleNamespace(limits=limits))
