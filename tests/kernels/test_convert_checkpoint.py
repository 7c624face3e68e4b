"""Files of tensors are read, and a file that could run code is refused without running it."""

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lacuna_kernels import ConversionError
from lacuna_kernels.convert import read_checkpoint

STATE = {"fc.weight": torch.ones(2, 3), "fc.bias": torch.zeros(2)}


@pytest.mark.parametrize(
    "wrapped",
    [STATE, {"state_dict": STATE, "epoch": 3}, {"model": {"state_dict": STATE}, "optimizer": {"state": {0: {}}}}],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_is_found_in_what_training_scripts_save(wrapped, zipped, tmp_path):
    torch.save(wrapped, tmp_path / "net.pt", _use_new_zipfile_serialization=zipped)

    tensors = read_checkpoint(tmp_path / "net.pt")

    assert list(tensors) == list(STATE)
    assert all(torch.equal(tensors[name], value) for name, value in STATE.items())


def test_nested_lists_and_dicts_are_joined_by_dots(tmp_path):
    torch.save({"fc": {"ks_values": [torch.ones(1), torch.ones(2)]}, "steps": 7}, tmp_path / "net.pt")

    assert {name: len(value) for name, value in read_checkpoint(tmp_path / "net.pt").items()} == {
        "fc.ks_values.0": 1,
        "fc.ks_values.1": 2,
    }


def test_parameters_are_read_as_plain_tensors(tmp_path):
    torch.save({"w": torch.nn.Parameter(torch.ones(2))}, tmp_path / "net.pt")

    assert not read_checkpoint(tmp_path / "net.pt")["w"].requires_grad


class Sly:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_pickle_is_refused_and_not_run(write, tmp_path):
    write({"w": torch.ones(1), "sly": Sly(tmp_path / "made")}, tmp_path / "net.pt")

    with pytest.raises(ConversionError, match="code of a pickle is never run") as caught:
        read_checkpoint(tmp_path / "net.pt")

    assert not (tmp_path / "made").exists()
    assert "weights_only" not in str(caught.value)  # torch's advice to load it all the same is not passed on


def test_a_whole_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "net.pt")

    with pytest.raises(ConversionError, match=r"Save torch tensors alone, such as torch.save\(model.state_dict"):
        read_checkpoint(tmp_path / "net.pt")


def test_arrays_with_objects_in_them_are_refused(tmp_path):
    np.savez(tmp_path / "net.npz", np.array([Sly(tmp_path / "made")]))

    with pytest.raises(ConversionError, match="no npz file of plain arrays"):
        read_checkpoint(tmp_path / "net.npz")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["net.safetensors", "net.npz", "net.json", "net.pt", "net"])
@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"hello", b"PK\x03\x04", b"[1, 2]", b'{"factor0": {}}', b"\x80\x02.", b"[" * 100_000),
        b'{"factor0": {"ks_values_real": [[[[1' + b"0" * 400 + b"]]]]}}",
    ],
    ids=range(8),
)
def test_what_is_no_checkpoint_is_refused(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(ConversionError):
        read_checkpoint(tmp_path / name)


def test_no_file_and_no_tensors_are_told(tmp_path):
    with pytest.raises(ConversionError, match="is no file"):
        read_checkpoint(tmp_path / "net.pt")
    torch.save({"epoch": 3}, tmp_path / "net.pt")
    with pytest.raises(ConversionError, match="holds no tensors"):
        read_checkpoint(tmp_path / "net.pt")


def itself() -> object:
    entries: dict[str, object] = {}
    entries["model"] = entries
    return entries


def doubled() -> object:
    value: object = torch.ones(1)
    for _ in range(40):
        value = [value, value]
    return value


@pytest.mark.parametrize("make", [itself, doubled])
def test_a_small_file_that_holds_itself_or_too_much_is_refused(make, tmp_path):
    torch.save(make(), tmp_path / "net.pt")

    with pytest.raises(ConversionError, match="holds more than 100000 tensors, dicts and lists, or itself"):
        read_checkpoint(tmp_path / "net.pt")


def test_lists_may_be_deep(tmp_path):
    value: object = torch.ones(1)
    for _ in range(400):
        value = [value]
    torch.save(value, tmp_path / "net.pt")

    assert list(read_checkpoint(tmp_path / "net.pt")) == [".".join("0" * 400)]


def test_an_array_that_is_larger_than_memory_is_refused(tmp_path):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000, 10000), }".ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "net.npz", "w") as archive:
        archive.writestr("arr_0.npy", b"\x93NUMPY\x01\x00v\x00" + header)

    with pytest.raises(ConversionError, match="no npz file of plain arrays"):
        read_checkpoint(tmp_path / "net.npz")


def test_the_suffix_may_be_in_capitals(tmp_path):
    save_file(STATE, tmp_path / "NET.SAFETENSORS")

    assert read_checkpoint(tmp_path / "NET.SAFETENSORS").keys() == STATE.keys()


def test_names_of_a_safetensors_file_are_sorted_by_number(tmp_path):
    names = ["10.weight", "2.weight", "2.bias", "1.weight"]
    save_file({name: torch.ones(1) for name in names}, tmp_path / "net.safetensors")

    assert list(read_checkpoint(tmp_path / "net.safetensors")) == ["1.weight", "2.bias", "2.weight", "10.weight"]
