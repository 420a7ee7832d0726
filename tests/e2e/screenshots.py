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
CONFIGURATION = f"""
[slots]
count = 8

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
            ["pngquant", "--force", f"--output={file}", "64", "-"], input=picture, check=True
        )
        assert file.stat().st_size < MOST, file

    with ExitStack() as stack:
        stack.callback(browser.close)
        for latency, seconds in ((80, 10), (400, 12), (200, 8)):
            stub.set(latency=latency)
            with load(gateway, 24):
                time.sleep(seconds)
        stub.set(latency=300)
        stack.enter_context(load(gateway, 40))
        stack.enter_context(asking(gateway, "/lab/stuck?seconds=20"))
        stack.enter_context(asking(gateway, "/lab/stuck-query?seconds=20"))
        time.sleep(10)
        slot = running(gateway, "/lab/stuck-query")
        browser.size(1280, 1380)
        browser.open(page(gateway))
        for scheme, name in (("light", "status-page"), ("dark", "status-page-dark")):
            browser.scheme(scheme)
            take(name)
        browser.scheme("light")
        browser.run(f"document.querySelector('a[href=\"/slots/{slot}/stack\"]').click()")
        told = "document.getElementById('stack-told').innerText"
        until("no stack", lambda: "stuck_query" in browser.run(told), 10)
        browser.size(1000, 620)
        take("status-page-stack")
        browser.run("document.getElementById('stack').close()")
        browser.size(400, 1500)
        take("status-page-narrow")
