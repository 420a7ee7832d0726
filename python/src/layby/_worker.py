"""The worker process: `python -m layby APP --link unix:PATH --threads N`.

Imports the application, joins the gateway and lives on the control connection: it
starts a slot thread for every GRANT and ends when the connection ends. The exit
status says why: 0 drained, 1 a start that cannot succeed or the gateway lost, 2 wrong
usage, 3 the application cannot be imported, 4 refused by the gateway.
"""

from __future__ import annotations

import argparse
import atexit
import importlib
import importlib.util
import inspect
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, cast

from layby import __version__, _job, _locks, _reload, _stacks
from layby._channel import Channel, Closed
from layby._coroutine import CoroutineRunner
from layby._exceptions import AsgirefUnsupported
from layby._locals import ThreadLocals, UnknownLocal
from layby._slot import ParkingRunner, Runner, Slot, Welcome
from layby._wire import (
    BYE,
    CALL,
    DRAIN,
    GRANT,
    HELLO,
    PING,
    PONG,
    REFUSED,
    STACK,
    TOLD,
    WANT,
    WELCOME,
    Frame,
    WireError,
    encode,
)
from layby._wsgi import WsgiRunner

log = logging.getLogger("layby")

# Libraries whose connections and views must be known of before a request parks.
_INTEGRATIONS = {
    "sqlalchemy": "layby.sqlalchemy",
    "psycopg": "layby._psycopg",
    "flask": "layby._flask",
}

# How long a gateway that is being started is waited for, in seconds.
_CONNECT_PATIENCE = 30.0
# How long slot threads may take to end once the gateway is gone, in seconds.
_GRACE = 3.0

# What this process is, once it has joined a gateway.
_this: Worker | None = None
# Signal handlers of ours, and what there would be without them.
_handlers: dict[int, Any] = {}
_DEFAULTS: dict[signal.Signals, Any] = {
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGINT: signal.default_int_handler,
}


