"""What this process may take of its host: cores, and bytes of memory."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")
"""Where the files of the system are."""
JOBS = "MTFL_JAX_JOBS_ON_HOST"
"""The environment variable that says how many jobs of one sweep run on this host at the same time."""


def cores() -> int:
    """Cores this process may keep busy: those of its affinity, fewer where a cgroup has a smaller quota (one and a half
    count as two), shared evenly with the jobs of the same sweep on this host. Raises AttributeError where the platform
    has no affinity.
    """
    # Of cgroup v2 quota and period are in one file, of v1 in two; a quota of "max" or -1 is none.
    quotas = [text.split() for text in _of_cgroups("cpu", "cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us")]
    limits = [-(-int(quota) // int(period)) for quota, period in quotas if quota.isdigit() and int(period)]
    return max(1, min([len(os.sched_getaffinity(0)), *limits]) // max(1, _number(JOBS)))


def memory() -> int:
    """Bytes this process may take: the least of the machine's memory, the limit of each of its cgroups and what Slurm
    has given its job, shared evenly with the jobs of the same sweep on this host.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cgroups = [int(text) for text in _of_cgroups("memory", "memory.max", "memory.limit_in_bytes") if text.isdigit()]
    return min([machine, *cgroups, *_of_slurm()]) // max(1, _number(JOBS))


def _of_cgroups(controller: str, unified: str, *split: str) -> Iterator[str]:
    """What stands in a controller's files in each cgroup of this process, from its own up to the root: in the file
    `unified` of version 2, in the files `split` of version 1.
    """
    files: tuple[str, ...]
    mounts: tuple[str, ...]
    for line in _read("proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            files, mounts = (unified,), ("sys/fs/cgroup", "sys/fs/cgroup/unified")
        elif controller in controllers.split(","):
            files, mounts = split, (f"sys/fs/cgroup/{controller}",)
        else:
            continue
        # A container may see its own cgroup as the root, under a path that only the host knows: what is missing is
        # passed over, and the root is always looked at.
        for folder in (PurePosixPath(path), *PurePosixPath(path).parents):
            for mount in mounts:
                texts = [_read(f"{mount}{folder}/{file}") for file in files]
                if all(texts):
                    yield " ".join(text.strip() for text in texts)


def _of_slurm() -> Iterator[int]:
    """Bytes that Slurm has given this job on this node, where it says so; it counts in MiB, and 0 is the whole node."""
    mebibytes = _number("SLURM_MEM_PER_NODE") or _number("SLURM_MEM_PER_CPU") * _number("SLURM_CPUS_ON_NODE")
    if mebibytes:
        yield mebibytes * 2**20


def _number(variable: str) -> int:
    """A number in the environment; 0 where there is none."""
    text = os.environ.get(variable, "")
    return int(text) if text.isdigit() else 0


def _read(file: str) -> str:
    """The text of a file of the system; empty where it cannot be read."""
    with contextlib.suppress(OSError):
        return (ROOT / file).read_text()
    return ""
