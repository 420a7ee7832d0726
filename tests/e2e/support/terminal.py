"""A program on a terminal: one of the kernel's, whose screen is kept by an emulator."""

from __future__ import annotations

import fcntl
import html
import os
import pty
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyte

from support.program import until

# The names that the emulator has for the first of the 256 colours, and tones for a dark ground.
COLOURS = {
    "default": "#d0d0d0",
    "cd0000": "#ff6b6b",
    "00cd00": "#69db7c",
    "cdcd00": "#ffd43b",
    "cd00cd": "#e599f7",
    "00cdcd": "#66d9e8",
    "7f7f7f": "#8a8a8a",
}


class Terminal:
    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        environment: Mapping[str, str],
        columns: int = 120,
        lines: int = 40,
    ) -> None:
        self.screen = pyte.Screen(columns, lines)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = bytearray()
        self.lock = threading.Lock()
        self.near, self.far = pty.openpty()
        self.before = termios.tcgetattr(self.far)
        self._resize(columns, lines)
        self.process = subprocess.Popen(
            command,
            stdin=self.far,
            stdout=self.far,
            stderr=self.far,
            env={**environment, "TERM": "xterm-256color"},
            # With this terminal as its own, it hears of a new size.
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self.near, 65536)
            except OSError:
                return
            if not data:
                return
            with self.lock:
                self.raw += data
                self.stream.feed(data)

    def _resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.far, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, columns: int, lines: int) -> None:
        with self.lock:
            self.screen.resize(lines, columns)
            self.screen.reset()
        self._resize(columns, lines)
        self.process.send_signal(signal.SIGWINCH)

    @property
    def text(self) -> str:
        with self.lock:
            return "\n".join(line.rstrip() for line in self.screen.display)

    def press(self, keys: str) -> None:
        os.write(self.near, keys.encode())

    def wait_for(self, *words: str, seconds: float = 20) -> str:
        until(
            f"the screen has no {words}",
            lambda: all(word in self.text for word in words),
            seconds,
        )
        return self.text

    def wait_without(self, word: str, seconds: float = 20) -> str:
        until(f"the screen still has {word!r}", lambda: word not in self.text, seconds)
        return self.text

    def wait(self) -> int:
        status = self.process.wait(20)
        # What it said last is on its way.
        until("the terminal is not left", lambda: self.is_left(), 5)
        return status

    def is_left(self) -> bool:
        """The screen of before is back, the cursor is seen, and lines are edited as before."""
        with self.lock:
            raw = bytes(self.raw)
        return (
            raw.rfind(b"\x1b[?1049l") > raw.rfind(b"\x1b[?1049h")
            and raw.rfind(b"\x1b[?25h") >= raw.rfind(b"\x1b[?25l")
            and termios.tcgetattr(self.far) == self.before
        )

    def svg(self) -> str:
        """The screen as a picture."""
        with self.lock:
            return drawn(self.screen)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.far)
        os.close(self.near)


def drawn(screen: Any) -> str:
    wide, high = 8.4, 18
    lines = []
    for row in range(screen.lines):
        cells = [screen.buffer[row][column] for column in range(screen.columns)]
        start = 0
        while start < len(cells):
            end = start
            style = (cells[start].fg, cells[start].bold)
            while end < len(cells) and (cells[end].fg, cells[end].bold) == style:
                end += 1
            text = "".join(cell.data for cell in cells[start:end])
            if text.strip():
                colour = COLOURS.get(style[0], f"#{style[0]}")
                weight = ' font-weight="bold"' if style[1] else ""
                lines.append(
                    f'<text x="{start * wide + 8:.1f}" y="{(row + 1) * high + 4}" fill="{colour}"'
                    f' textLength="{(end - start) * wide:.1f}" xml:space="preserve"{weight}>'
                    f"{html.escape(text)}</text>"
                )
            start = end
    width, height = screen.columns * wide + 16, screen.lines * high + 16
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" '
        'font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="14">'
    )
    ground = '<rect width="100%" height="100%" rx="6" fill="#1e1e1e"/>'
    return "\n".join([head, ground, *lines, "</svg>", ""])


@contextmanager
def terminal(command: Sequence[str | Path], **how: Any) -> Iterator[Terminal]:
    running = Terminal(command, **how)
    try:
        yield running
    finally:
        running.end()
