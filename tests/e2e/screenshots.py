"""Takes the pictures of the status page for the documents: `make screenshots`."""

from __future__ import annotations

import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

from conftest import TO_THE_STUB, Starter
from support.browser import Browser
from support.places import REPOSITORY
from support.program import until
from support.services import Services
from test_status_page import asking, load, page, running

IMAGES = REPOSITORY / "docs" / "images"
# What a document may weigh.
MOST = 150 * 1000
# Paths as they would be where an application is deployed.
DEPLOYED = """
(() => {
  for (const path of document.querySelectorAll("#stack-told .path")) {
    path.textContent = path.textContent
      .replace(/.*[/]site-packages[/]/, "/srv/shop/venv/lib/python3.11/site-packages/")
      .replace(/.*[/]python[/]src[/]/, "/srv/shop/venv/lib/python3.11/site-packages/")
      .replace(/^(?![/]srv[/]).*[/]lib[/]python3/, "/usr/lib/python3")
      .replace(/.*[/]apps[/]/, "/srv/shop/");
  }
})()
"""
CONFIGURATION = f"""
[slots]
count = 8
request_timeout = "120s"

[workers]
processes = 2

[[route]]
path = "/api"

[[route]]
path = "/lab"

{TO_THE_STUB}"""


def test_pictures(start: Starter, stub: Services, tmp_path: Path) -> None:
    IMAGES.mkdir(exist_ok=True)
    gateway = start(CONFIGURATION)
    browser = Browser(tmp_path / "chromium")

    def take(name: str) -> None:
        time.sleep(1.5)
        picture = browser.picture()
        # A few colours are all that it has; half the bytes go without them.
        file = IMAGES / f"{name}.png"
        subprocess.run(
            ["pngquant", "--force", f"--output={file}", "256", "-"], input=picture, check=True
        )
        assert file.stat().st_size < MOST, file

    with ExitStack() as stack:
        stack.callback(browser.close)
        stack.enter_context(asking(gateway, "/lab/stuck?seconds=90"))
        stack.enter_context(asking(gateway, "/lab/stuck-query?seconds=90"))
        slot = running(gateway, "/lab/stuck-query")
        for latency, clients in ((300, 8), (900, 16), (500, 12)):
            stub.set(latency=latency)
            with load(gateway, clients):
                time.sleep(10)
        stub.set(latency=600)
        stack.enter_context(load(gateway, 24))
        time.sleep(10)
        browser.size(1280, 1380)
        browser.open(page(gateway))
        for scheme, name in (("light", "status-page"), ("dark", "status-page-dark")):
            browser.scheme(scheme)
            take(name)
        browser.scheme("light")
        browser.run(f"document.querySelector('a[href=\"/slots/{slot}/stack\"]').click()")
        told = "document.getElementById('stack-told').innerText"
        until("no stack", lambda: "stuck_query" in browser.run(told), 10)
        browser.run(DEPLOYED)
        browser.size(1000, 620)
        take("status-page-stack")
        browser.run("document.getElementById('stack').close()")
        browser.size(400, 1500)
        take("status-page-narrow")
