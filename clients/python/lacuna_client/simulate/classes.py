"""The classes that generated scans are labelled with, in the order of their numbers."""

from enum import IntEnum


class Class(IntEnum):
    """What a laser beam hit. Rough grass counts as vegetation, walls and fences as building."""

    ROAD = 0
    SIDEWALK = 1
    BUILDING = 2
    VEHICLE = 3
    PERSON = 4
    VEGETATION = 5
    POLE = 6


CLASSES: tuple[str, ...] = tuple(member.name.lower() for member in Class)
