"""What mtfl_jax takes for the work of the benchmarks: `python benchmarks/ours.py NAME` prints one line of JSON.

Every name is run in a process of its own, so that none finds another's memory or compiled programs.
"""

import inspect
import json
import resource
import sys
import tempfile
import time
from typing import Any

import numpy as np


def seconds_of(do: Any, repeats: int = 3) -> list[float]:
    """Seconds of each repeat; `do` blocks."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        do()
        seconds.append(time.perf_counter() - start)
    return seconds


def sgemm_peak(n: int = 2048, seconds: float = 3.0) -> float:
    """Operations a second of a matrix product on every device at once, as a sweep runs: the median."""
    import jax
    import jax.numpy as jnp

    from mtfl_jax.sweeps.machine import MATMUL_PRECISION, devices

    matrices = [jax.device_put(jnp.ones((n, n)), device) for device in devices()]
    with jax.default_matmul_precision(MATMUL_PRECISION):
        product = jax.jit(lambda a: a @ a)
        jax.block_until_ready([product(a) for a in matrices])
        rates, end = [], time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            jax.block_until_ready([product(a) for a in matrices])
            rates.append(2 * n**3 * len(matrices) / (time.perf_counter() - start))
    return float(np.median(rates))


def copy_bandwidth(n: int = 2**26) -> float:
    """Bytes a second read and written by a copy on every device at once: the median."""
    import jax
    import jax.numpy as jnp

    from mtfl_jax.sweeps.machine import devices

    arrays = [jax.device_put(jnp.ones(n), device) for device in devices()]
    copy = jax.jit(lambda a: a + 1)
    jax.block_until_ready([copy(a) for a in arrays])
    each = seconds_of(lambda: jax.block_until_ready([copy(a) for a in arrays]), 7)
    return 8 * n * len(arrays) / float(np.median(each))


def executed(axes: dict[str, Any], **options: Any) -> tuple[Any, Any, Any]:
    """The grid of the axes, its finished progress and its rows."""
    from mtfl_jax import compose
    from mtfl_jax.sweeps import engine, store
    from mtfl_jax.sweeps.grid import Grid

    grid = Grid(axes, compose.composed)
    sink = store.Memory()
    progress = engine.execute(grid, sink, **options)
    assert not progress.failures
    assert sink.table().num_rows == len(grid)
    return grid, progress, sink.table()


def flops_run(grid: Any, moments: str = "auto") -> float:
    """Matrix-product operations of the programs of a grid, padding included."""
    from mtfl_jax.sweeps.compiling import speed
    from mtfl_jax.sweeps.cost import lane_flops
    from mtfl_jax.sweeps.plan import plan

    return sum(lane_flops(bucket.program) * len(bucket) for bucket in plan(grid, moments, speed()))


def planning(seeds: str) -> dict[str, Any]:
    """Parse and plan a grid of 100 cells a seed."""
    from mtfl_jax import compose
    from mtfl_jax.sweeps.grid import Grid
    from mtfl_jax.sweeps.plan import plan

    axes = {"d": "32,64,128,256", "width": "64,128,256,512,1024", "num_tasks": "1,4,16,64,256"}
    start = time.perf_counter()
    grid = Grid({**axes, "seed": f"range(0,{seeds})"}, compose.composed)
    buckets = plan(grid)
    return {"cells": len(grid), "programs": len(buckets), "seconds": time.perf_counter() - start}


def rows() -> dict[str, Any]:
    """Write 1,000,000 rows in 1000 parts, load them all, load 1000 of them, and gather them in one file and a page."""
    import mtfl_jax
    from mtfl_jax import compose
    from mtfl_jax.analysis import page
    from mtfl_jax.learning.measures import MEASURES
    from mtfl_jax.sweeps import rows as row_tables
    from mtfl_jax.sweeps import store
    from mtfl_jax.sweeps.grid import Grid

    axes = {"width": [64, 128], "num_tasks": [1, 4, 16, 64, 256], "seed": range(100_000)}
    grid = Grid(axes, compose.composed)
    out: dict[str, Any] = {"rows": len(grid)}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        sink = store.Folder(folder)
        for at in range(0, len(grid), 1000):
            index = np.arange(at, min(at + 1000, len(grid)))
            ones = np.ones(len(index), int)
            values: dict[str, Any] = {"status": ["ok"] * len(index)}
            for name, of in MEASURES.items():
                values[name] = ones if of.type is int else np.full(len(index), 0.5)
            values |= {"feature_similarity": [[0.5] * 5] * len(index), "contrastive_kernel": [None] * len(index)}
            sink.append(row_tables.rows(grid, index, ones, {**values, "diverged_step": [None] * len(index)}))
        out["write_seconds"] = time.perf_counter() - start
        start = time.perf_counter()
        assert len(mtfl_jax.load(folder)) == len(grid)
        out["load_seconds"] = time.perf_counter() - start
        start = time.perf_counter()
        some = mtfl_jax.load(folder, columns=["width", "subspace_distance"], where=[("seed", "<", 100)])
        assert len(some) == 1000
        out["load_some_seconds"] = time.perf_counter() - start
        start = time.perf_counter()
        sink.merge()
        page.write(sink.path)
        out["gather_seconds"] = time.perf_counter() - start
    return out


def swept(axes: dict[str, Any]) -> dict[str, Any]:
    """What a grid takes end to end, compiles included, and its share of the sgemm peak."""
    start = time.perf_counter()
    cells, progress, _ = executed(axes)
    wall = time.perf_counter() - start
    flops, peak = flops_run(cells), sgemm_peak()
    return {
        "cells": len(cells),
        "programs": progress.compiled,
        "wall_seconds": wall,
        "cells_per_second": len(cells) / wall,
        "compile_seconds": progress.compile_seconds,
        "run_seconds": progress.run_seconds,
        "flops": flops,
        "flops_of_direct_programs": flops_run(cells, "never"),
        "sgemm_peak": peak,
        "share_of_peak": flops / progress.run_seconds / peak,
    }


def grid() -> dict[str, Any]:
    """The 8640-cell grid of the README on Gaussian inputs, with everything measured, from a cold cache."""
    axes = {
        "data": "gaussian",
        "d": [32, 64, 128],
        "r": [2, 3, 4],
        "width": [64, 256, 1024],
        "num_tasks": [1, 4, 16, 64, 256],
    }
    return swept({**axes, "seed": range(64)})


def on_cpu() -> bool:
    """Whether the devices are a CPU's cores."""
    from mtfl_jax.sweeps.machine import devices

    return devices()[0].platform == "cpu"


