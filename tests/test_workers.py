"""`sweep.part=auto`: which share a process has, by what those who start processes say; and what devices."""

import os
import subprocess
import sys
import time
import unittest.mock

import documented
import numpy as np
import pytest

import mtfl_jax
from mtfl_jax.compose import composed
from mtfl_jax.fields import ConfigError
from mtfl_jax.sweeps import engine, host, notes, workers
from mtfl_jax.sweeps.grid import Grid
from mtfl_jax.sweeps.plan import plan


def step(rank, size, local="0", nodes="1", node="0"):
    """What srun puts into the environment of a task."""
    names = ("PROCID", "STEP_NUM_TASKS", "LOCALID", "STEP_TASKS_PER_NODE", "NODEID", "STEP_ID")
    return {f"SLURM_{name}": text for name, text in zip(names, (rank, size, local, nodes, node, "0"), strict=True)}


def array(number, least="0", most="7", every="1", count="8"):
    names = ("ID", "MIN", "MAX", "STEP", "COUNT")
    values = zip(names, (number, least, most, every, count), strict=True)
    return {f"SLURM_ARRAY_TASK_{name}": text for name, text in values}


OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "8"}
LOCAL = {"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
BATCH = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("environment", "part", "here"),
    [
        (step("0", "2", nodes="2"), (1, 2), (0, 2)),
        (step("6", "7", "0", "2(x3),1", "3"), (7, 7), (0, 1)),
        (step("3", "7", "1", "2(x3),1", "1"), (4, 7), (1, 2)),
        (BATCH | array("3"), (4, 8), (0, 1)),
        (BATCH | array("7", "1", "9", "2", "5"), (4, 5), (0, 1)),
        (array("1", "0", "1", "1", "2") | step("2", "3", "2", "3"), (6, 6), (2, 3)),
        (OPEN_MPI, (6, 8), (0, 1)),
        (OPEN_MPI | LOCAL | step("0", "2"), (6, 8), (1, 4)),  # Open MPI starts its own daemons by srun.
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}, (2, 2), (1, 2)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, (4, 4), (1, 2)),
        ({"TPU_WORKER_ID": "3", "TPU_WORKER_HOSTNAMES": "a,b,c,d"}, (4, 4), (0, 1)),
    ],
)
def test_who_starts_processes_says_which(environment, part, here):
    assert workers.part(environment) == part
    assert workers.worker(environment).here == here


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "nothing says which process this is"),
        (BATCH, "nothing says which process this is"),  # The script of a job, beside which no other process runs.
        (array("5", "1", "5", "1", "3"), "3 numbers from 1 to 5"),
        (array("x"), "SLURM_ARRAY_TASK_ID=x"),
        (step("2", "2"), "SLURM_PROCID is number 2 of 2"),
        (step("0", "2", nodes="two"), "SLURM_STEP_TASKS_PER_NODE=two"),
        ({"TPU_WORKER_ID": "1"}, "TPU_WORKER_HOSTNAMES says of no hosts"),
        (step("0", "2", nodes="2", node="1"), "SLURM_NODEID is number 1 of 1"),
        (step("0", "2", "5", nodes="2"), "SLURM_LOCALID is number 5 of 2"),
        ({"RANK": "²", "WORLD_SIZE": "2"}, "RANK=²"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": ""}, "OMPI_COMM_WORLD_SIZE="),
    ],
)
def test_what_makes_no_sense_is_refused(environment, said):
    with pytest.raises(ConfigError) as error:
        workers.part(environment)
    line = str(error.value)
    assert line.startswith("sweep.part=auto: ")
    assert said in line
    assert "allowed" in line


@pytest.fixture
def devices(monkeypatch):
    """Set who this process is, and see what it takes: how many jobs share cores and memory, and which GPUs."""

    def taken(seen, cores=4, **environment):
        for name in [name for name in os.environ if name.startswith("SLURM_")]:
            monkeypatch.delenv(name)
        monkeypatch.delenv(host.JOBS, raising=False)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
        monkeypatch.setattr(os, "cpu_count", lambda: 4)
        for name, text in {"CUDA_VISIBLE_DEVICES": seen, **LOCAL, **OPEN_MPI, **environment}.items():
            monkeypatch.setenv(name, text)
        workers.take_own()
        return os.environ.get(host.JOBS), os.environ["CUDA_VISIBLE_DEVICES"]

    return taken