class StartError(Exception):
    """The worker cannot start; one line that says why."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def main(arguments: list[str] | None = None) -> int:
    """Run a worker until it is drained; returns the exit status."""
    options = _parse(arguments)
    # Before the application is imported, and makes its own.
    _locks.watch_if_wanted()
    # Applications in the current directory can be imported, however this was started.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    _reload.watch_if_asked()
    try:
        app = _import_app(options.app)
        _import_views()
        set_up_log()
        mode, runs = choose_mode(app, options.app, options.mode)
        _stacks.dump_on_signal()
        worker = Worker(
            link=options.link, threads=options.threads, name=options.app, mode=mode, app=runs
        )
        _handle_signals(worker)
        return worker.run()
    except StartError as error:
        set_up_log()
        log.critical("%s", error)
        return error.status


class Voice:
    """What this process says on its control connection, from whatever thread."""

    def __init__(self, control: Channel) -> None:
        self._control = control
        # Reentrant, because a signal may come while its own thread is sending.
        self._lock = threading.RLock()

    def bye(self) -> None:
        """Ask for a drain."""
        self._send(encode(BYE))

    def pong(self) -> None:
        """Say that this process lives."""
        self._send(encode(PONG))

    def told(self, asked: int, slot: int, stacks: bytes) -> None:
        """Say what a slot does to whoever asked."""
        self._send(encode(TOLD, request=asked, aux=slot, head=stacks))

    def disown(self) -> None:
        """In a forked child: what is said here from now on reaches nobody."""
        # Of the parent's, another thread may have held it.
        self._lock = threading.RLock()
        self._control.close()

    def want(self, request: int, epoch: int) -> None:
        """See `_job.Process`."""
        self._send(encode(WANT, request=request, epoch=epoch))

    def call(self, request: int, epoch: int, number: int) -> None:
        """See `_job.Process`."""
        self._send(encode(CALL, request=request, epoch=epoch, aux=number))

    def _send(self, frame: bytes) -> None:
        try:
            with self._lock:
                self._control.send(frame)
        except Closed:
            pass  # Who reads from it finds that out.


class Worker:
    """The process as the gateway sees it: its control connection and its slots.

    `run` is its whole life. Who has a loop of its own calls `connect`, `join`, `obey` for
    as long as it returns True, and `end`; `fileno` can be waited on in between.
    """

    def __init__(
        self,
        *,
        link: str,
        threads: int,
        name: str,
        mode: str,
        app: Any,
        on_request: Callable[[], None] | None = None,
    ) -> None:
        self._link = _path(link)
        self._threads = threads
        self._name = name
        self._mode = mode
        self._app = app
        # Called on the slot's thread for every new request.
        self._on_request = on_request
        self._token = os.environ.get("LAYBY_TOKEN", "")
        self._slots: dict[threading.Thread, Slot] = {}
        # There once the gateway knows of this process: after HELLO.
        self._control: Channel | None = None
        self._voice: Voice | None = None
        # Both there once the gateway said welcome.
        self._welcome: Welcome | None = None
        self._runner: Runner | None = None
        self._draining = False
        self._asked_to_drain = False
        self._lost = False
        self._failed = False

    def run(self) -> int:
        """Join the gateway and serve until it lets go; the exit status."""
        self.join(self._connect_patiently())
        while self.obey():
            pass
        return self.end()

    def connect(self) -> Channel:
        """A connection to the gateway; OSError while there is none."""
        return Channel.connect(self._link)

    def _connect_patiently(self) -> Channel:
        deadline = time.monotonic() + _CONNECT_PATIENCE
        waited = False
        while True:
            try:
                return self.connect()
            except OSError as error:
                if time.monotonic() > deadline:
                    raise StartError(f"no gateway at {self._link}: {error}", status=4) from error
            if not waited:
                waited = True
                log.info("waiting for a gateway at %s", self._link)
            time.sleep(0.2)

    def join(self, control: Channel) -> None:
        """Say hello. StartError when the gateway refuses this worker."""
        try:
            self._join(control)
        except (Closed, WireError) as error:
            self._lose(error)

    def fileno(self) -> int:
        """Readable when `obey` has something to do."""
        assert self._control is not None
        return self._control.fileno()

    def obey(self, *, wait: bool = True) -> bool:
        """Do what the gateway says next, or, without `wait`, all that it has said by now.

        False when the control connection has ended, and with it the worker's work.
        """
        control = self._control
        if self._lost or control is None:
            return False
        try:
            if wait:
                self._do(control.receive()[0])
            else:
                while (frame := control.poll()) is not None:
                    self._do(frame)
        except (Closed, WireError) as error:
            self._lose(error)
        return not self._lost

    def ask_to_drain(self) -> bool:
        """Ask the gateway to take the slots back, once nothing is parked here.

        False when it has been asked before, or does not know of this process: it is of no use.
        """
        if self._voice is None or self._asked_to_drain:
            return False
        self._asked_to_drain = True
        if not self._draining:
            self._voice.bye()
        return True

    def _lose(self, error: Closed | WireError) -> None:
        self._lost = True
        if self._failed:
            self._draining = False
            return
        if isinstance(error, WireError):
            log.error("the gateway sent what it must not: %s", error)
            self._draining = False
            return
        self._draining = self._draining or self._asked_to_drain
        if not self._draining:
            log.error("the gateway is gone")

    def _join(self, control: Channel) -> None:
        hello = {
            "pid": os.getpid(),
            "threads": self._threads,
            "mode": self._mode,
            "app": self._name,
            "version": f"layby-python/{__version__}",
            "token": self._token,
            "pings": True,
            "dumps": _stacks.dumps_on_signal,
            "stacks": True,
        }
        # A signal must find both or neither: HELLO sent, and the way to say BYE.
        ours = {signal.SIGTERM, signal.SIGINT}
        signal.pthread_sigmask(signal.SIG_BLOCK, ours)
        control.send(encode(HELLO, head=json.dumps(hello).encode()))
        global _this
        self._control, self._voice = control, Voice(control)
        _this, _job.in_worker = self, True
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ours)
        frame, _ = control.receive()
        if frame.type == REFUSED:
            reason = frame.head.decode("utf-8", "replace")
            raise StartError(f"refused by the gateway: {reason}", status=4)
        if frame.type != WELCOME:
            raise WireError("kind", f"{frame!r} instead of a welcome")
        welcome = Welcome.parse(frame.head)
        self._runner = self._make_runner(welcome.thread_locals)
        self._welcome = welcome
        log.info("joined as process %d", welcome.process)

    def _make_runner(self, thread_locals: tuple[str, ...]) -> Runner:
        if self._mode == "wsgi":
            return WsgiRunner(self._app)
        try:
            carried = ThreadLocals.from_environment(thread_locals)
        except UnknownLocal as error:
            raise StartError(str(error)) from error
        if self._mode == "coroutine":
            return CoroutineRunner(self._app, carried)
        # Here and not above: greenlet is optional.
        from layby._greenlet import GreenletRunner

        return GreenletRunner(self._app, carried)

    def _do(self, frame: Frame) -> None:
        if frame.type == GRANT:
            self._start_slot(frame.aux)
        elif frame.type == DRAIN:
            self._draining = True
            log.info("drain started")
        elif frame.type == STACK:
            self._tell_stack(frame)
        elif frame.type == PING:
            assert self._voice is not None
            self._voice.pong()
        elif frame.type == REFUSED:
            reason = frame.head.decode("utf-8", "replace")
            raise StartError(f"refused by the gateway: {reason}", status=4)
        else:
            raise WireError("kind", f"{frame!r} on the control connection")

    def _tell_stack(self, frame: Frame) -> None:
        """Say what keeps a slot: to a person who asked, else in the log: the gateway waits."""
        stacks = getattr(self._runner, "stacks", None)
        parked = stacks(frame.aux) if stacks is not None else ()
        alive = {slot.number: thread for thread, slot in self._slots.items() if thread.is_alive()}
        thread = alive.get(frame.aux)
        if frame.request:
            assert self._voice is not None
            ident = thread.ident if thread is not None else None
            self._voice.told(frame.request, frame.aux, _stacks.tell(ident, parked))
        elif thread is not None:
            why = frame.head.decode("utf-8", "replace")
            told = _stacks.describe(thread.ident, parked)
            log.warning("slot %d: %s\n%s", frame.aux, why, told)

    def _start_slot(self, number: int) -> None:
        self._slots = {t: slot for t, slot in self._slots.items() if t.is_alive()}
        try:
            channel = self.connect()
        except (ConnectionRefusedError, FileNotFoundError) as error:
            # The gateway goes down; the control connection will say so.
            log.error("slot %d: no connection: %s", number, error)
            return
        except OSError as error:
            self._fail(number, error)
            return
        runner, welcome = self._runner, self._welcome
        assert runner is not None
        assert welcome is not None
        slot = Slot(
            number,
            channel=channel,
            welcome=welcome,
            runner=runner,
            parking=cast(ParkingRunner, runner) if runner.parks else None,
            on_request=self._on_request,
            on_refusal=self._fail,
            process=self._voice,
        )
        # Daemons, because one that is stuck must not keep the process from ending.
        thread = threading.Thread(target=slot.run, name=f"layby-slot-{number}", daemon=True)
        self._slots[thread] = slot
        try:
            thread.start()
        except RuntimeError as error:
            del self._slots[thread]
            channel.close()
            self._fail(number, error)

    def _fail(self, number: int, error: Exception | None = None) -> None:
        """A slot was not opened that the gateway counts on: without it this process is of no use.

        It ends as if the gateway had let go of it, and whoever started it starts another one.
        """
        if self._lost or self._failed or self._control is None:
            return
        self._failed = True
        why = f": {error}" if error is not None else ""
        log.critical("slot %d could not be opened, so this process ends%s", number, why)
        self._control.shut()

    def disown(self) -> None:
        """In a forked child: its parent is the worker, and nothing of it reaches the gateway."""
        self._lost = True
        if self._voice is not None:
            self._voice.disown()
        for slot in self._slots.values():
            slot.disown()

    def end(self) -> int:
        """End the slots, and then the process, even if some of them are stuck; the exit status."""
        for slot in self._slots.values():
            slot.channel.shut()
        deadline = time.monotonic() + _GRACE
        for thread in self._slots:
            thread.join(max(0.0, deadline - time.monotonic()))
        stuck = [thread.name for thread in self._slots if thread.is_alive()]
        # The gateway ends the control connection when nothing is left to be done here.
        drained = self._lost and self._draining and not stuck
        status = 0 if drained else 1
        if self._control is not None:
            self._control.shut()
        if stuck:
            log.error("ended while %s still ran", ", ".join(stuck))
        if not drained:
            # Nothing of ours runs after this: parked requests are lost anyway, and what their
            # coroutines would do while the interpreter is torn down is anyone's guess.
            atexit.register(_leave_at_once, status)
        # Threads of the application's own may hold up the interpreter's exit.
        timer = threading.Timer(_GRACE, _leave_at_once, (status,))
        timer.daemon = True
        timer.start()
        return status


def _leave_at_once(status: int) -> None:
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class _Forking(threading.local):
    # What this thread has blocked before; None if nothing is.
    mask: set[signal.Signals] | None = None


_forking = _Forking()


def _hold_signals() -> None:
    """A signal to a child that is being forked waits: our handler must not get it any more."""
    if _handlers:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _DEFAULTS)
        _forking.mask = cast("set[signal.Signals]", mask)


def _release_signals() -> None:
    if _forking.mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)
        _forking.mask = None


def _disown() -> None:
    """A forked child is no worker, and ends at a signal as any other process."""
    global _this
    if _this is not None:
        _this.disown()
        _this = None
    for number, default in _DEFAULTS.items():
        if number in _handlers and signal.getsignal(number) is _handlers[number]:
            signal.signal(number, default)
    _handlers.clear()
    _release_signals()


os.register_at_fork(before=_hold_signals, after_in_parent=_release_signals, after_in_child=_disown)


def _handle_signals(worker: Worker) -> None:
    def on_term(number: int, _: FrameType | None) -> None:
        if not worker.ask_to_drain():
            # Asked twice, or the gateway does not know of us: there is nothing to wait for.
            os._exit(128 + number)

    # Ctrl-C reaches the whole process group; a supervising gateway sees to us then.
    supervised = bool(os.environ.get("LAYBY_TOKEN"))
    _handlers[signal.SIGTERM] = on_term
    _handlers[signal.SIGINT] = signal.SIG_IGN if supervised else on_term
    for number, handler in _handlers.items():
        signal.signal(number, handler)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m layby", description="Run a worker of a layby gateway."
    )
    parser.add_argument("app", metavar="APP", help="module:object; object is application if absent")
    parser.add_argument(
        "--link",
        metavar="unix:PATH",
        default=os.environ.get("LAYBY_LINK"),
        help="the gateway's link socket (default: $LAYBY_LINK)",
    )
    parser.add_argument(
        "--threads", type=int, default=8, metavar="N", help="slots that this process can take (8)"
    )
    parser.add_argument(
        "--mode",
        choices=("auto", "coroutine", "greenlet", "wsgi"),
        default="auto",
        help="how waiting requests leave their slot",
    )
    options = parser.parse_args(arguments)
    if not options.link:
        parser.error("--link is needed, or LAYBY_LINK in the environment")
    if not options.link.startswith("unix:"):
        parser.error(f"--link must be unix:PATH, not {options.link}")
    if options.threads < 1:
        parser.error("--threads must be at least 1")
    return options


def _import_app(spec: str) -> Any:
    module_name, _, attribute = spec.partition(":")
    with _importing(spec):
        app: Any = importlib.import_module(module_name)
        for part in (attribute or "application").split("."):
            app = getattr(app, part)
    if not callable(app):
        raise StartError(f"{spec} is no application: {type(app).__name__} cannot be called", 3)
    return app


def _import_views() -> None:
    """Import what Django imports for its first request.

    Else a mistake in a view would be found by a client, and after a reload by all of them.
    """
    if "django.conf" not in sys.modules:
        return
    from django.apps import apps
    from django.conf import settings
    from django.urls import get_resolver

    if apps.ready and getattr(settings, "ROOT_URLCONF", None):
        with _importing(f"the URLconf {settings.ROOT_URLCONF}"):
            _ = get_resolver().url_patterns


@contextmanager
def _importing(what: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        # Also SystemExit: a module that ends the process cannot be imported.
        if isinstance(error, KeyboardInterrupt):
            raise
        traceback.print_exc()
        raise StartError(f"cannot import {what}: {error!r}", status=3) from error


def choose_mode(app: Any, spec: str, wanted: str) -> tuple[str, Any]:
    """The mode and what it runs; logs which and why."""
    mode, runs, why = "wsgi", app, "as asked for"
    if wanted == "coroutine" and _is_coroutine_app(app):
        mode = "coroutine"
    elif wanted == "coroutine":
        if not _is_djangos_own(app):
            raise StartError(
                f"mode coroutine needs Django's own WSGI application, and {spec} is of type "
                f"{type(app).__module__}.{type(app).__qualname__}: use --mode auto or wsgi"
            )
        mode = "coroutine"
        try:
            runs = _django_app(app)
        except AsgirefUnsupported as error:
            raise StartError(f"mode coroutine cannot be used: {error}") from error
    elif wanted == "auto" and _is_djangos_own(app):
        try:
            runs = _django_app(app)
            mode, why = "coroutine", "Django's own WSGI application"
        except AsgirefUnsupported as error:
            why = f"requests cannot park: {error}"
    elif wanted == "auto":
        why = "not Django's own WSGI application, so its requests wait in place"
    elif wanted == "greenlet":
        if importlib.util.find_spec("greenlet") is None:
            raise StartError(
                "mode greenlet needs the package greenlet: pip install 'layby[greenlet]'"
            )
        if _is_coroutine_app(app):
            raise StartError(f"mode greenlet needs a WSGI application, and {spec} is a coroutine")
        mode = "greenlet"
    if mode != "coroutine" and _uses_django():
        # Its slots keep and close their database connections all the same.
        importlib.import_module("layby.django").prepare(pinned=mode == "greenlet")
    _integrate()
    log.info("mode %s for %s: %s", mode, spec, why)
    return mode, runs


def _uses_django() -> bool:
    """Whether the application has settings for Django. Others import it, and mean nothing by it."""
    conf = sys.modules.get("django.conf")
    if conf is None:
        return False
    if not conf.settings.configured:
        if not os.environ.get("DJANGO_SETTINGS_MODULE"):
            return False
        try:
            _ = conf.settings.DATABASES  # imports them
        except Exception as error:  # noqa: BLE001 - whatever the settings do
            # The application would learn of it where it uses Django, which may be never.
            log.warning("Django's settings cannot be imported, so layby leaves it alone: %r", error)
            return False
    return True


def _integrate() -> None:
    """Hook into the libraries that the application has imported."""
    for library, ours in _INTEGRATIONS.items():
        if library in sys.modules:
            importlib.import_module(ours).install()


def _is_djangos_own(app: Any) -> bool:
    # Exactly: a subclass or a wrapper may do things around a request that coroutine
    # mode would leave out.
    module = sys.modules.get("django.core.handlers.wsgi")
    return module is not None and type(app) is module.WSGIHandler


def _is_coroutine_app(app: Any) -> bool:
    return inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(type(app).__call__)


def _django_app(app: Any) -> Any:
    django = importlib.import_module("layby.django")
    django.self_test()
    return django.application(app)


def _path(link: str) -> str:
    return link.removeprefix("unix:")


def set_up_log(*handlers: logging.Handler, level: int = logging.INFO) -> None:
    """Make sure that our own lines are seen, whatever the application did to logging.

    By the handlers given, which are the server's own, else on stderr; unless the application
    has handlers of its own for them.
    """
    # Django's LOGGING disables loggers that were there before it, unless told otherwise.
    log.disabled = False
    if handlers and not log.handlers:
        for handler in handlers:
            log.addHandler(handler)
        # Not a second time by the handlers of the application's root logger.
        log.propagate = False
    elif not log.hasHandlers():
        own = logging.StreamHandler()
        own.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        log.addHandler(own)
    if log.level == logging.NOTSET:
        debug = os.environ.get("LAYBY_DEBUG") == "1"
        log.setLevel(logging.DEBUG if debug else level)
