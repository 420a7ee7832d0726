"""What the shop makes of its environment."""

from __future__ import annotations

import json
import os
import tempfile
from io import StringIO
from pathlib import Path
from unittest import mock

from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.test import SimpleTestCase

from shop import environment

from .base import ShopTest


class DatabaseUrlTest(SimpleTestCase):
    def test_every_part_is_percent_decoded(self) -> None:
        made = environment.from_url("postgres://a%40b:p%2Fw%25@db.example:6543/my%20shop")
        self.assertEqual(
            [made[key] for key in ("USER", "PASSWORD", "HOST", "PORT", "NAME")],
            ["a@b", "p/w%", "db.example", "6543", "my shop"],
        )

    def test_a_unix_socket_keeps_its_case_both_ways(self) -> None:
        for url in ("postgres://u@%2Ftmp%2FPg/shop", "postgresql://u@/shop?host=/tmp/Pg"):
            self.assertEqual(environment.from_url(url)["HOST"], "/tmp/Pg")

    def test_options_go_to_the_driver(self) -> None:
        made = environment.from_url("postgres://[::1]/shop?sslmode=require&host=&port=5433")
        self.assertEqual(made["OPTIONS"], {"sslmode": "require"})
        self.assertEqual((made["HOST"], made["PORT"]), ("::1", "5433"))

    def test_sqlite_by_path(self) -> None:
        made = environment.from_url("sqlite:////tmp/a%20b.sqlite3")
        self.assertEqual(made["NAME"], Path("/tmp/a b.sqlite3"))
        self.assertEqual(made["OPTIONS"]["transaction_mode"], "IMMEDIATE")

    def test_a_wrong_url_is_refused_without_its_password(self) -> None:
        for url in ("mysql://u:hush@h/n", "postgres://u:hush@h", "postgres://u:hush@h:port/n"):
            with self.subTest(url=url), self.assertRaises(ImproperlyConfigured) as raised:
                environment.from_url(url)
            self.assertNotIn("hush", str(raised.exception))


class DataTest(SimpleTestCase):
    def test_the_key_is_made_once_for_a_directory(self) -> None:
        with tempfile.TemporaryDirectory() as name, mock.patch.dict(os.environ):
            os.environ.pop("SHOP_SECRET_KEY", None)
            key = environment.secret_key(Path(name))
            self.assertEqual(environment.secret_key(Path(name)), key)
            self.assertEqual([path.name for path in Path(name).iterdir()], ["secret_key"])
            self.assertEqual(Path(name, "secret_key").stat().st_mode & 0o777, 0o600)
            os.environ["SHOP_SECRET_KEY"] = "given"
            self.assertEqual(environment.secret_key(Path(name)), "given")


class CommandsTest(ShopTest):
    def test_seeding_again_adds_nothing(self) -> None:
        before = StringIO()
        call_command("seed", "--no-migrate", stdout=before)
        self.assertEqual(before.getvalue(), "seeded: 12 products, 41 accounts\n")

    def test_the_ledger_command_tells_what_became_of_each_checkout(self) -> None:
        self.log_in("user03")
        self.buy(reference="a-1")
        self.buy(reference="b-1")
        out = StringIO()
        call_command("ledger", "--prefix", "a-", stdout=out)
        found = json.loads(out.getvalue())
        self.assertEqual(list(found), ["a-1"])
        self.assertEqual((found["a-1"]["started"], found["a-1"]["finished"]), (1, 1))
        [order] = found["a-1"]["orders"]
        self.assertEqual((order["status"], order["user"]), ("paid", "user03"))