def alternating(data: str) -> dict[str, Any]:
    """64 trainings (10,240 on an accelerator) of 200 rounds, warm: the engine's second sweep in the process, rows and
    all.
    """
    axes = {"algorithm": "alternating", "steps": 200, "n2": 512, "d": 64, "r": 4, "width": 256, "num_tasks": 32}
    axes |= {"loss": "logistic", "data": data, "measure": "recovery", "probe": "none", "measure_at": "last"}
    runs, start = 64 if on_cpu() else 10_240, time.perf_counter()
    _, progress, _ = executed({**axes, "seed": range(runs)})
    cold = time.perf_counter() - start
    seconds = seconds_of(lambda: executed({**axes, "seed": range(runs)}))
    flops, peak = runs * 200 * (4 * 512 * 64 * 256 + 8 * 512 * 256 * 32), sgemm_peak()
    out = {"runs": runs, "cold_seconds": cold, "compile_seconds": progress.compile_seconds, "seconds": seconds}
    return out | {"sgemm_peak": peak, "share_of_peak": flops / float(np.median(seconds)) / peak}


def one_step(data: str) -> dict[str, Any]:
    """The 61,440-cell grid of one_step with the recovery measured, from a cold cache."""
    axes = {"d": [32, 64, 128, 256], "r": [2, 3, 4], "width": [64, 128, 256, 512], "num_tasks": [1, 4, 16, 64, 256]}
    return swept({**axes, "seed": range(256), "data": data, "measure": "recovery", "probe": "none"})


