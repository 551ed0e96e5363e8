"""Benchmark pages as data: docs/benchmarks/*.json hold what was measured, pages and plots are made from them.

    make bench-pages                                  all pages and plots anew, without measuring anything
    python tests/benchmarks/pages.py --read PAGE.md   takes a page that was written otherwise into its JSON first

Every benchmark ends with `publish(page, text)`. The JSON has the page's sections in order: text, facts (machine,
versions), and tables with their columns, their cells as they are shown, and the number that each cell begins with.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[2] / "docs"
NUMBER = re.compile(r"^([-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?)(?=$|[ x%;(])")
MADE = re.compile(r"^(!\[[^\]]*\]\(images/benchmarks-|These figures as data: )")  # what `page` adds


def parse(text: str) -> list[dict[str, Any]]:
    """The sections of a page: heading, level, content."""
    sections: list[dict[str, Any]] = []
    for block in _blocks(text):
        heading = re.fullmatch(r"(#+) (.*)", block)
        if heading:
            sections.append({"heading": heading[2], "level": len(heading[1]), "content": []})
        elif not MADE.match(block):
            sections[-1]["content"].append(_content(block))
    return sections


def render(sections: list[dict[str, Any]], figures: dict[str, list[str]] | None = None) -> str:
    """The page of these sections; figures are shown at the end of the section with that heading, `above / below`."""
    blocks, above = [], ""
    for section in sections:
        heading, level = section["heading"], section["level"]
        above = heading if level <= 2 else above
        blocks.append(f"{'#' * level} {heading}")
        blocks += [_shown(content) for content in section["content"]]
        blocks += (figures or {}).get(heading if level <= 2 else f"{above} / {heading}", [])
    return "\n\n".join(blocks) + "\n"


def _blocks(text: str) -> list[str]:
    """What blank lines separate; a fenced block is one, blank lines and all."""
    blocks: list[str] = []
    text = re.sub(r"^(<!--.*-->)$", r"\n\1\n", text, flags=re.MULTILINE)  # marks between parts of a page
    for part in re.split(r"\n\s*\n", text.strip()):
        if blocks and blocks[-1].count("```") % 2:
            blocks[-1] += f"\n\n{part}"
        else:
            blocks.append(part.strip("\n"))
    return blocks


def _content(block: str) -> dict[str, Any]:
    lines = [line.rstrip() for line in block.splitlines()]
    if lines[0].startswith("|") and len(lines) > 1:
        header, align, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
        values = [[_number(cell) for cell in row] for row in rows]
        return {"columns": header, "align": align, "rows": rows, "values": values}
    if all(line.startswith("- ") for line in lines):
        return {"facts": [_fact(line[2:]) for line in lines]}
    return {"text": "\n".join(lines)}


def _number(cell: str) -> float | None:
    """What a cell begins with, if it is a number: 0.137 of "0.137 (2.04x)"."""
    found = NUMBER.match(cell.strip("*"))
    return float(found[1].replace(",", "")) if found else None


def _fact(line: str) -> dict[str, Any]:
    name, colon, value = line.partition(": ")
    if not colon:
        return {"note": line}
    if name in ("versions", "peers"):
        packages = dict(entry.rpartition(" ")[::2] for entry in value.split(", "))
        if ", ".join(f"{package} {number}" for package, number in packages.items()) == value:
            return {"name": name, "packages": packages}
    return {"name": name, "value": value}


def _shown(content: dict[str, Any]) -> str:
    if "columns" in content:
        lines = [content["columns"], content["align"], *content["rows"]]
        head, rule, *rows = ("| " + " | ".join(line) + " |" for line in lines)
        return "\n".join([head, rule.replace(" ", ""), *rows])
    if "facts" in content:
        return "\n".join(f"- {_told(fact)}" for fact in content["facts"])
    return content["text"]


def _told(fact: dict[str, Any]) -> str:
    if "note" in fact:
        return fact["note"]
    packages = ", ".join(f"{name} {number}" for name, number in fact.get("packages", {}).items())
    return f"{fact['name']}: {fact.get('value', packages)}"


def page(name: str, sections: list[dict[str, Any]], figures: dict[str, list[str]]) -> str:
    """The whole page: sections, figures, where the data are."""
    return render(sections, figures) + f"\nThese figures as data: [benchmarks/{name}.json](benchmarks/{name}.json)\n"


def record(path: Path) -> Path:
    """The JSON of a page."""
    return path.parent / "benchmarks" / f"{path.stem.removeprefix('benchmarks').removeprefix('-') or 'sorting'}.json"


def publish(target: Path, text: str) -> None:
    """Writes what was measured as JSON, and from that the page and its plots."""
    path = record(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"page": target.name, "sections": parse(text)}, indent=1, ensure_ascii=False) + "\n")
    build(path)


def build(path: Path) -> Path:
    """A page and its plots from the JSON; without matplotlib the plots stay as they are."""
    content = json.loads(path.read_text())
    import plots

    target = path.parent.parent / content["page"]
    try:
        figures = plots.draw(path.stem, content["sections"], target.parent / "images")
    except ImportError as error:
        print(f"pages: the plots are not drawn anew: {error}", file=sys.stderr)
        figures = plots.shown(path.stem, target.parent / "images")
    target.write_text(page(path.stem, content["sections"], figures))
    return target


def main(arguments: list[str] | None = None) -> int:
    """Makes the pages; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--read", type=Path, nargs="*", default=[], metavar="PAGE", help="pages to take in first")
    options = parser.parse_args(arguments)
    for path in options.read:
        publish(path, path.read_text())
    for path in sorted((DOCS / "benchmarks").glob("*.json")):
        print(f"written: {build(path)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
