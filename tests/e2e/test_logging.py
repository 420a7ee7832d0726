"""One id for a request: in Django's log, in the access log and in the answer."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from urllib.parse import quote

from conftest import TO_THE_STUB, Starter
from support.client import Connection
from support.services import Services
from support.story import story

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


@story(60)
async def test_a_request_is_told_by_one_id_everywhere(
    stub: Services, start: Starter, tmp_path: Path
) -> None:
    access_log = tmp_path / "access.log"
    keys = f'[access_log]\nformat = "json"\npath = "{access_log}"\n'
    gateway = start(TO_THE_STUB + keys, app="logged", flags=("--slots=2", "--processes=1"))
    assert gateway.lines_with("mode coroutine for logged:application")
    connection = await Connection.open(gateway.address)
    answer = await connection.ask(
        "GET",
        f"/told?url={quote(stub.url + '/echo', safe='')}",
        [("traceparent", f"00-{TRACE}-{PARENT}-01"), ("user-agent", "told/1")],
    )
    assert answer.status == 200, answer.body
    told = answer.json()
    (given,) = [value for name, value in answer.headers if name.lower() == "x-request-id"]
    assert told["id"] == given
    trace, parent = told["origin"]["headers"]["traceparent"].split("-")[1:3]
    assert trace == TRACE
    assert parent != PARENT
    for message in ("before", "after"):
        assert gateway.lines_with(f"app says {given} {message}")

    gateway.signal(signal.SIGTERM)
    assert gateway.wait() == 0
    (line,) = access_log.read_text().splitlines()
    entry = json.loads(line)
    assert (entry["request_id"], entry["trace_id"]) == (given, TRACE)
    assert (entry["path"], entry["status"], entry["parks"]) == ("/told", 200, 1)
    assert (entry["user_agent"], entry["sent"]) == ("told/1", len(answer.body))
    stages = ("body", "queue", "run", "park", "resume", "answer")
    spent = sum(entry.get(f"{stage}_seconds", 0) for stage in stages)
    assert abs(spent - entry["seconds"]) < 1e-5
