"""Applications for the tests of the worker process."""

import os
import re
import signal
import threading
import time

import layby

released = threading.Event()

if os.environ.get("SHOP_USES_USR2"):
    signal.signal(signal.SIGUSR2, lambda *_: None)


def held():
    """Keep the interpreter from every other thread, for minutes."""
    re.match(r"(a+)+$", "a" * 40 + "b")


def application(environ, start_response):
    match environ["PATH_INFO"]:
        case "/prints":
            print("from the application", flush=True)
        case "/stuck":
            time.sleep(60)
        case "/held":
            held()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


class Page:
    status = "200 OK"
    headers = ()
    quick_close = True

    def __init__(self, body):
        self.body = body

    def __iter__(self):
        return iter([self.body])

    def close(self):
        pass


async def parking(environ):
    slept = await layby.sleep(1)
    return Page(b"slept %.1f" % slept)


class nested:
    app = staticmethod(application)


not_callable = 42
