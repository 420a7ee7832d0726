"""The stub of the third parties: what it counts, how it fails, what it refuses to parse."""

from __future__ import annotations

import json
import socket
import time
import unittest
from typing import ClassVar

from services.running import RunningStub


def request(method: str, target: str, body: bytes = b"", *more: str) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "host: stub", f"content-length: {len(body)}", *more]
    return "\r\n".join([*lines, "", ""]).encode() + body


class StubTest(unittest.TestCase):
    stub: ClassVar[RunningStub]

    @classmethod
    def setUpClass(cls) -> None:
        cls.stub = RunningStub()
        cls.addClassCleanup(cls.stub.close)

    def setUp(self) -> None:
        self.stub.reset()

    def connect(self) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.stub.port), timeout=5)
        self.addCleanup(client.close)
        return client

    def until_close(self, sent: bytes) -> bytes:
        client = self.connect()
        client.sendall(sent)
        seen = b""
        while data := client.recv(65536):
            seen += data
        return seen

    def once(self, method: str, target: str, body: bytes = b"", *more: str) -> tuple[int, bytes]:
        seen = self.until_close(request(method, target, body, "connection: close", *more))
        head, _, rest = seen.partition(b"\r\n\r\n")
        return int(head.split(b" ")[1]), rest

    def test_a_charge_is_counted_once_for_every_request(self) -> None:
        body = b'{"reference": "r1", "amount": 1250}'
        status, answer = self.once("POST", "/payment/charge", body)
        self.assertEqual((status, json.loads(answer)["amount"]), (200, 1250))
        self.once("POST", "/payment/charge", body)
        self.assertEqual(self.stub.charges(), {"r1": 2})

    def test_a_declined_charge_is_not_in_the_ledger(self) -> None:
        status, _ = self.once("POST", "/payment/charge?status=402", b'{"reference": "r1"}')
        self.assertEqual(status, 402)
        self.assertEqual(self.stub.charges(), {})

    def test_a_charge_whose_answer_is_lost_is_in_the_ledger(self) -> None:
        with self.assertRaises(ConnectionResetError):
            self.once("POST", "/payment/charge?fault=reset", b'{"reference": "r1"}')
        self.assertEqual(self.stub.charges(), {"r1": 1})

    def test_query_beats_header_beats_service_beats_everybody(self) -> None:
        self.stub.set(status=503, fraud={"status": 500})
        self.assertEqual(self.once("GET", "/")[0], 503)
        self.assertEqual(self.once("POST", "/fraud/check", b"{}")[0], 500)
        self.assertEqual(self.once("POST", "/fraud/check", b"{}", "Stub-Status: 418")[0], 418)
        query = self.once("POST", "/fraud/check?status=409", b"{}", "Stub-Status: 418")
        self.assertEqual(query[0], 409)

    def test_latency_is_waited_side_by_side(self) -> None:
        clients = [self.connect() for _ in range(50)]
        began = time.monotonic()
        for client in clients:
            client.sendall(request("GET", "/?latency=300"))
        for client in clients:
            self.assertTrue(client.recv(65536).startswith(b"HTTP/1.1 200"))
        self.assertGreaterEqual(time.monotonic() - began, 0.29)
        self.assertEqual(self.stub.counts()["most_held"], 50)
        self.assertLess(time.monotonic() - began, 5)

    def test_pipelined_requests_are_answered_in_order(self) -> None:
        sent = request("GET", "/bytes/1?latency=100") + request("GET", "/bytes/2")
        seen = self.until_close(sent + request("GET", "/bytes/3", b"", "connection: close"))
        bodies = [part.partition(b"\r\n\r\n")[2] for part in seen.split(b"HTTP/1.1 200")[1:]]
        self.assertEqual(bodies, [b"x", b"xx", b"xxx"])

    def test_a_request_that_comes_byte_by_byte_is_read(self) -> None:
        client = self.connect()
        for byte in request("POST", "/echo?a=1", b"hello", "x-one: 1", "X-One: 2"):
            client.sendall(bytes([byte]))
        seen = json.loads(client.recv(65536).partition(b"\r\n\r\n")[2])
        self.assertEqual(seen["body"], "hello")
        self.assertEqual(seen["query"], {"a": "1"})
        self.assertEqual(seen["headers"]["x-one"], "1, 2")

    def test_a_chunked_body_is_joined_and_its_trailers_dropped(self) -> None:
        chunks = b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nx-late: 1\r\n\r\n"
        head = b"POST /echo HTTP/1.1\r\nhost: s\r\ntransfer-encoding: chunked\r\n\r\n"
        last = request("GET", "/", b"", "connection: close")
        seen = self.until_close(head + chunks + last)
        self.assertEqual(seen.count(b"HTTP/1.1 200"), 2)
        self.assertIn(b'"body": "abcde"', seen)

    def test_expect_continue_is_answered_before_the_body(self) -> None:
        client = self.connect()
        head, _, body = request("POST", "/echo", b"hello", "expect: 100-continue").partition(
            b"\r\n\r\n"
        )
        client.sendall(head + b"\r\n\r\n")
        self.assertEqual(client.recv(65536), b"HTTP/1.1 100 Continue\r\n\r\n")
        client.sendall(body)
        self.assertIn(b'"body": "hello"', client.recv(65536))

    def test_what_can_be_read_in_two_ways_is_refused(self) -> None:
        refused = {
            b"POST / HTTP/1.1\r\nhost: s\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n": 400,
            b"POST / HTTP/1.1\r\nhost: s\r\ncontent-length: +1\r\n\r\n": 400,
            b"POST / HTTP/1.1\r\nhost: s\r\ncontent-length: 1\r\n"
            b"transfer-encoding: chunked\r\n\r\n": 400,
            b"POST / HTTP/1.1\r\nhost: s\r\ntransfer-encoding: gzip, chunked\r\n\r\n": 501,
            b"POST / HTTP/1.1\r\nhost: s\r\ntransfer-encoding: chunked\r\n\r\n0x1\r\n": 400,
            b"GET / HTTP/1.1\r\nhost: s\r\nhost: t\r\n\r\n": 400,
            b"GET / HTTP/1.1\r\n\r\n": 400,
            b"GET / HTTP/1.1\r\nhost : s\r\n\r\n": 400,
            b"GET / HTTP/1.1\r\nhost: s\r\n folded: 1\r\n\r\n": 400,
            b"GET /a b HTTP/1.1\r\nhost: s\r\n\r\n": 400,
            b"CONNECT s:1 HTTP/1.1\r\nhost: s\r\n\r\n": 400,
            b"GET / HTTP/1.1\r\nhost: s\r\nx: " + b"y" * 70_000 + b"\r\n\r\n": 431,
            b"POST / HTTP/1.1\r\nhost: s\r\ncontent-length: 99999999999999999999999\r\n\r\n": 413,
        }
        for sent, status in refused.items():
            with self.subTest(sent=sent[:80]):
                seen = self.until_close(sent)
                self.assertTrue(seen.startswith(f"HTTP/1.1 {status} ".encode()), seen)
                self.assertEqual(seen.count(b"HTTP/1.1"), 1)

    def test_each_fault_looks_to_the_client_as_it_says(self) -> None:
        head, _, body = self.until_close(request("GET", "/bytes/10?fault=cut")).partition(
            b"\r\n\r\n"
        )
        self.assertIn(b"content-length: 10", head)
        self.assertEqual(body, b"xxxxx")

        self.assertNotIn(b"HTTP/", self.until_close(request("GET", "/?fault=garbage")))

        began = time.monotonic()
        status, body = self.once("GET", "/bytes/10?fault=drip&drip=20")
        self.assertEqual((status, body), (200, b"x" * 10))
        self.assertGreaterEqual(time.monotonic() - began, 0.17)

        client = self.connect()
        client.sendall(request("GET", "/bytes/10?fault=stall"))
        self.assertTrue(client.recv(65536).endswith(b"xxxxx"))
        client.settimeout(0.2)
        with self.assertRaises(TimeoutError):
            client.recv(1)

    def test_a_client_that_leaves_is_counted_and_lets_go(self) -> None:
        client = self.connect()
        client.sendall(request("GET", "/?latency=60000"))
        while self.stub.counts()["served"] == {}:
            time.sleep(0.01)
        client.close()
        while (counts := self.stub.counts())["left"] == 0:
            time.sleep(0.01)
        self.assertEqual(counts["held"], 0)

    def test_a_wrong_setting_is_refused_and_changes_nothing(self) -> None:
        for wrong in ({"fault": "typo"}, {"latency": "soon"}, {"shipping": {"x": 1}}, {"y": 1}):
            with self.subTest(wrong=wrong):
                status, _ = self.once("POST", "/control/settings", json.dumps(wrong).encode())
                self.assertEqual(status, 400)
        self.assertEqual(self.stub.counts()["settings"], {})
        self.assertEqual(self.once("GET", "/?status=99")[0], 400)

    def test_redirects_and_head_are_well_formed(self) -> None:
        seen = self.until_close(
            request("HEAD", "/redirect?to=/bytes/3&status=307")
            + request("HEAD", "/bytes/3", b"", "connection: close")
        )
        self.assertEqual(seen.count(b"HTTP/1.1 "), 2)
        self.assertIn(b"location: /bytes/3\r\n", seen)
        self.assertTrue(seen.endswith(b"\r\n\r\n"))


if __name__ == "__main__":
    unittest.main()
