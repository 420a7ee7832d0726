"""A Flask application whose synchronous views park, and one that holds a lock while it waits."""

from __future__ import annotations

import gc
import json
import os
import threading
from collections.abc import Iterator

import greenlet
import layby
from flask import Flask, Response, g, jsonify, request

application = Flask(__name__)

lock = threading.Lock()
ended: list[str] = []


@application.get("/quote")
def quote() -> object:
    g.number = request.args["number"]
    answer = layby.get(request.args["url"], timeout=60).result()
    return jsonify(number=g.number, on=threading.get_ident(), text=answer.text)


@application.get("/async-quote")
async def async_quote() -> object:
    g.number = request.args["number"]
    answer = await layby.get(request.args["url"], timeout=60)
    return jsonify(number=g.number, on=threading.get_ident(), text=answer.text)


@application.get("/lines")
def lines() -> Response:
    """One line, a wait, another line, five times; says when it is closed."""
    url, number = request.args["url"], request.args["number"]

    def parts() -> Iterator[str]:
        try:
            for line in range(5):
                yield f"{number}.{line}\n"
                layby.get(url, timeout=60).result()
        finally:
            ended.append(number)

    return Response(parts())


@application.get("/ended")
def ended_ones() -> object:
    return jsonify(ended)


@application.get("/parks-with-the-lock")
def parks_with_the_lock() -> str:
    with lock:
        layby.get(request.args["url"], timeout=60).result()
    return "unlocked"


@application.get("/waits-for-the-lock")
def waits_for_the_lock() -> str:
    with lock:
        return "locked"


@application.get("/counts")
def counts() -> Response:
    gc.collect()
    alive = sum(isinstance(o, greenlet.greenlet) and not o.dead for o in gc.get_objects())
    seen = {
        "greenlets": alive,
        "threads": threading.active_count(),
        "descriptors": len(os.listdir("/proc/self/fd")),
    }
    return Response(json.dumps(seen), mimetype="application/json")
