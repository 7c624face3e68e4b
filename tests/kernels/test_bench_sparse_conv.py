"""What the benchmark of sparse-convolution networks runs on, and what it reports; on the CPU."""

import json
from dataclasses import replace
from itertools import islice

import pytest
import torch

from bench.bench_sparse_conv import _parser, cells, line, main
from bench.kronecker_results import Results
from bench.scans import NOISE_M, SHIFT_M, TURN, frames, sweeps
from bench.sparse_conv_cells import NETWORKS, Cell, Network, batches_of, default_cells, weights_of
from bench.sparse_conv_error import error, exact, found, relative_l2, rounded, with_scores
from bench.sparse_conv_measure import STAGES, measure, percentiles, run_cell, sizes, stages
from bench.sparse_conv_plots import COLORS
from bench.sparse_conv_report import Row, report
from lacuna_kernels import Options, Precision, Value, open_backend, random_weights, walk
from lacuna_kernels.zoo import centerpoint_encoder, minkunet, spvcnn


def scan(points: int = 300) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.cat([20 * torch.randn(points, 3, generator=generator), torch.rand(points, 1, generator=generator)], 1)


def small() -> Network:
    return Network(lambda: minkunet(3, width=0.125, blocks=(1,) * 8, voxel_size_m=2.0))


def small_spvcnn() -> Network:
    return Network(lambda: spvcnn(3, width=0.125, blocks=(1,) * 8, voxel_size_m=2.0))


def small_neck() -> Network:
    sizes = {"voxel_size_m": (2.0, 2.0, 0.2), "range_m": (-32, -32, -5, 32, 32, 3), "channels": (4, 4, 4, 4)}
    return Network(lambda: centerpoint_encoder(**sizes, neck=(4, 4)), sparse=4, sweeps=3)


def batch_of(network: Network, size: int = 2):
    return next(batches_of(network, [scan()], size, 1))


def asked(*arguments: str):
    return _parser().parse_args(["measure", "scan.bin", *arguments])


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
    batches = list(batches_of(NETWORKS["centerpoint"], [scan()], 2, 3))

    assert [batch["points"].items for batch in batches] == [2, 2, 2]
    assert batches[0]["points"].data.shape == (2 * 10 * 30, 5)
    assert not torch.equal(batches[0]["points"].data, batches[1]["points"].data)


def test_by_default_two_networks_are_measured_in_full_and_everything_else_once():
    found = cells(asked())

    assert found == default_cells()
    assert len(set(map(str, found))) == len(found) == 2 * 4 + 3 + 3
    assert {cell.clouds for cell in found if cell.network == "centerpoint"} == {1, 2, 4, 8}
    assert {cell.precision for cell in found if cell.network == "minkunet42"} == set(Precision)
    assert {cell.network for cell in found} == set(NETWORKS)


def test_what_is_asked_for_is_measured_instead():
    assert cells(asked("--networks", "spvcnn", "--batches", "3")) == [Cell("spvcnn", Precision.FP16, 3)]
    assert len(cells(asked("--precisions", "fp32", "bf16"))) == 2 * 2 * 4


def test_every_network_is_built_and_its_clouds_fit_it():
    for network in NETWORKS.values():
        columns = network.build().input_value_types["points"].channels
        assert next(batches_of(network, [scan(40)], 1, 1))["points"].data.shape[1] == columns


def test_percentiles_are_of_milliseconds():
    assert percentiles([i / 1000 for i in range(1, 101)]) == {"median": 50.5, "p90": 90, "p99": 99}
    assert percentiles([0.002]) == {"median": 2, "p90": 2, "p99": 2}


def test_a_clouds_voxels_are_those_inside_the_range():
    network = small_neck()
    batch = batch_of(network)
    cloud = batch["points"]
    position = (cloud.data[:, :3] - torch.tensor([-32.0, -32, -5])) / torch.tensor([2, 2, 0.2])
    item = torch.repeat_interleave(cloud.offsets.diff())[:, None]
    inside = ((position >= 0) & (position < torch.tensor([32, 32, 40]))).all(1)

    found = sizes(network.build(), batch)

    expected = len(torch.cat([item, position.floor()], 1)[inside].unique(dim=0)) / 2
    assert found == {"points": 225, "voxels": round(expected)}


