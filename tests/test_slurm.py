"""Sweeps on a real Slurm, of one node (tests/slurm_node.sh): what ends a job there, and that the table is whole."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import documented
import pandas as pd
import pytest

import mtfl_jax
from mtfl_jax.sweeps import notes

asked = os.environ.get("MTFL_REQUIRE_SLURM") == "1"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not asked, reason="MTFL_REQUIRE_SLURM=1 runs it, on a Slurm whose queue is all its own"),
]

MTFL = [sys.executable, "-m", "mtfl_jax", "-m", *documented.LONG]


@pytest.fixture
def sweep(tmp_path):
    """Start a sweep of so many seeds on Slurm, and await it; afterwards the queue is empty."""

    def start(seeds, jobs=4, **launcher):
        keys = {"partition": "low", "cpus_per_task": 1, "timeout_min": 10, **launcher}
        command = [*MTFL, f"seed=range(0,{seeds})", "hydra/launcher=submitit_slurm", f"hydra.sweeper.jobs={jobs}"]
        command += [f"hydra.launcher.{key}={value}" for key, value in keys.items()]
        with (tmp_path / "err").open("w") as err:
            return subprocess.Popen(
                [*command, f"hydra.sweep.dir={tmp_path}/out"], stdout=subprocess.DEVNULL, stderr=err, cwd=tmp_path
            )

    start.folder = tmp_path / "out"
    yield start
    subprocess.run(["scancel", "-u", "root", "-s", "KILL", "-b"], check=False)
    subprocess.run(["scancel", "-u", "root"], check=False)
    until(lambda: not queue())


def until(true, seconds=240):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.5)


def queue(states="pending,running,completing", what="%i"):
    """The jobs in Slurm's queue, or several things of each."""
    lines = subprocess.run(
        ["squeue", "-h", "-r", "-o", what, "-t", states], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [line.split() for line in lines] if " " in what else lines


def rows(folder):
    return len(mtfl_jax.load(folder, columns=["seed"])) if any((folder / "parts").glob("*.parquet")) else 0


def ended(sweep, seconds=600):
    """How a sweep ends whose jobs are put back, without the two minutes that Slurm then has them wait.

    Those are for what still ends of their last run, so jobs of which something does are left to wait.
    """
    since, end = {}, time.monotonic() + seconds
    while sweep.poll() is None:
        assert time.monotonic() < end, "it takes too long"
        waiting = [job for job, reason in queue("pending", "%i %r") if reason == "BeginTime"]
        since = {job: since.get(job, time.monotonic()) for job in waiting}
        for job in waiting if not queue("completing") else ():
            if time.monotonic() - since[job] > 4:
                subprocess.run(
                    ["scontrol", "update", f"jobid={job}", "StartTime=now"], check=False, capture_output=True
                )
        time.sleep(1)
    return sweep.returncode


def whole(folder, seeds):
    """That the table is that of one process, to rounding: a share has fewer devices."""
    table = mtfl_jax.load(folder)
    assert sorted(table["seed"]) == list(range(seeds))
    some = table[table["seed"] % (seeds // 4) == 0].sort_values("seed").reset_index(drop=True)
    axes = dict(text.split("=") for text in documented.LONG)
    alone = mtfl_jax.sweep(**axes, seed=some["seed"].tolist()).sort_values("seed").reset_index(drop=True)
    names = ["id", "subspace_distance", "spectral_ratio", "feature_energy", "directions_recovered"]
    pd.testing.assert_frame_equal(some[names], alone[names], rtol=1e-4)
    assert (folder / "results.parquet").exists()
    assert (folder / "report" / "index.html").exists()


def said(sweep):
    return (sweep.folder.parent / "err").read_text()


def test_preempted_jobs_go_on(sweep):
    """Slurm asks with SIGTERM, kills after a grace time, and puts back what it had to kill."""
    running = sweep(600)
    until(lambda: sum(note["done"] > 0 for note in notes.read(sweep.folder)) == min(4, os.cpu_count()))
    subprocess.run(["srun", "-p", "high", f"-n{os.cpu_count()}", "sleep", "1"], check=True, capture_output=True)
    assert ended(running) == 0, said(sweep)
    whole(sweep.folder, 600)
    states = [note["state"] for note in notes.read(sweep.folder)]
    assert (states.count("stopped"), states.count("finished")) == (min(4, os.cpu_count()), 4)


def test_jobs_that_run_out_of_time_go_on(sweep):
    """The signal comes up to half a minute earlier than it is told to, and submitit puts the job back."""
    running = sweep(1200, timeout_min=1, signal_delay_s=15, max_num_timeout=40)
    assert ended(running) == 0, said(sweep)
    whole(sweep.folder, 1200)
    assert any(note["state"] == "stopped" for note in notes.read(sweep.folder))


def test_a_killed_job_is_a_line_and_the_others_end(sweep):
    running = sweep(400)
    until(lambda: rows(sweep.folder) > 20)
    job = queue("running")[0]
    subprocess.run(["scancel", "--signal=KILL", job], check=True)
    assert running.wait(240) == 1
    first, last = said(sweep).splitlines()
    assert job in first
    assert ".submitit" in first
    assert last.endswith(f"hydra.sweep.dir={sweep.folder} goes on")
    assert 300 <= rows(sweep.folder) < 400
    assert (sweep.folder / "results.parquet").exists()
    assert sweep(400).wait(240) == 0
    whole(sweep.folder, 400)


def test_a_node_that_comes_back(sweep):
    """slurmd is stopped and started: what runs there goes on."""
    running = sweep(600)
    until(lambda: rows(sweep.folder) > 50)
    subprocess.run(["pkill", "-x", "slurmd"], check=True)
    time.sleep(3)
    subprocess.run(["slurmd"], check=True)
    assert running.wait(300) == 0, said(sweep)
    whole(sweep.folder, 600)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_jobs_are_the_queues_when_who_waits_is_stopped(sweep, number):
    """A signal names them, they end by themselves, and the same command shows the table."""
    running = sweep(200)
    until(lambda: rows(sweep.folder) > 20)
    jobs = queue()
    running.send_signal(number)
    assert running.wait(60) == 128 + number
    assert all(job in said(sweep) for job in jobs)
    until(lambda: not queue())
    assert rows(sweep.folder) == 200
    assert sweep(200).wait(240) == 0
    whole(sweep.folder, 200)


def test_no_job_outlives_a_driver_that_is_killed(sweep):
    """Neither those that run, which keep their rows, nor those that wait; and the same command goes on."""
    running = sweep(600)
    until(lambda: rows(sweep.folder) > 50)
    assert len(queue()) == 4
    running.kill()
    assert running.wait(60) == -signal.SIGKILL
    until(lambda: not queue(), 60)
    kept = rows(sweep.folder)
    assert 50 < kept < 600
    # One whose chunk takes longer than Slurm waits (KillWait) is killed.
    assert {notes.state(note) for note in notes.read(sweep.folder)} <= {"stopped", notes.DEAD}
    assert sweep(600).wait(240) == 0
    whole(sweep.folder, 600)


def test_jobs_that_are_left_show_themselves(tmp_path):
    command = [*MTFL, "seed=range(0,60)", "hydra/launcher=submitit_slurm", "hydra.sweeper.jobs=2"]
    command += ["hydra.launcher.partition=low", "hydra.launcher.cpus_per_task=1", "hydra.sweeper.detach=true"]
    done = subprocess.run(
        [*command, f"hydra.sweep.dir={tmp_path}/out"], check=True, cwd=tmp_path, capture_output=True, text=True
    )
    jobs = queue()
    assert len(jobs) == 2
    line = done.stdout.splitlines()[-1]
    assert line.startswith(f"{jobs[0]}, {jobs[1]} are in the queue (scancel ends them); mtfl-status ")
    assert not (tmp_path / "out" / "results.parquet").exists()
    until(lambda: not queue())
    whole(tmp_path / "out", 60)


SCRIPT = """#!/bin/bash
#SBATCH --array=1-3:2
#SBATCH --output={folder}/log-%a
exec {command}
"""


@pytest.mark.parametrize("how", ["srun", "array"])
def test_processes_that_nobody_drives(tmp_path, how):
    command = [*MTFL, "seed=range(0,60)", "sweep.part=auto", f"hydra.sweep.dir={tmp_path}/out"]
    if how == "srun":
        subprocess.run(["srun", "-n2", *command], check=True, cwd=tmp_path, capture_output=True)
    else:
        script = tmp_path / "job.sh"
        script.write_text(SCRIPT.format(folder=tmp_path, command=" ".join(f"'{word}'" for word in command)))
        subprocess.run(["sbatch", "--wait", str(script)], check=True, cwd=tmp_path)
    whole(tmp_path / "out", 60)
    parts = sorted(note["config"]["sweep"]["part"] for note in notes.read(Path(tmp_path) / "out"))
    assert parts == ["1/2", "2/2"]


ON_A_NODE = ["hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=null"]
WITHOUT_GPU = ["hydra.launcher.gpus_per_node=null", "hydra.launcher.partition=low"]


@pytest.mark.parametrize(
    ("word", "more", "less"),
    [
        ("cluster=slurm_gpu", ON_A_NODE + WITHOUT_GPU, {}),
        ("cluster=slurm_gpu", [*ON_A_NODE, "hydra.launcher.partition=low"], {"cluster": "slurm_cpu"}),
        ("srun", [], {}),
    ],
)
def test_the_lines_of_the_readme(tmp_path, word, more, less):
    """With fewer and smaller cells, on as many cores as this node has."""
    script = documented.script("README.md", word, tmp_path, more, **{"hydra.sweeper.jobs": 2}, **less)
    said = documented.run(script, tmp_path)
    assert len(mtfl_jax.load(tmp_path / "a")) == 3 * 2
    assert "wrote" in said
    assert word == "srun" or "[6 rows x " in said
