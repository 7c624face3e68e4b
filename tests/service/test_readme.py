"""service/README.md says every setting, metric and path, and no others."""

import re
from pathlib import Path

from prometheus_client import CollectorRegistry
from starlette.routing import Route

from lacuna_service.app import create_app
from lacuna_service.cli import flag_of, variable_of
from lacuna_service.engine import Engine, EngineConfig
from lacuna_service.metrics import Metrics
from lacuna_service.settings import Settings

README = (Path(__file__).parents[2] / "service" / "README.md").read_text()


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(title: str) -> list[list[str]]:
    """Cells of the table of a section, without its heading."""
    lines = [line for line in section(title).splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def told(default: object) -> str:
    if default is None or default == ():
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def test_every_setting_has_its_row() -> None:
    assert rows("Settings") == [
        [f"`{flag_of(name)}`", f"`{variable_of(name)}`", told(field.default), field.description]
        for name, field in Settings.model_fields.items()
    ]


def test_every_metric_has_its_row() -> None:
    families = Metrics(CollectorRegistry()).registry.collect()
    declared = {
        (f"`{family.name}{'_total' if family.type == 'counter' else ''}`", family.documentation) for family in families
    }
    assert {(name, meaning) for name, _, meaning in rows("Metrics")} == declared


def test_every_path_is_said(tmp_path: Path) -> None:
    settings = Settings(repository=tmp_path)
    app = create_app(settings, Engine(EngineConfig(tmp_path), Metrics()), "1")
    paths = {route.path for route in app.routes if isinstance(route, Route)} | set(app.openapi()["paths"])
    last = {re.sub(r"\{.*?\}/?", "", path).rstrip("/").rsplit("/", 1)[1] for path in paths}
    last -= {"openapi.json", "redoc", "oauth2-redirect", "versions"}
    assert len(last) > 12
    assert not {word for word in last if f"/{word}" not in section("Paths")}