def test_each_process_of_a_host_has_devices_of_its_own(devices):
    assert devices("") == ("4", "")
    assert devices("0,1,2,3,4,5,6,7") == ("4", "1,5")
    assert devices("0") == ("4", "0")  # There is one for all, or each sees its own already.
    assert devices("0,1,2,3", SLURM_GPUS_PER_TASK="4") == ("4", "0,1,2,3")
    assert devices("2", cores=1) == (None, "2")  # Bound to cores of its own.
    assert devices("2", cores=2, SLURM_CPUS_ON_NODE="2") == ("4", "2")


TPU = {"TPU_PROCESS_BOUNDS": "1,1,1", "CLOUD_TPU_TASK_ID": "0", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


@pytest.fixture
def chips(monkeypatch, tmp_path):
    """Set how many TPU chips this host has, and see what a process of several takes of them."""
    known = ("TPU_", "CLOUD_TPU_", "ALLOW_MULTIPLE", "SLURM_", "JAX_PLATFORMS")

    def taken(files, number, total, **environment):
        monkeypatch.setattr(host, "ROOT", tmp_path)
        monkeypatch.setattr(workers.importlib.util, "find_spec", lambda name: name)
        for name in files:
            (tmp_path / "dev" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "dev" / name).touch()
        for name in [name for name in os.environ if name.startswith(known)]:
            del os.environ[name]
        local = {"OMPI_COMM_WORLD_LOCAL_RANK": str(number), "OMPI_COMM_WORLD_LOCAL_SIZE": str(total)}
        os.environ.update({"CUDA_VISIBLE_DEVICES": "", **OPEN_MPI, **local, **environment})
        before = dict(os.environ)
        workers.take_own()
        return {name: text for name, text in os.environ.items() if name != host.JOBS and before.get(name) != text}

    with unittest.mock.patch.dict(os.environ):
        yield taken


def test_each_process_of_a_tpu_host_has_chips_of_its_own(chips):
    four = [f"accel{k}" for k in range(4)]
    for k in range(4):
        port = str(8476 + k)
        own = {"TPU_VISIBLE_CHIPS": str(k), "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_PORT": port}
        assert chips(four, k, 4) == {**TPU, **own, "TPU_PROCESS_ADDRESSES": f"localhost:{port}"}
    own = chips(four, 1, 2)
    assert (own["TPU_VISIBLE_CHIPS"], own["TPU_CHIPS_PER_PROCESS_BOUNDS"]) == ("2,3", "1,2,1")
    assert chips(four, 2, 3)["TPU_VISIBLE_CHIPS"] == "2"  # The fourth is nobody's.
    assert chips(four, 0, 1) == {}  # A host of a pod has its own by what its user exports.
    assert chips(four, 1, 4, JAX_PLATFORMS="cpu") == {}
    assert chips(four, 1, 4, TPU_VISIBLE_DEVICES="3") == {}
    with pytest.raises(ConfigError, match="8 processes on a host of 4 TPU chips; allowed: one a chip"):
        chips(four, 1, 8)


def test_chips_by_the_newer_driver(chips):
    assert chips(["vfio/vfio", "vfio/0", "vfio/17"], 1, 2)["TPU_VISIBLE_CHIPS"] == "1"


def test_a_host_without_chips_is_left_alone(chips):
    assert chips([], 1, 4) == {}
    assert chips(["accel", "nvidia0"], 1, 4) == {}


def test_jobs_on_a_host_share_its_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    for jobs, cores in (("1", 4), ("2", 2), ("3", 1), ("9", 1)):
        monkeypatch.setenv(host.JOBS, jobs)
        assert host.cores() == cores


@pytest.mark.parametrize("of", [2, 7, 64])
def test_shares_are_equal_and_seeds_come_breadth_first(of):
    grid = Grid({"d": [16, 128], "width": [16, 512], "num_tasks": [1, 64], "seed": range(64)}, composed)
    seconds = np.zeros(len(grid))
    for bucket in plan(grid):
        # Of a training, to each of its cells.
        seconds[bucket.cells] = (bucket.seconds / np.bincount(bucket.lane, minlength=len(bucket)))[bucket.lane]
    shares = [engine.share(grid, plan(grid), (k, of)) for k in range(1, of + 1)]
    assert (np.sum(shares, axis=0) == 1).all()
    longest = max(bucket.seconds for bucket in plan(grid))
    took = [seconds[mine].sum() for mine in shares]
    assert max(took) - min(took) <= 2 * longest + 1e-9
    seeds = [grid.column("seed", np.flatnonzero(mine)).mean() for mine in shares if mine.any()]
    assert np.corrcoef(np.arange(len(seeds)), seeds)[0, 1] > 0.7


COMMAND = [sys.executable, "-m", "mtfl_jax", "-m", "d=16", "width=8,16", "seed=range(0,3)", "n1=64", "n2=64"]
COMMAND += ["measure=recovery", "probe=none", "sweep.part=auto"]


def run(folder, environment):
    clean = {name: text for name, text in os.environ.items() if not name.startswith(("SLURM_", "OMPI_", "PMI_"))}
    command = [*COMMAND, *([f"hydra.sweep.dir={folder}"] if folder else [])]
    return subprocess.Popen(
        command, env={**clean, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.parametrize(
    ("count", "variables"),
    [
        (2, lambda k: {"PMI_RANK": str(k), "PMI_SIZE": "2"}),
        pytest.param(4, lambda k: {"TPU_WORKER_ID": str(k), "TPU_WORKER_HOSTNAMES": "a,b,c,d"}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_processes_that_nobody_drives(tmp_path, count, variables):
    """All at once: each appends, and the last one shows all; a folder of its own for each is refused."""
    status = subprocess.run(
        [sys.executable, "-m", "mtfl_jax", "-m", "seed=1,2", "sweep.part=1/2", "hydra.sweeper.jobs=2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert status.stderr == "mtfl: sweep.part=1/2: allowed with hydra.sweeper.jobs=1\n"
    refused = run(None, variables(0))
    started = [run(tmp_path / "out", variables(k)) for k in range(count)]
    said = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0] * count, said
    assert sum("wrote" in text for text in said) >= 1
    assert all("wrote" in text or "mtfl-report" in text for text in said)
    table = mtfl_jax.load(tmp_path / "out")
    assert len(table) == table["id"].nunique() == 6
    assert (tmp_path / "out" / "results.parquet").exists()
    assert (tmp_path / "out" / "report" / "index.html").exists()
    (line,) = refused.communicate()[0].splitlines()
    assert line == "mtfl: sweep.part=auto: allowed with name=NAME or hydra.sweep.dir=FOLDER, one for all processes"
    assert refused.returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize("file", ["README.md", "docs/how-to/tpu.md"])
def test_the_lines_of_the_manual_for_a_pod(tmp_path, file):
    """On the two hosts of a pod, whose devices are this machine's cores; what it exports is of the TPU's runtime."""
    script = documented.script(file, "export", tmp_path)
    (tmp_path / "a").mkdir()
    hosts = []
    for k in range(2):
        own = documented.environment(TPU_WORKER_ID=str(k), TPU_WORKER_HOSTNAMES="a,b")
        hosts.append(subprocess.Popen(["bash", "-c", script], env=own, cwd=tmp_path, stdout=subprocess.PIPE, text=True))
    said = [host.communicate()[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0]
    assert any("wrote" in text for text in said)
    assert any("[6 rows x " in text for text in said) or file != "README.md"
    assert len(mtfl_jax.load(tmp_path / "a" / "results.parquet")) == 3 * 2


def in_a_namespace(*command):
    """A command whose processes have numbers of their own, as in a container."""
    return ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *command]


@pytest.mark.slow
def test_hosts_whose_processes_have_the_same_numbers(tmp_path):
    """Two containers of one host name, each with process 1: none takes the other's for dead, nor its files."""
    if subprocess.run(in_a_namespace("true"), capture_output=True, check=False).returncode:
        pytest.skip("process-id namespaces are root's to make")
    command = [sys.executable, "-m", "mtfl_jax", "-m", *documented.LONG]
    command += ["seed=range(0,400)", f"hydra.sweep.dir={tmp_path}/out"]
    folder, hosts = tmp_path / "out", []
    for k in (1, 2):
        more = in_a_namespace(*command, f"sweep.part={k}/2")
        hosts.append(subprocess.Popen(more, stdout=subprocess.DEVNULL, cwd=tmp_path))
    end = time.monotonic() + 120
    while len([note for note in notes.read(folder) if note["done"]]) < 2:
        assert time.monotonic() < end
        time.sleep(0.1)
    found = notes.read(folder)
    assert {note["pid"] for note in found} == {1}
    assert len({note["pid_namespace"] for note in found}) == 2
    assert not any(map(notes.dead, found))
    hosts[0].kill()
    assert hosts[1].wait(240) == 0
    hosts[0].wait()
    assert len(mtfl_jax.load(folder)) < 400
    assert not any(map(notes.dead, notes.read(folder)))  # It may be: it is another container's to know.
    subprocess.run([*in_a_namespace(*command), "sweep.part=1/2"], check=True, cwd=tmp_path, stdout=subprocess.DEVNULL)
    assert len(mtfl_jax.load(folder)) == len(mtfl_jax.load(folder / "results.parquet")) == 400
