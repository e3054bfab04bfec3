"""How a command ends: by a signal, or because the reader of its output has gone. Imports nothing that takes time."""

import atexit
import contextlib
import errno
import functools
import os
import select
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from types import FrameType
from typing import Any, NoReturn

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that stop a run: Ctrl-C, kill, a terminal that closes, and what Slurm is told to send before a time limit."""
BEGUN = "stopped before anything ran"
"""What is said of a signal that comes before a run begins."""
SOON = "stops when what runs is finished and kept; once more stops at once"
"""The answer to the first signal of a run."""
TOGETHER = 1.0
"""Seconds in which more signals than one are one request: a closed terminal sends SIGHUP, and so does its shell."""
ONCE = 0.3
"""Seconds in which Ctrl-C is one: a program that started this one may pass it on beside the terminal."""
GONE = (errno.EPIPE, errno.EIO)
"""What writing raises where nobody reads any more: a pipe (`| head -1`) and a terminal."""
QUEUE_SECONDS = 3600.0
"""Seconds that a process waits for Slurm to end it, which asked it to: a job is run again that Slurm had to kill."""
COMPILES = "mtfl-compiles"
"""How the name of a thread begins that compiles, which may take a minute, and whose end nobody awaits."""

UNFINISHED: set[str] = set()
"""Files that are being written under temporary names, which a process that ends at once removes."""


class Stop:
    """What signals have asked of this process: `came` is the number of the first one, else 0.

    The first one is answered with `soon` and remembered, a second one with `now`, and ends the process; where `soon`
    is empty the first one does. `clean` is called before the process ends, `first` with the first signal. Then whoever
    asked takes over (`hand_over`): `theirs` are the handlers of a launcher, by signal.
    """

    def __init__(self, name: str, now: str, soon: str, clean: Callable[[], object], say: bool) -> None:
        self.name, self.now, self.soon, self.clean, self.say = name, now, soon, clean, say
        self.first: Callable[[], object] = lambda: None
        self.theirs: Mapping[int, Callable[[int, None], object]] = {}
        self.came = 0

    def hand_over(self, wait: Callable[[float], object] = time.sleep) -> None:
        """After a signal, with everything kept: do what the launcher has for it, which may put the job back into its
        queue and end the process, or raise why it cannot; and where Slurm ends this job, wait for that.
        """
        try:
            if handler := self.theirs.get(self.came):
                handler(self.came, None)
        except subprocess.CalledProcessError:
            # To put a job back ends it, and with it the program that was told to.
            wait(QUEUE_SECONDS)
            raise
        if self.came == signal.SIGTERM and "SLURM_JOB_ID" in os.environ:
            self._answer(self.came, "waits for Slurm to end this job, or to put it back; once more ends it now")
            wait(QUEUE_SECONDS)

    def hear(self, source: int, taken: Collection[int], outer: int) -> None:
        """Answer signals, a byte each from the file descriptor `source`, until its other end closes; those that are
        not taken here are passed on to `outer`.
        """
        since = 0.0
        while byte := os.read(source, 1):
            number = byte[0]
            if number not in taken:
                if outer >= 0:
                    with contextlib.suppress(OSError):
                        os.write(outer, byte)
                continue
            drop_lost()
            again = self.came != 0
            # Ctrl-C twice is meant; the others come from several senders.
            twice = number == signal.SIGINT == self.came and time.monotonic() - since > ONCE
            if again and not twice and time.monotonic() - since < TOGETHER:
                continue
            self.came, since = self.came or number, time.monotonic()
            soon = self.soon
            with contextlib.suppress(Exception):  # Whatever it raises must not keep the process from ending.
                if not again:
                    self.first()
            if not again and soon:
                self._answer(number, soon)
                continue
            self._answer(number, self.now)
            if os.isatty(1):
                with contextlib.suppress(OSError):
                    os.write(1, b"\x1b[?25h")  # A live display hides the cursor.
            with contextlib.suppress(Exception):
                self.clean()
            for path in list(UNFINISHED):
                with contextlib.suppress(OSError):
                    os.unlink(path)
            # Nobody who asks twice waits.
            with contextlib.suppress(BaseException):
                self.hand_over(functools.partial(select.select, [source], [], []) if not again else bool)
            os._exit(128 + number)

    def _answer(self, number: int, line: str) -> None:
        if self.say:
            # Over the line of a live display, which draws itself again below.
            over = "\r\x1b[K" if os.isatty(2) else ""
            with contextlib.suppress(OSError):
                os.write(2, f"{over}{self.name}: {signal.Signals(number).name}: {line}\n".encode(errors="replace"))


def drop_lost() -> None:
    """Write no more where nobody reads, a terminal that has closed or a pipe whose reader has gone: it would raise."""
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, 0)
    lost = [found for found, event in poll.poll(0) if event & (select.POLLERR | select.POLLHUP)]
    if lost:
        _to_nowhere(lost)


def _to_nowhere(descriptors: Collection[int]) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _pass(number: int, frame: FrameType | None) -> None:
    """Leave a signal to the thread that hears it."""


def _ours() -> Mapping[int, Any]:
    """Handlers of the signals that nobody ignores (nohup) or handles (a launcher)."""
    usual = (signal.SIG_DFL, signal.default_int_handler, _pass)
    return {number: handler for number in STOPS if (handler := signal.getsignal(number)) in usual}


def _theirs(ours: Mapping[int, Any]) -> dict[int, Any]:
    """Handlers of the others of those signals, but for those that are ignored."""
    found = {number: signal.getsignal(number) for number in STOPS if number not in ours}
    return {number: handler for number, handler in found.items() if callable(handler)}


@contextlib.contextmanager
def listening(
    now: str,
    soon: str = "",
    *,
    name: str = "mtfl",
    clean: Callable[[], object] = lambda: None,
    say: bool = True,
    launched: bool = False,
) -> Iterator[Stop]:
    """Hear the signals that stop a run, as `Stop` says, but for those that are ignored (nohup), or, unless this is the
    job that it `launched`, that a launcher handles.

    A thread hears them, at once: Python calls handlers between two steps of the main thread, which may be a whole
    chunk of trainings away. Outside the main thread, which alone may take signals, none are heard.
    """
    stop = Stop(name, now, soon, clean, say)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = _ours()
    if launched:
        stop.theirs = _theirs(before)
        before = {**before, **stop.theirs}
    source, sink = os.pipe()
    os.set_blocking(sink, False)
    outer = signal.set_wakeup_fd(sink, warn_on_full_buffer=False)
    thread = threading.Thread(target=stop.hear, args=(source, set(before), outer), daemon=True)
    thread.start()
    for number in before:
        signal.signal(number, _pass)
    # Where the process that started this one held them back until now.
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    try:
        yield stop
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(outer)
        os.close(sink)
        thread.join()
        os.close(source)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Processes that are started here hear signals only when they are `listening`; until then signals wait. Nor do
    those say what they clean up that joblib keeps for this, where this process ends at once.
    """
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join([*filter(None, [before]), "ignore:resource_tracker:UserWarning"])
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


