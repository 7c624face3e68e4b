"""What the benchmark of sparse convolutions says of kernel maps; made on the CPU, as in test_sites_simulated.py."""

import pytest

from bench.bench_sparse import pairs
from lacuna_kernels.ops import coordinates as reference
from tests.kernels import device_sites
from tests.kernels.device_sites import CUBE, mapped, random_sites, sites_on_device
from tests.kernels.simulated import SimulatedDevice


@pytest.mark.parametrize("parts", [1, 3])
def test_pairs_are_those_of_the_reference_and_tiles_work_through_all_of_them(tmp_path_factory, monkeypatch, parts):
    monkeypatch.setattr(device_sites, "PLACE", "cpu")
    folder = tmp_path_factory.getbasetemp() / "sites"
    folder.mkdir(exist_ok=True)
    device, coordinates = SimulatedDevice(folder, 1, parts, plain=True), random_sites((300,), 6)
    sites = sites_on_device(device, coordinates, 1)

    effective, executed = pairs(mapped(device, sites, sites, CUBE, parts=parts), len(coordinates), 64)

    assert effective == int((reference.kernel_map(coordinates, coordinates, CUBE) >= 0).sum())
    assert executed % 64 == 0
    assert effective <= executed <= 27 * -(-len(coordinates) // 64) * 64
