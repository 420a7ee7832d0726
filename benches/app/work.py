"""A WSGI application whose every request takes 20 ms of a slot and next to nothing of a core."""

import time


def application(environ, start_response):
    time.sleep(0.02)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "6")])
    return [b"done.\n"]