class Steady:
    """A stream that drops what cannot be written: rows are what a run is for, whoever reads what it prints."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or not."""
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or not."""
        with self._dropping():
            self._stream.flush()

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            _drop(self._stream)
            if error.errno not in GONE:
                with contextlib.suppress(OSError):
                    os.write(2, f"mtfl: output: {error.strerror}; what is printed is lost\n".encode())


def _drop(stream: Any) -> None:
    """Write what a stream still holds, and all that follows, nowhere: it would be tried again at the end."""
    with contextlib.suppress(OSError, ValueError):  # It may be no file.
        _to_nowhere([stream.fileno()])
        stream.flush()


def leave(status: int) -> NoReturn:
    """End the process with a status, without waiting for a thread that compiles."""
    if any(thread.name.startswith(COMPILES) for thread in threading.enumerate()):
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(status)
    sys.exit(status)


def _usual_ends() -> None:
    """While Python ends, a signal ends it too, and no traceback says so."""
    for number in _ours():
        signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def in_lines(name: str) -> Iterator[None]:
    """Show a warning as one line on stderr."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"{name}: {' '.join(str(message).split())}", file=sys.stderr)

    before, warnings.showwarning = warnings.showwarning, show
    try:
        yield
    finally:
        warnings.showwarning = before


@contextlib.contextmanager
def command(name: str) -> Iterator[None]:
    """Around what a command does: a warning is one line on stderr, a signal ends it at once with a line, where it does
    not listen itself, and a reader that goes (`| head -1`) ends it without a word, with exit status 1.
    """
    with listening("stopped", name=name), in_lines(name):
        try:
            try:
                yield
            finally:
                sys.stdout.flush()
        except OSError as error:
            if error.errno not in (*GONE, errno.ENOSPC) or error.filename is not None:
                raise
            _drop(sys.stdout)
            if error.errno in GONE:
                _drop(sys.stderr)
            else:
                print(f"{name}: output: {error.strerror}", file=sys.stderr)
            sys.exit(1)
        finally:
            if threading.current_thread() is threading.main_thread():
                atexit.register(_usual_ends)
