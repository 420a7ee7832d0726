"""The site (`make docs`): built without a warning, whole, and it asks nobody else for anything."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from documents import REPOSITORY, prose

DOCS = REPOSITORY / "docs"


def built(site: Path, configuration: Path = REPOSITORY / "mkdocs.yml") -> tuple[int, str]:
    build = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "-f", configuration, "-d", site],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return build.returncode, build.stderr


class Seen(HTMLParser):
    """What a page loads by itself, and the points of the lists in its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.points = 0
        self.in_article = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "article":
            self.in_article = True
        self.points += tag == "li" and self.in_article
        where = given.get("src") or (given.get("href") if tag == "link" else None)
        # A canonical address is only said, not asked.
        if where and given.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(where)

    def handle_endtag(self, tag: str) -> None:
        if tag == "article":
            self.in_article = False


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "site"
    status, said = built(folder)
    assert status == 0, said
    return folder


def page_of(document: Path, site: Path) -> Path:
    place = document.relative_to(DOCS)
    name = "index.html" if place.name == "README.md" else f"{place.stem}.html"
    return site / place.parent / name


@pytest.mark.parametrize(
    ("what", "fault"),
    [
        ("link", "See [that](nowhere.md)."),
        ("anchor", "See [that](metrics.md#nowhere)."),
    ],
)
def test_a_broken_link_fails_the_build(what: str, fault: str, tmp_path: Path) -> None:
    for name in ("docs", "dashboards", "deploy", "scripts"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    for file in [*REPOSITORY.glob("*.md"), REPOSITORY / "mkdocs.yml"]:
        shutil.copy(file, tmp_path)
    with (tmp_path / "docs" / "limits.md").open("a") as page:
        page.write(f"\n{fault}\n")
    status, said = built(tmp_path / "site", tmp_path / "mkdocs.yml")
    assert status == 1
    assert "nowhere" in said, what


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        text = page.read_text()
        loaded = Seen(text).loaded
        assert loaded
        assert [each for each in loaded if re.match(r"(https?:)?//", each)] == [], page
        # The theme would get a library for diagrams, and stars of a repository.
        assert not re.search(r'class="mermaid"|data-md-component="source"', text), page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )['\"]?(https?:)?//", sheet.read_text()), sheet


@pytest.mark.parametrize(
    "document", sorted(DOCS.rglob("*.md")), ids=lambda path: str(path.relative_to(DOCS))
)
def test_a_page_has_the_lists_of_its_document(document: Path, site: Path) -> None:
    """Dialects of Markdown differ in where a list begins."""
    written = re.findall(r"^ *(?:[-*]|\d\d?\.) ", prose(document), re.MULTILINE)
    assert Seen(page_of(document, site).read_text()).points == len(written)


def test_the_search_finds_what_is_only_in_a_page_from_outside_docs(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text())
    places = {entry["location"].partition("#")[0] for entry in index["docs"]}
    assert {"project/security.html", "metrics.html", "runbooks/queue.html"} <= places


def test_every_decision_is_in_their_list() -> None:
    listed = (DOCS / "adr" / "README.md").read_text()
    decisions = [path.name for path in (DOCS / "adr").glob("[0-9]*.md")]
    assert [name for name in decisions if f"]({name})" not in listed] == []
