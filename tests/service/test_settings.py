"""Settings: one class, from which flags, variables and defaults come."""

import os

import pytest
import typer
from typer.testing import CliRunner

from lacuna_service.cli import flag_of, variable_of, with_settings
from lacuna_service.settings import Settings

NAMES = list(Settings.model_fields)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str, **variables: str) -> tuple[int, str, Settings | None]:
    """Exit status, output and settings of a command that takes the same options as `lacuna serve`."""
    for name in [name for name in os.environ if name.startswith("LACUNA_")]:
        monkeypatch.delenv(name)
    seen: list[Settings] = []

    def note(settings: Settings) -> None:
        seen.append(settings)

    app = typer.Typer(rich_markup_mode=None)
    app.command()(with_settings(note))
    result = CliRunner(env=variables).invoke(app, arguments)
    return result.exit_code, result.output, seen[0] if seen else None


def test_without_flags_and_variables_the_defaults_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch)[2] == Settings()


@pytest.mark.parametrize("name", NAMES)
def test_help_shows_every_flag_with_its_variable_and_meaning(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code, text, _ = run(monkeypatch, "--help")
    plain = " ".join(text.split())
    assert code == 0
    assert f"{flag_of(name)} " in plain or f"{flag_of(name)}/" in plain
    assert f"[env var: {variable_of(name)}" in plain
    assert " ".join((Settings.model_fields[name].description or "-").split()) in plain


def test_flags_and_variables_set_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    by_flag = run(monkeypatch, "--port", "9", "--model", "a", "--model", "b", "--access-log", "--drain-s", "1.5")
    by_variable = run(monkeypatch, LACUNA_PORT="9", LACUNA_MODEL="a b", LACUNA_ACCESS_LOG="true", LACUNA_DRAIN_S="1.5")
    expected = Settings(port=9, model=("a", "b"), access_log=True, drain_s=1.5)
    assert by_flag[2] == by_variable[2] == expected


def test_a_flag_wins_over_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = run(monkeypatch, "--port", "9", LACUNA_PORT="8")[2]
    assert settings is not None and settings.port == 9


def test_an_empty_variable_is_no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, LACUNA_API_KEY="", LACUNA_PORT="")[2] == Settings()


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--port", "70000"), ("--port", "x"), ("--body-limit-mib", "0"), ("--device", "tpu"), ("--api-key", "short")],
)
def test_a_wrong_value_is_refused_by_name(flag: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code, text, settings = run(monkeypatch, flag, value)
    assert code == 2 and settings is None and flag in text
