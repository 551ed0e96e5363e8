"""The rows that were solved before."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from .result import Row, Status

KEPT = (Status.OPTIMAL, Status.INFEASIBLE, Status.UNBOUNDED)  # other rows may come out better the next time


class Memory:
    """Solved rows by their key, the least recently used forgotten first; any number of threads may use it.

    Pickling and copies start afresh.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: OrderedDict[bytes, Row] = OrderedDict()

    def __reduce__(self) -> Any:
        return Memory, ()

    def known(self, keys: Iterable[bytes]) -> dict[bytes, Row]:
        """Those of the keys that are remembered, with their rows; counts as a use of them."""
        with self._lock:
            found = {key: self._rows[key] for key in keys if key in self._rows}
            for key in found:
                self._rows.move_to_end(key)
        return found

    def add(self, rows: dict[bytes, Row], size: int) -> None:
        """Remembers rows, `size` at most in all."""
        with self._lock:
            self._rows.update((key, row) for key, row in rows.items() if row.status in KEPT)
            while len(self._rows) > size:
                self._rows.popitem(last=False)
