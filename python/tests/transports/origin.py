"""A server on loopback whose answers a test decides, and which keeps what it was sent."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

# The test's gateway marks the requests that it makes with this header.
BY_GATEWAY = "x-by-gateway"


class Seen(NamedTuple):
    """A request as it arrived. Header names are in lower case."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def by_gateway(self) -> bool:
        return self.header(BY_GATEWAY) is not None

    def header(self, name: str) -> str | None:
        found = [value for other, value in self.headers if other == name]
        return ", ".join(found) if found else None


class Reply(NamedTuple):
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


Answer = Reply | Callable[[Seen], Reply]


class Origin:
    """Answers by path, without the query; several answers of one path in their order."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self._answers: dict[str, list[Answer]] = {}
        origin = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def serve(self) -> None:
                headers = [(name.lower(), value) for name, value in self.headers.items()]
                seen = Seen(self.command, self.path, headers, self.read_body())
                origin.seen.append(seen)
                reply = origin.reply(seen)
                self.send_response(reply.status)
                for name, value in reply.headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(reply.body)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = serve

            def read_body(self) -> bytes:
                if self.headers.get("transfer-encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("content-length") or 0))
                body = b""
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                while self.rfile.readline().strip():
                    pass  # trailers
                return body

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def on(self, path: str, *answers: Answer) -> None:
        """Answer `path` with these, one after the other; the last one goes on."""
        self._answers[path] = list(answers)

    def reply(self, seen: Seen) -> Reply:
        answers = self._answers.get(seen.target.partition("?")[0], [Reply(404)])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return answer if isinstance(answer, Reply) else answer(seen)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def json_reply(body: bytes, status: int = 200, *more: tuple[str, str]) -> Reply:
    return Reply(status, (("Content-Type", "application/json"), *more), body)
