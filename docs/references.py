"""Hook of mkdocs: a public name in code font leads to its entry in the reference, wherever it is mentioned.

`dl.sort`, `dl.topk(x, k).membership` and `difflayers.rules.Blackbox` are found by their full names, `ShortestPath`,
`RLOO(4)` and `expected_loss` alone where the reference has one such name. Words like `fit` are left alone.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

ENTRY = re.compile(r"^::: (difflayers\.\S+)$", re.MULTILINE)
CODE = re.compile(r"(?:<(pre|a|h[1-6]|autoref)\b.*?</\1>)|<code>(?P<code>[^<]+)</code>", re.DOTALL)
NAME = re.compile(r"(?:(?:dl|difflayers)\.)?[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")

_entries: dict[str, str] = {}


def on_config(config: Any) -> None:
    """Called first: reads which names have an entry."""
    pages = (Path(config["docs_dir"]) / "reference").glob("*.md")
    names = {name for page in pages for name in ENTRY.findall(page.read_text())}
    ends: defaultdict[str, set[str]] = defaultdict(set)
    for name in names:
        parts = name.split(".")
        for length in range(1, len(parts)):
            ends[".".join(parts[-length:])].add(name)
    _entries.clear()
    _entries.update({end: found.pop() for end, found in ends.items() if len(found) == 1 and speaks_for_itself(end)})
    _entries.update({name: name for name in names})


def speaks_for_itself(name: str) -> bool:
    """Whether a name without `dl.` can hardly mean anything else."""
    return "." in name or "_" in name or name != name.lower()


def entry(code: str, *, alone: bool = True) -> str | None:
    """The full name of what a piece of code mentions first; alone: whether also without `dl.`."""
    found = NAME.match(code)
    if found is None or code[found.end() : found.end() + 1] not in ("", "(", ".", "["):
        return None
    name = re.sub(r"^(dl|difflayers)\.", "difflayers.", found[0])
    ours = name.startswith("difflayers.")
    while name and name != "difflayers" and (ours or alone):
        aliases = (name.removeprefix("difflayers."), name.rpartition(".")[2]) if ours else ()  # `dl.Blackbox`
        for known in (name, *aliases):
            if known in _entries:
                return _entries[known]
        name = name.rpartition(".")[0]
    return None


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Called with the HTML of each page; mkdocs-autorefs then makes links of it."""
    alone = page.file.src_uri != "coming-from.md"  # where names alone are others'

    def link(match: re.Match[str]) -> str:
        name = match["code"] and entry(match["code"], alone=alone)
        return f'<autoref identifier="{name}">{match[0]}</autoref>' if name else match[0]

    return CODE.sub(link, content)
