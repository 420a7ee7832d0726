"""As the developers of the project would write them; run by pytest, without a gateway."""

import os

import django
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "small.settings")
django.setup()

from django.test import Client  # noqa: E402

URL = os.environ["STUB"]


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.mark.parametrize("path", ["in_place", "relayed"])
def test_a_fetch(client: Client, path: str) -> None:
    response = client.get(f"/{path}", {"url": URL})
    body = b"".join(response) if response.streaming else response.content
    assert body.strip() == b'{"ok": true}'


def test_every_recipe(client: Client) -> None:
    seen = client.get("/recipes", {"url": URL}).json()["seen"]
    assert seen == [{"ok": True}, {"ok": True}, {"ok": True}, 4, ["a", "b"]]


def test_an_upload(client: Client) -> None:
    photo = SimpleUploadedFile("p.png", b"123")
    assert client.post("/upload", {"photo": photo}).content == b"p.png 3"
