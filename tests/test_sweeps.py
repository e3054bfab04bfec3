"""Sweeps: what compiles, that a cell's row is its own, that nothing is lost."""

import concurrent.futures
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import differential
import jax
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import monitoring

import mtfl_jax
from mtfl_jax import compose
from mtfl_jax.fields import ConfigError
from mtfl_jax.learning import data, keys
from mtfl_jax.learning.measures import MEASURES
from mtfl_jax.learning.program import Probed
from mtfl_jax.sweeps import compiling, cost, engine, identity, machine, store, tables
from mtfl_jax.sweeps.cost import size_names
from mtfl_jax.sweeps.grid import Grid
from mtfl_jax.sweeps.plan import ladder, plan

LISTS = [name for name, measure in MEASURES.items() if measure.shape]
SMALL = {"d": 12, "r": 2, "width": 16, "n1": 128, "n2": 128, "n_down": 32, "n_test": 64}


def grid_of(where=(), **axes):
    return Grid({**SMALL, **axes}, compose.composed, where=where)


def table_of(grid, **options):
    sink = store.Memory()
    progress = engine.execute(grid, sink, **options)
    assert not progress.failures
    return tables.frame(identity.in_order(grid, sink.table()))


def assert_same_rows(one, other, rtol=1e-4):
    """Equal settings and identities. Continuous measurements to 1e-4, the design's bound for rounding in one step;
    errors that count samples to a few of them.
    """
    pd.testing.assert_index_equal(one.columns, other.columns)
    for name in one.columns:
        if name in ("task_error", "downstream_error"):
            np.testing.assert_allclose(one[name].astype(float), other[name].astype(float), atol=3 / 64)
        elif name in LISTS:
            measured = one[name].notna()
            assert (measured == other[name].notna()).all()
            for a, b in zip(one[name][measured], other[name][measured], strict=True):
                np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)
        elif one[name].dtype == float:
            np.testing.assert_allclose(one[name], other[name], rtol=rtol, atol=1e-6, err_msg=name)
        else:
            pd.testing.assert_series_equal(one[name], other[name])


# Plans


def test_the_ladder_is_powers_of_two_and_their_threes():
    rungs = sorted({ladder(size) for size in range(1, 200)})
    assert rungs == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256]
    assert all(size <= ladder(size) < 1.5 * size + 1 for size in range(1, 200))


def test_the_readme_grid_takes_at_most_twelve_programs():
    axes = {"d": [32, 64, 128], "r": [2, 3, 4], "width": [64, 256, 1024], "num_tasks": [1, 4, 16, 64, 256]}
    grid = Grid({**axes, "seed": range(64)}, compose.composed)
    assert len(grid) == 8640
    buckets = plan(grid)
    assert len(buckets) <= 12
    assert sorted(np.concatenate([bucket.cells for bucket in buckets]).tolist()) == list(range(8640))
    for bucket in buckets:
        for name in size_names(bucket.program):
            sizes = grid.column(name, bucket.cells)
            pad = getattr(bucket.program, name)
            assert pad == ladder(pad)
            assert pad >= sizes.max()


def test_the_same_grid_gives_the_same_plan():
    def programs():
        return [bucket.program for bucket in plan(grid_of(d=[12, 40], width=[16, 100], seed=range(5)))]

    assert programs() == programs()


def test_knobs_never_split_a_bucket():
    knobs = {"lr_a": [0.1, 1], "lr_w": [0.1, 1], "nuisance_scale": [0.5, 1], "weight_decay": [0.1, 0.2]}
    for algorithm in ("one_step", "alternating", "joint"):
        grid = grid_of(algorithm=algorithm, **knobs, lr=[0.1, 0.2], seed=[0, 1], momentum=0.5)
        assert len(plan(grid)) == 1


def test_shared_trainings_run_once():
    grid = grid_of(n_down=[8, 16], probe=["ridge", "svm", "none"], seed=[0, 1])
    (bucket,) = plan(grid)
    assert len(bucket) == 2
    assert bucket.program.probes == (Probed("ridge", "parity"), Probed("svm", "parity"))
    assert bucket.program.n_down == (8, 16)
    grid = grid_of(algorithm="alternating", steps=[3, 5, 8], seed=[0, 1])
    (bucket,) = plan(grid)
    assert (len(bucket), bucket.program.steps, bucket.program.record) == (2, 8, (1, 2, 3, 4, 5, 8))


