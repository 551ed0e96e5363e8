"""Hook of mkdocs: formulas become MathML when the site is built, so that a page needs neither scripts nor network."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

# what pymdownx.arithmatex with `generic: true` makes of $...$ and $$...$$
BAR = re.compile(r"<mo(?: [^>]*)?(?=>(?:\||&#x0007C;|&#x02016;|&#x02225;)</mo>)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Called by mkdocs with the HTML of each page."""

    def formula(match: re.Match[str]) -> str:
        tag, bracket, source = match.groups()
        source = html.unescape(source).strip().replace("\n", " ")  # a command may end a line
        source = re.sub(r"\\arg\\(min|max)", r"\\operatorname*{arg\1}", source)  # which the converter does not know
        result = convert(source, display="inline" if bracket == "(" else "block")
        result = BAR.sub(r'\g<0> lspace="0" rspace="0"', result)  # |v| is no infix operator
        result = result.replace("<mi>&#x02032;</mi>", "<mo>&#x02032;</mo>")  # nor is a prime a variable
        if "\\" in result:  # a command that the converter does not know passes through as text
            raise ValueError(f"docs/formulas.py: cannot convert the formula {source!r} of {page.file.src_uri}")
        return f'<{tag} class="arithmatex">{result}</{tag}>'

    content = FORMULA.sub(formula, content)
    if 'class="arithmatex">\\' in content:
        raise ValueError(f"docs/formulas.py: a formula of {page.file.src_uri} was not recognised")
    return content