def measuring() -> dict[str, Any]:
    """Direct one_step rows with all measurements and a probe at five n_down, against their training alone, warm: on
    every device at once, each taking one after the other, as the engine runs them on a CPU.
    """
    import jax
    import threadpoolctl
    from jax.sharding import Mesh, PartitionSpec

    from mtfl_jax import compose
    from mtfl_jax.learning import drawing, experiment
    from mtfl_jax.learning.algorithms import ALGORITHMS
    from mtfl_jax.sweeps import compiling, plan
    from mtfl_jax.sweeps.grid import Grid
    from mtfl_jax.sweeps.machine import MATMUL_PRECISION, devices

    cells = Grid(
        {"data": "gaussian", "n_down": [[16, 32, 64, 128, 256]], "seed": range(8 * len(devices()))}, compose.composed
    )
    (bucket,) = plan.plan(cells, "never")
    p = bucket.program
    mesh, spec = Mesh(np.asarray(devices()), ("lanes",)), PartitionSpec("lanes")
    each = compiling.cells_of(cells, bucket, np.arange(8 * mesh.size))

    def timed(run: Any) -> float:
        def own(each: Any) -> Any:
            return jax.lax.map(run, each)

        with jax.default_matmul_precision(MATMUL_PRECISION), threadpoolctl.threadpool_limits(1):
            sharded = jax.shard_map(own, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
            compiled = jax.jit(sharded).lower(each).compile()
            jax.block_until_ready(compiled(each))
            return float(np.median(seconds_of(lambda: jax.block_until_ready(compiled(each)), 9))) / 8

    row = timed(lambda cell: experiment.experiment(p, cell))
    training = timed(lambda cell: ALGORITHMS[p.algorithm].run(p, cell, drawing.draw_tasks(p, cell)).params)
    return {"row_seconds": row, "training_seconds": training, "measuring_share": 1 - training / row}


def recovery() -> dict[str, Any]:
    """Milliseconds of the recovery of a row of 512 × 256, of one task and of 256: alone, as a core has it, and each of
    a batch of 16 under vmap, as an accelerator does; on one device.
    """
    import jax
    import threadpoolctl

    import mtfl_jax
    from mtfl_jax.learning import recovery
    from mtfl_jax.sweeps.machine import MATMUL_PRECISION

    out: dict[str, Any] = {}
    with jax.default_matmul_precision(MATMUL_PRECISION), threadpoolctl.threadpool_limits(1):
        alone = jax.jit(lambda W: recovery.recovery(W, 4))
        batched = jax.jit(jax.vmap(lambda W: recovery.recovery(W, 4, accelerator=True)))
        for tasks in (1, 256):
            settings = {"d": 256, "width": 512, "r": 4, "num_tasks": tasks, "measure": "recovery", "probe": "none"}
            many = np.stack([mtfl_jax.train(**settings, seed=seed).W for seed in range(16)])
            each = {"alone": lambda many=many: [alone(W) for W in many], "batched": lambda many=many: batched(many)}
            own = {name: seconds_of(lambda do=do: jax.block_until_ready(do()), 8) for name, do in each.items()}
            out[str(tasks)] = {name: 1e3 * float(np.median(found[1:])) / len(many) for name, found in own.items()}
    return out


def unhidden() -> dict[str, Any]:
    """What the device does not hide of what the host does: of 100,000 small cells, and of programs of 50 ms and more.
    Seconds of a warm sweep, rows and all, less those of the same calls alone, each awaited.

    On a CPU the devices are the cores that the host's work wants too.
    """
    import jax

    from mtfl_jax.sweeps import calibration, compiling, engine, plan
    from mtfl_jax.sweeps import machine as machine_

    small = {"d": 16, "r": 2, "width": 16, "n1": 256, "n2": 256, "num_tasks": [1, 2, 4, 8], "seed": range(25_000)}
    kinds = {"small": small, "large": {"d": 64, "width": 256, "num_tasks": [16, 64], "seed": range(32)}}
    out: dict[str, Any] = {}
    for name, axes in kinds.items():
        axes = {"data": "gaussian", "measure": "recovery", "probe": "none", **axes}
        grid, *_ = executed(axes, moments="never")
        calls: list[tuple[Any, Any]] = []

        def ready(executable: Any, calls: Any = calls) -> Any:
            """In the place of an executable: keep the call that it would be given."""
            return lambda *given: calls.append((executable, given))

        for bucket in plan.plan(grid, "never", compiling.speed()):
            executable, chunk, *_ = compiling.fitting(
                compiling.job_of(bucket), calibration.chunk_of(bucket), machine_.MEMORY_FRACTION
            )
            course = engine._Course(bucket, ready(executable), chunk)
            while course.left:
                engine._call(course, grid, course.take())

        def alone(calls: Any = calls) -> None:
            for executable, given in calls:
                jax.block_until_ready(executable(*given))

        alone()
        pairs = []
        # In turns, so that both meet the same machine.
        for _ in range(5):
            with engine._ONE_THREAD:
                (calls_alone,) = seconds_of(alone, 1)
            (sweep,) = seconds_of(lambda axes=axes: executed(axes, moments="never"), 1)
            pairs.append((calls_alone, sweep))
        device, whole = np.median(pairs, axis=0).tolist()
        out[name] = {
            "cells": len(grid),
            "call_milliseconds": 1e3 * device / len(calls),
            "microseconds_a_row": 1e6 * (whole - device) / len(grid),
            "idle": 1 - device / whole,
        }
    return out


def scaling() -> dict[str, Any]:
    """Time a cell against the grid's size, and exponents of a warm training's time in d, width, n and seeds."""
    common = {"data": "gaussian", "measure": "recovery", "probe": "none"}
    small = {**common, "d": 16, "r": 2, "width": 16, "n1": 256, "n2": 256}
    out: dict[str, Any] = {"microseconds_per_cell": {}, "exponents": {}}
    executed({**small, "num_tasks": [1, 2, 4, 8], "seed": range(2)})
    for cells in (1000, 10_000, 100_000):
        axes = {**small, "num_tasks": [1, 2, 4, 8], "seed": range(cells // 4)}
        executed(axes)
        median = float(np.median(seconds_of(lambda axes=axes: executed(axes))))
        out["microseconds_per_cell"][cells] = median / cells * 1e6
    base = {**common, "d": 64, "width": 256, "n1": 8192, "n2": 8192, "seed": range(16)}
    for name, values in (("d", [64, 128, 256]), ("width", [128, 256, 512]), ("n", [4096, 8192, 16384])):
        times = []
        for value in values:
            axes = {**base, **({"n1": value, "n2": value} if name == "n" else {name: value})}
            executed(axes)
            times.append(float(np.median(seconds_of(lambda axes=axes: executed(axes)))))
        out["exponents"][name] = float(np.polyfit(np.log(values), np.log(times), 1)[0])
    counts = [16, 64, 256]
    times = [float(np.median(seconds_of(lambda c=c: executed({**base, "seed": range(c)})))) for c in counts]
    out["exponents"]["seeds"] = float(np.polyfit(np.log(counts), np.log(times), 1)[0])
    return out


def normals() -> dict[str, Any]:
    """10^8 normals: moments, tails and the Kolmogorov–Smirnov distance, in standard errors; nanoseconds a number."""
    import jax
    from scipy.stats import kstwobign, norm

    from mtfl_jax.learning import draws, keys

    rows, columns, chunks = 64, 2**14, 96
    draw = jax.jit(lambda i: draws.normal(keys.at(keys.root(0), i), rows, columns))
    stock = jax.jit(lambda i: jax.random.normal(jax.random.fold_in(keys.root(0), i), (rows, columns)))
    edges = norm.ppf(np.linspace(0, 1, 4097))
    sums, counts, beyond, total = np.zeros(6), np.zeros(4096), np.zeros(3), rows * columns * chunks
    for i in range(chunks):
        x = np.asarray(draw(i), np.float64).ravel()
        sums += [np.sum(x**k) for k in range(1, 7)]
        counts += np.histogram(x, edges)[0]
        beyond += [np.sum(np.abs(x) > t) for t in (3, 4, 5)]
    expected, second = np.asarray([0, 1, 0, 3, 0, 15]), np.asarray([1, 3, 15, 105, 945, 10395])
    p = 2 * norm.sf([3, 4, 5])
    largest = np.abs(np.cumsum(counts) / total - np.linspace(0, 1, 4097)[1:]).max() * np.sqrt(total)
    nanoseconds = {
        name: float(np.median(seconds_of(lambda f=f: f(0).block_until_ready(), 9))) / rows / columns * 1e9
        for name, f in (("ours", draw), ("jax.random.normal", stock))
        if f(0) is not None
    }
    return {
        "draws": total,
        "moments_in_standard_errors": ((sums / total - expected) / np.sqrt((second - expected**2) / total)).tolist(),
        "beyond_3_4_5_in_standard_errors": ((beyond - total * p) / np.sqrt(total * p)).tolist(),
        "kolmogorov_smirnov_p": float(kstwobign.sf(largest)),
        "nanoseconds": nanoseconds,
    }


def precision() -> dict[str, Any]:
    """Every measurement under each precision of the training: means, and the mean and standard error of the difference
    to float32 on the same seeds; and trainings a second, warm.
    """
    from mtfl_jax.learning import arithmetic

    names = ("subspace_distance", "directions_recovered", "feature_energy", "spectral_ratio", "train_loss", "test_loss")
    names += ("task_error", "downstream_error", "contrastive_loss")
    kinds: dict[str, dict[str, Any]] = {"one_step": {}, "alternating": {"n2": 512, "measure_at": "last"}}
    runs = 32 if on_cpu() else 1024
    out: dict[str, Any] = {"runs": runs}
    for algorithm, own in kinds.items():
        axes = {"algorithm": algorithm, "data": "rademacher", "seed": range(runs), **own}
        out[algorithm], exact = {}, None
        for name in arithmetic.PRECISIONS:
            # Neither takes the moment path, which is float32's alone.
            each = {**axes, "precision": name}
            table = executed(each, moments="never")[2]
            seconds = seconds_of(lambda each=each: executed(each, moments="never"))
            values = table.sort_by("seed").select(names).to_pandas().astype(float)
            exact = values if exact is None else exact
            out[algorithm][name] = {
                "rate": runs / float(np.median(seconds)),
                "mean": values.mean().to_dict(),
                "difference": (values - exact).mean().to_dict(),
                "standard_error": (values - exact).sem().to_dict(),
            }
    return out


def machine() -> dict[str, Any]:
    """The device, its peak rates, and the versions."""
    from mtfl_jax.sweeps.machine import environment

    return {**environment(), "sgemm_peak": sgemm_peak(), "copy_bandwidth": copy_bandwidth()}


WORK = (
    planning,
    rows,
    grid,
    alternating,
    one_step,
    measuring,
    recovery,
    unhidden,
    scaling,
    normals,
    precision,
    machine,
)


def main() -> None:
    """Do the work named on the command line, with its arguments."""
    name, *arguments = sys.argv[1:]
    work = {function.__name__: function for function in WORK}[name]
    assert len(arguments) == len(inspect.signature(work).parameters)
    out = work(*arguments)
    out["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(out))


if __name__ == "__main__":
    main()
