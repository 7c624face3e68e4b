"""Serves sparse networks over HTTP: protocol, batching, model repository, metrics, energy."""
