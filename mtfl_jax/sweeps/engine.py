"""Runs a grid: one compiled program a bucket, chunks of trainings shared by the local devices.

While a bucket runs, the next one compiles in another thread. Compiled programs are kept in JAX's persistent cache.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import scipy.linalg.lapack  # noqa: F401 - jaxlib calls this LAPACK, and only libraries loaded already can be limited
import threadpoolctl
from jax.sharding import Mesh, PartitionSpec

from mtfl_jax import config
from mtfl_jax.learning import experiment
from mtfl_jax.learning.experiment import Cell, Program
from mtfl_jax.sweeps import store, tables
from mtfl_jax.sweeps.grid import Grid, row_ids
from mtfl_jax.sweeps.plan import Bucket, ladder, lane_flops, plan

MATMUL_PRECISION = "highest"
"""Precision of every matrix product: float32 on all backends."""

MEMORY_FRACTION = 0.8
"""Share of a device's memory that a program may take, unless told otherwise."""

CHUNK_SECONDS = 1.0
"""What a chunk should take on a CPU by the planner's model, and how long rows wait to be written."""
MAX_LANES = 1024
"""Trainings of one call on each device at most."""


@functools.cache
def devices() -> tuple[jax.Device, ...]:
    """The local devices; on a CPU one a core this process may use, unless JAX is already initialised.

    Also turns on JAX's persistent compilation cache, where the user has not chosen one.
    """
    # Where JAX runs already, or the platform has no affinity, take what is there.
    with contextlib.suppress(RuntimeError, AttributeError):
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "mtfl_jax" / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return tuple(jax.local_devices())


