"""What a program takes of a GPU's memory, worked out where there is none: plans are drawn, and no step is run."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import torch

from lacuna_kernels.cuda.blueprint import Blueprint, draw
from lacuna_kernels.cuda.capacity import Sizes
from lacuna_kernels.cuda.device import Device, DeviceLimits
from lacuna_kernels.cuda.fusion import fuse
from lacuna_kernels.cuda.lowering import check_supported
from lacuna_kernels.cuda.plan import IN_FLIGHT
from lacuna_kernels.cuda.steps import Weights
from lacuna_kernels.model import Model
from lacuna_kernels.program import MemoryUse, Options

H200 = DeviceLimits(132, 232_448, "sm_90")


def memory_use(model: Model, options: Options, costs: Sequence[int], limits: DeviceLimits = H200) -> MemoryUse:
    """Bytes of the weights, and of a plan for each of the costs, by the rules that choose kernels.

    Raises Unsupported for a network that no GPU runs.
    """
    graph, sizes = model.graph, Sizes.of(model.graph, options.max_cost)
    check_supported(graph)
    layers = fuse(graph, model.weights, options.precision)
    device, held = cast(Device, SimpleNamespace(limits=limits)), Weights(torch.device("cpu"))
    plans = [(cost, plan_bytes(draw(device, graph, layers, held, sizes.capacity(cost, 1)))) for cost in costs]
    return MemoryUse(held.bytes, tuple(plans))


def plan_bytes(blueprint: Blueprint) -> int:
    """The arena, and what each batch in flight has of its own."""
    own = sum(spec.dtype.itemsize * torch.Size(spec.shape).numel() for spec in blueprint.own.values())
    return blueprint.shared_bytes + IN_FLIGHT * own
