"""Which of several processes this one is, by what Slurm, MPI or a TPU pod put into its environment (`sweep.part=auto`).
Of Ray nothing is read, which numbers no tasks.

The processes say nothing to one another: each has a share of the sweep, and devices of its own.
"""

import importlib.util
import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from mtfl_jax.fields import ConfigError
from mtfl_jax.sweeps import host

KEY, AUTO = "sweep.part", "auto"


_TPU = (
    *("TPU_VISIBLE_CHIPS", "TPU_PROCESS_BOUNDS", "TPU_CHIPS_PER_PROCESS_BOUNDS"),
    *("TPU_VISIBLE_DEVICES", "TPU_HOST_BOUNDS", "TPU_CHIPS_PER_HOST_BOUNDS"),
)
"""Variables of the TPU's runtime that say which chips of a host a process has; the last three are older names."""
_BOXES = {1: "1,1,1", 2: "1,2,1"}
"""Chips that lie side by side, whatever the host, as the runtime writes it."""
_TPU_PORT = 8476
"""The first of the ports, one a process of a host, at which the runtime listens."""


class Rank(NamedTuple):
    """The `number`-th (from 0) of `total`."""

    number: int
    total: int


class Worker(NamedTuple):
    """A process among all of them, and among those of its host."""

    overall: Rank
    here: Rank


_MPI = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),  # MPICH and Intel MPI
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),  # torchrun
)
"""Variables of who starts processes on many hosts: rank and size, of all and of one host."""


def worker(environment: Mapping[str, str] = os.environ) -> Worker:
    """Who this process is. Raises ConfigError where nothing says so, or not in numbers that make sense.

    Within a job of a Slurm array the processes of its step, or those that MPI started, count from those of the jobs
    before it.
    """
    found = _started(environment)
    jobs = _array(environment)
    if found is None and jobs is None:
        starts = "srun, sbatch --array, mpirun, torchrun or a TPU pod starts"
        raise ConfigError(KEY, AUTO, f"nothing says which process this is; allowed: in what {starts}, or k/K")
    alone = Rank(0, 1)
    found, jobs = found or Worker(alone, alone), jobs or alone
    overall = Rank(jobs.number * found.overall.total + found.overall.number, jobs.total * found.overall.total)
    return found._replace(overall=overall)


