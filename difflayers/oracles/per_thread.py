"""Solver models, which threads do not share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any

__all__ = ["PerThread"]


class PerThread:
    """Values of which every thread builds its own, such as solver models: an attribute of an oracle that keeps them.

    Copies of an oracle share it, so that `with_parameters` keeps the models; pickling and deep copies start afresh,
    because solver models cannot leave their process.

    Example:
        >>> import difflayers as dl
        >>> models = dl.oracles.PerThread()
        >>> models.get("model", list) is models.get("model", list)  # in one thread
        True
    """

    def __init__(self) -> None:
        self._local = threading.local()

    def get(self, key: Hashable, build: Callable[[], Any]) -> Any:
        """The value of this thread under key, built at first use, and again when its attribute `usable` is False."""
        values = self._local.__dict__.setdefault("values", {})
        if key not in values or not getattr(values[key], "usable", True):
            values[key] = build()
        return values[key]

    def __reduce__(self) -> Any:
        return PerThread, ()

    def __copy__(self) -> PerThread:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> PerThread:
        return PerThread()
