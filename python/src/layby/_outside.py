"""Running a plan without a gateway: in tests, the shell, runserver, other WSGI servers.

The same joins, timeouts and errors as the gateway's, by threads of our own, which
touch nothing of the application. The outbound policy and the bound on the size of a
response are the gateway's and do not apply. How one fetch is done is decided in
`_direct`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

from layby import _direct
from layby._direct import Failure
from layby._plan import Fetch, Gather, Outcome, Sleep, Thing
from layby._response import Response

# The gateway's default for `[outbound] timeout`, in seconds.
DEFAULT_TIMEOUT = 30.0

# How many fetches of a plan run side by side.
_MAX_THREADS = 64


def run(root: Gather) -> list[Outcome]:
    """Run all that has not ended in `root` and return the outcomes of its things."""
    return _Plan(root).run()


class Node:
    """A thing under way. It ends once, and then tells its parent."""

    __slots__ = ("children", "ended", "ended_children", "exchange", "outcome", "parent", "thing")

    def __init__(self, thing: Thing[Any], parent: Node | None) -> None:
        self.thing = thing
        self.parent = parent
        self.children: list[Node] = []
        self.ended_children: list[Node] = []
        self.ended = False
        self.outcome: Outcome = None
        self.exchange: _direct.Exchange | None = None

    @classmethod
    def of_another_place(cls, thing: Thing[Any], parent: Node) -> Node:
        """For a thing that has ended, or has another node in this plan."""
        node = cls(thing, parent)
        node.ended, node.outcome = True, True
        return node

    def end(self, outcome: Outcome) -> None:
        if self.ended:
            return
        self.ended = True
        self.outcome = outcome
        if self.parent is not None:
            self.parent.child_ended(self)

    def child_ended(self, child: Node) -> None:
        self.ended_children.append(child)
        if not self.ended and self.met():
            self.close()

    def met(self) -> bool:
        assert isinstance(self.thing, Gather)
        if len(self.ended_children) == len(self.children):
            return True
        match self.thing.join:
            case "all":
                return False
            case "any":
                return True
            case "first_ok":
                last = self.ended_children[-1]
                return last.ok() and not isinstance(last.thing, Sleep)
            case n:
                return len(self.ended_children) >= n

    def close(self) -> None:
        """End a gather. What has not ended by now is not needed: None."""
        for child in self.children:
            child.abandon()
        # A child that was abandoned ended as not needed.
        self.end([child.outcome for child in self.children])

    def abandon(self) -> None:
        if not self.ended:
            self.ended = True
            for child in self.children:
                child.abandon()

    def expire(self, failure: Failure) -> None:
        """The gather's time is over: what has not ended fails."""
        for child in self.children:
            if not child.ended:
                if child.children:
                    child.expire(failure)
                else:
                    child.end(failure)
        if not self.ended:
            self.close()

    def ok(self) -> bool:
        if self.outcome is True:
            # One that is shared has not ended: its own node counts.
            return not self.thing.ended or self.thing._ok()
        if isinstance(self.thing, Gather):
            waited_for = [child for child in self.children if child.outcome is not None]
            if self.thing.join == "first_ok":
                return any(c.ok() and not isinstance(c.thing, Sleep) for c in waited_for)
            return all(child.ok() for child in waited_for)
        if isinstance(self.outcome, Response):
            return self.outcome.is_success
        return isinstance(self.outcome, float)


class _Plan:
    """The nodes of a plan, its fetches in threads, and its clocks."""

    def __init__(self, root: Gather) -> None:
        # Guards the nodes; notified whenever a fetch has come back.
        self._changed = threading.Condition()
        self._fetches: deque[Node] = deque()
        # Instant and what then happens. Few, so searched rather than sorted.
        self._clocks: list[tuple[float, Node]] = []
        self._begun = time.monotonic()
        self._root = self._plant(root, None)

    def run(self) -> list[Outcome]:
        # Daemons: a fetch that nobody needs any more must not keep the process alive.
        for number in range(min(len(self._fetches), _MAX_THREADS)):
            threading.Thread(target=self._work, name=f"layby-fetch-{number}", daemon=True).start()
        with self._changed:
            while not self._root.ended:
                now = time.monotonic()
                for instant, node in self._clocks:
                    if instant <= now:
                        self._ring(node)
                self._clocks = [(i, n) for i, n in self._clocks if i > now and not n.ended]
                if not self._root.ended:
                    soonest = min((instant for instant, _ in self._clocks), default=None)
                    self._changed.wait(None if soonest is None else soonest - time.monotonic())
        assert isinstance(self._root.outcome, list)
        return self._root.outcome

    def _plant(self, thing: Thing[Any], parent: Node | None) -> Node:
        if thing.ended and parent is not None:
            return Node.of_another_place(thing, parent)
        node = Node(thing, parent)
        if isinstance(thing, Gather):
            node.children = [
                Node.of_another_place(child, node)
                if child in thing._shared
                else self._plant(child, node)
                for child in thing.things
            ]
            node.ended_children = [child for child in node.children if child.ended]
            if thing.timeout is not None:
                self._clocks.append((self._begun + thing.timeout, node))
        elif isinstance(thing, Sleep):
            self._clocks.append((self._begun + thing.seconds, node))
        elif isinstance(thing, Fetch):
            self._fetches.append(node)
            self._clocks.append((self._begun + (thing.timeout or DEFAULT_TIMEOUT), node))
        return node

    def _ring(self, node: Node) -> None:
        """The time of `node` has come: a sleep's end, or a timeout."""
        if node.ended:
            return
        if isinstance(node.thing, Gather):
            took = f"the gather took longer than {node.thing.timeout} s"
            node.expire(Failure("timeout", "join", took))
        elif isinstance(node.thing, Sleep):
            node.end(node.thing.seconds)
        else:
            # Its thread finds out by itself, at its next read at the latest.
            phase = node.exchange.phase if node.exchange is not None else "connect"
            node.end(Failure("timeout", phase, "took longer than its timeout"))

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._fetches:
                    return
                node = self._fetches.popleft()
                if node.ended:
                    continue
                fetch = node.thing
                assert isinstance(fetch, Fetch)
                deadline = self._begun + (fetch.timeout or DEFAULT_TIMEOUT)
                node.exchange = _direct.Exchange(fetch.request, fetch.follow_redirects, deadline)
            outcome = node.exchange.run()
            with self._changed:
                node.end(outcome)
                self._changed.notify()
