"""once.py: a proof is worth what it notices, so each check is shown something wrong."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import unittest
from pathlib import Path
from typing import Any

from django.middleware import csrf

import once

TARGET = once.Target("http://shop", "http://admin", "http://services", os.getpid(), 8, "")
SECRET = "abcdefghijklmnopqrstuvwxyzABCDEF"


def fresh_report() -> once.Report:
    return once.Report(TARGET, checkouts=1, latency=1.0, prefix="once-")


class HonestShop(once.Browser):
    """Answers a checkout as the shop does; `lies` are laid over the answer."""

    def __init__(self, lies: dict[str, Any], status: int = 200) -> None:
        super().__init__("http://127.0.0.1:1", language="de")
        self.cookies["csrftoken"] = SECRET
        self.lies = lies
        self.status = status

    def post_json(self, path: str, value: Any) -> tuple[int, str]:
        answer = {
            "reference": value["reference"],
            "token": value["token"],
            "user": "user01",
            "language": "de",
            "status": "paid",
            "total": "37.90",
            "messages": ["Danke, User01! Es ist bezahlt."],
            "csrf": "a" * 32 + SECRET,  # the mask of nothing but first letters shifts by nothing
            "began_on": "1:1",
            "on": "1:2",
        }
        return self.status, json.dumps(answer | self.lies)


class BuyTest(unittest.TestCase):
    def test_an_honest_answer_is_accepted(self) -> None:
        report = fresh_report()
        once.buy(report, 0, HonestShop({}))
        self.assertEqual(report.wrong, [])
        self.assertEqual(report.moved, 1)
        self.assertEqual(report.buyers, {"once-0": "user01"})

    def test_whatever_belongs_to_another_request_is_noticed(self) -> None:
        lies: list[dict[str, Any]] = [
            {"reference": "once-1"},
            {"token": "another"},
            {"user": "user02"},
            {"user": None},
            {"language": "en"},
            {"status": "review"},
            {"total": "24.90"},
            {"messages": []},
            {"messages": ["Danke, User02! Es ist bezahlt."]},
            {"csrf": "a" * 32 + SECRET[::-1]},
        ]
        for lie in lies:
            with self.subTest(lie=lie):
                report = fresh_report()
                once.buy(report, 0, HonestShop(lie))
                self.assertEqual(len(report.wrong), 1, report.wrong)

    def test_another_status_is_noticed(self) -> None:
        report = fresh_report()
        once.buy(report, 0, HonestShop({}, status=503))
        self.assertEqual(len(report.wrong), 1)

    def test_a_masked_token_gives_back_its_secret(self) -> None:
        masked = csrf._mask_cipher_secret(SECRET)
        self.assertNotIn(SECRET, masked)
        self.assertEqual(once.unmask(masked), SECRET)


class AuditTest(unittest.TestCase):
    def report(self) -> once.Report:
        report = fresh_report()
        report.buyers = {"once-0": "user01"}
        report.charges = {"once-0": 1, "someone-else": 2}
        return report

    def ledger(self, **changes: Any) -> dict[str, Any]:
        orders = [{"user": "user01", "status": "paid"}]
        return {"once-0": {"started": 1, "finished": 1, "orders": orders} | changes}

    def test_books_that_agree_are_accepted(self) -> None:
        report = self.report()
        once.audit(report, self.ledger())
        self.assertEqual(report.wrong, [])

    def test_books_that_do_not_agree_are_noticed(self) -> None:
        order = {"user": "user01", "status": "paid"}
        ledgers: list[dict[str, Any]] = [
            {},
            self.ledger(started=2),
            self.ledger(finished=0),
            self.ledger(orders=[order, order]),
            self.ledger(orders=[order | {"user": "user02"}]),
            self.ledger(orders=[order | {"status": "open"}]),
            self.ledger() | {"once-9": self.ledger()["once-0"]},
        ]
        for ledger in ledgers:
            with self.subTest(ledger=ledger):
                report = self.report()
                once.audit(report, ledger)
                self.assertNotEqual(report.wrong, [])

    def test_charging_twice_or_never_is_noticed(self) -> None:
        for charges in ({"once-0": 2}, {}, {"once-0": 1, "once-1": 1}):
            with self.subTest(charges=charges):
                report = self.report()
                report.charges = charges
                once.audit(report, self.ledger())
                self.assertNotEqual(report.wrong, [])


class CountingTest(unittest.TestCase):
    @unittest.skipUnless(Path("/proc/self").exists(), "needs /proc")
    def test_open_files_of_all_descendants_are_counted(self) -> None:
        with tempfile.NamedTemporaryFile() as file:
            script = f"exec 3<{file.name}; sh -c 'exec 4<{file.name}; echo; read x'"
            child = subprocess.Popen(
                ["sh", "-c", f"{script}; exit 0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            with child:
                assert child.stdout is not None
                child.stdout.readline()
                processes = once.descendants(child.pid)
                self.assertEqual(len(processes), 2)
                # The inner shell has inherited 3 and opened 4.
                self.assertEqual(once.open_files(file.name, processes), 3)
                self.assertIn(child.pid, once.descendants(os.getpid()))
                child.communicate(b"\n")

    def test_metrics_are_read_with_their_labels(self) -> None:
        text = '# HELP layby_slots x\nlayby_slots{state="idle"} 8\nlayby_parked_requests 0\n'
        wanted = {'layby_slots{state="idle"}': 8.0, "layby_parked_requests": 0.0}
        self.assertEqual(once.read_metrics(text), wanted)

    def test_a_failure_in_one_of_many_threads_is_raised(self) -> None:
        done: list[int] = []

        def fail() -> None:
            raise once.Broken("no")

        with self.assertRaises(once.Broken):
            once.together([lambda: done.append(1), fail, lambda: done.append(1)], lambda s: None)
        self.assertEqual(done, [1, 1])

    def test_the_summary_says_what_threads_would_need(self) -> None:
        report = once.Report(TARGET, checkouts=64, latency=1.0, prefix="once-")
        self.assertIn("8 threads need at least 8.0 s", once.summary(report))
        self.assertIn("64 threads and 64 connections", once.summary(report))


if __name__ == "__main__":
    unittest.main()
