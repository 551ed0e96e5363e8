"""The parts that build and check the documentation: what they are for, on pages of a few lines."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module", autouse=True)
def parts():
    """docs/ as a place to import from, as its own scripts have it."""
    sys.path.insert(0, str(DOCS))
    yield
    sys.path.remove(str(DOCS))


PAGE = """<html><body><h1 id="top">T</h1><p>{text}</p><img src="a.png" alt="a picture">
<span class="arithmatex"><math><mi>x</mi></math></span></body></html>"""
FAULTS = {
    "<a href='missing/'>": "leads nowhere",
    "<a href='#nowhere'>": "no anchor",
    "<img src='b.png' alt='b'>": "missing",
    "<img src='a.png'>": "no description",
    "<script src='https://cdn.example.org/x.js'></script>": "another machine",
    "<span class='arithmatex'>x</span>": "2 formulas, of which 1",
    "$$x$$": "raw formula",
    r"\(x\)": "raw formula",
}


@pytest.fixture
def site(tmp_path):
    def build(text):
        (tmp_path / "a.png").touch()
        (tmp_path / "index.html").write_text(PAGE.format(text=text))
        return tmp_path

    return build


@pytest.mark.parametrize("text", list(FAULTS))
def test_faults_of_a_page_are_found(site, text):
    faults = importlib.import_module("check").without_browser(site(text))
    assert faults
    assert all(FAULTS[text] in fault for fault in faults)


def test_a_page_without_faults(site):
    good = "<a href='#top'>up</a> <a href='https://example.org'>out</a> <code>$$ \\(x\\)</code>"
    assert importlib.import_module("check").without_browser(site(good)) == []


DOCSTRING = """One line.

Args:
    a, b: two of them,
        described at length.
    c: one.

Returns:
    What a call returns.

Raises:
    {raises}

Example:
    >>> 1
    1
"""


@pytest.mark.parametrize(
    ("raises", "heading"), [("As `sort`.", "Errors"), ("ValueError: n is negative.", "Raises")], ids=["prose", "pair"]
)
@pytest.mark.parametrize("of_a_class", [True, False])
def test_docstrings_become_readable_to_griffe(raises, heading, of_a_class):
    pytest.importorskip("griffe")
    readable = importlib.import_module("docstrings").readable
    text = readable(DOCSTRING.format(raises=raises), of_a_class=of_a_class)
    assert (
        "    a: two of them,\n        described at length.\n    b: two of them,\n        described at length.\n" in text
    )
    assert f"{heading}:\n    {raises}\n" in text
    assert ("Result:\n" if of_a_class else "Returns:\n") in text
    assert "Examples:\n    >>> 1" in text


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("dl.sort", "difflayers.sort"),
        ("dl.topk(x, k).membership", "difflayers.topk"),
        ("dl.Blackbox(5.0)", "difflayers.rules.Blackbox"),
        ("ShortestPath", "difflayers.oracles.ShortestPath"),
        ("expected_loss", "difflayers.ransac.expected_loss"),
        ("RLOO(4)", "difflayers.estimators.RLOO"),
        ("fit", None),  # a word, and the name of several things
        ("hard=True", None),
        ("torch.sort", None),
        ("torch.nn.functional.gumbel_softmax(x)", None),
        ("dl", None),
    ],
)
def test_names_in_code_font_lead_to_the_reference(code, name):
    references = importlib.import_module("references")
    references.on_config({"docs_dir": str(DOCS)})
    assert references.entry(code) == name
