"""Answers made by asynchronous generators, piece by piece.

A generator may wait before each of its pieces: parked in coroutine mode, in place elsewhere.
The pieces are sent from a slot, also when the generator is inside `async with layby.io`
at the moment: then it leaves its ride for that, and boards again. However its answer
ends, the generator is closed where it is: on its ride, or in a slot.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator

from layby._drive import driven, foreign
from layby._local import wait_for
from layby._ride import in_slot_for_a_while


class _Piece:
    """What a coroutine yields to `in_place`: a piece, to be handed out."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


async def send(
    pieces: AsyncGenerator[bytes, None], write: Callable[[bytes], Awaitable[bool]]
) -> None:
    """Give all pieces to `write`, or until it says that no more are wanted; then close."""
    try:
        async for piece in pieces:
            async with in_slot_for_a_while():
                wanted = await write(piece)
            if not wanted:
                break
    except GeneratorExit:
        raise  # Dropped, at the end of the process: nobody steps this any more.
    except BaseException:
        await pieces.aclose()
        raise
    await pieces.aclose()


def in_place(pieces: AsyncGenerator[bytes, None]) -> Iterator[bytes]:
    """The pieces as an iterator; each is made when it is asked for, by the thread that asks."""

    async def hand_out(piece: bytes) -> bool:
        wanted: bool = await wait_for(_Piece(piece))
        return wanted

    steps = driven(send(pieces, hand_out))
    try:
        command = next(steps)
        while True:
            if type(command) is not _Piece:
                command = steps.throw(foreign(command))
                continue
            try:
                yield command.data
            except GeneratorExit:
                command = steps.send(False)
            else:
                command = steps.send(True)
    except StopIteration:
        return
