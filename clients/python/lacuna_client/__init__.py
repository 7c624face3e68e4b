"""Client of the Lacuna inference service."""
