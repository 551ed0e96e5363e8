"""Extension of griffe: the headings that our docstrings use become the headings that it knows."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

HEADINGS = {
    "Example": "Examples",  # to griffe the singular heads prose, and a doctest under it is a quotation
    "Cost, transforms": "Cost and transforms",  # a comma is in no heading
}
HEADING = re.compile(rf"^( *)({'|'.join(HEADINGS)}):[ ]*$", re.MULTILINE)


class Headings(Extension):
    """Named in mkdocs.yml."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called with each module, class, function and attribute that has been read."""
        if obj.docstring is not None:
            obj.docstring.value = HEADING.sub(lambda found: f"{found[1]}{HEADINGS[found[2]]}:", obj.docstring.value)
