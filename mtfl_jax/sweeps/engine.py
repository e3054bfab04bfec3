"""Runs a grid: one compiled program a bucket, chunks of trainings shared by the local devices.

While chunks run, the next buckets compile in other threads. Compiled programs are kept in JAX's persistent cache.
"""

import collections
import concurrent.futures
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import pyarrow as pa
import pyarrow.compute
import threadpoolctl

from mtfl_jax import ends
from mtfl_jax.fields import ConfigError
from mtfl_jax.sweeps import compiling, mappings
from mtfl_jax.sweeps.calibration import chunk_of
from mtfl_jax.sweeps.compiling import Chunk, Job, cells_of, fitting, half, job_of, speed, wider
from mtfl_jax.sweeps.grid import Grid, row_ids
from mtfl_jax.sweeps.machine import MEMORY_FRACTION
from mtfl_jax.sweeps.plan import Bucket, plan
from mtfl_jax.sweeps.progress import several
from mtfl_jax.sweeps.rows import Costs, kept_bytes, networks_of, rows_of

FEW = 4
"""Programs that may always take turns."""
MOST_HELD = 2**28
"""Bytes of weights that wait to be written at most, beside those of a chunk."""
STOP_SECONDS = 0.1
"""How long a stop may go unheard while a program compiles and nothing runs."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class Progress:
    """How far a sweep is. Seconds of compiling and of running are this process's, and may overlap. mended: networks
    whose spectra a library decomposed, on an accelerator.
    """

    cells: int
    buckets: int
    skipped: int = 0
    done: int = 0
    diverged: int = 0
    mended: int = 0
    compiled: int = 0
    compile_seconds: float = 0.0
    run_seconds: float = 0.0
    started: float = dataclasses.field(default_factory=time.time)
    stopped: bool = False
    failures: list[str] = dataclasses.field(default_factory=list)

    @property
    def left(self) -> int:
        """Cells still to run."""
        return self.cells - self.skipped - self.done


class Sink(Protocol):
    """Where rows go: `store.Folder` or `store.Memory`."""

    @property
    def waits(self) -> float:
        """Seconds that rows wait before they are added."""

    @property
    def keep(self) -> tuple[str, ...]:
        """The weights to be kept of every row."""

    def append(self, part: pa.Table, networks: pa.Table | None = None) -> None:
        """Add rows, and the networks that they are of where weights are kept."""

    def finished(self) -> np.ndarray:
        """Identities of the rows there already with all that is kept of them, sorted."""

    def room(self) -> int | None:
        """Bytes that can still be added, where that is known."""


def planned(grid: Grid, moments: str, part: tuple[int, int]) -> tuple[list[Bucket], np.ndarray]:
    """The plan for this process's devices, and which cells (cells,) are those of its part."""
    whole, fast = plan(grid, moments, speed()), speed() != 1
    if part == (1, 1):
        return whole, np.ones(len(grid), bool)
    return whole, share(grid, plan(grid, moments) if fast else whole, part)


def share(grid: Grid, buckets: Sequence[Bucket], part: tuple[int, int]) -> np.ndarray:
    """Which cells (cells,) are those of part (k, K): the k-th of K shares of the trainings, equal in the model's time,
    and the same on every machine, as `buckets` are the plan for the model's core.

    A share has trainings of few programs, as each process compiles its own; the first shares have the first seeds of
    every program, the last ones the last.
    """
    k, of = part
    seconds = np.concatenate([np.full(len(bucket), bucket.seconds) for bucket in buckets])
    owner = np.repeat(np.arange(len(buckets)), [len(bucket) for bucket in buckets])
    total = seconds.sum()

    def begun(bucket: Bucket) -> np.ndarray:
        """How far the bucket is where each of its lanes comes, in pieces of about a share."""
        pieces = max(1, round(bucket.seconds * len(bucket) * of / total))
        return np.arange(len(bucket)) * pieces // len(bucket) / pieces

    order = np.lexsort((np.arange(len(owner)), owner, np.concatenate([begun(bucket) for bucket in buckets])))
    number = np.empty(len(owner), int)
    number[order] = (np.cumsum(seconds[order]) - seconds[order] / 2) * of // total
    mine, lanes = np.zeros(len(grid), bool), np.split(number == k - 1, np.cumsum([len(one) for one in buckets])[:-1])
    for bucket, own in zip(buckets, lanes, strict=True):
        mine[bucket.cells] = own[bucket.lane]
    return mine


def unfinished(grid: Grid, finished: np.ndarray) -> np.ndarray:
    """Which cells (cells,) lack a row among those `finished` (their identities, sorted)."""
    lacking = np.ones(len(grid), bool)
    if len(finished):
        records, record = grid.records()
        for i, steps in enumerate(records):
            own = np.flatnonzero(record == i)
            ids = row_ids(np.repeat(grid.ids[own], len(steps)), np.tile(steps, len(own)))
            lacking[own] = ~np.isin(ids, finished).reshape(len(own), len(steps)).all(axis=1)
    return lacking


def remaining(grid: Grid, buckets: Sequence[Bucket], finished: np.ndarray, mine: np.ndarray) -> list[Bucket]:
    """The buckets less the lanes whose every row is finished, and less those of cells that are not `mine` (cells,)."""
    wanted_cells = unfinished(grid, finished) & mine
    left = []
    for bucket in buckets:
        wanted = wanted_cells[bucket.cells]
        lanes = np.flatnonzero(np.bincount(bucket.lane, weights=wanted, minlength=len(bucket)))
        if len(lanes):
            left.append(bucket.of_lanes(lanes))
    return left


class _Course:
    """A bucket in its course: the executable for its chunks, and the lanes that are left, as ranges in order."""

    def __init__(self, bucket: Bucket, executable: Any, chunk: Chunk) -> None:
        self.bucket, self.executable, self.chunk = bucket, executable, chunk
        self.left = [(0, len(bucket))]
        self.given_up = False

    @property
    def begun(self) -> float:
        """The share of its lanes that have been taken."""
        return 1 - sum(high - low for low, high in self.left) / len(self.bucket)

    def take(self) -> np.ndarray:
        """The lanes of the next chunk, which are consecutive."""
        low, high = self.left.pop(0)
        most = low + self.chunk.capacity * self.chunk.places
        if most < high:
            self.left.insert(0, (most, high))
        return np.arange(low, min(most, high))

    def give_back(self, lanes: np.ndarray) -> None:
        """Put lanes back among those that are left."""
        self.left = sorted([*self.left, (int(lanes[0]), int(lanes[-1]) + 1)])


class _Flight(NamedTuple):
    """A chunk on its way: its lanes, at which places of the call's outputs they are, and what the call took."""

    course: _Course
    lanes: np.ndarray
    places: np.ndarray
    chunk: Chunk
    outputs: Mapping[str, Any]


def execute(
    grid: Grid,
    sink: Sink,
    *,
    memory_fraction: float = MEMORY_FRACTION,
    part: tuple[int, int] = (1, 1),
    moments: str = "auto",
    chunk: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    notify: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Run what is left of a grid into `sink` and say how it went.

    Programs take turns, chunk by chunk, the one that is least far first, and the lanes of each go seed by seed: a sweep
    that is stopped has some seeds of everything. While a chunk runs, the rows of the one before are made and written.
    `chunk` sets the trainings a call gives each device, one after the other (default: `chunk_of`). `stop()` is asked
    before every chunk; `notify` hears of every one. A bucket that fails is listed in the result's failures and the
    others run.
    """
    whole, mine = planned(grid, moments, part)
    buckets = remaining(grid, whole, sink.finished(), mine)
    cells, every = sum(len(bucket.cells) for bucket in buckets), int(mine.sum())
    progress = Progress(cells=every, buckets=len(buckets), skipped=every - cells)
    _log.info("%d cells in %d programs, %d there before", every, len(buckets), progress.skipped)
    if sink.keep:
        require_room(sink, grid, buckets)
    # From the whole plan, so that a restart compiles the same programs.
    chunks = {
        job_of(keeping(bucket, sink.keep)): chunk_of(bucket) if chunk is None else Chunk(chunk, 1) for bucket in whole
    }
    buckets = [keeping(bucket, sink.keep) for bucket in buckets]
    notify(progress)
    run = _Run(grid, sink, chunks, memory_fraction, stop, notify, progress, collections.deque(buckets))
    with _ONE_THREAD:
        run.all()
    return progress


def keeping(bucket: Bucket, keep: Sequence[str]) -> Bucket:
    """The bucket, its program giving networks where weights are kept."""
    return dataclasses.replace(bucket, program=bucket.program.replace(keep=True)) if keep else bucket


def require_room(sink: Sink, grid: Grid, buckets: Sequence[Bucket]) -> None:
    """Raise ConfigError where the weights to be kept are more than there is room for."""
    room, needed = sink.room(), sum(kept_bytes(grid, bucket, sink.keep) for bucket in buckets)
    _log.info("%g bytes of weights to keep", needed)
    if room is not None and needed > room:
        raise ConfigError(
            "keep",
            f"[{','.join(sink.keep)}]",
            f"{needed / 2**30:.3g} GiB of weights, and there is room for {room / 2**30:.3g};"
            " allowed: fewer of W, b, A, measure_at=last, or fewer cells",
        )


class _OneThread:
    """BLAS on one thread while anything runs: every device calls LAPACK from its own core, and threads of its own would
    only wait for one another. Sweeps of several threads share it, as the limit is the process's.
    """

    def __init__(self) -> None:
        self._lock, self._count = threading.Lock(), 0
        self._limit: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._count:
                self._limit = threadpoolctl.threadpool_limits(1, "blas")
                self._limit.__enter__()
            self._count += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._count -= 1
            if not self._count:
                self._limit.__exit__(None, None, None)


_ONE_THREAD = _OneThread()


@dataclasses.dataclass
class _Run:
    """Buckets on their way: `waiting`, then among those `coming` (they compile, in other threads), then among the
    `courses` while they have lanes left. `held` are rows that are not written yet, `networks` theirs to keep.
    """

    grid: Grid
    sink: Sink
    chunks: Mapping[Job, Chunk]
    memory_fraction: float
    stop: Callable[[], bool]
    notify: Callable[[Progress], None]
    progress: Progress
    waiting: collections.deque[Bucket]
    coming: dict[Future[tuple[_Course, float]], Bucket] = dataclasses.field(default_factory=dict)
    courses: list[_Course] = dataclasses.field(default_factory=list)
    held: list[pa.Table] = dataclasses.field(default_factory=list)
    networks: list[pa.Table] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.costs = Costs(self.grid)
        self.at_once = compiling.at_once()
        self.ahead = ThreadPoolExecutor(self.at_once, ends.COMPILES)
        self.written = self.since = time.perf_counter()

    def all(self) -> None:
        """Run every bucket, or until `stop`."""
        flying: _Flight | None = None
        try:
            self._compile_more()
            while flying or self.courses or self.coming:
                flight = None
                if not self.stop():
                    self._take_compiled(wait=not flying)
                    flight = self._dispatch()
                elif not flying:
                    self.progress.stopped = True
                    break
                if flying:
                    self._collect(flying)
                flying = flight
        finally:
            # A program that still compiles is not awaited.
            compiles = any(not future.done() for future in self.coming)
            self.ahead.shutdown(wait=not compiles, cancel_futures=True)
            self._write()

    def _compile_more(self) -> None:
        while self.waiting and len(self.coming) < self.at_once:
            bucket = self.waiting.popleft()
            self.coming[self.ahead.submit(self._compiled, bucket)] = bucket

    def _compiled(self, bucket: Bucket) -> tuple[_Course, float]:
        start, job = time.perf_counter(), job_of(bucket)
        executable, chunk, *_ = fitting(job, self.chunks[job], self.memory_fraction)
        return _Course(bucket, executable, chunk), time.perf_counter() - start

    def _take_compiled(self, wait: bool) -> None:
        """Let what has compiled run, where there is room for it; wait for it where nothing else runs, until `stop`."""
        idle = wait and not self.courses
        while self.coming:
            timeout, until = STOP_SECONDS if idle else 0, concurrent.futures.FIRST_COMPLETED
            ready, _ = concurrent.futures.wait(self.coming, timeout, until)
            if not ready and idle and not self.stop():
                continue
            # Counting mappings takes its time where there are many; there is room for a few.
            if not ready or not (idle or len(self.courses) < FEW or mappings.room()):
                return
            future = next(one for one in self.coming if one in ready)
            bucket = self.coming.pop(future)
            try:
                course, seconds = future.result()
            except Exception as error:
                self._fail(bucket, error)
            else:
                self.courses.append(course)
                self.progress.compiled += 1
                self.progress.compile_seconds += seconds
                idle = False
            self._compile_more()
            self.since = time.perf_counter() if wait else self.since

    def _dispatch(self) -> _Flight | None:
        """Start the next chunk, of the course that is least far."""
        if not self.courses:
            return None
        course = min(self.courses, key=lambda course: course.begun)
        lanes = course.take()
        if not course.left:
            self.courses.remove(course)
        try:
            return _call(course, self.grid, lanes)
        except Exception as error:
            self._failed(course, lanes, course.chunk, error)
            return None

    def _collect(self, flight: _Flight) -> None:
        """Make rows of a chunk, and write them if the last were written long ago."""
        bucket, lanes = flight.course.bucket, flight.lanes
        try:
            outputs = jax.device_get(dict(flight.outputs))
            measured = jax.tree.map(lambda values: values[flight.places], outputs)
            rows = rows_of(self.grid, self.costs, bucket, lanes, measured)
            own = networks_of(self.grid, bucket, lanes, measured["network"], self.sink.keep) if self.sink.keep else None
        except Exception as error:
            self._failed(flight.course, lanes, flight.chunk, error)
            return
        self.held.append(rows)
        self.networks += [own] if own is not None else []
        now = time.perf_counter()
        self.progress.run_seconds += now - self.since
        self.since = now
        if now - self.written > self.sink.waits or sum(one.nbytes for one in self.networks) > MOST_HELD:
            self._write()
        low, high = np.searchsorted(bucket.lane, [lanes[0], lanes[-1] + 1])
        self.progress.done += int(high - low)
        self.progress.mended += int(np.sum(measured.get("mended", 0)))
        diverged = pyarrow.compute.equal(rows.column("status"), "diverged")
        self.progress.diverged += pyarrow.compute.sum(diverged).as_py()
        self.notify(self.progress)

    def _write(self) -> None:
        if self.held:
            held, self.held = self.held, []
            networks, self.networks = self.networks, []
            if networks:
                self.sink.append(pa.concat_tables(held), pa.concat_tables(networks))
            else:
                self.sink.append(pa.concat_tables(held))
            self.written = time.perf_counter()

    def _failed(self, course: _Course, lanes: np.ndarray, chunk: Chunk, error: Exception) -> None:
        """Where a chunk was out of memory, try again in halves of it, or one training on more devices; else give the
        bucket up, once.
        """
        if course.given_up:  # Of two chunks on their way this is the second.
            return
        job, full = job_of(course.bucket), isinstance(error, jax.errors.JaxRuntimeError)
        full = full and "RESOURCE_EXHAUSTED" in str(error)
        less = half(chunk) if chunk.capacity > 1 else wider(job, chunk)
        if full and less is not None:
            course.give_back(lanes)
            try:
                if chunk == course.chunk:  # It has not become less since.
                    _log.info("out of memory at %d trainings a call", chunk.capacity)
                    course.executable, course.chunk, *_ = fitting(job, less, self.memory_fraction)
            except Exception as too_large:
                error = too_large
            else:
                if course not in self.courses:
                    self.courses.append(course)
                return
        course.given_up = True
        self._fail(course.bucket, error)
        if course in self.courses:
            self.courses.remove(course)

    def _fail(self, bucket: Bucket, error: Exception) -> None:
        self.progress.failures.append(describe(self.grid, bucket, error))
        self.notify(self.progress)


def _call(course: _Course, grid: Grid, lanes: np.ndarray) -> _Flight:
    """Start a call for lanes, at most one chunk, shared evenly among its places."""
    chunk = course.chunk
    capacity, count = chunk.capacity, chunk.places
    shares = np.array_split(np.arange(len(lanes)), count)
    # Where each lane stands in the call; the places between are filled with copies that do not run.
    places = np.concatenate([i * capacity + np.arange(len(share)) for i, share in enumerate(shares)])
    filled = np.full(capacity * count, lanes[0])
    filled[places] = lanes
    counts = np.asarray([len(share) for share in shares], np.int32)
    outputs = course.executable(cells_of(grid, course.bucket, filled), counts)
    return _Flight(course, lanes, places, chunk, outputs)


def describe(grid: Grid, bucket: Bucket, error: Exception) -> str:
    """A failed bucket in one line: how many cells, which, and why."""
    shown = []
    for key in grid.at:
        if len(grid.axes[key]) > 1:
            values = [str(value) for value in dict.fromkeys(grid.column(key, np.sort(bucket.cells)).tolist())]
            shown.append(f"{key}={','.join(values if len(values) <= 6 else [*values[:3], '…', values[-1]])}")
    reason = (str(error).strip() or "no message").splitlines()[0]
    cells = f"{several(len(bucket.cells), 'cell')} ({' '.join([bucket.program.algorithm, *shown])})"
    return f"{cells}: {type(error).__name__}: {reason}"
