"""Sweeps on a Ray cluster of two nodes, both on this machine: a worker and a node may go at any moment."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import documented
import pytest

import mtfl_jax
from mtfl_jax.sweeps import notes

pytestmark = pytest.mark.slow
if os.environ.get("MTFL_REQUIRE_RAY") != "1":
    pytest.importorskip("ray")
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")

SWEEP = [*documented.LONG, "seed=range(0,400)"]


@pytest.fixture
def cluster(monkeypatch):
    """A node for the driver, without cores, and two that work."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        yield made, [made.add_node(num_cpus=1) for _ in range(2)]
    finally:
        made.shutdown()


def running(folder):
    """What runs, of the processes that have written rows."""
    return [note for note in notes.read(folder) if note["state"] == "running" and note["done"] and not notes.dead(note)]


def sweep_on(ray, tmp_path, jobs):
    """The command of a sweep in so many jobs on the cluster."""
    command = [sys.executable, "-m", "mtfl_jax", "-m", *SWEEP, "cluster=ray", f"hydra.sweeper.jobs={jobs}"]
    return [*command, f"hydra.launcher.ray.init.address={ray.address}", f"hydra.sweep.dir={tmp_path}/out"]


@contextlib.contextmanager
def begun(command, tmp_path):
    """The process of a sweep, when two of its own have written rows; what it says is in a file."""
    with (tmp_path / "said").open("w") as said:
        sweep = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        end = time.monotonic() + 120
        while len(running(tmp_path / "out")) < 2:
            assert sweep.poll() is None, (tmp_path / "said").read_text()
            assert time.monotonic() < end
            time.sleep(0.2)
        yield sweep


@pytest.mark.parametrize("lost", ["worker", "node"])
def test_a_sweep_goes_on(cluster, tmp_path, lost):
    ray, (_, second) = cluster
    folder, command = tmp_path / "out", sweep_on(ray, tmp_path, 4)
    with begun(command, tmp_path) as sweep:
        if lost == "node":
            ray.remove_node(second, allow_graceful=False)
        else:
            os.kill(running(folder)[0]["pid"], signal.SIGKILL)
        assert sweep.wait(240) == 0, (tmp_path / "said").read_text()
    table = mtfl_jax.load(folder)
    assert sorted(table["seed"]) == list(range(400))
    assert any(notes.dead(note) for note in notes.read(folder))
    assert (folder / "results.parquet").exists()


@pytest.mark.parametrize("file", ["README.md", "docs/how-to/ray.md"])
def test_the_lines_of_the_manual(cluster, tmp_path, file):
    """With fewer and smaller cells; on this machine it is Ray that knows where its cluster is."""
    ray, _ = cluster
    less = {"hydra.sweeper.jobs": 2, "hydra.launcher.ray.remote.num_gpus": 0}
    script = documented.script(file, "cluster=ray", tmp_path, **less)
    documented.run(script, tmp_path, RAY_ADDRESS=ray.address)
    (table,) = tmp_path.rglob("results.parquet")
    assert len(mtfl_jax.load(table)) == 3 * 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_driver_that_is_stopped_leaves_no_process(cluster, tmp_path, number):
    """Its tasks end with it, as Ray's own do; what they wrote is there, and the same command goes on."""
    ray, _ = cluster
    folder, command = tmp_path / "out", sweep_on(ray, tmp_path, 2)
    with begun(command, tmp_path) as sweep:
        sweep.send_signal(number)
        status = sweep.wait(60)
    text = (tmp_path / "said").read_text()
    end = time.monotonic() + 60
    while running(folder):
        assert time.monotonic() < end
        time.sleep(0.2)
    if number == signal.SIGKILL:
        assert status == -number
    else:
        assert status == 128 + number, text
        assert f"hydra.sweep.dir={folder} goes on" in text
    before = len(mtfl_jax.load(folder))
    assert 0 < before < 400
    subprocess.run(command, check=True, capture_output=True)
    assert len(mtfl_jax.load(folder)) == 400
