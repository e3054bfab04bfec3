"""Benchmarks of sweeping: `python benchmarks/run.py [NAME …]`, results in benchmarks/results/sweeps.json.

bookkeeping  parse and plan 100,000 and 1,000,000 cells; write and load 1,000,000 rows
hydra        a 64-cell grid against Hydra's stock sweeper and basic launcher with the same program a cell
grid         the 8640-cell grid of the README: wall, compile, cells a second, share of this machine's sgemm peak

Every measurement has a process of its own, so that none finds another's memory or caches.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "sweeps.json"

PLAN = """
import time
from mtfl_jax import config
from mtfl_jax.sweeps import plan
from mtfl_jax.sweeps.grid import Grid
axes = {"d": "32,64,128,256", "width": "64,128,256,512,1024", "num_tasks": "1,4,16,64,256", "seed": "range(0,SEEDS)"}
start = time.perf_counter()
grid = Grid(axes, config.composed)
buckets = plan.plan(grid)
out = {"cells": len(grid), "programs": len(buckets), "seconds": time.perf_counter() - start}
"""

ROWS = """
import tempfile, time
import numpy as np
import mtfl_jax
from mtfl_jax import config
from mtfl_jax.sweeps import store
from mtfl_jax.sweeps.grid import Grid
grid = Grid({"width": [64, 128], "num_tasks": [1, 4, 16, 64, 256], "seed": range(100_000)}, config.composed)
out = {"rows": len(grid)}
with tempfile.TemporaryDirectory() as folder:
    start = time.perf_counter()
    sink = store.Folder(folder)
    for at in range(0, len(grid), 10_000):
        index = np.arange(at, min(at + 10_000, len(grid)))
        ones = np.ones(len(index), int)
        values = dict.fromkeys(store.MEASUREMENTS, np.full(len(index), 0.5))
        values |= dict.fromkeys(("directions_recovered", "num_params", "train_samples"), ones)
        values |= {"feature_similarity": [[0.5] * 5] * len(index), "status": ["ok"] * len(index)}
        sink.append(store.rows(grid, index, ones, {**values, "diverged_step": [None] * len(index)}))
    out["write_seconds"] = time.perf_counter() - start
    start = time.perf_counter()
    assert len(mtfl_jax.load(folder)) == len(grid)
    out["load_seconds"] = time.perf_counter() - start
    start = time.perf_counter()
    some = mtfl_jax.load(folder, columns=["width", "subspace_distance"], where=[("seed", "<", 100)])
    assert len(some) == 1000
    out["load_some_seconds"] = time.perf_counter() - start
"""

GRID = """
import time
import jax, jax.numpy as jnp
import numpy as np
from mtfl_jax import config
from mtfl_jax.sweeps import engine, plan, store
from mtfl_jax.sweeps.grid import Grid

def sgemm_peak(n=2048, seconds=3.0):
    # A product on every device at once, as the sweep runs: the median rate.
    matrices = [jax.device_put(jnp.ones((n, n)), device) for device in engine.devices()]
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready([product(a) for a in matrices])
    rates, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        jax.block_until_ready([product(a) for a in matrices])
        rates.append(2 * n**3 * len(matrices) / (time.perf_counter() - start))
    return float(np.median(rates))

axes = {"d": [32, 64, 128], "r": [2, 3, 4], "width": [64, 256, 1024], "num_tasks": [1, 4, 16, 64, 256]}
start = time.perf_counter()
grid = Grid({**axes, "seed": range(64)}, config.composed)
sink = store.Memory()
progress = engine.execute(grid, sink)
wall = time.perf_counter() - start
assert sink.table().num_rows == 8640 and not progress.failures
padded = sum(plan.lane_flops(bucket.program) * len(bucket.first) for bucket in plan.plan(grid))
first, code = grid.distinct(axes)
own = sum(plan.lane_flops(grid.cell(i).program()) * n for i, n in zip(first, np.bincount(code)))
peak = sgemm_peak()
out = {"cells": 8640, "programs": progress.compiled, "wall_seconds": wall, "cells_per_second": 8640 / wall}
out |= {"compile_seconds": progress.compile_seconds, "run_seconds": progress.run_seconds, "sgemm_peak": peak}
out |= {"flops_of_the_cells": own, "flops_with_padding": padded}
out |= {"share_of_peak": own / progress.run_seconds / peak, "with_padding": padded / progress.run_seconds / peak}
"""

REPORT = """
import json, resource
out["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps(out))
"""


def measured(code: str, **environment: str) -> dict:
    """What code leaves in `out` when run in a new process, with the process's peak memory."""
    command = [sys.executable, "-c", code + REPORT]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **environment})
    return json.loads(done.stdout.splitlines()[-1])


def bookkeeping() -> dict:
    """Cells planned and rows stored."""
    plans = {name: measured(PLAN.replace("SEEDS", seeds)) for name, seeds in (("100k", "1000"), ("1m", "10000"))}
    return {"plan": plans, "store": measured(ROWS)}


def hydra() -> dict:
    """64 cells by the fused sweeper and by Hydra's stock one, each cold: start-up and compiles included."""
    cells = ["-m", "d=16", "r=2", "width=16,32", "num_tasks=1,2,4,8", "seed=range(0,8)", "n1=1024", "n2=1024"]
    seconds = {}
    for name in ("fused", "basic"):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            command = [sys.executable, "-m", "mtfl_jax", *cells, f"hydra/sweeper={name}", f"hydra.sweep.dir={folder}/o"]
            environment = {**os.environ, "XDG_CACHE_HOME": f"{folder}/cache"}
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
            seconds[name] = time.perf_counter() - start
    return {"cells": 64, "seconds": seconds, "ratio": seconds["basic"] / seconds["fused"]}


def grid() -> dict:
    """The 8640-cell grid with a cold cache. The share of peak counts the cells' own matrix products only."""
    with tempfile.TemporaryDirectory() as folder:
        return measured(GRID, XDG_CACHE_HOME=folder)


BENCHMARKS = {"bookkeeping": bookkeeping, "hydra": hydra, "grid": grid}


def main() -> None:
    """Run the named benchmarks (default all) and keep their results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    chosen = parser.parse_args().names or list(BENCHMARKS)
    if unknown := [name for name in chosen if name not in BENCHMARKS]:
        parser.error(f"{unknown[0]}: allowed: {', '.join(BENCHMARKS)}")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in chosen:
        machine = {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}
        results[name] = {**BENCHMARKS[name](), **machine}
        print(name, json.dumps(results[name], indent=2), flush=True)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
