"""The fused sweeper: found by Hydra, faithful to its grammar, and kind to the stock tools."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import documented
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import RunMode
from omegaconf import OmegaConf

import mtfl_jax
from mtfl_jax.compose import HYDRA_BASE, conf_dir
from mtfl_jax.fields import ConfigError
from mtfl_jax.learning.algorithms import ALGORITHMS
from mtfl_jax.learning.data import LAWS
from mtfl_jax.sweeps import compiling, jobs, notes
from mtfl_jax.sweeps.composing import Composed
from mtfl_jax.sweeps.jobs import overrides_of_jobs

SMALL = ["d=12", "r=2", "n1=64", "n2=64", "n_down=16", "n_test=32", "width=8"]


@pytest.fixture
def loader():
    from hydra import initialize_config_dir

    with initialize_config_dir(str(conf_dir()), **HYDRA_BASE):
        yield GlobalHydra.instance().config_loader()


def jobs_of(loader, *arguments, params=None, split=(), jobs=1):
    return overrides_of_jobs(arguments, params or {}, split, jobs, loader)


def test_hydra_finds_the_plugin():
    assert "FusedSweeper" in [plugin.__name__ for plugin in Plugins.instance().discover(Sweeper)]


def test_sweeps_stay_compact_axes_of_one_job(loader):
    (job,) = jobs_of(loader, "d=32,64", "seed=range(0,10000)", "width=8", "data=gaussian,rademacher")
    axes = ["++sweep.axes.d='32,64'", "++sweep.axes.seed='range(0,10000)'"]
    assert job == [*axes, "width=8", "++sweep.axes.data='gaussian,rademacher'"]


DIRNAME = ["hydra.job.config.override_dirname.exclude_keys=[d]", "hydra.job.config.override_dirname.kv_sep=:"]


@pytest.mark.parametrize("arguments", [[], DIRNAME])
def test_shares_are_composed_once_and_as_hydra_does(loader, monkeypatch, arguments):
    master = loader.load_configuration("config", arguments, RunMode.MULTIRUN)
    _ = master.hydra.sweep.dir
    batch = jobs_of(loader, "d=32", "study=none,quickstart", "seed=range(0,4)", jobs=3)
    batch += [batch[0][:-1], []]
    expected = [loader.load_sweep_config(master, overrides) for overrides in batch]
    rebuilt, given = Composed(loader).__reduce__()
    assert rebuilt(*given) is loader
    usual, asked = loader.load_sweep_config, []
    monkeypatch.setattr(loader, "load_sweep_config", lambda *given: asked.append(given) or usual(*given))
    composed = Composed(loader)
    for _again in range(2):
        for one, overrides in zip(expected, batch, strict=True):
            found = composed.load_sweep_config(master, overrides)
            assert found == one
            assert OmegaConf.get_cache(found) == OmegaConf.get_cache(one)
            assert found.hydra.job.override_dirname == one.hydra.job.override_dirname
            assert OmegaConf.is_struct(found)
            found.sweep.part = "9/9"
    assert len(asked) == 4


def test_globs_of_groups_are_their_names(loader):
    (job,) = jobs_of(loader, "data=glob(*)")
    assert job == [f"++sweep.axes.data='{','.join(sorted(LAWS))}'"]


def test_params_of_a_study_yield_to_the_command_line(loader):
    (job,) = jobs_of(loader, "d=32", params={"d": "8,16", "seed": "range(0,3)"})
    assert job == ["d=32", "++sweep.axes.seed='range(0,3)'"]


def test_split_and_jobs_make_separate_jobs(loader):
    jobs = jobs_of(loader, "d=32,64", "seed=range(0,4)", split=["d"], jobs=2)
    seed = "++sweep.axes.seed='range(0,4)'"
    assert jobs == [[seed, f"d={d}", f"++sweep.part={k}/2"] for d in (32, 64) for k in (1, 2)]
    assert len(jobs_of(loader, "study=none,quickstart", "seed=1,2")) == 2
    with pytest.raises(ConfigError, match="split"):
        jobs_of(loader, "d=32", split=["d"])


@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
@pytest.mark.slow
def test_shares_on_a_stock_launcher_fill_one_folder(mtfl, tmp_path, launcher):
    sweep = ["-m", *SMALL, "seed=range(0,5)", "num_tasks=1,2", "hydra.sweeper.jobs=2", "hydra.sweep.dir=out"]
    done = mtfl(*sweep, f"hydra/launcher={launcher}")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    # What a plain run prints: progress, the rows, where they and the report are.
    for text in ("10/10 cells" if launcher != "basic" else "4/4 cells", "subspace_distance", "out/report/index.html"):
        assert text in done.stdout
    assert done.stdout.count("wrote") == 5
    assert ("logs in out/.submitit" in done.stdout) == (launcher == "submitit_local")
    table = mtfl_jax.load(tmp_path / "out")
    assert sorted(zip(table["num_tasks"], table["seed"], strict=True)) == [(t, s) for t in (1, 2) for s in range(5)]


@pytest.mark.slow
def test_the_line_of_the_readme(tmp_path):
    script = documented.script("README.md", "cluster=joblib", tmp_path)
    said = documented.run(script, tmp_path)
    assert f"2 jobs on joblib into {tmp_path}/a; 2 at a time" in said
    assert len(mtfl_jax.load(tmp_path / "a")) == 3 * 2


def test_the_stock_sweeper_still_works(mtfl, tmp_path):
    done = mtfl("-m", *SMALL, "seed=1,2", "hydra/sweeper=basic", "hydra.sweep.dir=out")
    assert done.returncode == 0, done.stderr
    assert sorted(mtfl_jax.load(tmp_path / "out")["seed"]) == [1, 2]


@pytest.mark.slow
def test_every_failed_job_is_named(mtfl, tmp_path):
    done = mtfl(
        "-m", *SMALL, "num_tasks=1,2", "hydra.sweeper.split=[num_tasks]", "memory_fraction=1e-9", "hydra.sweep.dir=o"
    )
    assert done.returncode == 1
    assert done.stderr.count("failed: 1 cell ") == 2


def test_plan_only_runs_nothing(here, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    status, out, err = here("-m", *SMALL, "data=gaussian,rademacher", "seed=range(0,3)", "plan=only")
    assert status == 0, err
    for word in ("6 cells to run", "6 trainings", "2 programs", "TFLOP", "gaussian", "rademacher"):
        assert word in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_plan_only_knows_every_algorithm_and_what_is_there(here, tmp_path, monkeypatch, algorithm):
    monkeypatch.setattr(compiling.jax, "jit", lambda *_: pytest.fail("compiled"))
    cell = [*SMALL, f"algorithm={algorithm}", "steps=2", "measure_at=last", "-m"]
    status, out, err = here(*cell, "seed=range(0,3)", "plan=only")
    assert (status, err) == (0, "")
    assert "3 cells to run" in out
    assert list(tmp_path.iterdir()) == []


def test_a_plan_compiles_where_it_is_asked_to_and_counts_what_is_there(here, monkeypatch):
    sweep = ["-m", *SMALL, "num_tasks=1,2", "hydra.sweep.dir=out"]
    assert here(*sweep, "seed=0,1")[0] == 0
    status, out, _ = here(*sweep, "seed=range(0,3)", "plan=compile")
    assert status == 0
    for word in ("4 of 6 cells there before", "2 cells to run", "MiB", "a device may give"):
        assert word in out
    status, out, _ = here(*sweep, "seed=0,1", "plan=only")
    assert out == "4 of 4 cells there before\n"
    status, _, err = here(*sweep, "seed=range(0,3)", "plan=compile", "memory_fraction=1e-9")
    assert (status, err) == (1, "mtfl: some programs cannot run\n")


def test_a_plan_that_compiles_says_lines_and_seconds_apart_within_80_columns(here, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    sizes = ["d=12", "r=2", "width=8", "num_tasks=2"]
    cells = ["-m", *sizes, "measure=recovery", "probe=none", "algorithm=oracle,random_features"]
    status, out, err = here(*cells, "plan=compile")
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) == 80
    shown = out[out.index("what compiling shows") :].splitlines()
    assert shown[1].split() == ["#", "program", "at", "once", "memory", "HLO", "lines", "lower", "compile"]
    for k, algorithm in ((1, "oracle"), (2, "random_features")):
        number, *program, at_once, memory, unit, lines, lowering, compiling_ = shown[2 + k].split()
        assert (number, program[0], at_once, unit) == (str(k), algorithm, "1", "MiB")
        assert float(memory) > 0
        assert int(lines.replace(",", "")) > 50
        for seconds in (lowering, compiling_):
            assert re.fullmatch(r"\d+(\.\d)?s", seconds)
    assert re.search(r"\ds to lower, \S+s to compile or to find in the cache, about 0s to run", out)


LOCAL = pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])


def launched(tmp_path, launcher, seeds):
    """A sweep in two processes that the launcher starts, of which both have written rows."""
    sweep = [*SMALL, f"seed=range(0,{seeds})", "hydra.sweeper.jobs=2", f"hydra/launcher={launcher}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mtfl_jax", "-m", *sweep, "hydra.sweep.dir=out"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while len(at_work(tmp_path)) < 2:
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(f"no two shares have rows after 120 s: {process.communicate()[1]}")
        time.sleep(0.05)
    return process


def at_work(tmp_path):
    """What processes note that run, and have written rows."""
    return [note for note in notes.read(tmp_path / "out") if note["state"] == "running" and note["done"]]


SLURM = {
    "sbatch": "echo Submitted batch job 7",
    "srun": "true",
    "sacct": "true",
    "scancel": 'echo "$@" >>{folder}/cancelled',
}
"""What stands for Slurm's commands: two jobs, 7_0 and 7_1, wait in its queue for ever."""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_jobs_in_a_queue_are_named_or_cancelled(tmp_path, number):
    """Named where a signal ends the command that waits for them, cancelled where it is killed and says nothing."""
    for name, does in SLURM.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does.format(folder=tmp_path)}\n")
        (tmp_path / name).chmod(0o755)
    sweep = [*SMALL, "seed=range(0,4)", "hydra.sweeper.jobs=2", "hydra/launcher=submitit_slurm", "hydra.sweep.dir=out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mtfl_jax", "-m", *sweep],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    guards = awaited(lambda: [pid for pid in jobs._children(process.pid) if b"scancel" in words_of(pid)])
    process.send_signal(number)
    _, err = process.communicate(timeout=60)  # Until no process holds the stream.
    awaited(lambda: all(notes.gone(pid, time.time()) for pid in guards))
    if number == signal.SIGKILL:
        assert (err, (tmp_path / "cancelled").read_text()) == ("", "7\n")
    else:
        assert err.startswith("mtfl: SIGTERM: stopped waiting; 7_0, 7_1 go on in the queue (scancel ends them); ")
        assert not (tmp_path / "cancelled").exists()


