"""What travels to and from a device, in order and without being overwritten; the host plays a device that is late."""

import ctypes
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from lacuna_kernels import Batch, Graph, Result, Value, collate, parse_graph
from lacuna_kernels.cuda import copies, plan, slot
from lacuna_kernels.cuda.arena import Use
from lacuna_kernels.cuda.backend import sent_as
from lacuna_kernels.cuda.capacity import Capacity
from lacuna_kernels.cuda.device import Device
from lacuna_kernels.cuda.plan import IN_FLIGHT, Overflow, Plan, Running
from lacuna_kernels.cuda.steps import OVERFLOW, Buffers, Step
from lacuna_kernels.types import outline
from tests.kernels.drawn import drawn
from tests.kernels.networks import cloud, document, node

POINTS = 1000
BACK, CONV = "back:torch.float32", "conv:torch.float32"  # buffers of the outputs


class Late:
    """A device that does nothing until somebody waits for it, and that is the host's memory.

    Work is done in the order in which it was handed over, which is one of those that streams and events allow.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.todo: deque[Callable[[], object]] = deque()
        self.done = 0  # of these, which take a millisecond each
        self.tape: list[Callable[[], object]] | None = None
        self.copied: list[int] = []
        self.pinned: set[int] = set()
        self.memory: list[weakref.ref[torch.Tensor]] = []
        cuda = SimpleNamespace(
            CUDAGraph=lambda: LateGraph(self),
            Event=lambda **options: LateEvent(self, **options),
            current_stream=lambda: stream,
        )
        stream = SimpleNamespace(cuda_stream=0, wait_event=lambda event: None, synchronize=self.catch_up)
        fake = SimpleNamespace(zeros=self.made(torch.zeros), empty=self.made(torch.empty), uint8=torch.uint8, cuda=cuda)
        monkeypatch.setattr(slot, "torch", fake)
        monkeypatch.setattr(plan, "torch", fake)
        monkeypatch.setattr(copies, "_enqueue", self.copy)
        monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: tensor.data_ptr() in self.pinned)
        streams = dict.fromkeys(("stream", "upload", "download", "fetch"), stream)
        free = {"counting_by": lambda counter: nullcontext(), "on_thread": lambda stream: nullcontext()}
        self.device = cast(Device, SimpleNamespace(index=0, new_tile_counter=lambda: None, **streams, **free))

    def made(self, make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def remembered(
            shape: tuple[int, ...], dtype: torch.dtype, device: str = "", pin_memory: bool = False
        ) -> torch.Tensor:
            tensor = make(shape, dtype=dtype)
            self.memory.append(weakref.ref(tensor))
            return tensor

        return remembered

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        self.copied.append(size)
        ends = [owner for address in (target, source) for owner in self.owners(address)]

        def go() -> None:
            assert all(owner() is not None for owner in ends), "the device goes where nobody keeps memory for it"
            ctypes.memmove(target, source, size)

        (self.todo if self.tape is None else self.tape).append(go)

    def owners(self, address: int) -> Iterator[weakref.ref[torch.Tensor]]:
        """Whose memory it is, of what was made for the device and for copies."""
        for owner in self.memory:
            tensor = owner()
            if tensor is not None and tensor.data_ptr() <= address < tensor.data_ptr() + tensor.nbytes:
                yield owner

    def catch_up(self, left: int = 0) -> None:
        while len(self.todo) > left:
            self.todo.popleft()()
            self.done += 1

    def run(self, work: Callable[[Buffers], None], buffers: Buffers) -> None:
        if self.tape is not None:
            self.tape.append(partial(work, buffers))

    def plan(self, work: Callable[[Buffers], None] | None = None) -> Plan:
        blueprint = drawn(network(), Capacity(POINTS, 4))
        assert blueprint.results == {"back": BACK, "conv": CONV}
        step = Step("all", Use([]), partial(self.run, work or doubled))
        return Plan(self.device, replace(blueprint, steps=[step]))


class LateEvent:
    def __init__(self, late: Late, *, enable_timing: bool = False, external: bool = False) -> None:
        self.late, self.seen, self.timed, self.external, self.at = late, True, enable_timing, external, 0

    def record(self, stream: Any) -> None:
        assert self.external == (self.late.tape is not None), "recorded by a graph, or else by a stream"
        self.seen = False
        (self.late.todo if self.late.tape is None else self.late.tape).append(self.happen)

    def happen(self) -> None:
        self.seen, self.at = True, self.late.done

    def synchronize(self) -> None:
        while not self.seen and self.late.todo:
            self.late.catch_up(len(self.late.todo) - 1)

    def elapsed_time(self, end: "LateEvent") -> float:
        assert self.timed and end.timed
        return end.at - self.at


class LateGraph:
    def __init__(self, late: Late) -> None:
        self.late, self.work = late, list[Callable[[], object]]()

    def capture_begin(self, capture_error_mode: str) -> None:
        self.late.tape = self.work

    def capture_end(self) -> None:
        self.late.tape = None

    def replay(self) -> None:
        self.late.todo.extend(self.work)

    def reset(self) -> None:
        self.work = []


def network() -> Graph:
    nodes = [
        node("grid", "voxelize", "points", voxel_size_m=[0.1, 0.1, 0.1]),
        node("conv", "sparse_conv", "grid", out_channels=4, kernel_size=[3, 3, 3]),
        node("back", "devoxelize", "conv", "grid", mode="nearest"),
    ]
    return parse_graph(document(cloud("intensity"), nodes, "back", "conv"))


def doubled(buffers: Buffers) -> None:
    """What the device makes: points times two, and of the first half of them, times three, sites."""
    points = int(buffers["points:count"])
    sites = points // 2
    buffers["grid:sites:count"].fill_(sites)
    buffers[BACK][:points] = 2 * buffers["points"][:points]
    buffers[CONV][:sites] = 3 * buffers["points"][:sites]
    buffers["grid:sites:coordinates"][:sites] = points
    buffers["grid:sites:offsets"].copy_(buffers["points:offsets"] // 2)


def batch_of(points: int, seed: int = 0) -> Batch:
    data = torch.randn(points, 4, generator=torch.Generator().manual_seed(seed))
    return {"points": Value(data, torch.tensor([0, points // 2, points]))}


def started(plan: Plan, batch: Batch) -> Running:
    """Of one batch alone."""
    return plan.start(batch, [batch])


def assert_right(outcome: Result | Overflow, batch: Batch) -> None:
    assert isinstance(outcome, Result)
    data, (back, conv) = batch["points"].data, (outcome.values["back"], outcome.values["conv"])
    points, sites = len(data), len(data) // 2
    assert torch.equal(back.data, 2 * data)
    assert back.offsets is not None and back.offsets.tolist() == [0, points // 2, points]
    assert torch.equal(conv.data, 3 * data[:sites])
    assert conv.offsets is not None and conv.offsets.tolist() == [0, points // 4, points // 2]
    assert conv.coordinates is not None and conv.coordinates.shape == (sites, 4)
    assert (conv.coordinates == points).all()


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Late:
    return Late(monkeypatch)


def test_results_that_are_held_are_not_overwritten_by_later_batches(late: Late) -> None:
    batches, one = [batch_of(100 + 4 * seed, seed) for seed in range(5)], late.plan()

    held = [started(one, batch) for batch in batches]

    for running, batch in zip(held, batches, strict=True):
        assert_right(running.finish(), batch)


def test_a_batch_is_busy_from_the_first_of_what_is_captured_to_its_end(late: Late) -> None:
    captured, one = ["header", "steps", "status", "end"], late.plan()

    running = [started(one, batch_of(100)), started(one, batch_of(40))]

    for outcome in (batch.finish() for batch in running):
        assert isinstance(outcome, Result)
        assert outcome.busy_seconds == len(captured) / 1000


def test_batches_may_be_finished_in_any_order(late: Late) -> None:
    batches, one = [batch_of(40 + 4 * seed, seed) for seed in range(6)], late.plan()

    for first, second in zip(batches[::2], batches[1::2], strict=True):
        running = [started(one, first), started(one, second)]
        assert_right(running[1].finish(), second)
        assert_right(started(one, first).finish(), first)
        assert_right(running[0].finish(), first)


@pytest.mark.parametrize("sizes", [(60, 100), (100, 60), (0, 400), (400, 0), (500, 500)])
@pytest.mark.parametrize("pinned", [(), (0,), (1,), (0, 1)])
def test_batches_that_run_as_one_lie_one_after_another(
    late: Late, sizes: tuple[int, int], pinned: tuple[int, ...]
) -> None:
    parts, one = [batch_of(points, seed) for seed, points in enumerate(sizes)], late.plan()
    late.pinned |= {parts[at]["points"].data.data_ptr() for at in pinned}
    together = collate(parts)["points"]

    outcome = one.start(outline(parts), parts).finish()

    assert isinstance(outcome, Result)
    back = outcome.values["back"]
    assert torch.equal(back.data, 2 * together.data)
    assert back.offsets is not None and together.offsets is not None
    assert torch.equal(back.offsets, together.offsets)


def test_only_small_batches_are_joined_before_they_travel() -> None:
    small, large = batch_of(100), batch_of(50_000)

    assert sent_as([small]) == [small]
    assert sent_as([large, large]) == [large, large]
    (both,) = sent_as([small, large])
    assert torch.equal(both["points"].data, torch.cat([small["points"].data, large["points"].data]))


def test_pinned_inputs_are_read_where_they_lie(late: Late) -> None:
    batch, one = batch_of(500), late.plan()
    late.pinned.add(batch["points"].data.data_ptr())
    running = started(one, batch)

    batch["points"].data.fill_(7.0)  # which nobody may do, but it shows

    assert_right(running.finish(), batch)


def test_other_inputs_may_change_once_they_are_handed_over(late: Late) -> None:
    batch, changed, one = batch_of(500), batch_of(500), late.plan()
    running = started(one, changed)

    changed["points"].data.fill_(7.0)

    assert_right(running.finish(), batch)


def test_inputs_in_another_layout_are_put_in_order(late: Late) -> None:
    batch, one = batch_of(50), late.plan()
    turned = Value(batch["points"].data.t().contiguous().t(), batch["points"].offsets)
    late.pinned.add(turned.data.data_ptr())

    assert_right(started(one, {"points": turned}).finish(), batch)


def test_a_batch_that_nobody_waits_for_keeps_its_memory_until_it_is_done(late: Late) -> None:
    one = late.plan()
    for seed in range(2 * IN_FLIGHT):
        started(one, batch_of(400, seed))

    assert_right(started(one, batch_of(60)).finish(), batch_of(60))
    late.catch_up()


def test_outputs_are_held_by_nobody_but_their_caller(late: Late) -> None:
    one = late.plan()
    outcome = started(one, batch_of(100)).finish()
    assert isinstance(outcome, Result)
    outputs = [weakref.ref(value.data) for value in outcome.values.values()]

    del outcome

    assert [output() for output in outputs] == [None, None]


def test_an_overflow_gives_no_outputs_and_the_next_batch_is_right(late: Late) -> None:
    def full(buffers: Buffers) -> None:
        doubled(buffers)
        buffers[OVERFLOW].fill_(int(buffers["points:count"]) > 100)

    one = late.plan(full)
    small, large = batch_of(100), batch_of(200)

    outcomes = [running.finish() for running in [started(one, large), started(one, small), started(one, large)]]

    assert isinstance(outcomes[0], Overflow) and isinstance(outcomes[2], Overflow)
    assert_right(outcomes[1], small)


def test_a_failure_is_told_to_the_batch_that_it_befell(late: Late, monkeypatch: pytest.MonkeyPatch) -> None:
    one, batches = late.plan(), [batch_of(100 + 4 * seed, seed) for seed in range(2 + IN_FLIGHT)]
    first = started(one, batches[0])

    with monkeypatch.context() as patch:
        patch.setattr(slot.Slot, "receive", failing)
        with pytest.raises(RuntimeError, match="out of memory"):
            first.finish()
        running = [started(one, batch) for batch in batches[1:]]  # the first of these is settled by the last

    with pytest.raises(RuntimeError, match="out of memory"):
        running[0].finish()
    for later, batch in zip(running[1:], batches[2:], strict=True):
        assert_right(later.finish(), batch)


def failing(given: slot.Slot, batch: Batch) -> None:
    raise RuntimeError("out of memory")


@pytest.mark.parametrize("end", [Plan.close, Plan.retire])
def test_memory_goes_only_when_the_device_writes_there_no_longer(late: Late, end: Callable[[Plan], None]) -> None:
    one = late.plan()
    started(one, batch_of(100))

    end(one)

    assert not late.todo


def test_a_retired_plan_gives_what_it_was_asked_for(late: Late) -> None:
    one, batch = late.plan(), batch_of(100)
    running: Running = started(one, batch)

    one.retire()

    assert_right(running.finish(), batch)


def test_an_empty_batch_travels(late: Late) -> None:
    assert_right(started(late.plan(), batch_of(0)).finish(), batch_of(0))


@pytest.mark.parametrize(
    ("source", "pieces"),
    [(0, []), (1, [1]), (copies.PIECE_BYTES, [copies.PIECE_BYTES]), (2 * copies.PIECE_BYTES + 3, None)],
)
def test_what_is_not_pinned_travels_in_pieces(late: Late, source: int, pieces: list[int] | None) -> None:
    data = torch.randint(256, (source,), dtype=torch.uint8)
    staging, target = (torch.zeros(source + 5, dtype=torch.uint8) for _ in range(2))

    copies.copy_staged(target, data, staging, late.device.upload)
    late.catch_up()

    assert late.copied == ([copies.PIECE_BYTES, copies.PIECE_BYTES, 3] if pieces is None else pieces)
    assert torch.equal(target[:source], data)
    assert not target[source:].any()


def test_a_copy_never_exceeds_the_smaller_of_two(late: Late) -> None:
    large, small = torch.arange(9), torch.zeros(4, dtype=torch.int64)

    copies.copy(small, large, late.device.upload)
    copies.copy(large[5:], small, late.device.upload)
    late.catch_up()

    assert small.tolist() == [0, 1, 2, 3]
    assert large.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3]
