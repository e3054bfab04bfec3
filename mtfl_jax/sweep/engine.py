"""Runs cells: one compiled program a bucket, chunks of cells sharded over the local devices."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd
from jax.sharding import Mesh, PartitionSpec

from mtfl_jax import config
from mtfl_jax.config import Config
from mtfl_jax.learning import experiment
from mtfl_jax.learning.experiment import Cell, Program
from mtfl_jax.sweep.plan import Bucket, plan

MATMUL_PRECISION = "highest"
"""Precision of every matrix product: float32 on all backends."""

CELLS_PER_DEVICE = 4
"""Cells of one call on each device."""


@functools.cache
def devices() -> tuple[jax.Device, ...]:
    """The local devices; on a CPU one a core this process may use, unless JAX is already initialised."""
    # Where JAX runs already, or the platform has no affinity, take what is there.
    with contextlib.suppress(RuntimeError, AttributeError):
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    return tuple(jax.local_devices())


@functools.cache
def compiled(program: Program, per_device: int) -> Callable[[Cell], dict[str, jax.Array]]:
    """The bucket's program: cells (leaves with a leading axis, a multiple of the devices) to measurements."""
    mesh = Mesh(np.asarray(devices()), ("cells",))
    # A CPU core runs one cell after the other faster than a batch of them; an accelerator wants the batch.
    batch = None if devices()[0].platform == "cpu" else per_device

    def each_device(cells: Cell) -> dict[str, jax.Array]:
        return jax.lax.map(functools.partial(experiment.experiment, program), cells, batch_size=batch)

    sharded = jax.shard_map(
        each_device, mesh=mesh, in_specs=PartitionSpec("cells"), out_specs=PartitionSpec("cells"), check_vma=False
    )
    return jax.jit(sharded)


def run_bucket(bucket: Bucket, configs: Sequence[Config]) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """Run a bucket's cells chunk by chunk: positions in the grid and their measurements, leading axis cells."""
    per_device = min(CELLS_PER_DEVICE, -(-len(bucket.cells) // len(devices())))
    size = per_device * len(devices())
    program = compiled(bucket.program, per_device)
    for start in range(0, len(bucket.cells), size):
        chunk = bucket.cells[start : start + size]
        padded = chunk + [chunk[-1]] * (size - len(chunk))
        cells = jax.tree.map(lambda *leaves: np.stack(leaves), *(configs[i].cell() for i in padded))
        with jax.default_matmul_precision(MATMUL_PRECISION):
            measured = jax.device_get(program(cells))
        yield chunk, {name: values[: len(chunk)] for name, values in measured.items()}


def rows(configuration: Config, measured: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """The result rows of one cell, one a recorded step and n_down, from its measurements (leading axis steps)."""
    table = []
    base = configuration.row()
    downstream = measured.get("downstream_error")
    sizes: tuple[int | None, ...] = configuration.n_down if downstream is not None else (None,)
    for i, step in enumerate(configuration.record):
        of_step: dict[str, Any] = {
            name: values[i].item() for name, values in measured.items() if np.ndim(values[i]) == 0
        }
        of_step["feature_similarity"] = measured["feature_similarity"][i][: configuration.r + 1].tolist()
        of_step |= experiment.costs(configuration.program(), step)
        for k, n_down in enumerate(sizes):
            error = None if downstream is None else downstream[i, k].item()
            table.append({**base, "n_down": n_down, "step": step, **of_step, "downstream_error": error})
    return table


def run_cells(configs: Sequence[Config], progress: Callable[[int], None] = lambda done: None) -> pd.DataFrame:
    """The table of all cells, in the order of the grid; `progress` hears how many cells each chunk finished."""
    found: dict[int, list[dict[str, Any]]] = {}
    for bucket in plan(configs):
        for chunk, measured in run_bucket(bucket, configs):
            for k, i in enumerate(chunk):
                found[i] = rows(configs[i], {name: values[k] for name, values in measured.items()})
            progress(len(chunk))
    from mtfl_jax.sweep import store

    return store.table([row for i in range(len(configs)) for row in found[i]])


def run(**values: Any) -> pd.DataFrame:
    """Run one cell and return its rows: one a value of n_down and recorded step.

    Keywords are the keys of `mtfl --help`; config groups take the name of their choice. Columns are the config's
    fields, `step`, and the measurements. Raises ConfigError (a ValueError) that names the key and what is allowed.

        mtfl_jax.run(d=64, r=4, data="gaussian", tasks="balanced", algorithm="one_step", seed=0)
    """
    return run_cells([config.from_keywords(**values)])