def test_the_moment_path_shares_one_pass_over_the_samples():
    axes = {"r": [2, 3], "width": [8, 16, 300], "num_tasks": [1, 4], "tasks": ["balanced", "halfspace"]}
    grid = grid_of(**axes, seed=range(500), d=[12, 16], n2=8192)
    (bucket,) = plan(grid)
    assert (len(bucket), bucket.members.shape) == (1000, (1000, 24))
    assert bucket.program.families == ("balanced", "halfspace")
    # 8 and 16 share a group: its rows would not repay a width of their own.
    assert [width for width, _ in bucket.program.groups] == [16, 384]
    assert sorted(bucket.cells.tolist()) == list(range(24_000))
    for cell, lane, row in zip(bucket.cells, bucket.lane, bucket.row, strict=True):
        assert bucket.members[lane, row] == cell
    assert all(not other.program.groups for other in plan(grid, "never"))
    for axes, said in (
        ({"loss": ["linear", "hinge"]}, "loss=hinge; allowed with algorithm=one_step: the linear loss alone"),
        ({"algorithm": "joint"}, "algorithm=joint; allowed: one_step"),
        ({"head_init": "random"}, "head_init=random; allowed with algorithm=one_step: zero"),
    ):
        with pytest.raises(ConfigError, match=f"^moments=always: {said}$"):
            plan(grid_of(**axes), "always")


@pytest.mark.parametrize(
    "axes",
    [
        {"r": [2, 3, 4], "width": [16, 40], "num_tasks": [1, 3, 16], "tasks": ["balanced", "halfspace", "majority"]},
        {"data": "rademacher", "num_tasks": [2, 5], "nuisance_scale": [0.5, 1.0], "r": [2, 3], "n_down": [[8, 20]]},
        {"bias": "random", "tasks": ["parity", "balanced"], "parity_size": [2, "any", "all"], "probe": ["svm", "none"]},
        {"width": [8, 16, 24], "d": [10, 14, 20], "n2": [100, 300], "r": 2, "where": ["width >= d"]},
        {"measure": "contrastive", "r": [1, 2], "num_tasks": [1, 3], "tasks": ["uniform", "parity"]},
        {"measure": "recovery", "probe": ["none", "ridge"], "num_tasks": [1, 8], "r": [1, 4], "n_test": [64, 65]},
        {"d": 160, "width": [100, 200], "n1": 2048, "n2": 2048, "num_tasks": [1, 64], "measure": "recovery"},
    ],
)
@pytest.mark.slow
def test_rows_by_moments_are_those_of_the_direct_path(axes):
    grid = grid_of(**{"lr_a": 0.7, "lr_w": 1.3, "seed": [0, 1], **axes})
    direct = table_of(grid, moments="never")
    assert_same_rows(table_of(grid), direct)
    assert len(direct) == len(grid)


def test_recovery_alone_is_that_of_the_whole_measurement():
    whole, alone = (table_of(grid_of(measure=measure, seed=[0, 1])) for measure in ("all", "recovery"))
    for name in ("subspace_distance", "feature_energy", "spectral_ratio", "directions_recovered", "downstream_error"):
        np.testing.assert_allclose(alone[name].astype(float), whole[name].astype(float), rtol=1e-5)
    missing = ["train_loss", "test_loss", "task_error", "feature_similarity", "contrastive_loss"]
    assert alone[missing].isna().all(axis=None)
    assert grid_of(measure="recovery", probe="none", n_test=[64, 65]).ids.shape == (1,)


def test_the_contrastive_kernel_is_that_of_the_tasks():
    """Of the table's own tasks, whose labels are the same in every path; its mean nears the limit."""
    table = table_of(grid_of(measure="contrastive", r=[1, 2, 3], num_tasks=[1, 400], tasks="uniform", probe="none"))
    for _, row in table.iterrows():
        K = row["contrastive_kernel"].reshape(2 ** row["r"], 2 ** row["r"])
        assert np.array_equal(K, K.T)
        np.testing.assert_allclose(np.diag(K), 1, rtol=1e-6)
        if row["num_tasks"] == 1:
            assert np.linalg.matrix_rank(K) == 1
        else:
            # Off the diagonal a mean of 400 signs: five standard errors.
            np.testing.assert_allclose(K, np.eye(len(K)), atol=5 / 20)
    with pytest.raises(ConfigError, match=r"r=7: allowed with measure=contrastive: r <= 6"):
        grid_of(measure="contrastive", r=7, d=16)


