"""PLY, the Stanford polygon format, as text or binary of either byte order; only the element `vertex` is read.

Elements after the vertices are ignored. Elements before them are stepped over; in text, and where rows have lists, that
costs a step of Python for each row, so there is a limit, and a file above it is asked to put its vertices first.
"""

import re
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from lacuna_service.codecs.columns import Ask, Fields, check_points, clip, select
from lacuna_service.codecs.records import FIELDS_LIMIT, HEADER_LIMIT_BYTES, Field, Row, text_lines, whole
from lacuna_service.errors import BadRequest, TooLarge

FORMATS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}
TYPES = {
    **{
        "char": "i1",
        "uchar": "u1",
        "short": "i2",
        "ushort": "u2",
        "int": "i4",
        "uint": "u4",
        "float": "f4",
        "double": "f8",
    },
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float32": "f4", "float64": "f8"},
}
END = re.compile(rb"(?m)^end_header[ \t]*\r?\n")
STEPS_LIMIT = 500_000


@dataclass(slots=True)
class Element:
    """One element of the header: its rows and properties; a list property is (length type, item type)."""

    name: str
    rows: int
    properties: list[Field | tuple[np.dtype[np.generic], np.dtype[np.generic]]]

    @property
    def has_lists(self) -> bool:
        """Whether rows differ in length."""
        return any(not isinstance(entry, Field) for entry in self.properties)

    def row(self) -> Row:
        """The layout of a row without lists."""
        return Row(tuple(entry for entry in self.properties if isinstance(entry, Field)))


def read(body: memoryview, ask: Ask) -> NDArray[np.float32]:
    """Read the vertices of a PLY; raises BadRequest or TooLarge before anything of the declared size is made."""
    text, end = _split(body)
    form, elements = _parse(text)
    at = next((at for at, element in enumerate(elements) if element.name == "vertex"), None)
    if at is None:
        names = ", ".join(element.name for element in elements)
        raise BadRequest(f"PLY: no element 'vertex'; the file has {clip(names or 'none')[1:-1]}")
    vertex = elements[at]
    if vertex.has_lists or not vertex.properties:
        raise BadRequest("PLY: 'vertex' must have properties, and none of them a list; store lists in another element")
    reader = _read_text if form == "ascii" else _read_binary
    return select(reader(body[end:], elements[:at], vertex, ask), ask)


def _read_text(data: memoryview, before: list[Element], vertex: Element, ask: Ask) -> Fields:
    values = vertex.row().values
    shortest = sum(element.rows for element in before) + vertex.rows * values * 2 - 1
    if len(data) < shortest:
        raise BadRequest(
            f"PLY: {vertex.rows} vertices of {values} numbers and what comes before them take at least "
            f"{shortest} characters, but {len(data)} follow the header"
        )
    check_points(vertex.rows, ask)
    lines = text_lines(data)
    for element in before:
        _check_steps(element, element.rows)
        next(islice(lines, element.rows, element.rows), None)
    return vertex.row().parse(lines, vertex.rows, "PLY")


def _read_binary(data: memoryview, before: list[Element], vertex: Element, ask: Ask) -> Fields:
    begin = 0
    for element in before:
        begin = _after(data, begin, element)
    size = vertex.row().size
    if vertex.rows * size > len(data) - begin:
        raise BadRequest(
            f"PLY: {vertex.rows} vertices of {size} bytes take {vertex.rows * size} bytes, "
            f"but {max(0, len(data) - begin)} are left for them"
        )
    check_points(vertex.rows, ask)
    return vertex.row().views(data[begin:], vertex.rows)


def _after(data: memoryview, begin: int, element: Element) -> int:
    """Where the element that starts at `begin` ends."""
    if not element.has_lists:
        return begin + element.rows * element.row().size
    _check_steps(element, element.rows * len(element.properties))
    for _ in range(element.rows):
        for entry in element.properties:
            begin += entry.size if isinstance(entry, Field) else _list_bytes(data, begin, *entry)
        if begin > len(data):
            raise BadRequest(f"PLY: the file ends within the {element.rows} rows of {clip(element.name)}")
    return begin


def _check_steps(element: Element, steps: int) -> None:
    if steps > STEPS_LIMIT:
        raise TooLarge(
            f"PLY: stepping over the {element.rows} rows of {clip(element.name)} before the vertices takes {steps} "
            f"steps, the limit is {STEPS_LIMIT}: put the element 'vertex' first"
        )


def _list_bytes(data: memoryview, begin: int, length: np.dtype[np.generic], item: np.dtype[np.generic]) -> int:
    piece = data[begin : begin + length.itemsize]
    order = "big" if length.str[0] == ">" else "little"
    count = int.from_bytes(piece, order, signed=length.kind == "i")  # type: ignore[arg-type]
    if len(piece) < length.itemsize or count < 0:
        raise BadRequest(f"PLY: a list before the vertices is cut off or has the length {count}")
    return length.itemsize + count * item.itemsize


def _split(body: memoryview) -> tuple[list[list[str]], int]:
    head = bytes(body[:HEADER_LIMIT_BYTES])
    end = END.search(head)
    if not head.startswith((b"ply\n", b"ply\r\n")) or end is None:
        raise BadRequest(
            f"PLY: the file must begin with the line 'ply' and have a line 'end_header' within {HEADER_LIMIT_BYTES} "
            f"bytes; it has {len(body)} bytes and begins with {head[:8]!r}"
        )
    lines = head[: end.start()].decode("latin-1").split("\n")[1:]
    words = [line.split() for line in lines]
    return [entry for entry in words if entry and entry[0] not in ("comment", "obj_info")], end.end()


def _parse(lines: list[list[str]]) -> tuple[str, list[Element]]:
    form, elements = "", list[Element]()
    properties = 0
    for words in lines:
        match words:
            case ["format", name, "1.0"] if name in FORMATS:
                form = name
            case ["element", name, count]:
                elements.append(Element(name, whole(count, f"PLY: the count of element {clip(name)}"), []))
            case ["property", *rest] if elements and form and properties < FIELDS_LIMIT:
                properties += 1
                elements[-1].properties.append(_property(rest, FORMATS[form]))
            case _:
                raise BadRequest(
                    f"PLY: header line {clip(' '.join(words))} is not understood; a header has one 'format "
                    f"{'|'.join(FORMATS)} 1.0', then elements with at most {FIELDS_LIMIT} properties in all"
                )
    if not form:
        raise BadRequest(f"PLY: the header has no line 'format {'|'.join(FORMATS)} 1.0'")
    return form, elements


def _property(words: list[str], order: str) -> Field | tuple[np.dtype[np.generic], np.dtype[np.generic]]:
    match words:
        case [kind, name] if kind in TYPES:
            return Field(name, np.dtype(order + TYPES[kind]))
        case ["list", length, item, _] if item in TYPES and TYPES.get(length, "f")[0] in "iu":
            return np.dtype(order + TYPES[length]), np.dtype(order + TYPES[item])
    raise BadRequest(f"PLY: property {clip(' '.join(words))} is not understood; known types are {', '.join(TYPES)}")
