"""Reading a report: its elements, its tables, and what a browser makes of it."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lobule.evaluation.evaluate import Evaluation

VOID = {"meta", "img", "br", "link", "input", "hr"}
CHROMIUM = "/usr/bin/chromium"


class Node:
    def __init__(self, tag, attributes, parent):
        self.tag, self.attributes, self.parent = tag, attributes, parent
        self.children = []

    def all(self, tag=None, **wanted):
        """Every node below, in order, with this tag and these attributes (class: one of them)."""
        wanted = {key.rstrip("_"): value for key, value in wanted.items()}
        for child in self.children:
            if isinstance(child, Node):
                if tag in (None, child.tag) and all(
                    value in (child.attributes.get(key) or "").split()
                    for key, value in wanted.items()
                ):
                    yield child
                yield from child.all(tag, **wanted)

    def one(self, tag=None, **wanted):
        return next(self.all(tag, **wanted))

    @property
    def text(self):
        parts = [child if isinstance(child, str) else child.text for child in self.children]
        return " ".join("".join(parts).split())


class Tree(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.root = self.at = Node("", {}, None)
        self.feed(text)
        assert self.at is self.root, f"<{self.at.tag}> is not closed"

    def handle_starttag(self, tag, attributes):
        node = Node(tag, dict(attributes), self.at)
        self.at.children.append(node)
        if tag not in VOID:
            self.at = node

    def handle_startendtag(self, tag, attributes):
        self.at.children.append(Node(tag, dict(attributes), self.at))

    def handle_endtag(self, tag):
        assert self.at.tag == tag, f"</{tag}> inside <{self.at.tag}>"
        self.at = self.at.parent

    def handle_data(self, data):
        self.at.children.append(data)


def read(path):
    return Tree(Path(path).read_text(encoding="utf-8")).root


def evaluation_of(run):
    return Evaluation.from_json(json.loads((run / "evaluation.json").read_text()))


def rows_of(table):
    """Header cell and the data cells of each body row."""
    for body in table.all("tbody"):
        for row in body.all("tr"):
            yield row.one("th").text, list(row.all("td"))


def figures(cell):
    """Estimate and bounds that a table cell carries, as stored."""
    return [float(data.attributes["value"]) for data in cell.all("data")]


def browse(path):
    """Open a page in Chromium 320 px wide: errors, requests, its width, whether pictures show."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"{CHROMIUM} is not there")
    errors, requests = [], []
    quiet = [
        "--no-sandbox",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
    ]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=quiet)
        try:
            view = browser.new_page(viewport={"width": 320, "height": 700})
            view.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
            view.on("pageerror", lambda error: errors.append(str(error)))
            view.on("request", lambda request: requests.append(request.url))
            view.goto(path.as_uri())
            width = view.evaluate("document.documentElement.scrollWidth")
            shown = view.evaluate("[...document.images].every(i => i.naturalWidth > 0)")
        finally:
            browser.close()
    return errors, [url for url in requests if not url.startswith("data:")], width, shown
