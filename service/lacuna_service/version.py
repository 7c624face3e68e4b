"""Which version of Lacuna this is."""

from importlib.metadata import PackageNotFoundError, version


def program_version() -> str:
    """The version of the installed distribution; "0+unknown" when run from a folder that was not installed."""
    try:
        return version("lacuna")
    except PackageNotFoundError:
        return "0+unknown"
