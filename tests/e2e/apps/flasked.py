"""A Flask application whose view asks two services side by side."""

import layby
from flask import Flask, jsonify, request

application = Flask(__name__)


@application.post("/both")
def both() -> object:
    urls = request.get_json()["urls"]
    answers = layby.gather(*(layby.get(url) for url in urls)).result()
    return jsonify([answer.json() for answer in answers])
