"""Applications for the tests of the worker process."""

import multiprocessing
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


forking = multiprocessing.get_context("fork")
kept = []


def ask(url, sender):
    sender.send_bytes(layby.get(url).result().content)


def wait_for_the_end(receiver, sender):
    sender.close()
    receiver.poll(None)


def child_asks(url):
    receiver, sender = forking.Pipe(duplex=False)
    child = forking.Process(target=ask, args=(url, sender))
    child.start()
    sender.close()
    answer = receiver.recv_bytes()
    child.join()
    return answer


def child_stays():
    ends = forking.Pipe(duplex=False)
    forking.Process(target=wait_for_the_end, args=ends, daemon=True).start()
    # Until this process ends.
    kept.append(ends)


def end_a_child():
    child = forking.Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    child.join(10)
    return b"%d" % child.exitcode


def take_descriptors():
    try:
        while True:
            kept.append(os.dup(0))
    except OSError:
        pass


def application(environ, start_response):
    body = b"hello"
    match environ["PATH_INFO"]:
        case "/pool":
            with forking.Pool(2) as pool:
                body = b"%d" % sum(pool.map(abs, [-1, -2]))
        case "/child-asks":
            body = child_asks(environ["QUERY_STRING"])
        case "/child-stays":
            child_stays()
        case "/end-a-child":
            body = end_a_child()
        case "/take-descriptors":
            take_descriptors()
        case "/prints":
            print("from the application", flush=True)
        case "/stuck":
            time.sleep(60)
        case "/held":
            held()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body]


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
