"""Trainings on several devices: each on one of them, or one that is too large on many (`compiling.Chunk.spread`)."""

import json
import math
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from mtfl_jax import compose
from mtfl_jax.sweeps import compiling, engine, forecasts, identity, store, tables
from mtfl_jax.sweeps.compiling import Chunk
from mtfl_jax.sweeps.grid import Grid
from mtfl_jax.sweeps.plan import plan

WIDE = {"algorithm": "alternating", "steps": 2, "width": 768, "num_tasks": 32, "n2": 64}
WIDE |= {"measure": "recovery", "probe": "none", "measure_at": "last"}


def grid_of(**axes):
    each = {name: value if isinstance(value, range) else [value] for name, value in axes.items()}
    return Grid(each, compose.composed)


def memory(job, chunk):
    return compiling.memory_of(compiling.compiled(job, chunk).executable)


def table_of(grid, **options):
    sink = store.Memory()
    progress = engine.execute(grid, sink, **options)
    assert progress.failures == []
    return tables.frame(identity.in_order(grid, sink.table()))


def assert_close(table, other):
    """The same rows but for rounding, as far as two steps amplify it."""
    for name in table.columns:
        if table[name].dtype.kind == "f":
            np.testing.assert_allclose(table[name], other[name], rtol=1e-4, atol=1e-5, err_msg=name)
        else:
            assert table[name].equals(other[name]), name


ADAM = {"algorithm": "joint", "optimizer": "adam", "bias": "trained"}


@pytest.mark.parametrize("own", [{}, pytest.param(ADAM, marks=pytest.mark.slow)])
def test_a_training_that_is_too_large_for_a_device_is_spread_over_several(own):
    grid = grid_of(**{**WIDE, **own}, seed=range(3))
    (bucket,) = plan(grid)
    job = compiling.job_of(bucket)
    alone, shared = memory(job, Chunk(1, 1)), memory(job, Chunk(1, 1, spread=2))
    # What has no axis of neurons is on both: samples, labels, outputs.
    assert shared < 0.7 * alone
    fraction = 0.9 * alone / compiling.memory_limit()
    (item,) = forecasts.forecast(grid, np.empty(0, np.uint64), memory_fraction=fraction, compiled=True).left
    assert (item.chunk.spread, item.problem) == (2, "")
    assert_close(table_of(grid, memory_fraction=fraction, chunk=1), table_of(grid, chunk=1))
    least = grid_of(**{**WIDE, **own})
    progress = engine.execute(least, store.Memory(), memory_fraction=0.5 * shared / compiling.memory_limit())
    (failure,) = progress.failures
    assert "TooLargeError: one training needs " in failure
    assert " on each of 2 devices; allowed: " in failure


def test_outputs_are_added_up_over_devices_once_a_step_and_nothing_is_gathered(monkeypatch):
    """As accelerators have it; for a core a library takes W apart, which is gathered for it."""
    monkeypatch.setattr(compiling, "accelerator", lambda: True)
    (bucket,) = plan(grid_of(**WIDE, d=32))  # Another program than that of the other tests, which are for cores.
    text = compiling.compiled(compiling.job_of(bucket), Chunk(1, 1, spread=2)).executable.as_text()
    sent = re.findall(r" = (\S+?)(?:\{\S*)? (all-\w+|reduce-scatter|collective-[\w-]+)\(", text)
    assert {op for _, op in sent} == {"all-reduce"}
    # Of the head step, and of the representation step after it.
    assert [shape for shape, _ in sent].count(f"f32[{WIDE['n2']},{WIDE['num_tasks']}]") == 2
    numbers = [math.prod(int(side) for side in re.findall(r"\d+", shape.partition("[")[2])) for shape, _ in sent]
    assert max(numbers) < WIDE["width"] * 32


def test_a_device_that_runs_out_of_memory_gets_help(monkeypatch):
    real, spreads = engine._call, []

    def call(course, *rest):
        spreads.append(course.chunk.spread)
        if course.chunk.spread == 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return real(course, *rest)

    monkeypatch.setattr(engine, "_call", call)
    grid = grid_of(algorithm="oracle", measure="recovery", probe="none", seed=range(3))
    assert len(table_of(grid, chunk=1)) == 3
    assert spreads == [1, 2, 2, 2]


def test_over_how_many_devices(monkeypatch):
    def spreads(width, count, **axes):
        monkeypatch.setattr(compiling, "devices", lambda: [None] * count)
        (bucket,) = plan(grid_of(width=width, **axes))
        job, chunk, found = compiling.job_of(bucket), Chunk(4, 1), list[int]()
        while (chunk := compiling.wider(job, chunk)) is not None:
            assert chunk == Chunk(4, 1, spread=chunk.spread)
            assert chunk.places * chunk.spread == count
            found.append(chunk.spread)
        return found

    assert spreads(64, 8) == [2, 4, 8]
    assert spreads(96, 6) == [2, 3, 6]
    assert spreads(64, 6) == [2]
    assert spreads(64, 1) == []
    assert spreads(64, 8, kernel="pallas") == []
    wide = SimpleNamespace(width=60, arithmetic=SimpleNamespace(kernel="plain"))
    monkeypatch.setattr(compiling, "devices", lambda: [None] * 16)
    assert compiling.wider(SimpleNamespace(program=wide), Chunk(1, 1, spread=2)) == Chunk(1, 1, spread=4)
    assert compiling.wider(SimpleNamespace(program=wide), Chunk(1, 1, spread=4)) is None


# As many devices as a process may have, of which there is a number a process.

SCRIPT = """
import json, sys
from mtfl_jax import compose
from mtfl_jax.sweeps import compiling, engine, host, plan, store, tables, identity
from mtfl_jax.sweeps.grid import Grid

axes, spread, calls, real = json.loads(sys.argv[1]), int(sys.argv[2]), [], engine._call
host.cores = lambda: int(sys.argv[3])
engine.chunk_of = lambda bucket: compiling.Chunk(3, 1, spread=spread)

def call(course, grid, lanes):
    flight = real(course, grid, lanes)
    calls.append([len(lanes), flight.chunk.places])
    return flight

engine._call = call
grid, sink = Grid(axes, compose.composed), store.Memory()
assert engine.execute(grid, sink).failures == []
rows = tables.frame(identity.in_order(grid, sink.table()))
numbers = rows.select_dtypes("float").fillna(-1).values.tolist()
print(json.dumps({"devices": len(compiling.devices()), "calls": calls, "rows": numbers}))
"""


def on_devices(count, spread, axes):
    """A sweep in a process of so many devices: its calls, and its rows."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(axes), str(spread), str(count)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["devices"] == count
    return found["calls"], np.asarray(found["rows"])


@pytest.mark.slow
def test_rows_are_the_same_on_one_two_four_and_eight_devices():
    axes = {name: [value] for name, value in {**WIDE, "width": 64}.items()} | {"seed": list(range(29))}
    _, rows = on_devices(1, 1, axes)
    for count in (2, 4, 8):
        calls, own = on_devices(count, 1, axes)
        assert np.array_equal(own, rows)
        # Three trainings a device and call; what is left over makes one call more.
        assert [lanes for lanes, _ in calls] == [3 * count] * (29 // (3 * count)) + [29 % (3 * count)]
        for spread in {count, count // 4} & {2, 4, 8}:
            calls, own = on_devices(count, spread, axes)
            np.testing.assert_allclose(own, rows, rtol=1e-4, atol=1e-5)
            places = count // spread
            assert calls[0] == [min(29, 3 * places), places]
            assert len(calls) == math.ceil(29 / (3 * places))
