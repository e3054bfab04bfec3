"""How a command ends: by a signal, or because the reader of its output has gone. Imports nothing that takes time."""

import contextlib
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from types import FrameType
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that stop a run: Ctrl-C, kill, a terminal that closes, and what Slurm is told to send before a time limit."""
BEGUN = "stopped before anything ran"
"""What is said of a signal that comes before a run begins."""
TOGETHER = 1.0
"""Seconds in which more signals than one are one request: a closed terminal sends SIGHUP, and so does its shell."""


class Stop:
    """What signals have asked of this process: `came` is the number of the first one, else 0.

    The first one is answered with `soon` and remembered, a second one with `now`, and ends the process; where `soon`
    is empty the first one does. `clean` is called before the process ends.
    """

    def __init__(self, now: str, soon: str, clean: Callable[[], None], say: bool) -> None:
        self.now, self.soon, self.clean, self.say = now, soon, clean, say
        self.came = 0

    def hear(self, source: int, taken: Collection[int], terminals: Collection[int]) -> None:
        """Answer signals, a byte each from the file descriptor `source`, until its other end closes."""
        since = 0.0
        while byte := os.read(source, 1):
            number = byte[0]
            if number not in taken:
                continue
            if number == signal.SIGHUP:
                _let_go(terminals)
            first = not self.came
            if not first and number != signal.SIGINT and time.monotonic() - since < TOGETHER:
                continue
            self.came, since = self.came or number, time.monotonic()
            if first and self.soon:
                self._answer(self.soon)
                continue
            self._answer(self.now)
            with contextlib.suppress(Exception):
                self.clean()
            os._exit(128 + number)

    def _answer(self, line: str) -> None:
        if self.say:
            with contextlib.suppress(OSError):
                # Over the line of a live display, which draws itself again below.
                over = "\r\x1b[K" if os.isatty(2) else ""
                os.write(2, f"{over}mtfl: {line}\n".encode())


def _let_go(terminals: Collection[int]) -> None:
    """Write no more to a terminal that has closed: it would raise."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in terminals:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _pass(number: int, frame: FrameType | None) -> None:
    """Leave a signal to the thread that hears it."""


@contextlib.contextmanager
def listening(
    now: str, soon: str = "", *, clean: Callable[[], None] = lambda: None, say: bool = True
) -> Iterator[Stop]:
    """Hear the signals that stop a run, as `Stop` says, but for those that are ignored (nohup) or that a launcher
    handles.

    A thread hears them, at once: Python calls handlers between two steps of the main thread, which may be a whole
    chunk of trainings away. Outside the main thread, which alone may take signals, none are heard.
    """
    stop = Stop(now, soon, clean, say)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    ours = (signal.SIG_DFL, signal.default_int_handler, _pass)
    before = {number: handler for number in STOPS if (handler := signal.getsignal(number)) in ours}
    source, sink = os.pipe()
    os.set_blocking(sink, False)
    terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
    thread = threading.Thread(target=stop.hear, args=(source, set(before), terminals), daemon=True)
    thread.start()
    outer = signal.set_wakeup_fd(sink, warn_on_full_buffer=False)
    for number in before:
        signal.signal(number, _pass)
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(outer)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(sink)
        thread.join()
        os.close(source)


@contextlib.contextmanager
def command(name: str) -> Iterator[None]:
    """Around what a command does: a warning is one line on stderr, and a reader that goes (`| head -1`) ends it without
    a traceback, with exit status 1.
    """

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"{name}: {' '.join(str(message).split())}", file=sys.stderr)

    before, warnings.showwarning = warnings.showwarning, show
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer would be tried again at the end.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        sys.exit(1)
    finally:
        warnings.showwarning = before
