"""The READMEs name everything that a user can meet."""

from pathlib import Path

import pytest

import lacuna_client as lc
from lacuna_client.clouds import ACCEPT, FORMATS
from lacuna_client.simulate import CLASSES
from lacuna_client.wire import DTYPES

CLIENTS = Path(__file__).parents[2] / "clients"
ERRORS = [
    name for name in lc.__all__ if isinstance(getattr(lc, name), type) and issubclass(getattr(lc, name), Exception)
]


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_is_in_the_readme(name):
    assert f"`{name}`" in (CLIENTS / "python" / "README.md").read_text()


@pytest.mark.parametrize("datatype", [*DTYPES, "BF16", "BYTES"])
def test_every_datatype_is_in_the_wire_format(datatype):
    assert f"`{datatype}`" in (CLIENTS / "README.md").read_text()


def test_formats_answers_and_classes_are_named():
    readme, python = (path.read_text() for path in (CLIENTS / "README.md", CLIENTS / "python" / "README.md"))
    assert "|".join(FORMATS) in readme
    assert all(kind in readme for kind in ACCEPT.values() if kind != "application/json")
    assert all(name in python for name in CLASSES)
