"""A Flask application whose views ask two services side by side, or one after the answer."""

import layby
from flask import Flask, Response, jsonify, request

application = Flask(__name__)


@application.post("/both")
def both() -> object:
    urls = request.get_json()["urls"]
    answers = layby.gather(*(layby.get(url) for url in urls)).result()
    return jsonify([answer.json() for answer in answers])


@application.post("/after")
def after() -> Response:
    """The answer is whole before the service is asked."""
    url = request.get_json()["url"]
    response = Response("answered")
    response.call_on_close(lambda: layby.get(url).result())
    return response
