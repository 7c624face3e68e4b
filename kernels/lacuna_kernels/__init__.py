"""What a sparse network means, and how to run it on a CPU or a GPU."""

from lacuna_kernels import convert
from lacuna_kernels.backend import DeviceKind, gpu_count, memory_use, open_backend, tune
from lacuna_kernels.cpu import CpuBackend, walk
from lacuna_kernels.errors import (
    CapacityExceeded,
    ConversionError,
    DeviceError,
    DeviceOutOfMemory,
    GraphError,
    InputError,
    KernelsError,
    ModelError,
    Unsupported,
    WeightError,
)
from lacuna_kernels.graph import Graph, OutputSpec, Precision
from lacuna_kernels.limits import check_request
from lacuna_kernels.model import Model, Weights, load_model, random_weights, save_model
from lacuna_kernels.ops import json_schema, parse_graph
from lacuna_kernels.program import Backend, DeviceInfo, Options, Pending, Program, Result, TunedGroup, Tuning
from lacuna_kernels.types import Axis, Batch, DType, Value, ValueType, check_batch, collate, cost, split

__all__ = [
    "Axis",
    "Backend",
    "Batch",
    "CapacityExceeded",
    "ConversionError",
    "CpuBackend",
    "DType",
    "DeviceError",
    "DeviceInfo",
    "DeviceKind",
    "DeviceOutOfMemory",
    "Graph",
    "GraphError",
    "InputError",
    "KernelsError",
    "Model",
    "ModelError",
    "Options",
    "OutputSpec",
    "Pending",
    "Precision",
    "Program",
    "Result",
    "TunedGroup",
    "Tuning",
    "Unsupported",
    "Value",
    "ValueType",
    "WeightError",
    "Weights",
    "check_batch",
    "check_request",
    "collate",
    "convert",
    "cost",
    "gpu_count",
    "json_schema",
    "load_model",
    "memory_use",
    "open_backend",
    "parse_graph",
    "random_weights",
    "save_model",
    "split",
    "tune",
    "walk",
]
