"""Reverse proxies in front of one server on a Unix socket, each as its own documentation says to
run it, and each with one thread for the requests.

nginx keeps as many connections to the server as it has requests; haproxy and layby have few, and
let requests wait for one: with haproxy that is the cheaper way too. None keeps a log.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

from layby_bench.servers import GATEWAY, Kind

# Connections to the server.
CONNECTIONS = 16
MOST_CLIENTS = 10_000
PROBE = "/1"


def most_clients() -> int:
    """As many as every proxy can have; nginx and haproxy want two descriptors for each."""
    return min(MOST_CLIENTS, (_descriptors() - 1000) // 2)


def _descriptors() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def layby(
    upstream: Path,
    *,
    cores: frozenset[int] | None = None,
    listen: str = '"127.0.0.1:{port}"',
    more: str = "",
) -> Kind:
    """`listen`: its listeners without TLS; `more`: of its configuration."""
    command = [str(GATEWAY), "serve", "--upstream", f"unix:{upstream}", "--config", "{config}"]
    config = f"""\
listen = [{listen}]
admin = "127.0.0.1:{{admin}}"
idle_timeout = "1h"
{more}
[slots]
count = {CONNECTIONS}
queue = {MOST_CLIENTS}
queue_timeout = "1m"
"""
    return Kind("layby", command, probe=PROBE, config=config, cores=cores)


def nginx(
    upstream: Path, *, cores: frozenset[int] | None = None, listen: str = "", more: str = ""
) -> Kind:
    """`listen`: what is said of the listener; `more`: of the server."""
    command = ["nginx", "-p", "{directory}", "-c", "{config}"]
    # Its worker must reach the socket, and as root would become somebody else.
    user = "user root;" if os.geteuid() == 0 else ""
    temporary = "".join(
        f"{name}_temp_path {{directory}}/nginx;\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = f"""\
{user}
daemon off;
worker_processes 1;
pid {{directory}}/nginx-{{port}}.pid;
error_log stderr warn;
events {{ worker_connections {_descriptors()}; }}
http {{
    access_log off;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    {temporary}
    upstream server {{
        server unix:{upstream};
        keepalive 1024;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{{port}} backlog=4096 {listen};
        {more}
        location / {{
            proxy_pass http://server;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
        }}
    }}
}}
"""
    return Kind("nginx", command, probe=PROBE, config=config, cores=cores)


def haproxy(upstream: Path, *, cores: frozenset[int] | None = None, listen: str = "") -> Kind:
    command = ["haproxy", "-db", "-f", "{config}"]
    config = f"""\
global
    nbthread 1
    maxconn {most_clients() + 100}
defaults
    mode http
    timeout client 1h
    timeout http-keep-alive 1h
    timeout connect 5s
    timeout server 1m
    timeout queue 1m
frontend clients
    bind 127.0.0.1:{{port}} backlog 4096 {listen}
    option forwardfor
    http-request set-header X-Forwarded-Proto %[ssl_fc,iif(https,http)]
    default_backend servers
backend servers
    http-reuse always
    server server unix@{upstream} maxconn {CONNECTIONS}
"""
    return Kind("haproxy", command, probe=PROBE, config=config, cores=cores)
