"""A gateway for one slot or more: starts requests, lets them park by turns, and go on."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

from fakegateway import BROKEN, MORE, READY, Connection
from stories import PINNED


class Answer:
    """What a client would see of one request, and how it got there."""

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.code = 0
        self.headers: list[tuple[str, str]] = []
        self.body = b""
        self.parks = 0
        # Reason of every wait in place.
        self.waits: list[str] = []

    def __repr__(self) -> str:
        return f"<Answer {self.code} parks {self.parks} waits {self.waits} {self.body[:80]!r}>"

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def cookies(self) -> dict[str, str]:
        sent = (value.split(";")[0] for name, value in self.headers if name == "Set-Cookie")
        return {name: value for name, _, value in (pair.partition("=") for pair in sent)}


class Driver:
    """Runs requests on slots; what is parked resumes in a random order, on its own slot."""

    def __init__(self, slots: list[Connection], seed: int = 7) -> None:
        self.slots = slots
        self._random = random.Random(seed)
        self._requests = 0

    def run(self, *environs: dict[str, Any], cancel: bool = False) -> list[Answer]:
        """Run all of them at once; with `cancel`, each loses its client while parked."""
        answers = []
        parked: deque[tuple[int, int, Answer]] = deque()
        for environ in environs:
            self._requests += 1
            answer = Answer(self._requests % len(self.slots))
            answers.append(answer)
            self._send(answer, self._requests, environ)
            if self._step(answer, self._requests, 0):
                parked.append((self._requests, 1, answer))
        while parked:
            turn = list(parked)
            parked.clear()
            self._random.shuffle(turn)
            for request, epoch, answer in turn:
                slot = self.slots[answer.slot]
                if cancel:
                    slot.send("CANCEL", request=request, epoch=epoch)
                else:
                    slot.results("RESUME", request, epoch, *self._outcomes(answer))
                if self._step(answer, request, epoch):
                    parked.append((request, epoch + 1, answer))
        return answers

    def get(self, path: str, **kwargs: Any) -> Answer:
        """One GET."""
        from stepper import environ

        cancel = kwargs.pop("cancel", False)
        return self.run(environ(path, **kwargs), cancel=cancel)[0]

    def _send(self, answer: Answer, request: int, environ: dict[str, Any]) -> None:
        pairs = {name: value for name, value in environ.items() if isinstance(value, str)}
        body = environ["wsgi.input"].read()
        path = pairs.pop("PATH_INFO")
        self.slots[answer.slot].request(request, path, body=body, **pairs)

    def _step(self, answer: Answer, request: int, epoch: int) -> bool:
        """Read what a step says, up to its park (True) or its end."""
        slot = self.slots[answer.slot]
        while True:
            frame = slot.frame()
            assert (frame.request, frame.epoch) == (request, epoch), frame
            if frame.type == "PARK":
                assert frame.flags & PINNED, frame
                answer.parks += 1
                self._plan = frame.plan
                return True
            if frame.type == "HOLD":
                answer.waits.append(frame.plan["hold"]["reason"])
                self._plan = frame.plan
                slot.results("RESULTS", request, epoch, *self._outcomes(answer))
                continue
            if frame.type == "ANSWER":
                answer.code, answer.headers = frame.aux, frame.headers
            elif frame.type == "BODY":
                assert not frame.flags & BROKEN, "the body was cut"
            if frame.type in ("ANSWER", "BODY"):
                answer.body += frame.body
            if frame.type == "READY" or frame.flags & READY:
                assert not frame.flags & MORE
                return False

    def _outcomes(self, answer: Answer) -> list[dict[str, float]]:
        # The tests' views wait for sleeps only, one at a time.
        return [{"slept": 0.0}]