def test_a_network_is_measured_and_told_in_a_line():
    batches = list(batches_of(small(), [scan()], 1, 3))

    record = run_cell(open_backend("cpu"), small(), Precision.FP32, batches, None)

    assert record["host to host"]["median"] >= record["submit"]["median"] > 0
    assert record["points"] == 300
    assert 0 < record["error"] < 1e-5
    assert "ms median / p90 / p99: device" in line({"key": "small fp32 x1"} | record)


def test_each_batch_is_run_before_it_is_timed():
    graph = small().build()
    program = open_backend("cpu").compile(graph, random_weights(graph, 0), Options())
    batches, ran = list(batches_of(small(), [scan()], 1, 2)), []
    submit = program.submit

    class Counted:
        memory_bytes = 0

        def submit(self, batch):
            ran.append(batch)
            return submit(batch)

    measure(Counted(), batches)

    assert [id(batch) for batch in ran] == [id(batch) for batch in batches * 2]


def test_steps_are_told_by_what_they_are_for():
    graph = small().build()
    steps = [("begin", 1e-6), ("place grid", 2e-6), ("grid", 3e-6), ("stem1_relu", 4e-6), ("stem2_relu", 5e-6)]

    found = stages(graph, [*steps, ("head", 6e-6), ("labels", 7e-6)])

    assert found == {"voxels": 0.002, "sites and maps": 0.003, "convolutions": 0.009, "head": 0.013, "others": 0.001}


def test_layers_of_points_and_of_the_neck_are_no_sparse_convolutions():
    assert stages(small_spvcnn().build(), [("points1_relu", 1e-6), ("voxels1", 1e-6)]) == {"points": 0.002}
    assert stages(small_neck().build(), [("bev", 1e-6), ("scale1_conv1_relu", 1e-6)]) == {"neck": 0.002}
    assert set(COLORS) == set(STAGES)


def test_a_graph_with_scores_has_no_labels_and_the_same_weights():
    graph = small().build()

    found = with_scores(graph)

    assert [*found.outputs] == ["logits"]
    assert found.weight_shapes() == graph.weight_shapes()
    assert [*with_scores(small_neck().build()).outputs] == ["features", "neck"]


@pytest.mark.parametrize("network", [small(), small_spvcnn(), small_neck()], ids=["minkunet", "spvcnn", "neck"])
def test_fp32_is_as_near_to_exact_numbers_as_its_roundoff(network: Network):
    graph, batch = with_scores(network.build()), batch_of(network)
    weights = weights_of(graph)

    expected = exact(graph, weights, batch, "cpu")

    assert all(value.data.dtype is torch.float64 for value in expected.values())
    ours = found(open_backend("cpu"), graph, weights, batch, Precision.FP32)
    assert 1e-9 < error(ours, expected) < 3e-6


def test_points_at_the_edge_of_a_voxel_fall_where_fp32_has_them():
    graph = with_scores(minkunet(3, width=0.125, blocks=(1,) * 8, voxel_size_m=0.05))
    steps = torch.arange(60) * torch.tensor(0.05)  # some of which, divided by 0.05, fall short of whole numbers
    points = torch.stack([steps, steps, steps, torch.ones(60)], 1)
    batch = {"points": Value(points, torch.tensor([0, 60]))}
    weights = weights_of(graph)

    expected = exact(graph, weights, batch, "cpu")

    assert error(walk(graph, weights, batch), expected) < 3e-6


def test_weights_are_rounded_to_what_the_elements_hold():
    weights = {"y.weight": torch.tensor([1 + 2.0**-11, 1 + 2.0**-9])}

    assert rounded(weights, Precision.FP16)["y.weight"].tolist() == [1, 1 + 2.0**-9]
    assert rounded(weights, Precision.BF16)["y.weight"].tolist() == [1, 1]
    assert rounded(weights, Precision.TF32)["y.weight"].tolist() == weights["y.weight"].tolist()


