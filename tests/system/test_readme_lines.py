"""The curl lines of the READMEs do what they say: each is run by bash, as printed, against the demo models."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.running import Running, serving

ROOT = Path(__file__).parents[2]
READMES = ["README.md", "clients/README.md"]
CODE = re.compile(r"^```sh\n(.*?)^```$|^((?:    .*\n)+)", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.skipif(not shutil.which("curl"), reason="no curl on this machine")


def commands(readme: str) -> list[str]:
    """Its curl commands, each with the lines before it that prepare its files."""
    blocks = [fenced or indented for fenced, indented in CODE.findall((ROOT / readme).read_text())]
    lines = "\n".join(blocks).replace("\\\n", "").splitlines()
    found, preparing = list[str](), list[str]()
    for line in (line.strip() for line in lines):
        if line.startswith(("printf ", "head ")):
            preparing.append(line)
        elif line.startswith("curl "):
            found.append("\n".join([*preparing, line]))
            preparing = []
    return found


@pytest.fixture(scope="module")
def demo() -> Iterator[Running]:
    with serving(ROOT / "deploy" / "models", "--model-control", "explicit") as running:
        yield running


@pytest.mark.parametrize("readme", READMES)
def test_the_printed_lines_succeed_in_their_order(demo: Running, tmp_path: Path, readme: str) -> None:
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")

    for command in commands(readme):
        lines = command.replace("localhost:8000", demo.address)
        lines = lines.replace("curl ", "curl --max-time 60 --write-out '%{stderr}%{http_code}' ")
        done = subprocess.run(["bash", "-ec", lines], cwd=tmp_path, capture_output=True, check=False)

        assert (done.returncode, done.stderr) == (0, b"200"), (command, done.stdout)
        files = re.findall(r"-o (\S+)", command)
        assert all((tmp_path / file).stat().st_size for file in files), command
        assert files or done.stdout or command.endswith("load"), command


@pytest.mark.parametrize("readme", READMES)
def test_no_printed_curl_line_is_left_out(readme: str) -> None:
    printed = [line for line in (ROOT / readme).read_text().splitlines() if line.strip().startswith("curl ")]

    assert len(commands(readme)) == len(printed) > 0
    assert all("curl -sS --fail-with-body " in command for command in commands(readme))
    assert all("localhost:8000" in command for command in commands(readme))
