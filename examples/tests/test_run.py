"""run.py: whatever way it is ended, nothing of what it started is left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import once
import run

# Stands for the gateway: has a worker, which ends with it, and never gets ready.
GATEWAY = """#!/bin/sh
sleep 1000 &
trap 'kill $!; exit' TERM
echo $$ $! > "$SHOP_DATA/pids.draft"
mv "$SHOP_DATA/pids.draft" "$SHOP_DATA/pids"
wait
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(true: Callable[[], bool]) -> None:
    patience = time.monotonic() + 60
    while not true():
        if time.monotonic() > patience:
            raise AssertionError("waited in vain")
        time.sleep(0.02)


def obey_signals() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class RunTest(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.data = Path(directory.name)
        self.layby = self.data / "layby"

    def start(self, gateway: str = GATEWAY) -> subprocess.Popen[str]:
        self.layby.write_text(gateway)
        self.layby.chmod(0o755)
        command = [sys.executable, run.__file__, "--layby", self.layby, "--data", self.data]
        # Who runs the tests may ignore signals, as under nohup, and the child would inherit that.
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, preexec_fn=obey_signals
        )
        self.addCleanup(process.kill)
        return process

    @unittest.skipUnless(Path("/proc/self").exists(), "needs /proc")
    def test_every_signal_half_way_leaves_nothing_running(self) -> None:
        expected = {signal.SIGINT: 0, signal.SIGTERM: 0, signal.SIGHUP: 0, signal.SIGKILL: -9}
        for number, status in expected.items():
            with self.subTest(signal=number.name):
                process = self.start()
                pids = self.data / "pids"
                until(pids.exists)
                # The stub and the two of the gateway. Its `mv` may still be ending.
                until(lambda of=process.pid: len(once.descendants(of) - {of}) == 3)
                started = once.descendants(process.pid) - {process.pid}
                self.assertGreaterEqual(started, {int(pid) for pid in pids.read_text().split()})
                pids.unlink()
                process.send_signal(number)
                process.communicate(timeout=60)
                self.assertEqual(process.returncode, status)
                until(lambda gone=started: not any(map(alive, gone)))

    def test_a_gateway_that_ends_by_itself_is_reported(self) -> None:
        process = self.start("#!/bin/sh\nexit 3\n")
        printed, _ = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 1)
        self.assertIn("the gateway ended by itself with status 3", printed)

    def test_a_missing_binary_is_one_clear_line(self) -> None:
        with mock.patch.object(run, "say") as said:
            wanted = ["--layby", str(self.data / "nothing"), "--data", str(self.data)]
            self.assertEqual(run.main(wanted), 1)
        self.assertIn("cargo build --release", said.call_args.args[0])

    def test_a_taken_port_is_replaced_and_named(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken, mock.patch.object(run, "say") as said:
            port = taken.getsockname()[1]
            found = run.free_port(port, "the shop")
        self.assertNotEqual(found, port)
        self.assertEqual(said.call_args.args[0], f"port {port} is taken, so the shop is on {found}")
        with mock.patch.object(run, "say") as said:
            self.assertEqual(run.free_port(found, "the shop"), found)
        said.assert_not_called()

    @unittest.skipUnless(Path("/proc/self").exists(), "needs /proc")
    def test_a_child_that_will_not_end_is_killed_with_its_group(self) -> None:
        stubborn = "trap '' TERM; sleep 1000 & echo $!; wait; sleep 1000"
        with mock.patch.object(run, "GRACE", 0.2), mock.patch.object(run, "say"):
            signals = mock.Mock(count=0)
            with run.Children(signals) as children, tempfile.TemporaryFile() as output:
                shell = children.start("a shell", ["sh", "-c", stubborn], os.environ, output)
                until(lambda: output.seek(0, os.SEEK_END) > 0)
                output.seek(0)
                pids = [shell.pid, int(output.read())]
                self.assertTrue(all(map(alive, pids)))
        until(lambda: not any(map(alive, pids)))

    def test_the_database_is_found_as_the_shop_finds_it(self) -> None:
        self.assertEqual(run.database({}, Path("/d")), "/d/shop.sqlite3")
        url = "postgres://u@h/n"
        self.assertEqual(run.database({"DATABASE_URL": url}, Path("/d")), url)
        url = "sqlite:////tmp/a%20b"
        self.assertEqual(run.database({"DATABASE_URL": url}, Path("/d")), "/tmp/a b")


if __name__ == "__main__":
    unittest.main()
