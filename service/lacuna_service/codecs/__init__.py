"""Between bytes on the wire and arrays in memory: a module for each encoding, none knows of models or requests."""
