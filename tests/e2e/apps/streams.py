"""A Flask application that passes on what an origin streams."""

import layby
from flask import Flask, g, jsonify, request

application = Flask(__name__)
ended: list[list[object]] = []


@application.get("/stream")
def stream() -> object:
    g.user = request.headers["User"]

    def note(captured: layby.Captured) -> None:
        ended.append([captured.status, captured.body.decode(), captured.ended, g.user])

    answer = layby.stream(layby.get(request.args["url"]), on_done=note)
    answer.set_cookie("seen", "1")
    return answer


@application.get("/ended")
def how_they_ended() -> object:
    return jsonify(ended)
