"""Bytes that both ends can make: the same ones for the same seed. Without Django."""

from __future__ import annotations

import random
from collections.abc import Iterator

PIECE = 64 * 1024


def pieces(seed: int, size: int) -> Iterator[bytes]:
    dice = random.Random(seed)
    while size > 0:
        piece = dice.randbytes(min(PIECE, size))
        size -= len(piece)
        yield piece
