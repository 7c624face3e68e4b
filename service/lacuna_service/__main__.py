"""`python -m lacuna_service`, and the command `lacuna`."""

from lacuna_service.cli import app


def main() -> None:
    """Run the command line."""
    app(prog_name="lacuna")


if __name__ == "__main__":
    main()
