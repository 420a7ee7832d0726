"""nginx in front: the site of deploy/nginx, with real clients over TLS; and layby without it."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployed import DEPLOY
from support.gateway import free_ports
from support.places import BINARY, environment
from support.program import Program, until

HERE = Path(__file__).parent
SITE = DEPLOY / "nginx" / "site.conf"
KEPT = "/etc/letsencrypt/live/shop.example"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as certbot makes it, for shop.example."""
    folder = tmp_path_factory.mktemp("certificate")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    files = ["-keyout", folder / "privkey.pem", "-out", folder / "fullchain.pem", "-nodes"]
    name = ["-subj", "/CN=shop.example", "-addext", "subjectAltName=DNS:shop.example,IP:127.0.0.1"]
    subprocess.run([*command, *files, *name], check=True, capture_output=True)
    return folder


def gateway(text: str, folder: Path) -> Iterator[Program]:
    """With this configuration; its application says what it sees."""
    config = folder / "layby.toml"
    config.write_text(text.replace("shop.wsgi:application", "seen:application"))
    running = Program(
        "the gateway",
        [BINARY, "run", "--config", config, "--slots=2", f"--python={sys.executable}"],
        environment=environment(),
        directory=HERE,
        log=folder / "gateway.log",
    )
    running.wait_for(" ready ", 60)
    yield running
    running.end()
    assert running.process.returncode == 0, running.tail()


class Front(Program):
    """nginx with our site and no other, on ports of its own."""

    def __init__(self, folder: Path, certificate: Path, http: int, https: int) -> None:
        site = SITE.read_text()
        for ours, here in {
            "unix:/run/layby/http.sock": f"unix:{folder / 'http.sock'}",
            KEPT: str(certificate),
            "listen 80;": f"listen 127.0.0.1:{http};",
            "listen 443 ": f"listen 127.0.0.1:{https} ",
            "listen [::]:80;": "",
            "listen [::]:443 ssl http2;": "",
        }.items():
            assert ours in site, ours
            site = site.replace(ours, here)
        (folder / "shop.conf").write_text(site)
        temporary = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        # Its workers are to reach the socket, which is in a folder of ours.
        user = "user root;" if os.geteuid() == 0 else ""
        (folder / "nginx.conf").write_text(
            f"""{user}
            daemon off;
            pid {folder}/nginx.pid;
            error_log stderr;
            events {{}}
            http {{
                access_log off;
                {"".join(f"{name}_temp_path {folder}/{name};" for name in temporary)}
                include {folder}/shop.conf;
            }}
            """
        )
        self.command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]
        subprocess.run([*self.command, "-t"], check=True)
        super().__init__(
            "nginx",
            self.command,
            environment=environment(),
            directory=folder,
            log=folder / "nginx.log",
        )


@pytest.fixture
def trusting(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate / "fullchain.pem"))


def ask(
    url: str, trusting: ssl.SSLContext, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str]]:
    """Status, and what the application has seen of the request."""
    request = urllib.request.Request(url, data=body, headers={"host": "shop.example", **headers})
    try:
        with urllib.request.urlopen(request, timeout=30, context=trusting) as answer:
            lines = answer.read().decode().splitlines()
            return answer.status, dict(line.split("=", 1) for line in lines)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {}


@pytest.fixture
def front(tmp_path: Path, certificate: Path) -> Iterator[tuple[str, str]]:
    """The addresses of a site behind nginx: for http, and for https."""
    http, https, admin = free_ports(3)
    text = (DEPLOY / "nginx" / "layby.toml").read_text()
    text = text.replace("/run/layby/http.sock", str(tmp_path / "http.sock"))
    text = text.replace("127.0.0.1:9180", f"127.0.0.1:{admin}")
    for _ in gateway('max_body = "1MiB"\n' + text, tmp_path):
        nginx = Front(tmp_path, certificate, http, https)
        try:
            until("nginx is not there", lambda: accepts(https), 10)
            yield f"http://127.0.0.1:{http}", f"https://127.0.0.1:{https}"
        finally:
            nginx.end()


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def test_nginx_tells_layby_who_the_client_is(
    front: tuple[str, str], trusting: ssl.SSLContext
) -> None:
    _, https = front
    forged = {"x-forwarded-for": "6.6.6.6", "forwarded": "for=6.6.6.6", "x-forwarded-proto": "ftp"}
    status, seen = ask(https, trusting, **forged)
    assert status == 200
    assert seen["REMOTE_ADDR"] == "127.0.0.1"
    assert seen["wsgi.url_scheme"] == "https"
    assert seen["HTTP_HOST"] == "shop.example"


def test_what_is_too_large_is_refused_by_layby_and_the_rest_goes_through(
    front: tuple[str, str], trusting: ssl.SSLContext
) -> None:
    _, https = front
    status, seen = ask(https, trusting, b"x" * 900_000)
    assert (status, seen["body"]) == (200, "900000")
    status, _ = ask(https, trusting, b"x" * 2_000_000)
    assert status == 413


def test_plain_http_is_sent_to_https(front: tuple[str, str], trusting: ssl.SSLContext) -> None:
    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: object) -> None:
            """Nowhere: the answer itself is what is asked for."""

    request = urllib.request.Request(f"{front[0]}/cart?x=1", headers={"host": "shop.example"})
    with pytest.raises(urllib.error.HTTPError) as redirect:
        urllib.request.build_opener(Stay).open(request, timeout=30)
    with redirect.value as answer:
        assert answer.code == 301
        assert answer.headers["location"] == "https://shop.example/cart?x=1"


def test_layby_faces_clients_itself(
    tmp_path: Path, certificate: Path, trusting: ssl.SSLContext
) -> None:
    http, https, admin = free_ports(3)
    text = (DEPLOY / "tls" / "layby.toml").read_text()
    for ours, here in {
        '["0.0.0.0:80", "[::]:80"]': f'["0.0.0.0:{http}", "[::]:{http}"]',
        '["0.0.0.0:443", "[::]:443"]': f'["0.0.0.0:{https}", "[::]:{https}"]',
        "127.0.0.1:9180": f"127.0.0.1:{admin}",
        KEPT: str(certificate),
        "/srv/shop/staticfiles": str(tmp_path),
    }.items():
        assert ours in text, ours
        text = text.replace(ours, here)
    (tmp_path / "site.css").write_text("body {}")
    for _ in gateway(text, tmp_path):
        status, seen = ask(f"https://127.0.0.1:{https}/", trusting)
        assert (status, seen["wsgi.url_scheme"]) == (200, "https")
        url = f"https://127.0.0.1:{https}/static/site.css"
        with urllib.request.urlopen(url, timeout=30, context=trusting) as answer:
            assert answer.read() == b"body {}"
        for host in "127.0.0.1", "[::1]":
            assert ask(f"http://{host}:{http}/", trusting)[1]["wsgi.url_scheme"] == "http"
