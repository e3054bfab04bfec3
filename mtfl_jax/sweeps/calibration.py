"""How many trainings an accelerator takes at once, and by which kernel, as measured on it.

`plan=calibrate` measures; what was fastest is kept beside the compilation cache, by device and program, and every later
sweep on such a device takes it.
"""

import contextlib
import hashlib
import json
import re
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mtfl_jax.learning.arithmetic import AUTO, KERNELS
from mtfl_jax.sweeps import compiling, tables
from mtfl_jax.sweeps.compiling import Chunk, Job
from mtfl_jax.sweeps.grid import Grid
from mtfl_jax.sweeps.machine import cache_home
from mtfl_jax.sweeps.plan import Bucket

FACTORS = (1 / 4, 1, 4)
"""Batches that are tried, in units of the modelled one."""
SETTLED = [kernel for kernel in KERNELS if kernel != AUTO]
REPEATS = 3
"""Calls that are timed, after one that is not."""


class Tried(NamedTuple):
    """A chunk that was measured, and trainings a second of one device."""

    chunk: Chunk
    rate: float


def file() -> Path:
    """What is kept of this kind of device."""
    name = re.sub(r"[^a-z0-9]+", "-", compiling.devices()[0].device_kind.lower()).strip("-")
    return cache_home() / "calibrated" / f"{name}.json"


def chunk_of(bucket: Bucket) -> Chunk:
    """The bucket's chunk, of the batch and by the kernel that were fastest here; `compiling.modelled` where none were
    measured.
    """
    chunk = compiling.modelled(bucket)
    if not compiling.accelerator():
        return chunk
    found = _read().get(_key(compiling.job_of(bucket)))
    # Somebody may have written something else there.
    if not isinstance(found, dict) or found.get("kernel") not in SETTLED or not isinstance(found.get("batch"), int):
        return chunk
    return compiling.batched(chunk, found["batch"])._replace(kernel=found["kernel"])


def calibrate(grid: Grid, bucket: Bucket, memory_fraction: float) -> list[Tried]:
    """Measure the chunks that a bucket may take, the fastest first, and keep that. Raises TooLargeError."""
    job = compiling.job_of(bucket)
    tried = {}
    for chunk in candidates(bucket):
        executable, fits, *_ = compiling.fitting(job, chunk, memory_fraction)
        if fits not in tried:
            tried[fits] = Tried(fits, _rate(grid, bucket, executable, fits))
    found = sorted(tried.values(), key=lambda one: -one.rate)
    _keep(job, found[0])
    return found


def candidates(bucket: Bucket) -> list[Chunk]:
    """What may be faster than what the planner's model says: other batches, on an accelerator, and every kernel where
    the setting leaves it open.
    """
    first = compiling.modelled(bucket)
    if not compiling.accelerator():
        return [first]
    batches = [compiling.batched(first, int(first.batch * factor)) for factor in FACTORS]
    kernels = SETTLED if bucket.program.arithmetic.kernel == AUTO else [first.kernel]
    return list(dict.fromkeys(chunk._replace(kernel=kernel) for chunk in batches for kernel in kernels))


def _rate(grid: Grid, bucket: Bucket, executable: Any, chunk: Chunk) -> float:
    lanes = np.arange(chunk.capacity * chunk.places) % len(bucket)
    cells = compiling.cells_of(grid, bucket, lanes)
    counts = np.full(chunk.places, chunk.capacity, np.int32)

    def seconds() -> float:
        start = time.perf_counter()
        jax.block_until_ready(executable(cells, counts))
        return time.perf_counter() - start

    seconds()
    return chunk.capacity / chunk.spread / statistics.median(seconds() for _ in range(REPEATS))


def _key(job: Job) -> str:
    return hashlib.blake2b(repr(job).encode(), digest_size=12).hexdigest()


def _read() -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(file().read_text())
        if isinstance(found, dict):
            return found
    return {}


def _keep(job: Job, best: Tried) -> None:
    new = {
        "batch": best.chunk.batch,
        "kernel": best.chunk.kernel,
        "trainings_a_second": best.rate,
        "program": repr(job),
    }
    path, text = file(), json.dumps({**_read(), _key(job): new}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    tables.whole(path, lambda partial: partial.write_text(text))
