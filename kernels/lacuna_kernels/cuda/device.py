"""One GPU: its primary context, streams that PyCUDA and torch share, and kernels loaded from machine code."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lacuna_kernels.cuda.compiler import Compiler, Variant
from lacuna_kernels.cuda.launch import Argument, Dim3, Function, Module, Shape
from lacuna_kernels.cuda.libcuda import current_context, make_current
from lacuna_kernels.cuda.tile_counters import TileCounter, TileCounters
from lacuna_kernels.errors import DeviceError, DeviceOutOfMemory, KernelsError

_BEFORE_TENSOR_MAPS = "48x"  # sm_90a's parameters begin at byte 0x210 of a bank in which the maps are aligned to 64
Launch = Callable[[], None]
_STATIC_SHARED_BYTES = 48 * 1024  # what a launch may use without asking


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """What the choice of a kernel depends on: multiprocessors, the most shared memory of a block, the architecture."""

    multiprocessors: int
    shared_bytes: int
    architecture: str = "sm_80"

    @property
    def hopper(self) -> bool:
        """Whether kernels for sm_90a run."""
        return self.architecture == "sm_90"


@dataclass(slots=True)
class _Sides:
    """Streams beside another, of which `at_once` has taken the first until it returns."""

    streams: list[torch.cuda.Stream] = field(default_factory=list)
    taken: int = 0


@dataclass(slots=True)
class _Stages:
    """Streams beside another of the stages of `start_beside`, two of each, and those with something on them."""

    streams: list[tuple[torch.cuda.Stream, torch.cuda.Stream]] = field(default_factory=list)
    taken: list[torch.cuda.Stream] = field(default_factory=list)

    def follow(self, stream: torch.cuda.Stream, *before: torch.cuda.Stream) -> None:
        """Take a stream whose launches come after those of others up to now."""
        self.taken.append(stream)
        for other in before:
            stream.wait_stream(other)


class Device:
    """A GPU opened on the calling thread. Torch's memory and PyCUDA's kernels live in the same primary context.

    Kernels run on the current torch stream, which must be one of `new_stream()` or torch's default stream.
    Programs compute on `stream`, one after the other; inputs and outputs travel beside that on `upload` and `download`,
    and on `fetch` the outputs of batches that are done, which must not wait until the next batch's are on their way.
    """

    def __init__(self, index: int = 0, cache: Path | None = None) -> None:
        from pycuda import driver  # noqa: PLC0415  needs a driver to be imported

        driver.init()
        torch.cuda.set_device(index)
        torch.cuda.init()  # type: ignore[no-untyped-call]
        self.index = index
        self.compiler = Compiler(cache)
        self._driver = driver
        self._modules: dict[str, Any] = {}
        self._cluster_modules: dict[str, Module] = {}
        self._kernels: dict[Variant, Kernel] = {}
        self._streams: dict[int, Any] = {0: None}
        self._sides: dict[int, _Sides] = {}
        self._besides: dict[int, _Stages] = {}
        self._counters = TileCounters()
        self._lock = threading.RLock()
        self._context = driver.Device(index).retain_primary_context()
        self.properties = torch.cuda.get_device_properties(index)
        architecture = f"sm_{self.properties.major}{self.properties.minor}"
        shared_bytes = driver.Device(index).get_attribute(driver.device_attribute.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
        self.limits = DeviceLimits(int(self.properties.multi_processor_count), int(shared_bytes), architecture)
        self._context.push()
        self._handle = current_context()
        try:
            self.stream, self.upload, self.download, self.fetch = (self.new_stream() for _ in range(4))
        except BaseException:
            self._context.pop()  # PyCUDA aborts the process when a thread ends with a context on its stack
            raise

    def new_stream(self) -> torch.cuda.Stream:
        """Return a new stream that torch and our kernels can both use; the device keeps it."""
        stream = self._driver.Stream()
        with self._lock:
            self._streams[stream.handle] = stream
        return torch.cuda.get_stream_from_external(stream.handle, self.index)

    def at_once(self, launches: Sequence[Launch]) -> None:
        """Make launches that do not depend on one another on streams of their own, which join the current one again.

        They may call this again, for streams that are in nobody's way. None of their kernels may take tiles from a
        counter, as those of one stream share one.
        """
        if not launches:
            return
        main = torch.cuda.current_stream(self.index)
        sides = self._sides.setdefault(main.cuda_stream, _Sides())  # of one thread, like the stream itself
        taken = sides.taken
        while len(sides.streams) < taken + len(launches) - 1:
            sides.streams.append(self.new_stream())
        streams = (main, *sides.streams[taken : taken + len(launches) - 1])
        sides.taken += len(launches) - 1
        for side in streams[1:]:
            side.wait_stream(main)
        try:
            for launch, stream in zip(launches, streams, strict=True):
                with torch.cuda.stream(stream):
                    launch()
        finally:
            sides.taken = taken
            for side in streams[1:]:
                main.wait_stream(side)

    def start_beside(self, stages: Sequence[Sequence[Launch]], now: Launch) -> None:
        """Make launches beside others, `now`, which are made first, and beside all that follow until `end_beside`.

        A stage is made of launches that come after the first ones of the stages before it, of some that come after
        these alone, and perhaps of last ones, that come after these and after `now`. None of their kernels may take
        tiles from a counter, either.
        """
        main = torch.cuda.current_stream(self.index)
        beside = self._besides.setdefault(main.cuda_stream, _Stages())
        while len(beside.streams) < len(stages):
            beside.streams.append((self.new_stream(), self.new_stream()))
        beside.taken = []
        streams = beside.streams[: len(stages)]
        beside.follow(streams[0][0], main)
        now()
        for at, ((own, apart), (first, then, *last)) in enumerate(zip(streams, stages, strict=True)):
            with torch.cuda.stream(own):
                first()
                if at + 1 < len(stages):
                    beside.follow(streams[at + 1][0], own)
                then()
            for launch in last:
                beside.follow(apart, own, main)
                with torch.cuda.stream(apart):
                    launch()

    def end_beside(self, stage: int | None = None, *, last: bool = False) -> None:
        """Let what is launched from now on come after the launches of a stage beside, by default of all.

        last  after its last ones, instead of those before
        """
        main = torch.cuda.current_stream(self.index)
        beside = self._besides.get(main.cuda_stream, _Stages())
        for side in beside.taken if stage is None else [beside.streams[stage][last]]:
            main.wait_stream(side)

    @contextmanager
    def on_thread(self, stream: torch.cuda.Stream) -> Iterator[None]:
        """Make the device, and a stream of it, current on any thread, which may stay on the device afterwards.

        Torch does not always make its context current on a thread that has none; PyCUDA wants it on a stack of its own
        where kernels are launched, which `launching` does. `torch.cuda.stream` would take 13 microseconds.
        """
        make_current(self._handle)
        before = torch.accelerator.current_stream(self.index)
        torch.accelerator.set_stream(stream)
        try:
            yield
        finally:
            torch.accelerator.set_stream(before)

    @contextmanager
    def launching(self, stream: torch.cuda.Stream) -> Iterator[None]:
        """The same on a thread that launches kernels."""
        self._context.push()
        try:
            with torch.cuda.stream(stream):
                yield
        finally:
            self._context.pop()

    @property
    def tile_counter(self) -> int:
        """Index of the counter for the tiles of a launch on the current stream."""
        return self._counters.of(torch.cuda.current_stream(self.index).cuda_stream)

    def new_tile_counter(self) -> TileCounter:
        """Take a counter for the launches of a graph; raises DeviceError if there is none left."""
        return self._counters.take()

    @contextmanager
    def counting_by(self, counter: TileCounter) -> Iterator[None]:
        """Let launches on the current stream have this counter: those that are captured to be replayed on another."""
        with self._counters.replaced(torch.cuda.current_stream(self.index).cuda_stream, counter):
            yield

    def kernel(self, variant: Variant) -> Kernel:
        """Return the kernel, compiled and loaded on first use; raises DeviceError."""
        with self._lock:
            if variant not in self._kernels:
                self._kernels[variant] = self._load(variant)
            return self._kernels[variant]

    def _load(self, variant: Variant) -> Kernel:
        architecture = variant.architecture_for(self.limits.architecture)
        if architecture is None:
            raise DeviceError(f"{variant} is for {variant.architectures}, this device is {self.limits.architecture}")
        digest = self.compiler.digest(variant, architecture)
        if variant.cluster is not None:
            if digest not in self._cluster_modules:
                self._cluster_modules[digest] = Module(self.compiler.cubin(variant, architecture))
            loaded = self._cluster_modules[digest].function(
                variant.function, variant.dynamic_shared_bytes, variant.cluster
            )
            return ClusterKernel(loaded, variant, self._streams, self.index)
        if digest not in self._modules:
            code = self.compiler.cubin(variant, architecture)
            self._modules[digest] = self._driver.module_from_buffer(code + b"\0")  # PTX ends in a zero byte
        function = self._modules[digest].get_function(variant.function)
        if variant.dynamic_shared_bytes > _STATIC_SHARED_BYTES:
            attribute = self._driver.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES
            function.set_attribute(attribute, variant.dynamic_shared_bytes)
        return Kernel(function, variant, self._streams, self.index)

    def close(self) -> None:
        """Forget the kernels and leave the context; on the thread that opened the device."""
        try:
            torch.cuda.synchronize(self.index)
            self._kernels.clear()
            self._modules.clear()
            for module in self._cluster_modules.values():
                module.close()
            self._cluster_modules.clear()
            self._streams.clear()
            self._sides.clear()
            self._besides.clear()
        finally:
            self._context.pop()


class Struct(bytes):
    """A C struct that a kernel takes by value and that is aligned to 8 bytes; it is the first parameter."""


class Kernel:
    """A loaded function. Calling it launches it on the current torch stream: tensors are passed by address, None is 0,
    int is 32 bits (np.int64 for 64), float is fp32, and bytes are passed by value: tensor maps or a Struct, which come
    first.
    Tensors must be kept alive until the launch has run."""

    def __init__(self, function: Any, variant: Variant, streams: dict[int, Any], index: int) -> None:
        self.variant = variant
        self._function, self._streams, self._index = function, streams, index

    def __call__(self, grid: Dim3, block: Dim3, *args: Argument, shared_bytes: int | None = None) -> None:
        """Launch; an empty grid is no launch. shared_bytes may be less than the variant asks for, which is the most."""
        stream = torch.cuda.current_stream(self._index).cuda_stream
        if stream not in self._streams:
            raise DeviceError("kernels run on a stream made by Device.new_stream()")
        if 0 not in grid:
            shared = self.variant.dynamic_shared_bytes if shared_bytes is None else shared_bytes
            self._launch(stream, Shape(grid, block, shared), args)

    def _launch(self, stream: int, shape: Shape, args: Sequence[Argument]) -> None:
        codes = [_code(arg) for arg in args]
        if args and isinstance(args[0], bytes) and not isinstance(args[0], Struct):
            codes.insert(0, _BEFORE_TENSOR_MAPS)
        self._function.prepare(codes)
        self._function.prepared_async_call(
            shape.grid,
            shape.block,
            self._streams[stream],
            *map(_number, args),
            shared_size=shape.shared_bytes,
        )


class ClusterKernel(Kernel):
    """One that launch.py launches: by clusters, and it may start before the kernel before it has ended."""

    _function: Function

    def _launch(self, stream: int, shape: Shape, args: Sequence[Argument]) -> None:
        self._function.launch(stream, shape, args)


def _code(arg: Argument) -> str:
    if isinstance(arg, Tensor) or arg is None:
        return "P"
    if isinstance(arg, np.int64):
        return "q"
    if isinstance(arg, bytes):
        return f"{len(arg)}s"
    return "f" if isinstance(arg, float) else "i"


def _number(arg: Argument) -> int | float | bytes:
    if isinstance(arg, Tensor):
        return arg.data_ptr()
    if arg is None:
        return 0
    if isinstance(arg, bytes):
        return arg
    return float(arg) if isinstance(arg, float) else int(arg)


@contextmanager
def device_errors(what: str) -> Iterator[None]:
    """Turn what torch and PyCUDA raise into DeviceOutOfMemory or DeviceError; our own errors pass."""
    try:
        yield
    except KernelsError:
        raise
    except Exception as error:
        if _means_no_memory(error):
            raise DeviceOutOfMemory(f"no device memory for {what}: {_first_line(error)}") from error
        if isinstance(error, RuntimeError) or type(error).__module__.startswith("pycuda"):
            raise DeviceError(f"{what}: {_first_line(error)}") from error
        raise


def _means_no_memory(error: Exception) -> bool:
    """Whether memory ran out: torch and PyCUDA have classes for it, but pinned memory and streams say it in words."""
    if isinstance(error, torch.OutOfMemoryError) or type(error).__name__ == "MemoryError":
        return True
    return isinstance(error, RuntimeError) and "out of memory" in str(error)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
