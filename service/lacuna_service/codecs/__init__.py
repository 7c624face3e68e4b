"""Between bytes on the wire and arrays in memory: one module for each encoding, knowing nothing of models or requests."""