def test_the_error_is_that_of_equal_sites():
    coordinates = torch.tensor([[0, 1, 1, 1], [0, 2, 1, 1]], dtype=torch.int32)
    expected = Value(torch.tensor([[3.0], [4.0]]), torch.tensor([0, 2]), coordinates)
    turned = replace(expected, data=torch.tensor([[4.0], [3.5]]), coordinates=coordinates.flip(0))

    assert relative_l2(turned, expected) == pytest.approx(0.1)
    with pytest.raises(RuntimeError, match="or other ones"):
        relative_l2(replace(turned, coordinates=coordinates + 1), expected)


def some_record(network: str = "minkunet42", clouds: int = 1, precision: str = "fp16", **more):
    times = {"median": 2.0 * clouds, "p90": 2.1 * clouds, "p99": 2.2 * clouds}
    record = {"key": f"{network} {precision} x{clouds}", "network": network, "precision": precision, "clouds": clouds}
    record |= {"points": 120_000, "voxels": 90_000, "device": times, "submit": times, "host to host": times}
    return record | {"MiB": 500, "error": 1.5e-3} | more


def measured(clouds: int):
    theirs = {"device": {"median": 12.0 * clouds}, "millijoules": 4000.0, "error": 1.6e-3, "labels equal": 0.99}
    split = {"sites and maps": 0.3 * clouds, "convolutions": 1.9 * clouds}
    own = {"millijoules": 1000.0, "watts": 500.0, "ms in a row": 2.5 * clouds, "stages": split, "spconv": theirs}
    return some_record(clouds=clouds, **own)


def test_a_row_compares_clouds_with_clouds():
    row = Row.of(measured(4))

    assert (row.device, row.a_cloud, row.spconv) == (8.0, 2.0, 12.0)
    assert (row.faster, row.frugal, row.busy) == (6.0, 4.0, 0.8)
    assert Row.of(some_record()).faster is None


def test_a_report_is_text_json_and_plots_and_always_the_same(tmp_path):
    results = Results(tmp_path / "sparse.jsonl")
    run = {"device": "H200", "torch": "2", "cuda": "13", "spconv": "2.3.8", "points of the scans": [300], "frames": 5}
    results.add("run", {"key": "2026-01-01T00:00:00", **run})
    for record in (measured(1), measured(8), some_record(precision="fp32"), some_record("spvcnn", millijoules=9.0)):
        results.add("cell", record)

    text = report(Results(results.path), tmp_path / "sparse")

    assert (tmp_path / "sparse.txt").read_text() == text
    assert "spconv 2.3.8: 5 batches a cell, of scans of 300 points" in text
    assert [row["network"] for row in json.loads((tmp_path / "sparse.json").read_text())] == ["minkunet42"] * 3 + [
        "spvcnn"
    ]
    plots = {path.name: path.read_bytes() for path in tmp_path.glob("*.svg")}
    assert sorted(plots) == ["sparse_energy.svg", "sparse_time.svg"]
    report(Results(results.path), tmp_path / "sparse")
    assert plots == {path.name: path.read_bytes() for path in tmp_path.glob("*.svg")}


def test_measure_goes_on_where_it_stopped_and_report_needs_no_more(tmp_path, monkeypatch, capsys):
    scan().numpy().tofile(tmp_path / "scan.bin")
    monkeypatch.setitem(NETWORKS, "minkunet18", small())
    path = str(tmp_path / "cpu.jsonl")
    run = ["measure", str(tmp_path / "scan.bin"), "--networks", "minkunet18", "--precisions", "fp32", "--device", "cpu"]
    run += ["--batches", "1", "2", "--frames", "2", "--results", path]

    for budget, status, missing in (("-1", 3, 2), ("100", 0, 2), ("100", 0, 0)):
        with pytest.raises(SystemExit) as ended:
            main([*run, "--budget-seconds", budget])
        assert ended.value.code == status
        assert capsys.readouterr().out.startswith(f"{missing} to measure")

    main(["report", "--results", path])
    assert "minkunet18  fp32  2" in capsys.readouterr().out
    assert [cell["clouds"] for cell in Results(tmp_path / "cpu.jsonl").part("cell")] == [1, 2]


def test_a_report_of_nothing_says_what_to_do(tmp_path):
    with pytest.raises(SystemExit, match="run measure first"):
        main(["report", "--results", str(tmp_path / "none.jsonl")])
    assert not list(tmp_path.iterdir())
