"""What `kernels/README.md` says of the ops is what the code says."""

import re
from pathlib import Path
from textwrap import dedent
from typing import Any, get_args

import pytest

import lacuna_kernels
from lacuna_kernels.cuda.lowering import OWN
from lacuna_kernels.graph import Node
from lacuna_kernels.ops import OPS

README = Path(lacuna_kernels.__file__).parents[1] / "README.md"
pytestmark = pytest.mark.skipif(not README.is_file(), reason="installed without the repository")


def names(op: type[Node]) -> list[str]:
    return list(get_args(op.model_fields["op"].annotation))


def rows() -> list[tuple[list[str], str]]:
    """The names in the first column of the table of ops, and the last column."""
    text = README.read_text().partition("## Ops")[2].partition("\n## ")[0]
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return [(re.findall(r"`(\w+)`", row[0]), row[-1]) for row in cells]


def test_the_table_lists_every_op_once_in_the_order_of_the_code() -> None:
    assert [listed for listed, _ in rows()] == [names(op) for op in OPS]


def test_the_table_says_which_ops_have_kernels_of_our_own() -> None:
    ours = {name for listed, by in rows() if by == "ours" for name in listed}

    assert ours == {name for op in OWN for name in names(op)}


def test_the_lines_of_python_run_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    block = README.read_text().partition("\n\n    ")[2].partition("\n\n`")[0]
    monkeypatch.chdir(README.parents[1])
    scope: dict[str, Any] = {}

    exec(dedent(f"    {block}").replace("auto", "cpu"), scope)

    assert scope["labels"].shape == (1000,)
    scope["program"].close()
    scope["backend"].close()


def test_the_files_that_the_readme_names_exist() -> None:
    paths = re.findall(r"`((?:kernels|tests|deploy)/[\w/.]+)`", README.read_text())

    assert paths
    assert [path for path in paths if not (README.parents[1] / path).exists()] == []
