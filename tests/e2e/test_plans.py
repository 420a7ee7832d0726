"""The example of plans over HTTP: a Node server whose requests park, and wait in place."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from support.gateway import Gateway
from support.places import REPOSITORY
from support.program import Program, until
from test_upstreams import UnixConnection

SERVER = REPOSITORY / "examples" / "plans" / "server.js"
SECRET = "0123456789abcdef0123456789abcdef"
TOGETHER = 20


class Prices(BaseHTTPRequestHandler):
    """Answers when all who ask side by side are there."""

    everybody = threading.Barrier(TOGETHER)

    def do_GET(self) -> None:
        self.everybody.wait(30)
        body = b"12"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silence."""


class Busy(ThreadingHTTPServer):
    request_queue_size = 2 * TOGETHER
    daemon_threads = True


@pytest.fixture
def prices() -> Iterator[str]:
    with Busy(("127.0.0.1", 0), Prices) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/price"
        server.shutdown()
        thread.join()


def validator(name: str) -> Draft202012Validator:
    schema = json.loads((REPOSITORY / "docs" / "plan.schema.json").read_text())
    return Draft202012Validator({**schema, "oneOf": [{"$ref": f"#/$defs/{name}"}]})


def test_requests_park_at_a_server_of_another_language(prices: str, root: Path) -> None:
    folder = root / "plans"
    folder.mkdir()
    app_socket, plans = folder / "app.sock", folder / "plans.sock"
    environment = {"PATH": os.environ["PATH"], "LAYBY_PLANS_SECRET": SECRET}
    with ExitStack() as running:
        app = Program(
            "the server",
            ["node", SERVER, app_socket, plans, prices],
            environment=environment,
            directory=folder,
            log=folder / "app.log",
        )
        running.callback(app.end)
        app.wait_for("listening")
        gateway = Gateway(
            upstream=f"unix:{app_socket}",
            folder=folder,
            environment=environment,
            configuration=f'[workers]\nplans = true\n[plans]\nlisten = "unix:{plans}"\n'
            '[outbound]\nallow = ["127.0.0.1"]\n',
            flags=("--slots=1",),
        )
        running.callback(gateway.end)
        gateway.wait_ready()

        def ask(method: str, target: str) -> tuple[int, str]:
            connection = HTTPConnection(*gateway.address, timeout=30)
            connection.request(method, target)
            answer = connection.getresponse()
            text = answer.read().decode()
            connection.close()
            return answer.status, text

        # None of them has an answer before all have parked, on one slot.
        with ThreadPoolExecutor(TOGETHER) as pool:
            answers = pool.map(lambda n: ask("POST", f"/?item={n}"), range(TOGETHER))
            expected = [(200, f"{n} costs 12\n") for n in range(TOGETHER)]
            assert list(answers) == expected
        Prices.everybody = threading.Barrier(1)
        assert ask("GET", "/wait?item=7") == (200, "7 costs 12\n")
        assert ask("HEAD", "/?item=7") == (200, "")
        assert ask("POST", "/.layby/price")[0] == 404

        # Past the gateway, what is not signed is not believed.
        direct = UnixConnection(app_socket)
        body = json.dumps({"state": '{"item": "x"}', "results": [{"body": "0"}]})
        signed = {"Layby-Id": "a", "Layby-Expires": "99999999999", "Layby-Signature": "v1=0"}
        direct.request("POST", "/.layby/price", body, signed)
        assert direct.getresponse().status == 403
        direct.close()

        connection = UnixConnection(plans)
        plan = {"fetches": [{"url": prices}, {"url": "http://10.0.0.1/"}, {"sleep": 0.01}]}
        validator("plan").validate(plan)
        bearer = {"Authorization": f"Bearer {SECRET}"}
        connection.request("POST", "/v1/fetch", json.dumps(plan), bearer)
        results = json.loads(connection.getresponse().read())
        connection.close()
        validator("results").validate(results)
        assert [set(result) & {"body", "error", "slept"} for result in results["results"]] == [
            {"body"},
            {"error"},
            {"slept"},
        ]
        gateway.settles(1)
        assert gateway.metric("layby_park_seconds_count") == TOGETHER
        until("a line of the log", lambda: app.log, 5)
        assert not gateway.lines_with("ERROR")
