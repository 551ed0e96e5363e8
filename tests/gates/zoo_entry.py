"""The registry of the zoo's models."""

from collections.abc import Callable
from typing import NamedTuple


class Entry(NamedTuple):
    """A model with example inputs, and the sizes of the groups that must be found, in any order."""

    make: Callable
    groups: list[int]


ZOO: dict[str, Entry] = {}


def entry(groups: list[int]):
    """Puts a function that returns (model, example inputs) into the zoo."""

    def register(make):
        assert make.__name__ not in ZOO, make.__name__
        ZOO[make.__name__] = Entry(make, sorted(groups))
        return make

    return register