# Compiles


@pytest.fixture
def compilations():
    """The number of programs compiled so far, by JAX's own account."""
    counts = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            counts.append(event)

    monitoring.register_event_duration_secs_listener(listen)
    yield lambda: len(counts)
    monitoring.unregister_event_duration_listener(listen)


def test_other_knobs_compile_nothing(compilations):
    fixed = {**SMALL, "algorithm": "joint", "steps": 3, "bias": "random", "tasks": "parity", "optimizer": "momentum"}
    mtfl_jax.run(**fixed, label_noise=0.1)
    before = compilations()
    assert before > 0
    knobs = {"lr": [0.1, 0.004], "weight_decay": [0.1, 0.01], "nuisance_scale": [0.5, 2.0], "seed": [11, 12]}
    knobs |= {"bias_scale": 0.7, "label_noise": 0.2, "parity_size": 1, "probe_parity_size": 1, "momentum": 0.5}
    assert len(mtfl_jax.sweep(**fixed, **knobs)) == 16 * 3
    assert compilations() == before
    mtfl_jax.run(**{**fixed, "label_noise": 0.1, "width": 8})
    assert compilations() > before


def test_fifty_learning_rates_compile_once():
    grid = grid_of(algorithm="alternating", steps=2, lr_w=np.geomspace(1e-3, 10, 50), probe="none")
    progress = engine.execute(grid, store.Memory())
    assert (progress.compiled, progress.done) == (1, 50)


CACHE = """
import sys, jax
from jax import monitoring
misses = []
def listen(event, **_):
    if event == "/jax/compilation_cache/cache_misses":
        misses.append(event)
monitoring.register_event_listener(listen)
import mtfl_jax
mtfl_jax.sweep(d=[8, 12], r=2, width=8, n1=64, n2=64, n_test=32, n_down=16, seed=range(int(sys.argv[1])))
print("misses", len(misses))
"""


