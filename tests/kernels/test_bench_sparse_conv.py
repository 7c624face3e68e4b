"""What the benchmark of sparse-convolution networks runs on, and what it reports; on the CPU."""

from itertools import islice

import torch

from bench.bench_sparse_conv import NETWORKS, Network, batches_of, line, measure, percentiles, run_case, stages
from bench.scans import NOISE_M, SHIFT_M, TURN, frames, sweeps
from lacuna_kernels import Options, Precision, open_backend, random_weights
from lacuna_kernels.zoo import minkunet


def scan(points: int = 300) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.cat([20 * torch.randn(points, 3, generator=generator), torch.rand(points, 1, generator=generator)], 1)


def small() -> Network:
    return Network(lambda: minkunet(3, width=0.125, blocks=(1,) * 8, voxel_size_m=2.0))


def test_frames_follow_their_scans_in_turn_and_never_come_twice():
    scans = [scan(), scan(200)]

    found = list(islice(frames(scans), 6))

    assert [len(frame) for frame in found] == [300, 200] * 3
    assert not torch.equal(found[0], found[2])
    for index, frame in enumerate(found):
        original = scans[index % 2]
        furthest = TURN * original[:, :2].norm(dim=1).max() + 3**0.5 * SHIFT_M + 10 * NOISE_M
        assert (frame - original)[:, :3].norm(dim=1).max() < furthest
        assert torch.equal(frame[:, 3], original[:, 3])
    assert all(torch.equal(a, b) for a, b in zip(found, islice(frames(scans), 6), strict=True))


def test_sweeps_lie_behind_one_another_and_tell_their_age():
    points = scan(10)

    found = sweeps(points, 3)

    assert found.shape == (30, 5)
    assert torch.equal(found[:10, :4], points)
    assert torch.allclose(found[20:, 0], points[:, 0] - 1.0)
    assert found[:, 4].unique().tolist() == torch.tensor([0.0, 0.05, 0.1]).tolist()


def test_batches_have_as_many_clouds_as_asked_for():
    batches = list(batches_of(NETWORKS["centerpoint"].cloud, [scan()], 2, 3))

    assert [batch["points"].items for batch in batches] == [2, 2, 2]
    assert batches[0]["points"].data.shape == (2 * 10 * 75, 5)
    assert not torch.equal(batches[0]["points"].data, batches[1]["points"].data)


def test_percentiles_are_of_milliseconds():
    assert percentiles([i / 1000 for i in range(1, 101)]) == {"median": 50.5, "p90": 91, "p99": 100}
    assert percentiles([0.002]) == {"median": 2, "p90": 2, "p99": 2}


def test_a_network_is_measured_and_told_in_a_line():
    batches = list(batches_of(lambda frame: frame, [scan()], 1, 2))

    record = run_case(open_backend("cpu"), small(), Precision.FP32, batches, 3, None)

    assert record["host to host"]["median"] >= record["submit"]["median"] > 0
    assert "ms median / p90 / p99: device" in line({"key": "small fp32 x1"} | record)


def test_as_many_batches_are_timed_as_asked_for():
    graph = small().build()
    program = open_backend("cpu").compile(graph, random_weights(graph, 0), Options())
    batches, ran = list(batches_of(lambda frame: frame, [scan()], 1, 2)), []
    submit = program.submit

    class Counted:
        memory_bytes = 0

        def submit(self, batch):
            ran.append(batch)
            return submit(batch)

    measure(Counted(), batches, 5)

    assert len(ran) == len(batches) + 5


def test_steps_are_told_by_kind():
    graph = small().build()
    steps = [("begin", 1e-6), ("place grid", 2e-6), ("grid", 3e-6), ("stem1_relu", 4e-6), ("stem2_relu", 5e-6)]

    found = stages(graph, steps)

    assert found["sites and maps"] == 0.003
    assert found["voxels"] == 0.002
    assert found["others"] == 0.001
    assert found["convolutions"] == 0.009
    assert sum(found.values()) == 0.015
