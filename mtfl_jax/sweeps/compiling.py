"""Compiled programs: what they take, and how large a chunk of trainings fits into memory."""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from mtfl_jax import extend
from mtfl_jax.config import FIELDS
from mtfl_jax.learning import experiment, moment_rows
from mtfl_jax.learning.arithmetic import AUTO, EXACT, Arithmetic
from mtfl_jax.learning.network import NEURONS
from mtfl_jax.learning.program import Cell, Program
from mtfl_jax.sweeps import cost, host, mappings
from mtfl_jax.sweeps.grid import Grid
from mtfl_jax.sweeps.machine import MATMUL_PRECISION, devices, memory_limit
from mtfl_jax.sweeps.plan import Bucket, ladder

CHUNK_SECONDS = 0.5
"""What a chunk should take on a CPU by the planner's model. A stop waits for two of them, as one more is on its way."""
MAX_LANES = 1024
"""Trainings of one call on each device at most."""
ACCELERATED = 100.0
"""An accelerator's speed in units of the planner's core: an H200 was 20 to 200 times as fast as a core."""
ON_CHIP = 0.5
"""Share of a TPU's memory on the chip that a batch may take by the planner's model."""
OPTIONS: dict[str, dict[str, str | bool]] = {
    "gpu": {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": "0"}
}
"""Options of the compiler, by platform. What XLA would choose by timing it differs from run to run, and rows with it; a
program took 15 s longer for it, and minutes where it tried Triton's kernels, which multiply slower than cuBLAS.
"""

LANES = "lanes"
"""The axis of a mesh along which trainings are shared among devices."""

_log = logging.getLogger(__name__)


class TooLargeError(Exception):
    """A program that does not fit into memory even for one training at a time."""


class Chunk(NamedTuple):
    """Trainings of one call on each device: at most `capacity`, `batch` of them at a time, by `kernel` where the
    program leaves it open. A training that is too large for one device has its neurons shared among `spread` of them.
    """

    capacity: int
    batch: int
    kernel: str = EXACT.kernel
    spread: int = 1

    @property
    def places(self) -> int:
        """How many chunks a call takes, each on devices of its own."""
        return len(devices()) // self.spread


def accelerator() -> bool:
    """Whether programs are for a device that wants batches, and not for a processor's cores."""
    return devices()[0].platform != "cpu"


def speed() -> float:
    """How many times as fast as the planner's core a device is."""
    return ACCELERATED if accelerator() else 1.0


def at_once() -> int:
    """Programs that compile at the same time: one on a CPU, whose cores run others meanwhile; for an accelerator half
    as many as this host has cores, as a compile keeps more than one of them busy.
    """
    return max(1, host.cores() // 2) if accelerator() else 1


def modelled(bucket: Bucket) -> Chunk:
    """The bucket's chunk where nothing was measured (`calibration`).

    A CPU core runs one training after the other faster than a batch of them, as many as take CHUNK_SECONDS by the
    planner's model; an accelerator wants batches, a TPU such as stay on the chip.
    """
    if not accelerator():
        return Chunk(min(ladder(max(1, int(CHUNK_SECONDS / bucket.seconds))), MAX_LANES), 1)
    share = -(-len(bucket) // len(devices()))
    # Chunks of one size: a last one that is half empty takes as long as a full one.
    capacity = _padded(-(-share // -(-share // MAX_LANES)))
    if devices()[0].platform != "tpu":
        return Chunk(capacity, capacity)
    most = max(1, int(ON_CHIP * on_chip() / cost.lane_bytes(bucket.program)))
    return batched(Chunk(capacity, capacity), 1 << (most.bit_length() - 1))


def on_chip() -> int:
    """Bytes of memory on the chip of each TPU core, as Pallas knows them; the least of any where it does not."""
    from jax.experimental.pallas import tpu  # Its import takes time, which only TPUs should.

    mesh = Mesh(np.asarray(devices()), (LANES,)).abstract_mesh
    with contextlib.suppress(ValueError), jax.sharding.use_abstract_mesh(mesh):
        return int(tpu.get_tpu_info().vmem_capacity_bytes)
    return 2**24


def batched(chunk: Chunk, batch: int) -> Chunk:
    """The chunk in whole batches of this size, at most what a call may take."""
    batch = max(1, min(batch, chunk.capacity))
    return chunk._replace(capacity=-(-chunk.capacity // batch) * batch, batch=batch)


def _padded(lanes: int) -> int:
    """The lanes of a batch, at most an eighth more: few sizes, so that other grids find its program in the cache."""
    if lanes <= 16:
        return ladder(lanes)
    step = 1 << (lanes.bit_length() - 4)
    return -(-lanes // step) * step


def half(chunk: Chunk) -> Chunk:
    """Half the chunk, in whole batches."""
    if chunk.batch > 1:
        batch = chunk.batch // 2
        return chunk._replace(capacity=chunk.capacity // 2 // batch * batch, batch=batch)
    return chunk._replace(capacity=chunk.capacity // 2)


class Leaf(NamedTuple):
    """A traced number of a training: its name, its shape in one training, and whether it is an integer."""

    name: str
    shape: tuple[int, ...]
    whole: bool


@dataclasses.dataclass(frozen=True)
class Job:
    """A program, the traced numbers that it takes, and the extensions that its names may be of."""

    program: Program
    leaves: tuple[Leaf, ...]
    extensions: tuple[str, ...]


def wider(job: Job, chunk: Chunk) -> Chunk | None:
    """The chunk one training at a time on more devices each, as few more as divide the devices and the neurons; None
    where there are none, and for a kernel that is a single device's.
    """
    p = job.program
    if settled(p, chunk).kernel == "pallas":
        return None
    counts = (n for n in range(chunk.spread + 1, len(devices()) + 1) if len(devices()) % n == p.width % n == 0)
    more = next(counts, None)
    return None if more is None else chunk._replace(batch=1, spread=more)


def settled(p: Program, chunk: Chunk) -> Arithmetic:
    """The program's arithmetic, by the chunk's kernel where the setting leaves it open."""
    return p.arithmetic._replace(kernel=chunk.kernel) if p.arithmetic.kernel == AUTO else p.arithmetic


def job_of(bucket: Bucket) -> Job:
    """What a bucket compiles to."""
    p = bucket.program
    rowed = moment_rows.rowed(p) if p.groups else ()
    rows, probes = (sum(count for _, count in p.groups),), (len(p.probes),)
    leaves = [Leaf(name, rows if name in rowed else (), FIELDS[name].type.whole) for name in bucket.traced]
    leaves += [Leaf("family", rows, True)] * bool(rowed)
    leaves += [Leaf("n_down", (len(p.n_down),), True)] * bool(p.probes)
    leaves += [Leaf(name, probes, FIELDS[name].type.whole) for name in bucket.probe_settings]
    return Job(p, tuple(leaves), extend.loaded())


def cells_of(grid: Grid, bucket: Bucket, lanes: np.ndarray) -> Cell:
    """The traced numbers of some of a bucket's lanes: NumPy arrays with a leading axis lanes."""
    members, columns = bucket.members[lanes], dict[str, np.ndarray]()
    for leaf in job_of(bucket).leaves:
        if leaf.name in bucket.probe_settings:
            found = bucket.probe_settings[leaf.name][lanes]
        elif leaf.name == "n_down":
            found = bucket.n_down[lanes]
        elif leaf.name == "family":
            families = np.asarray(bucket.program.families)
            found = np.searchsorted(families, grid.column("tasks", members).astype(str))
        else:
            number = FIELDS[leaf.name].type.number
            found = grid.column(leaf.name, members if leaf.shape else members[:, 0], number)
        columns[leaf.name] = np.asarray(found).astype(_dtype(leaf))
    return Cell(**columns)


def _dtype(leaf: Leaf) -> type:
    return np.int32 if leaf.whole else np.float32


@contextlib.contextmanager
def _first_on_host(program: str) -> Iterator[None]:
    """Wait while another process of this host and user compiles the same, which is in the cache then: jobs that start
    together would each compile it.
    """
    name = hashlib.blake2b(program.encode(), digest_size=12).hexdigest()
    folder = Path(tempfile.gettempdir()) / f"mtfl_jax-{os.getuid()}"
    with contextlib.ExitStack() as held:
        if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
            yield
            return
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            file = held.enter_context((folder / f"{name}.lock").open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)  # The system lets go of it where a process dies.
        yield


class Compiled(NamedTuple):
    """An executable, and the seconds that it took to trace and lower its program and to compile it, or to find it in
    the cache.
    """

    executable: Any
    lowering: float
    compiling: float


@mappings.kept
def compiled(job: Job, chunk: Chunk) -> Compiled:
    """The executable of a program: (Cell, counts) -> measurements.

    Leaves have a leading axis places × capacity; counts (places,) says how many trainings of each place's share are
    real. The others give zeros, and batches without a real one cost nothing.
    """
    mesh = Mesh(np.asarray(devices()).reshape(-1, chunk.spread), (LANES, NEURONS))
    spec, spread = PartitionSpec(LANES), chunk.spread > 1
    p = job.program.replace(accelerator=accelerator(), spread=spread, arithmetic=settled(job.program, chunk))
    run = functools.partial(experiment.experiment, p)

    def each_device(cells: Cell, count: jax.Array) -> dict[str, jax.Array]:
        rounds = chunk.capacity // chunk.batch
        batches = jax.tree.map(lambda leaf: leaf.reshape(rounds, chunk.batch, *leaf.shape[1:]), cells)

        def one_batch(i: int | jax.Array) -> dict[str, jax.Array]:
            # Else nothing of a loop that turns once depends on the turn: compilers move it all out, some of it twice.
            at, all_ = jax.lax.optimization_barrier((i, batches))
            batch = jax.tree.map(lambda leaf: leaf[at], all_)
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

    # Along neurons, where there are several devices, it is the compiler that divides the work.
    own = {LANES} if spread else {LANES, NEURONS}
    sharded = jax.shard_map(
        each_device, mesh=mesh, in_specs=(spec, spec), out_specs=spec, axis_names=own, check_vma=False
    )
    lanes = chunk.capacity * chunk.places
    example = Cell(**{leaf.name: np.zeros((lanes, *leaf.shape), _dtype(leaf)) for leaf in job.leaves})
    start = time.perf_counter()
    with jax.default_matmul_precision(MATMUL_PRECISION):
        lowered = jax.jit(sharded).lower(example, np.zeros(chunk.places, np.int32))
        lowering = time.perf_counter() - start
        with _first_on_host(f"{job} {chunk} {jax.__version__} {mesh}"):
            start = time.perf_counter()
            executable = lowered.compile(OPTIONS.get(devices()[0].platform))
            compiling = time.perf_counter() - start
    _log.info("lowered %s in %.1f s, compiled it in %.1f s", job.program, lowering, compiling)
    return Compiled(executable, lowering, compiling)


class Fitting(NamedTuple):
    """An executable whose chunk fits into memory, and the seconds of `Compiled`, of all that were tried together."""

    executable: Any
    chunk: Chunk
    lowering: float
    compiling: float


def fitting(job: Job, chunk: Chunk, memory_fraction: float) -> Fitting:
    """The program's executable and its chunk, its batch halved, and then one training spread over more and more
    devices, until the compiler takes it and its own memory analysis fits into `memory_fraction` of a device. Raises
    TooLargeError.
    """
    limit = memory_fraction * memory_limit()
    lowering = compiling = 0.0
    while True:
        mappings.make_room()
        try:
            made = compiled(job, chunk)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            # A TPU's compiler refuses what does not fit.
            needs = math.inf
        else:
            needs = memory_of(made.executable)
            lowering, compiling = lowering + made.lowering, compiling + made.compiling
        if needs <= limit:
            return Fitting(made.executable, chunk, lowering, compiling)
        less = half(chunk) if chunk.batch > 1 else wider(job, chunk)
        if less is None:
            said = "more than there is" if needs == math.inf else f"{needs / 2**30:.2g} GiB"
            over = f" on each of {chunk.spread} devices" if chunk.spread > 1 else ""
            alone = "; kernel=plain can be on several devices" * (settled(job.program, chunk).kernel == "pallas")
            raise TooLargeError(
                f"one training needs {said}{over}; allowed: {limit / 2**30:.2g} GiB a device"
                f" (memory_fraction={memory_fraction:g}){alone}"
            )
        chunk = less
        _log.info("%d trainings a call, each on %d devices: %g bytes of %g", chunk.capacity, chunk.spread, needs, limit)


def memory_of(executable: Any) -> int:
    """Bytes one device needs to run an executable, by the compiler's own account."""
    analysis = executable.memory_analysis()
    parts = ("temp_size_in_bytes", "argument_size_in_bytes", "output_size_in_bytes")
    return sum(getattr(analysis, name, 0) for name in parts)


def lines_of(executable: Any) -> int:
    """Lines of an executable's optimised HLO, an instruction each; 0 where the backend does not show it."""
    # Not its tables of source lines, which are other ones where it is from the cache.
    return sum(" = " in line for line in (executable.as_text() or "").splitlines())
