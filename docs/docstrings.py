"""Extension of griffe: sections of our docstrings that it cannot read as they stand become such that it can.

What it then still does not understand is a warning, and fails the build: a parameter that is described and does not
exist, say, or an exception without a description.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

# To griffe the singular heads prose, and a doctest under it is a quotation; a comma is in no heading. A class has no
# value that it returns: the section says what a call of the object or of its main method returns, in prose.
HEADINGS = {"Example": "Examples", "Cost, transforms": "Cost and transforms"}
OF_A_CLASS = "Result"
PROSE_ABOUT_ERRORS = "Errors"

SECTION = re.compile(r"^(?P<heading>[A-Z][\w, ]*):[ ]*\n(?P<body>(?:[ ]+\S.*\n|[ ]*\n)+)", re.MULTILINE)
SEVERAL = re.compile(r"^([ ]*)(\*{0,2}\w+(?:, \*{0,2}\w+)+):(.*(?:\n\1[ ]+.*)*)", re.MULTILINE)
EXCEPTION = re.compile(r"^[A-Z]\w*(?:\.\w+)*: ")


def one_each(body: str) -> str:
    """`a, b: text` is about two parameters: each gets its line, where griffe adds its type and default."""
    return SEVERAL.sub(
        lambda found: "\n".join(f"{found[1]}{name}:{found[3]}" for name in found[2].split(", ")),
        body,
    )


def is_prose(body: str) -> bool:
    """Whether a `Raises:` section holds more than pairs of an exception and its reason ("As `sort`.")."""
    lines = body.splitlines()
    indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    items = [line[indent:] for line in lines if line.strip() and not line[indent:].startswith(" ")]
    return not all(EXCEPTION.match(item) for item in items)


def readable(text: str, *, of_a_class: bool) -> str:
    """A docstring without indentation, in griffe's words."""

    def section(found: re.Match[str]) -> str:
        heading, body = found["heading"], found["body"]
        if heading in ("Args", "Attributes"):
            body = one_each(body)
        elif heading == "Raises" and is_prose(body):
            heading = PROSE_ABOUT_ERRORS
        elif heading == "Returns" and of_a_class:
            heading = OF_A_CLASS
        return f"{HEADINGS.get(heading, heading)}:\n{body}"

    return SECTION.sub(section, text + "\n")


class Headings(Extension):
    """Named in mkdocs.yml."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called with each module, class, function and attribute that has been read."""
        if obj.docstring is not None:
            obj.docstring.value = readable(obj.docstring.value, of_a_class=obj.is_class)
