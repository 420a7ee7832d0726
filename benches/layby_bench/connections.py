"""Clients that stay: what a connection costs while it is idle, and what so many cost that are not.

Idle connections are made here, one after the other; each has asked once, over HTTP/1, over TLS, or
over HTTP/2. The crowd that never pauses is the load generator's.
"""

from __future__ import annotations

import functools
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

from layby_bench import machine, proxies
from layby_bench.bench import Bench
from layby_bench.load import Load, Measured, Upstream, put
from layby_bench.processes import Failed
from layby_bench.report import Column, Row, Table
from layby_bench.servers import Kind, Server

IDLE = 5000
ROUNDS = 3
# Until all have given back what only a request needed.
SETTLES = 4.0

IDLE_COLUMNS = [
    Column("kib", "KiB each", ".1f"),
    Column("before_mib", "MiB before", ".0f"),
    Column("with_mib", "MiB with them", ".0f"),
]
BUSY_COLUMNS = [
    Column("us", "CPU µs, lowest", ".1f"),
    Column("median_us", "median", ".1f"),
    Column("rate", "requests/s", ",.0f"),
    Column("p50_ms", "p50 ms", ".0f"),
    Column("p99_ms", "p99 ms", ".0f"),
    Column("with_mib", "MiB with them", ".0f"),
    Column("load", "load generator", ".0%"),
    Column("origin", "server", ".0%"),
]

Connect = Callable[[int], socket.socket]


def idle(bench: Bench) -> Table:
    count = 1000 if bench.quick else IDLE
    table = Table(
        "idle",
        "Idle connections",
        f"Growth of resident memory for each of {count} clients that have asked once and keep their"
        f" connection, {SETTLES:g} s later. nginx takes memory for all connections that it may ever"
        " have when it starts, which is in the figure before.",
        IDLE_COLUMNS,
    )
    certificate = _certificate(bench.directory)
    ways: list[tuple[str, Callable[[Path], list[Kind]], Connect]] = [
        ("HTTP/1", _plain, _http1),
        ("HTTP/1 over TLS", lambda upstream: _secure(upstream, certificate), _http1_tls),
        ("HTTP/2 over TLS", lambda upstream: _secure(upstream, certificate), _http2_tls),
    ]
    with _upstream(bench) as upstream:
        for name, kinds, connect in ways:
            for kind in kinds(upstream.socket):
                bench.say(f"{count} idle connections, {kind.name}, {name}")
                table.add(_grown(bench, f"{kind.name}, {name}", kind, connect, count))
    return table


def busy(bench: Bench) -> Table:
    count = proxies.most_clients()
    table = Table(
        "connections",
        "Many connections",
        f"{count} clients that keep their connections and never pause, in front of the proxies of"
        " the table before, set up as there; answers of 1 KiB. CPU is per request, lowest and"
        " median of alternating rounds; the rest is from the lowest. Memory is resident, after the"
        " last round. Load generator and server: share of the one core that each can use.",
        BUSY_COLUMNS,
    )
    ours, others = machine.halves()
    rounds = 2 if bench.quick else ROUNDS
    load = Load("/1024", count, ramp=2, warm_up=4, measured=3 if bench.quick else 5, cores=others)
    bench.say(f"{count} connections, {rounds} rounds")
    with _upstream(bench, others) as upstream, ExitStack() as running:
        servers = [
            running.enter_context(bench.start(kind)) for kind in _plain(upstream.socket, ours)
        ]
        seen: list[list[Measured]] = [[] for _ in servers]
        for _ in range(rounds):
            for server, measured in zip(servers, seen, strict=True):
                measured.append(put(server, load, upstream, bench.directory))
        for server, measured in zip(servers, seen, strict=True):
            low = min(measured, key=Measured.us)
            values = {
                "us": low.us(),
                "median_us": median(map(Measured.us, measured)),
                "rate": low.rate,
                "p50_ms": low.p50_ms,
                "p99_ms": low.p99_ms,
                "with_mib": _resident(server) / 2**20,
                "load": low.load_busy,
                "origin": low.origin_busy,
            }
            wrong = sorted({each.wrong() for each in measured} - {""})
            is_peer = server.kind.name != "layby"
            table.add(Row(server.kind.name, values, ", ".join(wrong), peer=is_peer))
    return table