@pytest.mark.slow
def test_a_new_process_finds_the_programs_in_the_cache(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}

    def misses(seeds):
        done = subprocess.run(
            [sys.executable, "-c", CACHE, str(seeds)],
            env={**environment, "XDG_CACHE_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        return int(done.stdout.split()[-1])

    assert misses(3) > 0
    assert list((tmp_path / "mtfl_jax" / "compiled").iterdir())
    assert misses(3) == 0


@pytest.mark.slow
def test_processes_that_start_together_compile_each_program_once(tmp_path):
    """The others wait for the first and find it in the cache."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-c", CACHE, "3"]
    options = {"env": {**environment, "XDG_CACHE_HOME": str(tmp_path)}, "stdout": subprocess.PIPE, "text": True}
    together = [subprocess.Popen(command, **options) for _ in range(3)]
    misses = [int(process.communicate(timeout=240)[0].split()[-1]) for process in together]
    assert sum(misses) == 1


def test_tests_keep_their_programs_to_themselves():
    """Not in the user's cache, and where the environment names one not there either."""
    machine.devices()
    assert jax.config.jax_compilation_cache_dir == os.environ["JAX_COMPILATION_CACHE_DIR"]
    assert Path(jax.config.jax_compilation_cache_dir).name.startswith("mtfl-tests-")


LAPACK = """
import threadpoolctl
from mtfl_jax.sweeps import engine
import jax
with threadpoolctl.threadpool_limits(1, "blas"):
    jax.jit(jax.numpy.linalg.eigh)(jax.numpy.eye(8))
    print(*(library["num_threads"] for library in threadpoolctl.threadpool_info()))
"""


def test_the_engine_limits_the_threads_of_the_lapack_that_jax_calls():
    """A limit reaches only libraries that are loaded; jaxlib loads its LAPACK when a program first needs it."""
    done = subprocess.run([sys.executable, "-c", LAPACK], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"1"}


# A row is its own

VARIED = {
    "d": st.sampled_from([5, 8, 12]),
    "r": st.sampled_from([1, 2, 3]),
    "width": st.sampled_from([2, 9, 16]),
    "num_tasks": st.sampled_from([1, 3, 8]),
    "n1": st.sampled_from([40, 128]),
    "n2": st.sampled_from([50, 128]),
    "seed": st.integers(0, 2**31 - 1),
    "lr_a": st.sampled_from([0.01, 0.02]),
    "n_down": st.sampled_from([8, 32]),
    "nuisance_scale": st.sampled_from([0.5, 1.0]),
}
KINDS = [
    {"algorithm": "one_step", "data": "rademacher", "tasks": "balanced", "bias": "random"},
    {"algorithm": "alternating", "steps": 4, "tasks": "majority", "label_noise": 0.1},
    {"algorithm": "joint", "steps": 4, "tasks": "uniform", "shared_inputs": False, "lr": 1e-3, "probe": "none"},
]


@pytest.mark.parametrize("kind", KINDS, ids=[kind["algorithm"] for kind in KINDS])
@settings(max_examples=2, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(drawn=st.data())
@pytest.mark.slow
def test_a_row_does_not_depend_on_the_grid(kind, drawn):
    """Alone or in a padded grid, in any order and chunk: the same row."""
    names = drawn.draw(st.lists(st.sampled_from(sorted(VARIED)), min_size=2, max_size=3, unique=True))
    axes = {name: drawn.draw(st.lists(VARIED[name], min_size=2, max_size=2, unique=True)) for name in names}
    grid = grid_of(**kind, **axes)
    whole = table_of(grid)
    order = drawn.draw(st.permutations(names))
    shuffled = {name: axes[name][::-1] for name in order}
    other = table_of(grid_of(**kind, **shuffled), chunk=1)
    assert_same_rows(whole.sort_values("id", ignore_index=True), other.sort_values("id", ignore_index=True))
    alone = grid.cell(drawn.draw(st.integers(0, len(grid) - 1)))
    values = {name: getattr(alone, name) for name in names} | {"n_down": alone.n_down[0]}
    row = mtfl_jax.run(**{**SMALL, **kind, **values})
    ours = whole[whole["id"].isin(row["id"])].reset_index(drop=True)
    assert_same_rows(ours, row)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.slow
def test_a_row_does_not_depend_on_the_devices(tmp_path, count):
    axes = {"width": [8, 16], "num_tasks": [1, 3], "seed": [0, 1, 2]}
    code = f"import mtfl_jax; mtfl_jax.sweep(folder='out', **{ {**SMALL, **axes}!r})"
    start = f"import jax; jax.config.update('jax_num_cpu_devices', {count}); jax.devices(); "
    subprocess.run([sys.executable, "-c", start + code], cwd=tmp_path, check=True)
    other = tables.frame(identity.in_order(grid_of(**axes), store.Folder(tmp_path / "out").table()))
    assert_same_rows(table_of(grid_of(**axes)), other)


@pytest.mark.slow
def test_the_command_line_gives_the_rows_of_the_api(mtfl, tmp_path):
    fixed = [f"{key}={value}" for key, value in SMALL.items() if key != "d"]
    done = mtfl(
        "-m", *fixed, "d=8,12", "data=glob(*)", "seed=range(0,3)", "sweep.where=['seed < 2']", "hydra.sweep.dir=a"
    )
    assert done.returncode == 0, done.stderr
    grid = grid_of(d=[8, 12], data=["gaussian", "rademacher"], seed=[0, 1])
    rows = tables.frame(identity.in_order(grid, store.Folder(tmp_path / "a").table()))
    assert len(rows) == len(mtfl_jax.load(tmp_path / "a")) == 8
    assert_same_rows(rows, table_of(grid))


@pytest.mark.slow
def test_shared_steps_and_probes_give_the_rows_of_their_own_trainings():
    axes = {"steps": [3, 6], "n_down": [8, 32], "probe": ["ridge", "none"]}
    whole = table_of(grid_of(algorithm="alternating", **axes))
    for steps in (3, 6):
        for probe in ("ridge", "none"):
            alone = mtfl_jax.run(**{**SMALL, "algorithm": "alternating", "steps": steps, "n_down": 8, "probe": probe})
            assert_same_rows(whole[whole["id"].isin(alone["id"])].reset_index(drop=True), alone)


def test_the_same_seed_gives_the_same_row_and_another_does_not():
    first, again, other = (mtfl_jax.run(**SMALL, seed=seed) for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(first, again)
    assert first["feature_energy"].iloc[0] != other["feature_energy"].iloc[0]


def test_draws_are_those_of_schema_2():
    """Fixed numbers of seed 0: if they change, keys.SCHEMA must."""
    assert keys.SCHEMA == 2
    x = np.asarray(data.inputs(keys.named(keys.root(0), "test"), "gaussian", 2, 2, r=1))
    # To the rounding of the normal's logarithm and square root.
    np.testing.assert_allclose(x, [[0.42985588, 0.83949697], [0.57830405, 0.41061452]], rtol=1e-6)


# Failures


def test_a_diverged_training_is_marked_and_spoils_no_neighbour():
    fixed = {"algorithm": "alternating", "steps": 4, "measure_at": [[1, 2, 4]], "seed": [0, 1]}
    mixed = table_of(grid_of(**fixed, lr_w=[10.0, 1e30]))
    healthy = table_of(grid_of(**fixed, lr_w=10.0))
    assert set(healthy["status"]) == {"ok"}
    wild = mixed[mixed["lr_w"] == 1e30]
    assert len(wild) == 6
    assert set(wild[wild["step"] >= 2]["status"]) == {"diverged"}
    assert set(wild["diverged_step"].dropna()) == {2}
    assert_same_rows(mixed[mixed["lr_w"] == 10.0].reset_index(drop=True), healthy)


def test_infinite_measurements_are_no_divergence():
    row = mtfl_jax.run(**SMALL, algorithm="oracle").iloc[0]
    assert np.isinf(row["spectral_ratio"])
    assert row["status"] == "ok"


def test_a_failed_bucket_is_named_and_the_rest_runs(monkeypatch):
    grid = grid_of(algorithm=["one_step", "oracle", "random_features"], seed=[0, 1])
    real = compiling.compiled

    def compiled(job, chunk):
        if job.program.algorithm == "oracle":
            raise RuntimeError("no such luck\nsecond line")
        return real(job, chunk)

    monkeypatch.setattr(compiling, "compiled", compiled)
    sink = store.Memory()
    progress = engine.execute(grid, sink)
    assert progress.failures == ["2 cells (oracle seed=0,1): RuntimeError: no such luck"]
    assert sink.table().num_rows == 4
    with pytest.raises(RuntimeError, match="no such luck"):
        mtfl_jax.sweep(**{**SMALL, "algorithm": "oracle"})


def test_programs_that_compile_together_end_in_any_order(monkeypatch):
    """As on a host of an accelerator: none is lost, one that fails takes no other along, and rows are as ever."""
    algorithms = ["one_step", "oracle", "random_features", "alternating"]
    grid = grid_of(algorithm=algorithms, steps=2, data=["gaussian", "rademacher"], seed=range(3))
    stand_in, active, most = differential.StandIn(differential.Truth()), set(), []
    monkeypatch.setattr(engine, "fitting", stand_in.fitting)
    usual = table_of(grid, moments="never")
    jobs = [compiling.job_of(bucket) for bucket in plan(grid, "never")]
    assert len(jobs) == 8

    def fitting(job, *rest):
        active.add(job)
        most.append(len(active))
        time.sleep(0.05 * (3 - jobs.index(job) % 3))  # Of three that begin together the last one is the first.
        active.remove(job)
        if job == jobs[4]:
            raise RuntimeError("no such luck")
        return stand_in.fitting(job, *rest)

    monkeypatch.setattr(engine, "fitting", fitting)
    monkeypatch.setattr(compiling, "at_once", lambda: 3)
    sink = store.Memory()
    progress = engine.execute(grid, sink, moments="never")
    assert (max(most), progress.compiled, progress.done) == (3, 7, 21)
    assert [line.split(": ", 1)[1] for line in progress.failures] == ["RuntimeError: no such luck"]
    found = tables.frame(identity.in_order(grid, sink.table())).set_index(["algorithm", "data", "seed", "step"])
    pd.testing.assert_frame_equal(found, usual.set_index(["algorithm", "data", "seed", "step"]).loc[found.index])


def test_how_many_programs_compile_together(monkeypatch):
    monkeypatch.setattr(compiling.host, "cores", lambda: 16)
    assert compiling.at_once() == 1
    monkeypatch.setattr(compiling, "accelerator", lambda: True)
    assert compiling.at_once() == 8
    monkeypatch.setattr(compiling.host, "cores", lambda: 1)
    assert compiling.at_once() == 1


@pytest.mark.slow
def test_out_of_memory_halves_the_chunk_and_goes_on(monkeypatch):
    sizes = []
    real = engine._call

    def call(course, *rest):
        sizes.append(course.chunk.capacity)
        if course.chunk.capacity > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return real(course, *rest)

    monkeypatch.setattr(engine, "_call", call)
    grid = grid_of(seed=range(10))
    sink = store.Memory()
    assert engine.execute(grid, sink, chunk=8).done == 10
    assert sizes[:3] == [8, 4, 2]
    assert sink.table().num_rows == 10


def test_a_bucket_that_fails_with_two_chunks_on_their_way_is_listed_once(monkeypatch):
    class Broken:
        def keys(self):
            raise RuntimeError("no such luck")

    real = engine._call
    monkeypatch.setattr(engine, "fitting", differential.StandIn(differential.Truth()).fitting)
    monkeypatch.setattr(engine, "_call", lambda *args: real(*args)._replace(outputs=Broken()))
    progress = engine.execute(grid_of(seed=range(9)), store.Memory(), chunk=1)
    assert (progress.done, len(progress.failures)) == (0, 1)


@pytest.mark.slow
def test_chunks_in_flight_that_are_out_of_memory_run_again_in_halves(monkeypatch):
    """A device says so when results are asked for: the next chunk is on its way by then, just as large."""

    class Full:
        def keys(self):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    sizes, real = [], engine._call

    def call(course, *rest):
        sizes.append(course.chunk.capacity)
        return real(course, *rest)._replace(**{"outputs": Full()} if course.chunk.capacity > 2 else {})

    monkeypatch.setattr(engine, "_call", call)
    quick = {"algorithm": "oracle", "measure": "recovery", "probe": "none"}
    grid, sink = grid_of(**quick, width=[8, 12], seed=range(40)), store.Memory()
    progress = engine.execute(grid, sink, chunk=8)
    assert (progress.done, progress.failures) == (80, [])
    assert [size for size in sizes if size > 2] == [8, 8, 4, 4]
    assert_same_rows(table_of(grid), tables.frame(identity.in_order(grid, sink.table())))


def test_a_sweep_that_is_stopped_has_the_first_seeds_of_everything(monkeypatch):
    axes = {"algorithm": ["one_step", "oracle"], "num_tasks": [2, 3, 5], "data": ["gaussian", "rademacher"]}
    grid = grid_of(**axes, width=[8, 16], seed=range(20))
    monkeypatch.setattr(engine, "fitting", differential.StandIn(differential.Truth()).fitting)
    for moments, after in itertools.product(("auto", "never"), (100, 200, 300)):
        sink, done = store.Memory(), []

        def notify(progress, done=done):
            done.append(progress.done)

        progress = engine.execute(
            grid,
            sink,
            moments=moments,
            chunk=1,
            notify=notify,
            stop=lambda: done[-1] >= after,  # noqa: B023
        )
        assert progress.stopped
        table = tables.frame(sink.table())
        assert after <= len(table) == progress.done < len(grid)
        seeds = [set(own["seed"]) for _, own in table.groupby([*axes, "width"])]
        assert len(seeds) == 24
        least = min(map(len, seeds))
        assert least >= 1
        assert all(own >= set(range(least)) for own in seeds)
        # Programs take turns by what they have begun, of which each has its own number of trainings.
        assert max(map(len, seeds)) <= least + 4


def test_a_program_that_the_compiler_refuses_for_its_memory_is_halved(monkeypatch):
    tried, real = [], compiling.compiled

    def refused(job, chunk):
        tried.append(chunk.batch)
        if chunk.batch > most:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm")
        return real(job, chunk)

    monkeypatch.setattr(compiling, "compiled", refused)
    (bucket,) = plan(grid_of(algorithm="oracle", measure="recovery", probe="none"))
    most = 3
    executable, chunk, *_ = compiling.fitting(compiling.job_of(bucket), compiling.Chunk(24, 24), 0.5)
    assert (tried, chunk, executable is not None) == ([24, 12, 6, 3], compiling.Chunk(3, 3), True)
    most = 0
    with pytest.raises(
        compiling.TooLargeError, match="one training needs more than there is on each of 2 devices; allowed: "
    ):
        compiling.fitting(compiling.job_of(bucket), compiling.Chunk(4, 4), 0.5)


def test_seconds_of_all_that_was_tried_are_told_with_the_lines_of_what_fits(monkeypatch):
    real, tried = compiling.compiled, []

    def compiled(job, chunk):
        tried.append(chunk.batch)
        return real(job, compiling.Chunk(2, 2))._replace(lowering=1.0, compiling=10.0)

    monkeypatch.setattr(compiling, "compiled", compiled)
    monkeypatch.setattr(compiling, "memory_of", lambda _: 1 if tried[-1] == 2 else float("inf"))
    (bucket,) = plan(grid_of(algorithm="oracle", measure="recovery", probe="none"))
    found = compiling.fitting(compiling.job_of(bucket), compiling.Chunk(8, 8), 0.5)
    assert (found.chunk.batch, found.lowering, found.compiling) == (2, 3.0, 30.0)
    assert compiling.lines_of(found.executable) == sum(" = " in line for line in found.executable.as_text().split("\n"))


def test_lines_are_those_of_instructions():
    text = (
        'HloModule m\n\nFileNames\n1 "a.py"\n\nENTRY %main (x: f32[]) -> f32[] {\n  %x = f32[]\n  ROOT %y = f32[]\n}\n'
    )
    assert compiling.lines_of(SimpleNamespace(as_text=lambda: text)) == 2
    assert compiling.lines_of(SimpleNamespace(as_text=lambda: None)) == 0


def test_chunks_of_an_accelerator_are_of_one_size(monkeypatch):
    class Device:
        platform = "gpu"

    for count in (1, 4):
        monkeypatch.setattr(compiling, "devices", lambda count=count: (Device,) * count)
        sizes = set()
        for lanes in [*range(1, 3000), 10_000, 123_456]:
            capacity, batch, *_ = compiling.modelled([None] * lanes)
            share = -(-lanes // count)
            calls = -(-share // capacity)
            assert batch == capacity <= compiling.MAX_LANES
            assert calls == -(-share // compiling.MAX_LANES)
            assert calls * capacity <= share * 9 / 8 + calls or share <= 16
            sizes.add(capacity)
        assert len(sizes) < 64


def test_batches_of_a_tpu_stay_on_the_chip(monkeypatch):
    """In chunks of the size that another accelerator has, but for a last batch that is not full."""
    sizes = ({"d": 16, "width": 16}, {"d": 64, "width": 256}, {"d": 512, "width": 4096, "n_down": 4096})
    buckets = [plan(grid_of(num_tasks=64, seed="range(0,1100)", **own), "never")[0] for own in sizes]
    found = {}
    monkeypatch.setattr(compiling, "on_chip", lambda: 2**27)
    for platform in ("gpu", "tpu"):
        monkeypatch.setattr(compiling, "devices", lambda of=platform: (SimpleNamespace(platform=of),))
        found[platform] = [compiling.modelled(bucket) for bucket in buckets]
    assert found["gpu"] == [compiling.Chunk(576, 576)] * 3
    batches = [chunk.batch for chunk in found["tpu"]]
    assert batches[2] == 1 < batches[1] < batches[0]
    for (capacity, batch, *_), bucket in zip(found["tpu"], buckets, strict=True):
        assert 576 <= capacity < 576 + batch
        assert capacity % batch == 0
        assert batch == 1 or batch * cost.lane_bytes(bucket.program) <= 2**26
    monkeypatch.undo()
    assert compiling.on_chip() == 2**24  # of a device that Pallas does not know
    halves = compiling.half(compiling.Chunk(576, 64))
    assert halves == compiling.Chunk(288, 32)


def test_a_program_too_large_for_memory_is_refused_by_its_own_analysis():
    progress = engine.execute(grid_of(), store.Memory(), memory_fraction=1e-9)
    assert "TooLargeError: one training needs" in progress.failures[0]


def test_failures_set_the_exit_status(here):
    status, _, err = here(
        *[f"{key}={value}" for key, value in SMALL.items()], "memory_fraction=1e-9", "hydra.run.dir=a"
    )
    assert status == 1
    assert "failed: 1 cell " in err


# Stops and restarts


SWEEP = ["-m", *(f"{key}={value}" for key, value in SMALL.items() if key != "width")]
SWEEP += ["width=8,16", "seed=range(0,8000)", "probe=none", "moments=never", "hydra.sweep.dir=out"]


def start(cwd, *more):
    return subprocess.Popen(
        [sys.executable, "-m", "mtfl_jax", *SWEEP, *more],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_signal_finishes_the_chunk_and_the_sweep_goes_on_after_it(tmp_path, mtfl):
    for number in (signal.SIGTERM, signal.SIGINT):
        process = start(tmp_path)
        time.sleep(0.1)
        before = len(list((tmp_path / "out" / "parts").glob("[!.]*")))
        deadline = time.time() + 120
        while len(list((tmp_path / "out" / "parts").glob("[!.]*"))) == before and time.time() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 128 + number, err
        assert "the same command with hydra.sweep.dir=" in err
    found = len(mtfl_jax.load(tmp_path / "out"))
    assert 0 < found < 16000
    states = [json.loads(path.read_text())["state"] for path in (tmp_path / "out" / "runs").iterdir()]
    assert states == ["stopped", "stopped"]
    done = mtfl(*SWEEP)
    assert done.returncode == 0, done.stderr
    assert f"{found} there before" in done.stdout
    assert len(mtfl_jax.load(tmp_path / "out")) == 16000
    status = subprocess.run(
        [sys.executable, "-c", STATUS, "out"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "16000/16000" in status.stdout


STATUS = "from mtfl_jax.__main__ import status; status()"


KILLED = """
import sys, mtfl_jax
from mtfl_jax.sweeps import compiling, store
compiling.CHUNK_SECONDS = store.WRITE_SECONDS = 0.0  # a part a chunk: many moments at which to be killed
mtfl_jax.sweep(folder="out", d=8, r=2, width=[8, 16], n1=64, n2=64, n_test=32, probe="none", seed=range(2000))
"""


@pytest.mark.slow
def test_kill_nine_at_random_moments_loses_and_doubles_nothing(tmp_path):
    """Killed 20 times while it writes, restarted each time: the table of an undisturbed sweep."""
    axes = {"d": 8, "r": 2, "width": [8, 16], "n1": 64, "n2": 64, "n_test": 32, "probe": "none", "seed": range(2000)}
    undisturbed = Grid(axes, compose.composed)
    draw = random.Random(0)
    parts = tmp_path / "out" / "parts"
    kills = 0
    for _ in range(20):
        process = subprocess.Popen([sys.executable, "-c", KILLED], cwd=tmp_path)
        before = len(list(parts.glob("*")))
        while process.poll() is None and len(list(parts.glob("*"))) == before:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.15))
        kills += process.poll() is None
        process.kill()
        process.wait()
    assert kills >= 5, "the sweep must be killed while it runs"
    subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, check=True)
    table = tables.frame(identity.in_order(undisturbed, store.Folder(tmp_path / "out").table()))
    assert table["id"].is_unique
    assert_same_rows(table, table_of(undisturbed))


def test_parts_of_a_sweep_are_the_whole():
    """Also where each is run on a device of another speed, for which there are other programs."""
    grid = grid_of(width=[8, 256], seed=range(700), algorithm=["one_step", "oracle"])
    none = np.empty(0, np.uint64)
    slow, fast = plan(grid, "auto", 0.01), plan(grid, "auto", 100)
    assert len(fast) < len(slow)
    cells = [
        bucket.cells
        for k, buckets in ((1, slow), (2, fast), (3, slow))
        for bucket in engine.remaining(grid, buckets, none, engine.share(grid, plan(grid), (k, 3)))
    ]
    assert sorted(np.concatenate(cells).tolist()) == list(range(len(grid)))


def test_sweeps_of_several_threads_are_those_of_one():
    """Composing configs changes what the whole process sees of Hydra."""
    seeds = [range(3), range(3, 6), range(6, 9)]

    def own(seed):
        return mtfl_jax.sweep(**SMALL, num_tasks=2, measure="recovery", probe="none", data="rademacher", seed=seed)

    compose._whole.cache_clear()
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        found = list(threads.map(own, seeds))
    pd.testing.assert_frame_equal(pd.concat(found, ignore_index=True), own(range(9)))
