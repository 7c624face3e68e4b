"""`python -m lacuna_client` is the command `lacuna-client`."""

from lacuna_client.cli import main

main()
