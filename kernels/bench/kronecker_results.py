"""A results file: one JSON object a line, continued by the next run and never rewritten."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FAILED = "failed"
"""The part of what ended a run."""


class Results:
    """Records of several parts, each known by its key within its part; a later line replaces an earlier one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        cut_off = path.is_file() and not path.read_bytes().endswith(b"\n")
        self._separator = "\n" if cut_off else ""
        self._found: dict[tuple[str, str], dict[str, Any]] = {}
        for record in _lines(path):
            self._found[record["part"], record["key"]] = record

    def has(self, part: str, key: str) -> bool:
        """Whether there is a record."""
        return (part, key) in self._found

    def get(self, part: str, key: str) -> dict[str, Any]:
        """Return a record."""
        return self._found[part, key]

    def part(self, part: str) -> list[dict[str, Any]]:
        """All records of a part, in the order of the first time that each was written."""
        return [record for (name, _), record in self._found.items() if name == part]

    def add(self, part: str, record: dict[str, Any]) -> None:
        """Keep a record, which has a key, and write it at once."""
        record = {"part": part, **record}
        self._found[part, record["key"]] = record
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(self._separator + json.dumps(record) + "\n")
        self._separator = ""


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Each whole line; a line that was cut off when a run was stopped is left out."""
    if not path.is_file():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue
