"""Runs a grid: one compiled program a bucket, chunks of trainings shared by the local devices.

While a bucket runs, the next one compiles in another thread. Compiled programs are kept in JAX's persistent cache.
"""

import collections
import concurrent.futures
import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np
import pyarrow as pa
import pyarrow.compute
import threadpoolctl

from mtfl_jax.sweeps import compiling
from mtfl_jax.sweeps.compiling import Chunk, cells_of, chunk_of, fitting, half, job_of
from mtfl_jax.sweeps.grid import Grid, row_ids
from mtfl_jax.sweeps.machine import MEMORY_FRACTION, devices
from mtfl_jax.sweeps.plan import Bucket, plan
from mtfl_jax.sweeps.rows import Costs, rows_of

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class Progress:
    """How far a sweep is. Seconds of compiling and of running are this process's, and may overlap."""

    cells: int
    buckets: int
    skipped: int = 0
    done: int = 0
    diverged: int = 0
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

    def append(self, part: pa.Table) -> None:
        """Add rows."""

    def finished(self) -> np.ndarray:
        """Identities of the rows there already, sorted."""


def remaining(grid: Grid, buckets: Sequence[Bucket], finished: np.ndarray, part: tuple[int, int]) -> list[Bucket]:
    """The buckets less the lanes whose every row is finished, and less those of other parts.

    part (k, K): the k-th of K shares of the plan's lanes, equal in the model's time.
    """
    unfinished = np.ones(len(grid), bool)
    if len(finished):
        records, record = grid.records()
        for i, steps in enumerate(records):
            own = np.flatnonzero(record == i)
            ids = row_ids(np.repeat(grid.ids[own], len(steps)), np.tile(steps, len(own)))
            unfinished[own] = ~np.isin(ids, finished).reshape(len(own), len(steps)).all(axis=1)
    k, of = part
    total = sum(bucket.seconds * len(bucket) for bucket in buckets)
    start, left = 0.0, []
    for bucket in buckets:
        middle = start + bucket.seconds * (np.arange(len(bucket)) + 0.5)
        start += bucket.seconds * len(bucket)
        mine = (middle >= total * (k - 1) / of) & (middle < total * k / of)
        mine &= np.bincount(bucket.lane, weights=unfinished[bucket.cells], minlength=len(bucket)) > 0
        if mine.any():
            left.append(bucket.of_lanes(np.flatnonzero(mine)))
    return left


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

    `chunk` sets the trainings a call gives each device, one after the other (default: `chunk_of`). `stop()` is asked
    after every chunk; `notify` hears of every one. A bucket that fails is listed in the result's failures and the
    others run.
    """
    whole = plan(grid, moments)
    buckets = remaining(grid, whole, sink.finished(), part)
    cells = sum(len(bucket.cells) for bucket in buckets)
    every = len(grid) if part == (1, 1) else cells
    progress = Progress(cells=every, buckets=len(buckets), skipped=every - cells)
    _log.info("%d cells in %d programs, %d there before", every, len(buckets), progress.skipped)
    # From the whole plan, so that a restart compiles the same programs.
    chunks = {job_of(bucket): chunk_of(bucket) if chunk is None else Chunk(chunk, 1) for bucket in whole}
    costs = Costs(grid)

    def prepare(bucket: Bucket) -> tuple[Any, Chunk, float]:
        start, job = time.perf_counter(), job_of(bucket)
        executable, fits = fitting(job, chunks[job], memory_fraction)
        return executable, fits, time.perf_counter() - start

    notify(progress)
    # Every device calls LAPACK from its own core: BLAS threads of their own would only wait for one another.
    with threadpoolctl.threadpool_limits(1, "blas"), concurrent.futures.ThreadPoolExecutor(1) as ahead:
        # Only the program that runs and the next one are held: those that have run may be let go of.
        coming = collections.deque(ahead.submit(prepare, bucket) for bucket in buckets[:1])
        for i, bucket in enumerate(buckets):
            if stop():
                progress.stopped = True
                break
            try:
                try:
                    executable, fits, seconds = coming.popleft().result()
                finally:
                    coming.extend(ahead.submit(prepare, following) for following in buckets[i + 1 : i + 2])
                progress.compiled += 1
                progress.compile_seconds += seconds
                _run_bucket(grid, costs, bucket, executable, fits, sink, progress, memory_fraction, stop, notify)
            except Exception as error:
                progress.failures.append(describe(grid, bucket, error))
                notify(progress)
    return progress


def _run_bucket(
    grid: Grid,
    costs: Costs,
    bucket: Bucket,
    executable: Any,
    chunk: Chunk,
    sink: Sink,
    progress: Progress,
    memory_fraction: float,
    stop: Callable[[], bool],
    notify: Callable[[Progress], None],
) -> None:
    """Run a bucket's lanes chunk by chunk; on an out-of-memory error the chunk halves and goes on."""
    start, at, held = time.perf_counter(), 0, []
    written = start
    while at < len(bucket):
        lanes = np.arange(at, min(at + chunk.capacity * len(devices()), len(bucket)))
        try:
            measured = _call(executable, chunk, grid, bucket, lanes)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or chunk.capacity == 1:
                raise
            _log.info("out of memory at %d trainings a call", chunk.capacity)
            executable, chunk = fitting(job_of(bucket), half(chunk), memory_fraction)
            continue
        rows = rows_of(grid, costs, bucket, lanes, measured)
        held.append(rows)
        at += len(lanes)
        now = time.perf_counter()
        if now - written > compiling.CHUNK_SECONDS or at == len(bucket) or stop():
            sink.append(pa.concat_tables(held))
            held, written = [], now
        low, high = np.searchsorted(bucket.lane, [lanes[0], at])
        progress.done += int(high - low)
        progress.diverged += pyarrow.compute.sum(pyarrow.compute.equal(rows.column("status"), "diverged")).as_py()
        progress.run_seconds += now - start
        start = now
        notify(progress)
        if stop() and at < len(bucket):
            progress.stopped = True
            return


def _call(executable: Any, chunk: Chunk, grid: Grid, bucket: Bucket, lanes: np.ndarray) -> dict[str, np.ndarray]:
    """Run lanes, at most one chunk, shared evenly among the devices: their measurements, leading axis lanes."""
    shares = np.array_split(np.arange(len(lanes)), len(devices()))
    # Where each lane stands in the call; the places between are filled with copies that do not run.
    places = np.concatenate([i * chunk.capacity + np.arange(len(share)) for i, share in enumerate(shares)])
    filled = np.full(chunk.capacity * len(devices()), lanes[0])
    filled[places] = lanes
    counts = np.asarray([len(share) for share in shares], np.int32)
    measured = jax.device_get(executable(cells_of(grid, bucket, filled), counts))
    return {name: values[places] for name, values in measured.items()}


def describe(grid: Grid, bucket: Bucket, error: Exception) -> str:
    """A failed bucket in one line: how many cells, which, and why."""
    shown = []
    for key in grid.at:
        if len(grid.axes[key]) > 1:
            values = [str(value) for value in dict.fromkeys(grid.column(key, np.sort(bucket.cells)).tolist())]
            shown.append(f"{key}={','.join(values if len(values) <= 6 else [*values[:3], '…', values[-1]])}")
    reason = (str(error).strip() or "no message").splitlines()[0]
    cells = f"{len(bucket.cells)} cells ({' '.join([bucket.program.algorithm, *shown])})"
    return f"{cells}: {type(error).__name__}: {reason}"
