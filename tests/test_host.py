"""What a process takes of its host: no more than its cgroups, Slurm and the jobs beside it leave."""

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from mtfl_jax.sweeps import host, jobs, machine

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
CPUS = len(os.sched_getaffinity(0))
NONE = 9223372036854771712
"""What version 1 of cgroups writes where there is no limit."""


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Write the files of a system that is looked at instead of this one; nothing is said in the environment."""
    monkeypatch.setattr(host, "ROOT", tmp_path)
    for name in (host.JOBS, "SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)

    def write(own, **files):
        for name, text in {"proc/self/cgroup": own, **files}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(f"{text}\n")

    return write


def cgroup(folder, **values):
    """Files of a cgroup: `memory_max=…` is memory.max."""
    return {f"sys/fs/cgroup/{folder}/{name.replace('_', '.', 1)}": value for name, value in values.items()}


def test_without_cgroups_it_is_the_machine(system):
    assert (host.memory(), host.cores()) == (MACHINE, CPUS)
    system("0::/user.slice", **cgroup("user.slice", memory_max="max", cpu_max="max 100000"))
    assert (host.memory(), host.cores()) == (MACHINE, CPUS)


def test_every_cgroup_up_to_the_root_counts(system):
    system(
        "0::/a/b/c",
        **cgroup("a", memory_max=3 << 20),
        **cgroup("a/b", memory_max=2 << 20),
        **cgroup("a/b/c", memory_max="max"),
        **cgroup("other", memory_max=1 << 20),
    )
    assert host.memory() == 2 << 20
    system("0::/", **cgroup(".", memory_max=5 << 20))  # A container, whose own cgroup is the root that it sees.
    assert host.memory() == 5 << 20


def test_version_1_counts_by_its_controllers(system):
    system(
        "12:cpuset,memory:/docker/f00\n4:name=systemd:/\n3:cpu,cpuacct:/docker/f00\n0::/",
        **cgroup("memory", memory_limit_in_bytes=7 << 20),  # /docker/f00 is not to be seen in the container.
        **cgroup("cpu", cpu_cfs_quota_us=50_000, cpu_cfs_period_us=100_000),
    )
    assert (host.memory(), host.cores()) == (7 << 20, 1)
    system("12:memory:/\n3:cpu:/", **cgroup("memory", memory_limit_in_bytes=NONE), **cgroup("cpu", cpu_cfs_quota_us=-1))
    assert (host.memory(), host.cores()) == (MACHINE, CPUS)


@pytest.mark.parametrize(
    ("quota", "cores"), [("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1), ("max 1", 64)]
)
def test_a_quota_of_time_is_so_many_cores(system, monkeypatch, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    system("0::/a/b", **cgroup("a", cpu_max=quota), **cgroup("a/b", cpu_max="max 100000"))
    assert host.cores() == cores


def test_slurm_counts_in_mebibytes_and_0_is_the_whole_node(system, monkeypatch):
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "100")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "3")
    assert host.memory() == 300 << 20
    monkeypatch.delenv("SLURM_MEM_PER_CPU")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "512")
    assert host.memory() == 512 << 20
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "0")
    assert host.memory() == MACHINE


def test_jobs_and_devices_share_evenly_what_there_is(system, monkeypatch):
    system("0::/a", **cgroup("a", memory_max=48 << 20))
    monkeypatch.setattr(machine, "devices", lambda: [SimpleNamespace(memory_stats=lambda: None)] * 4)
    assert machine.memory_limit() == 12 << 20
    monkeypatch.setenv(host.JOBS, "3")
    assert machine.memory_limit() == 4 << 20
    gpu = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 99})
    monkeypatch.setattr(machine, "devices", lambda: [gpu])
    assert machine.memory_limit() == 99


def test_a_process_has_no_more_devices_than_its_quota(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("100000 100000\n")
    code = (
        "import pathlib, sys; from mtfl_jax.sweeps import host, machine; "
        "host.ROOT = pathlib.Path(sys.argv[1]); print(len(machine.devices()))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True)
    assert done.stdout == "1\n"


@pytest.mark.parametrize(
    ("launcher", "together"),
    [
        ({"_target_": "a.joblib_launcher.JoblibLauncher", "n_jobs": 2}, 2),
        ({"_target_": "a.joblib_launcher.JoblibLauncher", "n_jobs": 1}, 1),
        ({"_target_": "a.joblib_launcher.JoblibLauncher", "n_jobs": 64}, 5),
        ({"_target_": "a.submitit_launcher.LocalLauncher"}, 5),
        ({"_target_": "a.submitit_launcher.SlurmLauncher"}, 1),
        ({"_target_": "another.Launcher"}, 1),
    ],
)
def test_a_launcher_runs_so_many_of_five_jobs_at_once(launcher, together):
    assert jobs.at_once(OmegaConf.create({"hydra": {"launcher": launcher}}), 5) == together


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_jobs_beside_each_other_are_told_so(mtfl, launcher):
    """The limit that a refusal names is that of a device, of half of the memory and half of the cores."""
    sweep = [
        "-m",
        "d=12",
        "r=2",
        "n1=64",
        "n2=64",
        "n_down=16",
        "n_test=32",
        "width=8",
        "seed=0,1",
        "memory_fraction=1e-9",
    ]

    def allowed(*jobs):
        done = mtfl(*sweep, *jobs)
        assert done.returncode == 1, done.stderr
        (limit,) = {float(text) for text in re.findall(r"allowed: (\S+) GiB a device", done.stderr)}
        return limit, done.stdout

    alone, _ = allowed()
    limit, out = allowed(
        "hydra.sweeper.jobs=2", f"hydra/launcher={launcher}", *["hydra.launcher.n_jobs=2"] * (launcher == "joblib")
    )
    share = CPUS / 2 / max(1, CPUS // 2)
    assert limit == pytest.approx(alone * share, rel=0.1)  # Both are said to two digits.
    assert out.count("2 at a time, each with 1/2 of the cores and memory of this host") == 1