def memory_limit() -> int:
    """Bytes of memory of one device; of a CPU device its share of the machine's."""
    stats = devices()[0].memory_stats() or {}
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(stats.get("bytes_limit", machine // len(devices())))


class TooLargeError(Exception):
    """A program that does not fit into memory even for one training at a time."""


class Chunk(NamedTuple):
    """Trainings of one call on each device: at most `capacity`, `batch` of them at a time."""

    capacity: int
    batch: int


def chunk_of(bucket: Bucket) -> Chunk:
    """The bucket's chunk. A CPU core runs one training after the other faster than a batch of them, as many as take
    CHUNK_SECONDS by the planner's model; an accelerator wants the batch.
    """
    if devices()[0].platform == "cpu":
        return Chunk(min(ladder(max(1, int(CHUNK_SECONDS / bucket.seconds))), MAX_LANES), 1)
    share = min(ladder(-(-len(bucket) // len(devices()))), MAX_LANES)
    return Chunk(share, share)


@functools.cache
def compiled(program: Program, chunk: Chunk) -> Any:
    """The executable of a program: (Cell, counts) -> measurements.

    Leaves have a leading axis devices × capacity; counts (devices,) says how many trainings of each device's share
    are real. The others give zeros, and batches without a real one cost nothing.
    """
    mesh, spec = Mesh(np.asarray(devices()), ("lanes",)), PartitionSpec("lanes")
    run = functools.partial(experiment.experiment, program)

    def each_device(cells: Cell, count: jax.Array) -> dict[str, jax.Array]:
        rounds = chunk.capacity // chunk.batch
        batches = jax.tree.map(lambda leaf: leaf.reshape(rounds, chunk.batch, *leaf.shape[1:]), cells)

        def one_batch(i: int | jax.Array) -> dict[str, jax.Array]:
            batch = jax.tree.map(lambda leaf: leaf[i], batches)
            if chunk.batch > 1:
                return jax.vmap(run)(batch)
            alone = run(jax.tree.map(lambda leaf: leaf[0], batch))
            return jax.tree.map(lambda leaf: leaf[None], alone)

        def body(i: jax.Array, out: dict[str, jax.Array]) -> dict[str, jax.Array]:
            return jax.tree.map(lambda all_, leaf: all_.at[i].set(leaf), out, one_batch(i))

        shapes = jax.eval_shape(one_batch, 0)
        out = jax.tree.map(lambda leaf: jnp.zeros((rounds, *leaf.shape), leaf.dtype), shapes)
        out = jax.lax.fori_loop(0, (count[0] + chunk.batch - 1) // chunk.batch, body, out)
        return jax.tree.map(lambda leaf: leaf.reshape(chunk.capacity, *leaf.shape[2:]), out)

    sharded = jax.shard_map(each_device, mesh=mesh, in_specs=(spec, spec), out_specs=spec, check_vma=False)
    zeros = {field.name: 0 for field in dataclasses.fields(Cell)}
    example = _traced(program, chunk.capacity * len(devices()), zeros)
    with jax.default_matmul_precision(MATMUL_PRECISION):
        return jax.jit(sharded).lower(example, np.zeros(len(devices()), np.int32)).compile()


def fitting(program: Program, chunk: Chunk, memory_fraction: float) -> tuple[Any, Chunk]:
    """The program's executable and its chunk, its batch halved until the program's own memory analysis fits into
    `memory_fraction` of the device. Raises TooLargeError.
    """
    limit = memory_fraction * memory_limit()
    while True:
        executable = compiled(program, chunk)
        needs = memory_of(executable)
        if needs <= limit:
            return executable, chunk
        if chunk.batch == 1:
            raise TooLargeError(
                f"one training needs {needs / 2**30:.2g} GiB; allowed: {limit / 2**30:.2g} GiB a device"
                f" (memory_fraction={memory_fraction:g})"
            )
        chunk = half(chunk)


def half(chunk: Chunk) -> Chunk:
    """Half the chunk, in whole batches."""
    if chunk.batch > 1:
        batch = chunk.batch // 2
        return Chunk(batch, batch)
    return Chunk(chunk.capacity // 2, 1)


def memory_of(executable: Any) -> int:
    """Bytes one device needs to run an executable, by the compiler's own account."""
    analysis = executable.memory_analysis()
    parts = ("temp_size_in_bytes", "argument_size_in_bytes", "output_size_in_bytes")
    return sum(getattr(analysis, name, 0) for name in parts)


def _traced(program: Program, lanes: int, values: Mapping[str, Any]) -> Cell:
    """The traced numbers of trainings: NumPy arrays with a leading axis `lanes`, of values that broadcast to them.

    A missing weight_decay (nan) is 1/lr_w: the initial weights are forgotten.
    """
    decay = np.asarray(values["weight_decay"], float)
    shrink = np.where(np.isnan(decay), 1.0, np.asarray(values["lr_w"], float) * np.nan_to_num(decay))
    values = {**values, "weight_decay": np.nan_to_num(decay), "shrink": shrink}
    inner = {"n_down": (len(program.n_down),), "probe_parity_size": (len(program.probes),)}
    if program.groups:
        inner |= dict.fromkeys(experiment.ROWED, (sum(count for _, count in program.groups),))
    whole = {"seed", "d", "r", "width", "num_tasks", "n1", "n2", "n_down", "parity_size", "probe_parity_size", "family"}
    return Cell(
        **{
            field.name: np.broadcast_to(
                np.asarray(values[field.name]).astype(np.int32 if field.name in whole else np.float32),
                (lanes, *inner.get(field.name, ())),
            )
            for field in dataclasses.fields(Cell)
        }
    )


def _cells_of(grid: Grid, bucket: Bucket, lanes: np.ndarray) -> Cell:
    """The traced numbers of some of a bucket's lanes."""
    members, rowed = bucket.members[lanes], experiment.ROWED if bucket.program.groups else ()
    derived = ("shrink", "family", "n_down", "probe_parity_size")
    names = [field.name for field in dataclasses.fields(Cell) if field.name not in derived]
    columns = {name: grid.column(name, members if name in rowed else members[:, 0]) for name in names}
    size = columns["parity_size"]
    columns["parity_size"] = np.where(size == "any", 0, np.where(size == "all", columns["r"], size))
    columns["family"] = np.zeros(len(lanes), int)
    if rowed:
        families = np.asarray(bucket.program.families)
        columns["family"] = np.searchsorted(families, grid.column("tasks", members).astype(str))
    columns |= {"n_down": bucket.n_down[lanes], "probe_parity_size": bucket.parity_size[lanes]}
    return _traced(bucket.program, len(lanes), columns)


_WITH_SAMPLES = ("train_loss", "test_loss", "task_error", "contrastive_loss")
"""Measurements that measure=recovery leaves out, besides feature_similarity."""


def _lists(values: np.ndarray, kept: np.ndarray) -> pa.Array:
    """A list a row of the values (R, …) that are kept."""
    offsets = np.concatenate([[0], np.cumsum(kept.reshape(len(kept), -1).sum(axis=1))])
    return pa.ListArray.from_arrays(offsets, values[kept].astype(float))


def _rows_of(grid: Grid, bucket: Bucket, lanes: np.ndarray, measured: Mapping[str, np.ndarray]) -> pa.Table:
    """The result rows of some of a bucket's lanes (consecutive): one a cell and recorded step."""
    program = bucket.program
    low, high = np.searchsorted(bucket.lane, [lanes[0], lanes[-1] + 1])
    places = [np.searchsorted(program.record, record) for record in bucket.records]
    length = np.asarray([len(place) for place in places])[bucket.record[low:high]]
    cell = np.repeat(np.arange(low, high), length)
    s = np.concatenate([places[record] for record in bucket.record[low:high]]) + bucket.row[cell]
    lane = bucket.lane[cell] - lanes[0]
    index, steps = bucket.cells[cell], np.asarray(program.record)[s - bucket.row[cell]]

    several = ("downstream_error", *store.LISTS, "diverged_step")
    values: dict[str, Any] = {name: of[lane, s] for name, of in measured.items() if name not in several}
    error, probing = np.full(len(cell), np.nan), bucket.probe[cell] >= 0
    if program.probes:
        at = (lane, s, bucket.probe[cell], bucket.slot[cell])
        error[probing] = measured["downstream_error"][at][probing]
    diverged = measured["diverged_step"][lane, s]
    r = grid.column("r", index)
    for name in _WITH_SAMPLES:
        values.setdefault(name, pa.nulls(len(cell), pa.float64()))
    values |= dict.fromkeys(store.LISTS, pa.nulls(len(cell), pa.list_(pa.float64())))
    if program.measure != "recovery":
        similarity = measured["feature_similarity"][lane, s]
        values["feature_similarity"] = _lists(similarity, np.arange(similarity.shape[1]) <= r[:, None])
    if program.measure == "contrastive":
        kernel = measured["contrastive_kernel"][lane, s]
        there = np.arange(kernel.shape[1]) < 2 ** r[:, None]
        values["contrastive_kernel"] = _lists(kernel, there[:, :, None] & there[:, None, :])
    values |= {
        "downstream_error": pa.array(error, mask=~probing),
        "status": np.where(diverged > 0, "diverged", "ok"),
        "diverged_step": pa.array(diverged, pa.int64(), mask=diverged == 0),
    }
    return store.rows(grid, index, steps, {**values, **_costs(grid, index, steps)})


_COSTED = (
    *("d", "width", "num_tasks", "n1", "n2", "algorithm", "bias"),
    *("shared_inputs", "split_batch", "head_steps", "samples"),
)


def _costs(grid: Grid, index: np.ndarray, steps: np.ndarray) -> dict[str, np.ndarray]:
    """num_params, train_samples and train_flops of cells at steps."""
    stands_for, code = grid.distinct(_COSTED)
    pairs, inverse = np.unique(np.stack([code[index], steps]), axis=1, return_inverse=True)
    found = [experiment.costs(grid.cell(stands_for[c]).program(), step) for c, step in pairs.T.tolist()]
    return {name: np.asarray([cost[name] for cost in found])[inverse.reshape(-1)] for name in found[0]}


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
    # From the whole plan, so that a restart compiles the same programs.
    chunks = {bucket.program: chunk_of(bucket) if chunk is None else Chunk(chunk, 1) for bucket in whole}

    def prepare(bucket: Bucket) -> tuple[Any, Chunk, float]:
        start = time.perf_counter()
        executable, fits = fitting(bucket.program, chunks[bucket.program], memory_fraction)
        return executable, fits, time.perf_counter() - start

    notify(progress)
    # Every device calls LAPACK from its own core: BLAS threads of their own would only wait for one another.
    with threadpoolctl.threadpool_limits(1, "blas"), concurrent.futures.ThreadPoolExecutor(1) as ahead:
        jobs = [ahead.submit(prepare, bucket) for bucket in buckets[:1]]
        for i, bucket in enumerate(buckets):
            if stop():
                progress.stopped = True
                break
            try:
                executable, fits, seconds = jobs[i].result()
                progress.compiled += 1
                progress.compile_seconds += seconds
                if i + 1 < len(buckets):
                    jobs.append(ahead.submit(prepare, buckets[i + 1]))
                _run_bucket(grid, bucket, executable, fits, sink, progress, memory_fraction, stop, notify)
            except Exception as error:
                if len(jobs) == i + 1 < len(buckets):
                    jobs.append(ahead.submit(prepare, buckets[i + 1]))
                progress.failures.append(describe(grid, bucket, error))
                notify(progress)
    return progress


def _run_bucket(
    grid: Grid,
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
            executable, chunk = fitting(bucket.program, half(chunk), memory_fraction)
            continue
        rows = _rows_of(grid, bucket, lanes, measured)
        held.append(rows)
        at += len(lanes)
        now = time.perf_counter()
        if now - written > CHUNK_SECONDS or at == len(bucket) or stop():
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
    measured = jax.device_get(executable(_cells_of(grid, bucket, filled), counts))
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


class Forecast(NamedTuple):
    """What running a bucket would take, by the compiler's account (memory) and the planner's model (seconds)."""

    bucket: Bucket
    flops: float
    seconds: float
    memory: int


def forecast(grid: Grid, buckets: Sequence[Bucket], memory_fraction: float) -> tuple[Grid, list[Forecast], int]:
    """The grid, what each of its buckets would take, and the bytes a device may give. Compiles, runs nothing.

    Raises TooLargeError.
    """
    found = []
    for bucket in buckets:
        executable, _ = fitting(bucket.program, chunk_of(bucket), memory_fraction)
        lanes = len(bucket)
        flops = lanes * lane_flops(bucket.program)
        found.append(Forecast(bucket, flops, lanes * bucket.seconds, memory_of(executable)))
    return grid, found, int(memory_fraction * memory_limit())


def sweep(
    *,
    folder: str | os.PathLike[str] | None = None,
    grids: Sequence[Mapping[str, Any]] = (),
    zip: Sequence[Sequence[str]] = (),
    where: Sequence[str] = (),
    memory_fraction: float = MEMORY_FRACTION,
    moments: str = "auto",
    **axes: Any,
) -> pd.DataFrame:
    """Run the grid of the axes given as keywords and return its rows, in the order of the grid.

    Any key of `mtfl --help` may be an axis: a value, a list, a range, or text in Hydra's grammar. `grids` are
    more axes, of which each in turn makes a grid with those; `zip` names axes that advance together, `where` conditions
    that cells must meet, such as "width >= 2*d". With a `folder` the rows are kept there, and what is there already is
    not run again. `moments` is that of `plan`. Raises ConfigError (a ValueError) for a bad key, value or cell, and
    RuntimeError that lists the cells that failed.

        mtfl_jax.sweep(d=[32, 64], r=[2, 4], num_tasks=[1, 16, 64], seed=range(64))
    """
    memory_fraction, moments = config.memory_share(memory_fraction), config.moments_of(moments)
    grid = Grid(axes, config.composed, grids=grids, zipped=zip, where=where)
    sink = store.Memory() if folder is None else store.Folder(folder)
    progress = execute(grid, sink, memory_fraction=memory_fraction, moments=moments)
    if progress.failures:
        raise RuntimeError("\n".join(progress.failures))
    return tables.frame(in_order(grid, sink.table()))


def in_order(grid: Grid, table: pa.Table) -> pa.Table:
    """The rows of a grid's cells, in the grid's order, then by step."""
    steps = table.column("step").to_numpy()
    cells = table.column("id").to_numpy() - row_ids(np.zeros(len(steps), np.uint64), steps)
    order = np.argsort(grid.ids, kind="stable")
    place = np.minimum(np.searchsorted(grid.ids[order], cells), len(grid) - 1)
    known = grid.ids[order][place] == cells
    table, steps, place = table.filter(pa.array(known)), steps[known], place[known]
    return table.take(np.lexsort((steps, order[place])))


def run(**values: Any) -> pd.DataFrame:
    """Run one cell and return its rows: one a value of n_down and recorded step.

    Keywords are the keys of `mtfl --help`; config groups take the name of their choice. Columns are the settings,
    `step`, the status and the measurements. Raises ConfigError (a ValueError) that names the key and what is allowed.

        mtfl_jax.run(d=64, r=4, data="gaussian", tasks="balanced", algorithm="one_step", seed=0)
    """
    config.from_keywords(**values)
    axes: dict[str, Any] = {key: [value] for key, value in values.items()}
    return sweep(**axes)
