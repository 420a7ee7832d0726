"""The services that SDKs talk to, on a thread of the test: just enough of each."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


def _chunk(text: str) -> str:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return f"data: {json.dumps({**chunk, 'choices': [choice]})}\n\n"


MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "hello"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 1, "output_tokens": 1},
}
ANSWERS = {
    "/hello": ("text/plain", "hello"),
    "/openai/chat/completions": (
        "text/event-stream",
        _chunk("hel") + _chunk("lo") + "data: [DONE]\n\n",
    ),
    "/v1/messages": ("application/json", json.dumps(MESSAGE)),
    "/v1/payment_intents": (
        "application/json",
        json.dumps({"id": "pi_1", "object": "payment_intent"}),
    ),
}


class Apis:
    """Answers each of the calls that tests make, the first one to openai and anthropic by 500."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._objects: dict[str, bytes] = {}
        apis = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                path = self.path.partition("?")[0]
                apis.seen.append(f"{self.command} {path}")
                status, headers, answer = apis.answer(self.command, path, body)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = do_PUT = serve

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        retried = path in ("/openai/chat/completions", "/v1/messages")
        if retried and self.seen.count(f"{method} {path}") == 1:
            return 500, {"retry-after-ms": "1", "content-type": "application/json"}, b"{}"
        if path == "/redirect":
            return 302, {"location": "/hello"}, b""
        if path == "/echo":
            return 200, {"content-type": "text/plain"}, body
        if method == "PUT":
            self._objects[path] = body
            return 200, {"etag": '"1"'}, b""
        if path in self._objects:
            return 200, {"content-type": "text/plain"}, self._objects[path]
        content_type, text = ANSWERS[path]
        return 200, {"content-type": content_type}, text.encode()

    def __enter__(self) -> Apis:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
