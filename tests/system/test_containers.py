"""What can be known of the image and the compose file without a container engine."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from lacuna_service.cli import variable_of
from lacuna_service.settings import Settings
from tests.system.running import serving

ROOT = Path(__file__).parents[2]
COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text()
SERVED = ("runtime", "cpu")
CLOSE_S = 10.0
"""What the server takes, at most, to close its devices after it has drained."""


@dataclass
class Stage:
    """One FROM of the Dockerfile and the instructions that follow it, (word, rest) each."""

    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def all(self, word: str) -> list[str]:
        return [rest for step, rest in self.steps if step == word]

    def variables(self) -> dict[str, str]:
        return dict(pair.split("=", 1) for rest in self.all("ENV") for pair in shlex.split(rest))

    def sources(self) -> Iterator[str]:
        """Paths that are copied from the context."""
        for rest in self.all("COPY"):
            if not rest.startswith("--from"):
                yield from rest.split()[:-1]


def read_dockerfile() -> dict[str, Stage]:
    lines = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    stages: list[Stage] = []
    for line in re.sub(r"\\\n", " ", lines).splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stages.append(Stage(base, name or "default"))
        elif word and stages:
            stages[-1].steps.append((word, rest.strip()))
    return {stage.name: stage for stage in stages}


def with_defaults(value: Any) -> Any:
    """A part of the compose file as it is when no variable is set."""
    if isinstance(value, dict):
        return {key: with_defaults(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_defaults(item) for item in value]
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) if isinstance(value, str) else value


STAGES = read_dockerfile()
COMPOSE = with_defaults(yaml.safe_load(COMPOSE_TEXT))
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = ("lacuna", "lacuna-cpu")


def sent_to_builder(path: str) -> bool:
    """Whether a file of the context gets past .dockerignore: the last line that names it or a folder of it decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().split():
        pattern = re.escape(line.removeprefix("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*\*", ".*")
        if re.fullmatch(pattern.replace(r"\*", "[^/]*") + "(/.*)?", path):
            sent = line.startswith("!")
    return sent


def files_under(path: str) -> list[str]:
    """Files that are there, without what Python leaves behind."""
    place = ROOT / path
    found = [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]
    return [str(file.relative_to(ROOT)) for file in found if "__pycache__" not in file.parts]


@pytest.mark.parametrize(
    "command",
    [
        ["hadolint", "Dockerfile"],
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"],
    ],
    ids=["hadolint", "compose-spec"],
)
def test_linters_find_nothing(command: list[str]) -> None:
    tool = shutil.which(command[0], path=Path(sys.executable).parent) or shutil.which(command[0])
    if tool is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run([tool, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", sorted({path for stage in STAGES.values() for path in stage.sources()}))
def test_what_is_copied_exists_and_is_sent_to_the_builder(path: str) -> None:
    kept = [file for file in files_under(path) if sent_to_builder(file)]

    assert kept
    if path in {"kernels", "service"}:
        assert kept == files_under(path)


def test_models_are_sent_to_the_builder_and_nothing_that_does_not_belong() -> None:
    weights = [file for file in files_under("deploy/models") if file.endswith((".json", ".safetensors"))]

    assert len(weights) >= 4 and all(map(sent_to_builder, weights))
    for path in (".git/config", ".venv/bin/python", "tests/cases.py", "deploy/README.md", ".env"):
        assert not sent_to_builder(path)
    assert not sent_to_builder("kernels/lacuna_kernels/__pycache__/graph.cpython-311.pyc")


def test_variables_are_settings_of_the_server() -> None:
    used = set(re.findall(r"LACUNA_\w+", (ROOT / "Dockerfile").read_text() + COMPOSE_TEXT))

    assert used <= {variable_of(name) for name in Settings.model_fields}


@pytest.mark.parametrize("name", SERVED)
def test_images_run_as_a_user_without_rights_and_get_signals(name: str) -> None:
    stage = STAGES[name]

    assert int(stage.all("USER")[-1]) > 0
    assert stage.all("ENTRYPOINT") == ['["lacuna"]'] and stage.all("CMD") == ['["serve"]']  # no shell in between
    assert stage.all("STOPSIGNAL") == ["SIGTERM"]


@pytest.mark.parametrize("name", SERVED)
def test_the_server_starts_with_an_images_variables_and_passes_its_health_check(name: str, repository: Path) -> None:
    variables = STAGES[name].variables() | SERVICES["lacuna"]["environment"]
    (check,) = STAGES[name].all("HEALTHCHECK")
    ours = {key: value for key, value in variables.items() if key.startswith("LACUNA_")}
    program = yaml.safe_load(check.partition(" CMD ")[2])[-1]
    with serving(repository, **ours) as running:
        here = program.replace("8000", running.address.rpartition(":")[2])
        healthy = subprocess.run([sys.executable, "-c", here], capture_output=True, check=False).returncode
        assert running.stop() == 0
    gone = subprocess.run([sys.executable, "-c", here], capture_output=True, check=False).returncode

    assert (healthy, gone) == (0, 1)


def test_the_image_looks_for_kernels_where_it_was_filled_with_them() -> None:
    (filled,) = re.findall(r"cuda\.fill --cache (\S+)", " ".join(STAGES["build"].all("RUN")))
    (copied,) = [rest.split() for rest in STAGES["runtime"].all("COPY") if rest.startswith("--from=build")]

    assert filled == STAGES["runtime"].variables()["XDG_CACHE_HOME"] + "/lacuna"
    assert copied[1] == copied[2] and filled.startswith(copied[1] + "/")


def test_the_default_target_is_the_one_for_gpus_and_compose_builds_what_there_is() -> None:
    assert list(STAGES.values())[-1].base == "runtime"
    assert SERVICES["lacuna"]["build"] == "."
    assert SERVICES["lacuna-cpu"]["build"] == {"context": ".", "target": "cpu"} and "cpu" in STAGES


@pytest.mark.parametrize("name", SERVICES)
def test_mounts_are_there(name: str) -> None:
    sources = [mount.split(":")[0] for mount in SERVICES[name]["volumes"]]

    assert sources
    assert [source for source in sources if source not in COMPOSE["volumes"] and not (ROOT / source).exists()] == []


@pytest.mark.parametrize("name", OURS)
def test_prometheus_scrapes_the_port_that_the_server_listens_on(name: str) -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    ((host, port),) = [target.split(":") for target in config["scrape_configs"][0]["static_configs"][0]["targets"]]
    stage = STAGES["cpu" if name == "lacuna-cpu" else "runtime"]

    assert host in SERVICES[name]["networks"]["default"]["aliases"]
    assert SERVICES[name]["ports"][0].rpartition(":")[2] == port
    assert [port] == stage.all("EXPOSE") == [stage.variables()["LACUNA_PORT"]]


def test_grafana_finds_prometheus_and_its_dashboard() -> None:
    provisioning, mounts = ROOT / "deploy/grafana/provisioning", SERVICES["grafana"]["volumes"]
    places = {inside: outside for outside, inside, *_ in (mount.split(":") for mount in mounts)}
    source = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"][0]
    provider = yaml.safe_load((provisioning / "dashboards/lacuna.yml").read_text())["providers"][0]
    home = Path(SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])

    host, port = source["url"].removeprefix("http://").split(":")
    assert SERVICES[host]["ports"][0].rpartition(":")[2] == port
    assert (ROOT / places["/etc/grafana/provisioning"]).resolve() == provisioning
    assert provider["options"]["path"] == str(home.parent)
    assert (ROOT / places[str(home.parent)] / home.name).is_file()


@pytest.mark.parametrize("name", OURS)
def test_compose_waits_longer_than_the_server_drains(name: str) -> None:
    grace_s = float(SERVICES[name]["stop_grace_period"].removesuffix("s"))

    assert grace_s >= Settings().drain_s + CLOSE_S
