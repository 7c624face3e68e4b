"""The devices of a server: one worker each."""

import asyncio
from collections.abc import Callable
from functools import partial

import torch

from lacuna_kernels import Backend, DeviceInfo, DeviceKind, gpu_count
from lacuna_service.journal import EnergyMeter
from lacuna_service.worker import Worker

OpenDevice = Callable[[DeviceKind, int], Backend]


class Devices:
    """All GPUs, or the CPU, and the meter that measures them."""

    def __init__(self, open_device: OpenDevice, meter: EnergyMeter | None) -> None:
        self.workers: list[Worker] = []
        self._open_device, self._meter = open_device, meter

    @property
    def infos(self) -> list[DeviceInfo]:
        """The devices that are open."""
        return [worker.backend.device for worker in self.workers]

    async def open(self, kind: DeviceKind, cpu_threads: int) -> None:
        """Open the devices, each on its own thread; raises DeviceError. What is open then still has to be closed."""
        gpus = gpu_count() if kind != "cpu" else 0
        count: int = gpus or 1
        chosen: DeviceKind = "cuda" if gpus or kind == "cuda" else "cpu"
        for index in range(count):
            name = "cpu" if chosen == "cpu" else str(index)
            worker = Worker(name, partial(self._open_device, chosen, index), cpu_threads or cores_for_compute())
            await worker.start()
            self.workers.append(worker)
        if self._meter is not None:
            await asyncio.to_thread(self._meter.start, self.infos)

    async def close(self) -> None:
        """Close the meter, then the devices; all programs must be closed."""
        if self._meter is not None and self.workers:
            await asyncio.to_thread(self._meter.close)
        for worker in self.workers:
            await worker.stop()
        self.workers = []


def cores_for_compute() -> int:
    """Threads to compute with on a CPU: as many as torch would take, which heeds OMP_NUM_THREADS, less one for HTTP."""
    return max(1, torch.get_num_threads() - 1)
