"""What building the site adds to MkDocs: documents that lie outside docs/, and links to them.

MkDocs knows one folder. The repository has documents beside it, where people and their tools look
for them (ARCHITECTURE.md, SECURITY.md, …), and links lead there from everywhere. Here they become
pages, and the files of the dashboards can be had from the site. A link to any other file of the
repository becomes plain words, since the site has no such page.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parent.parent
# By their place in the site.
ADDED = {
    "deploy.md": REPOSITORY / "deploy" / "README.md",
    "project/architecture.md": REPOSITORY / "ARCHITECTURE.md",
    "project/contributing.md": REPOSITORY / "CONTRIBUTING.md",
    "project/security.md": REPOSITORY / "SECURITY.md",
    "project/changelog.md": REPOSITORY / "CHANGELOG.md",
}
ADDED |= {
    f"dashboards/{path.name}": path
    for path in (REPOSITORY / "dashboards").iterdir()
    if path.suffix in {".json", ".yml"}
}

_FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for place, path in ADDED.items():
        files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    source = Path(str(page.file.abs_src_path)).resolve()
    places = {Path(str(file.abs_src_path)).resolve(): file.src_uri for file in files}

    def linked(match: re.Match[str]) -> str:
        words, link = match.groups()
        path, hash_, anchor = link.partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return match[0]
        target = (source.parent / path).resolve()
        if target.is_dir():
            target /= "README.md"
        if target in places:
            here = os.path.relpath(places[target], Path(page.file.src_uri).parent)
            return f"[{words}]({here}{hash_}{anchor})"
        if target.exists() and REPOSITORY in target.parents:
            return words
        # It leads nowhere: MkDocs says so.
        return match[0]

    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [_LINK.sub(linked, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _LINK.sub(linked, markdown[end:])])
