"""A Flask application that looks at who it is before it reads what is sent."""

import hashlib

from flask import Flask, abort, request

application = Flask(__name__)


@application.post("/photo")
def photo() -> object:
    if "Authorization" not in request.headers:
        abort(401)
    file = request.files["photo"]
    return {"name": file.filename, "sha256": hashlib.sha256(file.read()).hexdigest()}


@application.post("/raw")
def raw() -> object:
    return hashlib.sha256(request.get_data()).hexdigest()
