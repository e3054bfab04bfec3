"""Who hears of rows while a sweep runs: functions of the user's, in a thread of their own that takes little time."""

import contextlib
import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa

from mtfl_jax.fields import ConfigError
from mtfl_jax.sweeps import tables

Listener = Callable[[pd.DataFrame], object]
"""What is given rows. Where it has a method `close`, that is called when no more come; where it has `seconds`, that is
what a row takes it at most.
"""

PIECE = 16
"""Rows that a listener is given at most at a time while the sweep runs."""
SHARE = 0.02
"""The share of the time in which listeners run while the sweep does. It is time and not that of a processor, as threads
and processes of a library's own work beside them.
"""


class _Sink(Protocol):
    @property
    def waits(self) -> float:
        """Seconds that rows wait before they are added."""

    @property
    def keep(self) -> tuple[str, ...]:
        """The weights that are kept."""

    def append(self, part: pa.Table, networks: pa.Table | None = None) -> None:
        """Add rows, and the networks that they are of where weights are kept."""

    def finished(self) -> np.ndarray:
        """Identities of the rows there already, sorted."""

    def room(self) -> int | None:
        """Bytes that can still be added, where that is known."""


def listeners_of(given: Any) -> list[Listener]:
    """`on_rows` as a list. Raises ConfigError."""
    found = list(given) if isinstance(given, Sequence) and not callable(given) else [given]
    for one in found:
        if not callable(one):
            raise ConfigError("on_rows", repr(one), "allowed: a function of a DataFrame of rows, or a list of such")
    return found


@contextlib.contextmanager
def told(sink: _Sink, listeners: Sequence[Listener], axes: Sequence[str]) -> Iterator[_Sink]:
    """A sink of which listeners hear what is added, in order; in the end all of it, also where the sweep ended early.
    One that raises is named in a warning and hears no more. The rows' attrs["axes"] are the settings that vary.
    """
    if not listeners:
        yield sink
        return
    telling = _Telling(sink, listeners, axes)
    try:
        yield telling
    finally:
        telling.end()


class _Telling:
    def __init__(self, sink: _Sink, listeners: Sequence[Listener], axes: Sequence[str]) -> None:
        self._sink, self._listeners, self._axes = sink, list(listeners), list(axes)
        self._parts: queue.SimpleQueue[pa.Table | None] = queue.SimpleQueue()
        self._problems: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._ended = threading.Event()
        # Ctrl-C while it is awaited leaves it behind.
        self._thread = threading.Thread(target=self._tell, name="mtfl-listeners", daemon=True)
        self._thread.start()

    @property
    def waits(self) -> float:
        """Seconds that rows wait before they are added."""
        return self._sink.waits

    @property
    def keep(self) -> tuple[str, ...]:
        """The weights that are kept."""
        return self._sink.keep

    def append(self, part: pa.Table, networks: pa.Table | None = None) -> None:
        """Add rows."""
        if networks is None:
            self._sink.append(part)
        else:
            self._sink.append(part, networks)
        self._parts.put(part)
        self._warn()

    def finished(self) -> np.ndarray:
        """Identities of the rows there already, sorted."""
        return self._sink.finished()

    def room(self) -> int | None:
        """Bytes that can still be added, where that is known."""
        return self._sink.room()

    def end(self) -> None:
        """Wait until all has been heard."""
        self._ended.set()
        self._parts.put(None)
        self._thread.join()
        self._warn()

    def _warn(self) -> None:
        while not self._problems.empty():
            warnings.warn(self._problems.get(), stacklevel=2)

    def _tell(self) -> None:
        began, took, last = time.monotonic(), 0.0, 0.0
        while (part := self._parts.get()) is not None:
            while len(part):
                expected = max(last, PIECE * sum(getattr(one, "seconds", 0.0) for one in self._listeners))
                self._ended.wait(max(0.0, (took + expected) / SHARE - (time.monotonic() - began)))
                piece = part if self._ended.is_set() else part.slice(0, PIECE)
                part, since = part.slice(len(piece)), time.monotonic()
                rows = tables.frame(piece)
                rows.attrs["axes"] = self._axes
                self._each(lambda one, rows=rows: one(rows.copy()))
                last = time.monotonic() - since
                took += last
        self._each(lambda one: getattr(one, "close", lambda: None)())

    def _each(self, call: Callable[..., object]) -> None:
        for one in list(self._listeners):
            try:
                call(one)
            except Exception as error:  # It is the user's code.
                self._listeners.remove(one)
                said = " ".join(str(error).split())
                name = getattr(one, "__qualname__", type(one).__qualname__)
                self._problems.put(f"on_rows: {name} hears no more ({type(error).__name__}: {said}); the sweep goes on")