def words_of(pid):
    """What a process was called with; nothing where it has gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def awaited(found, seconds=60):
    """What is found, as soon as it is something."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.05)
    return value


@pytest.mark.slow
def test_a_process_that_waits_for_more_work_ends_with_its_driver():
    """As loky's do, whose driver is killed between two jobs of theirs."""
    work = (
        "import time; from mtfl_jax.sweeps import jobs\n"
        "with jobs.following(): pass\n"
        "print('done', flush=True); time.sleep(600)"
    )
    with subprocess.Popen(["sleep", "600"]) as driver:
        env = os.environ | {jobs.DRIVER: str(driver.pid)}
        with subprocess.Popen([sys.executable, "-c", work], env=env, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout.readline() == "done\n"
            assert worker.poll() is None
            driver.kill()
            driver.wait()
            assert worker.wait(timeout=60) == 128 + signal.SIGTERM


@LOCAL
@pytest.mark.slow
def test_a_signal_stops_jobs_of_this_host(tmp_path, launcher):
    """They finish their chunks, one line says what is left of all of them, and no process stays."""
    for number in (signal.SIGTERM, signal.SIGINT):
        process = launched(tmp_path, launcher, 200_000)
        # A terminal sends Ctrl-C to all processes of the command; kill sends to one.
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        _, err = process.communicate(timeout=120)  # Until no process holds the streams.
        assert process.returncode == 128 + number, err
        first, second = err.splitlines()
        assert first.startswith(f"mtfl: {number.name}: stops when what runs is finished")
        assert "cells left; the same command with hydra.sweep.dir=" in second
    states = [json.loads(path.read_text())["state"] for path in tmp_path.glob("out/runs/*")]
    assert states == ["stopped"] * 4


@LOCAL
@pytest.mark.slow
def test_no_job_outlives_its_driver(tmp_path, launcher):
    process = launched(tmp_path, launcher, 200_000)
    process.kill()
    process.communicate(timeout=60)  # Until no process holds the streams.
    deadline = time.monotonic() + 60
    while {note["state"] for note in notes.read(tmp_path / "out")} != {"stopped"}:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert len({note["pid"] for note in notes.read(tmp_path / "out")}) == 2


@LOCAL
@pytest.mark.slow
def test_a_killed_job_is_a_line(tmp_path, launcher):
    """The others end: beside it, or, as joblib ends them with it, once more."""
    process = launched(tmp_path, launcher, 20_000)
    os.kill(at_work(tmp_path)[0]["pid"], signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert "Traceback" not in err
    assert "wrote" in out
    if launcher == "joblib":
        assert process.returncode == 0, err
        assert err == "mtfl: joblib: a worker has died, and the jobs beside it with it; all go on once\n"
    else:
        assert process.returncode == 1
        first, second = err.splitlines()
        assert "it has ended without a word; its log is " in first
        assert Path(first.rpartition(" ")[2]).exists()
        assert second.endswith("goes on")
        assert 10_000 <= len(mtfl_jax.load(tmp_path / "out")) < 20_000
        again = subprocess.run(
            [sys.executable, "-m", "mtfl_jax", "-m", *SMALL, "seed=range(0,20000)", "hydra.sweep.dir=out"],
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
        )
        assert "wrote" in again.stdout
    assert sorted(mtfl_jax.load(tmp_path / "out")["seed"]) == list(range(20_000))
