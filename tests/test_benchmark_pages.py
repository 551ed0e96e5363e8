"""The benchmark pages are what their JSON says, and taking a page in and writing it out again changes nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

DOCS = Path(__file__).parents[1] / "docs"
RECORDS = sorted((DOCS / "benchmarks").glob("*.json"))
PAGE = """# Benchmarks

Printed by `make bench`.

- processor: some, 2 cores
- versions: torch 2.13.0+cpu, Python 3.11.7
- 10 seeds

## Speed

```
a fence

# with a comment
```

### 1 thread

| batch x n | 1024 x 8 | 4 x 1024 |
|---|---:|---|
| values, bitonic | 0.137 (2.04x) |  |
| **7** | 1,024 | 5/5, 0.47 |

![old](images/benchmarks-sorting.svg)

The end.
"""


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    sys.path.append(str(Path(__file__).parent / "benchmarks"))
    import pages

    return pages


def test_a_page_survives(pages: ModuleType) -> None:
    sections = pages.parse(PAGE)
    assert [section["heading"] for section in sections] == ["Benchmarks", "Speed", "1 thread"]
    assert pages.render(sections) == PAGE.replace("![old](images/benchmarks-sorting.svg)\n\n", "")
    shown = pages.render(sections, {"Speed / 1 thread": ["![new](images/benchmarks-sorting.svg)"]})
    assert shown.endswith("The end.\n\n![new](images/benchmarks-sorting.svg)\n")
    assert pages.parse(shown) == sections


def test_parts_of_a_page_may_be_marked(pages: ModuleType) -> None:
    marked = "# Page\n\n<!-- one.py -->\n## Part\n\n| a |\n|---|\n| 1 |\n<!-- one.py -->\n"
    sections = pages.parse(marked)
    assert [section["heading"] for section in sections] == ["Page", "Part"]
    assert sections[1]["content"][0]["values"] == [[1.0]]
    assert pages.render(sections).replace("\n\n", "\n") == marked.replace("\n\n", "\n")


def test_numbers_and_versions_are_read(pages: ModuleType) -> None:
    sections = pages.parse(PAGE)
    assert sections[2]["content"][0]["values"] == [[None, 0.137, None], [7.0, 1024.0, None]]
    facts = sections[0]["content"][1]["facts"]
    assert facts[1]["packages"] == {"torch": "2.13.0+cpu", "Python": "3.11.7"}
    assert facts[2] == {"note": "10 seeds"}


def test_what_was_measured_becomes_json_page_and_plots(pages: ModuleType, tmp_path: Path) -> None:
    pages.publish(tmp_path / "benchmarks.md", PAGE)
    assert json.loads((tmp_path / "benchmarks" / "sorting.json").read_text())["sections"] == pages.parse(PAGE)
    text = (tmp_path / "benchmarks.md").read_text()
    assert text.endswith("The end.\n\n![Microseconds a row, forward and backward, against n: values; matrix and ranks]"
                         "(images/benchmarks-sorting.svg)\n\n"
                         "These figures as data: [benchmarks/sorting.json](benchmarks/sorting.json)\n")  # fmt: skip
    picture = ElementTree.parse(tmp_path / "images" / "benchmarks-sorting.svg").getroot()
    words = {element.text for element in picture.iter() if element.tag.endswith("text")}
    assert {"values, bitonic", "n", "microseconds a row"} <= words
    assert not (tmp_path / "images" / "benchmarks-topk.svg").exists()  # that table was not measured
    pages.publish(tmp_path / "benchmarks.md", text)
    assert (tmp_path / "benchmarks.md").read_text() == text


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_committed_page_is_that_of_its_json(pages: ModuleType, path: Path) -> None:
    """Where it is not: make bench-pages; after a change by hand, python tests/benchmarks/pages.py --read PAGE."""
    import plots

    content = json.loads(path.read_text())
    figures = plots.shown(path.stem, DOCS / "images")
    assert set(figures) == {plot.heading for plot in plots.PLOTS.get(path.stem, [])}
    page = (DOCS / content["page"]).read_text()
    assert page == pages.page(path.stem, content["sections"], figures)
    assert pages.parse(page) == content["sections"]
    for lines in figures.values():
        assert all(line in page for line in lines)


def test_pictures_are_small() -> None:
    assert len(RECORDS) >= 4
    for path in (DOCS / "images").glob("benchmarks-*.svg"):
        assert path.stat().st_size < 100_000
