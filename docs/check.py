"""Checks the built site: `python docs/check.py [site]`, part of `make docs`.

Without a browser: every internal link and anchor leads somewhere, every picture is there and has a description, every
formula has become MathML, nothing is loaded from another machine. With Chromium, where one is found (chromium,
chromium-browser, google-chrome or $CHROMIUM): no page logs an error or a warning, no request fails or leaves this
machine, pictures have pixels, formulas have a size, the search finds something. Without one it says what was left out.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import os
import re
import shutil
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

sys.path.insert(0, str(Path(__file__).parent))
from browser import Browser

RAW_FORMULA = re.compile(r"\$\$|\\[()\[\]]|\\(?:frac|sum|mathbb|nabla|operatorname|top|lambda|theta)\b")
LOADS = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "object": "data"}
NOT_LOADED = {"canonical", "next", "prev", "alternate"}  # kinds of <link>
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


class Page(HTMLParser):
    """What is checked of one file."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.pictures: list[tuple[str, str]] = []
        self.prose: list[str] = []
        self.formulas = self.rendered = 0
        self._skip: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors.update(values[name] for name in ("id", "name") if name in values)
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in LOADS and LOADS[tag] in values and not set(values.get("rel", "").split()) & NOT_LOADED:
            self.loads.append(values[LOADS[tag]])
        if tag == "img":
            self.pictures.append((values.get("src", ""), values.get("alt", "")))
        self.formulas += "arithmatex" in values.get("class", "").split()
        self.rendered += tag == "math"
        if tag in ("script", "style", "pre", "code", "math"):
            self._skip.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._skip and self._skip[-1] == tag:
            self._skip.pop()

    def handle_data(self, data: str) -> None:
        if not self._skip:
            self.prose.append(data)


def without_browser(site: Path) -> list[str]:
    """One line for each fault."""
    pages = {path.relative_to(site).as_posix(): Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    faults = [] if pages else [f"{site}: no page; build the site first"]

    def target(name: str, link: str) -> tuple[str, str]:
        """The file below site that a link of a page means, and the anchor."""
        parts = urlsplit(urljoin(f"http://site/{name}", link))
        path = unquote(parts.path).lstrip("/")
        return (path + "index.html" if path.endswith("/") or not path else path), unquote(parts.fragment)

    for name, page in pages.items():
        for link in page.links:
            if urlsplit(link).scheme or link.startswith("//"):
                continue
            file, anchor = target(name, link)
            if not (site / file).is_file():
                faults.append(f"{name}: the link {link!r} leads nowhere")
            elif anchor and file in pages and anchor not in pages[file].anchors and anchor != "__top":
                faults.append(f"{name}: the link {link!r} leads to no anchor of that page")
        for link in page.loads:
            if urlsplit(link).netloc:
                faults.append(f"{name}: loads {link} from another machine")
            elif not link.startswith("data:") and not (site / target(name, link)[0]).is_file():
                faults.append(f"{name}: {link!r}, which it loads, is missing")
        faults += [f"{name}: the picture {source} has no description" for source, text in page.pictures if not text]
        if page.formulas != page.rendered:
            faults.append(f"{name}: {page.formulas} formulas, of which {page.rendered} were rendered")
        faults += [
            f"{name}: raw formula {found[0]!r} in the text" for found in RAW_FORMULA.finditer("".join(page.prose))
        ]
    for style in site.rglob("*.css"):
        outside = re.findall(r"url\(['\"]?((?:https?:)?//[^)]+)", style.read_text())
        faults += [f"{style.relative_to(site)}: loads {link} from another machine" for link in outside]
    print(
        f"{len(pages)} pages, {sum(len(page.links) for page in pages.values())} links,"
        f" {sum(len(page.pictures) for page in pages.values())} pictures,"
        f" {sum(page.rendered for page in pages.values())} formulas"
    )
    return faults


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves the site without a log."""

    def log_message(self, format: str, *args: object) -> None:
        pass


PICTURES = "Promise.all([...document.images].map(i => (i.loading = 'eager', i.decode().then(() => '', () => i.src))))"
WITHOUT_PIXELS = f"{PICTURES}.then(broken => broken.filter(Boolean))"
WITHOUT_SIZE = "[...document.querySelectorAll('math')].filter(m => !m.getBoundingClientRect().width).length"
SEARCH = """new Promise(done => {
  const field = document.querySelector('[data-md-component=search-query]');
  document.querySelector('#__search').click(); field.focus(); field.value = 'steepness';
  field.dispatchEvent(new Event('keyup', {bubbles: true})); field.dispatchEvent(new Event('input', {bubbles: true}));
  let tries = 0; const timer = setInterval(() => {
    const found = document.querySelectorAll('.md-search-result__item').length;
    if (found || ++tries > 100) { clearInterval(timer); done(found); }
  }, 100);
})"""


def in_browser(site: Path, chromium: str) -> list[str]:
    """One line for each fault that shows only when pages are looked at."""
    faults = []
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}/"
        names = [path.relative_to(site).as_posix() for path in sorted(site.rglob("*.html")) if path.name != "404.html"]
        with Browser(chromium, here) as browser:
            for name in names:
                faults += [f"{name}: {fault}" for fault in browser.visit(here + name)]
                faults += [f"{name}: the picture {broken} does not show" for broken in browser.run(WITHOUT_PIXELS)]
                if flat := browser.run(WITHOUT_SIZE):
                    faults.append(f"{name}: {flat} formulas have no width")
            faults += [f"index.html: {fault}" for fault in browser.visit(here)]
            found = browser.run(SEARCH)
            if not found:
                faults.append("index.html: the search for 'steepness' finds nothing")
            faults += [f"search: {fault}" for fault in browser.faults()]
        server.shutdown()
    print(f"{len(names)} pages in {chromium}; the search shows {found} pages about 'steepness'")
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", nargs="?", default="site", type=Path, help="the folder that mkdocs built")
    site = parser.parse_args().site.resolve()
    faults = without_browser(site)
    chromium = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM)), None)
    if chromium is None:
        print("no Chromium here: console, requests, the size of formulas and the search are not checked")
    elif not faults:
        faults = in_browser(site, chromium)
    for fault in faults:
        print(fault, file=sys.stderr)
    sys.exit(f"{len(faults)} faults" if faults else 0)


if __name__ == "__main__":
    main()