def _plain(upstream: Path, cores: frozenset[int] | None = None) -> list[Kind]:
    makers = (proxies.layby, proxies.nginx, proxies.haproxy)
    return [make(upstream, cores=cores) for make in makers]


def _secure(upstream: Path, certificate: Path) -> list[Kind]:
    """All of them with TLS on their port, and HTTP/2 for those who ask."""
    pem = f"{certificate}"
    tls = f'[tls]\nlisten = ["127.0.0.1:{{port}}"]\ncert = ["{pem}"]\nkey = ["{pem}"]'
    keys = f"ssl_certificate {pem}; ssl_certificate_key {pem};"
    kinds = [
        proxies.layby(upstream, listen="", more=tls),
        proxies.nginx(upstream, listen="ssl http2", more=keys),
        proxies.haproxy(upstream, listen=f"ssl crt {pem} alpn h2,http/1.1"),
    ]
    return [replace(kind, scheme="https") for kind in kinds]


@contextmanager
def _upstream(bench: Bench, cores: frozenset[int] | None = None) -> Iterator[Upstream]:
    upstream = Upstream.start(bench.directory, cores)
    with upstream.process:
        yield upstream


def _grown(bench: Bench, name: str, kind: Kind, connect: Connect, count: int) -> Row:
    with bench.start(kind) as server, ExitStack() as connections:
        # What it takes for the first of them is not taken for each.
        for _ in range(100):
            connect(server.port).close()
        time.sleep(1)
        before = _resident(server)
        for _ in range(count):
            connections.enter_context(connect(server.port))
        time.sleep(SETTLES)
        after = _resident(server)
    values = {
        "kib": (after - before) / 1024 / count,
        "before_mib": before / 2**20,
        "with_mib": after / 2**20,
    }
    return Row(name, values, peer=kind.name != "layby")


def _resident(server: Server) -> int:
    return machine.resident_bytes([*server.gateway, *server.workers])


def _certificate(directory: Path) -> Path:
    """A key and a certificate in one file."""
    pem = directory / "proxy.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", f"{pem}", "-out", f"{pem}.crt"]
    subprocess.run(command, check=True, capture_output=True)
    with pem.open("a") as file:
        file.write(Path(f"{pem}.crt").read_text())
    return pem


# Clients ----------------------------------------------------------------------------------------


def _http1(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    _ask_http1(connection)
    return connection


def _http1_tls(port: int) -> socket.socket:
    connection = _tls(port, "http/1.1")
    _ask_http1(connection)
    return connection


def _http2_tls(port: int) -> socket.socket:
    connection = _tls(port, "h2")
    _ask_http2(connection)
    return connection


def _tls(port: int, protocol: str) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection = _context(protocol).wrap_socket(plain, server_hostname="localhost")
    if connection.selected_alpn_protocol() != protocol:
        raise Failed(f"{protocol} is not spoken")
    return connection


@functools.cache
def _context(protocol: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([protocol])
    return context


def _ask_http1(connection: socket.socket) -> None:
    connection.sendall(b"GET /1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answer = b""
    while not answer.endswith(b"\r\n\r\nx"):
        answer += _received(connection)


# Of a frame: its type, and flags.
_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
# By HPACK's static table: GET, https; a path and a name as they are.
_REQUEST = b"\x82\x87\x04\x02/1\x41\x09localhost"


def _ask_http2(connection: socket.socket) -> None:
    connection.sendall(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + _frame(_SETTINGS, 0, 0)
        + _frame(_HEADERS, _END_STREAM | _END_HEADERS, 1, _REQUEST)
    )
    received = b""
    while True:
        while len(received) >= 9:
            length = int.from_bytes(received[:3])
            if len(received) < 9 + length:
                break
            kind, flags = received[3:5]
            received = received[9 + length :]
            if kind == _SETTINGS and not flags & _ACK:
                connection.sendall(_frame(_SETTINGS, _ACK, 0))
            if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
                return
        received += _received(connection)


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def _received(connection: socket.socket) -> bytes:
    received = connection.recv(4096)
    if not received:
        raise Failed("a proxy closed a connection instead of answering")
    return received