def part(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """The share (k, K) of this process. Raises ConfigError."""
    number, total = worker(environment).overall
    return number + 1, total


def _started(environment: Mapping[str, str]) -> Worker | None:
    """By who started this process: MPI before Slurm, whose step may be MPI's own; then a pod."""
    for rank, size, local, locals_ in _MPI:
        if rank in environment and size in environment:
            overall = _rank(environment, rank, size)
            return Worker(overall, _rank(environment, local, locals_) if locals_ in environment else Rank(0, 1))
    if "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment:
        overall = _rank(environment, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
        node, tasks = _number(environment, "SLURM_NODEID"), _tasks(environment)
        of_node = tasks[_checked("SLURM_NODEID", node, len(tasks)).number]
        return Worker(overall, _checked("SLURM_LOCALID", _number(environment, "SLURM_LOCALID"), of_node))
    if "TPU_WORKER_ID" in environment:
        hosts = [name for name in environment.get("TPU_WORKER_HOSTNAMES", "").split(",") if name]
        if not hosts:
            raise ConfigError(KEY, AUTO, "TPU_WORKER_HOSTNAMES says of no hosts; allowed: where it names them, or k/K")
        return Worker(_checked("TPU_WORKER_ID", _number(environment, "TPU_WORKER_ID"), len(hosts)), Rank(0, 1))
    return None


def _tasks(environment: Mapping[str, str]) -> list[int]:
    """Tasks of this step on each of its nodes, which Slurm writes as in 2(x3),1."""
    text = environment.get("SLURM_STEP_TASKS_PER_NODE", "1")
    if not re.fullmatch(r"\d+(\(x\d+\))?(,\d+(\(x\d+\))?)*", text):
        raise ConfigError(KEY, AUTO, f"SLURM_STEP_TASKS_PER_NODE={text}: allowed: as 2(x3),1")
    found: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        found += [int(count)] * int(times or 1)
    return found


def _array(environment: Mapping[str, str]) -> Rank | None:
    """A job among those of a Slurm array, whose numbers must be evenly spaced, as in 0-7 or 1-9:2."""
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return None
    names = (f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "MAX", "STEP", "COUNT"))
    number, least, most, step, count = (_number(environment, name) for name in names)
    if (most - least) != step * (count - 1) or (number - least) % max(step, 1):
        numbers = f"{count} numbers from {least} to {most}"
        raise ConfigError(KEY, AUTO, f"this array has {numbers}; allowed: a range, as --array=0-7 or --array=1-9:2")
    return _checked("SLURM_ARRAY_TASK_ID", (number - least) // max(step, 1), count)


def _rank(environment: Mapping[str, str], rank: str, size: str) -> Rank:
    return _checked(rank, _number(environment, rank), _number(environment, size))


def _checked(name: str, number: int, total: int) -> Rank:
    if not number < total:
        raise ConfigError(KEY, AUTO, f"{name} is number {number} of {total}; allowed: fewer than there are")
    return Rank(number, total)


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ConfigError(KEY, AUTO, f"{name}={text}; allowed: a whole number")
    return int(text)


def take_own() -> None:
    """Leave the devices of this host's other processes to them: its share of cores and memory where they have the same
    cores, of GPUs where they see the same ones, and of TPU chips. Before JAX looks for devices. Raises ConfigError for
    more processes than chips.
    """
    mine = worker().here
    if mine.total == 1:
        return
    if not _bound():
        os.environ[host.JOBS] = str(mine.total)
    seen = _gpus()
    # Of what Slurm gives each task, each sees its own.
    given = any(f"SLURM_{name}" in os.environ for name in ("GPUS_PER_TASK", "TRES_PER_TASK", "GPU_BIND"))
    if len(seen) >= mine.total and not given:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(seen[mine.number :: mine.total])
    if (chips := _chips()) and not any(name in os.environ for name in _TPU):
        os.environ.update(_own_chips(mine, chips))


def _own_chips(mine: Rank, chips: int) -> dict[str, str]:
    """What tells the TPU's runtime that a process is alone with its own of the host's chips, one or two, and part of no
    pod. Raises ConfigError for more processes than chips.
    """
    if mine.total > chips:
        few = (
            f"{mine.total} processes on a host of {chips} TPU chips; allowed: one a chip at most, TPU_VISIBLE_CHIPS set"
            " for each, or JAX_PLATFORMS=cpu"
        )
        raise ConfigError(KEY, AUTO, few)
    each = max(count for count in _BOXES if count * mine.total <= chips)
    port = _TPU_PORT + mine.number
    return {
        "TPU_VISIBLE_CHIPS": ",".join(str(each * mine.number + k) for k in range(each)),
        "TPU_CHIPS_PER_PROCESS_BOUNDS": _BOXES[each],
        "TPU_PROCESS_BOUNDS": "1,1,1",
        "TPU_PROCESS_ADDRESSES": f"localhost:{port}",
        "TPU_PROCESS_PORT": str(port),
        "CLOUD_TPU_TASK_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }


def _bound() -> bool:
    """Whether this process has cores of its own already: fewer than its job, or this host, has."""
    cores = os.environ.get("SLURM_CPUS_ON_NODE", "")
    return len(os.sched_getaffinity(0)) < (int(cores) if cores.isdigit() else os.cpu_count() or 1)


def _gpus() -> list[str]:
    """Names of the NVIDIA GPUs that this process sees."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    return sorted(_devices("nvidia"), key=int)


def _chips() -> int:
    """TPU chips of this host, by its devices; none where JAX has no TPU's runtime, or is told to use none."""
    if importlib.util.find_spec("libtpu") is None or "tpu" not in (os.environ.get("JAX_PLATFORMS") or "tpu"):
        return 0
    return len(_devices("accel") or _devices("vfio/"))


def _devices(name: str) -> list[str]:
    """The numbers of this host's devices that are called so."""
    folder = (host.ROOT / "dev" / f"{name}0").parent
    found = (re.fullmatch(rf"{name.rpartition('/')[2]}(\d+)", path.name) for path in folder.glob("*"))
    return [match[1] for match in found if match]
