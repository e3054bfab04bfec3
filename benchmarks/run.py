"""Benchmarks: `python benchmarks/run.py [NAME …] [--compare OLD.json]`, results in benchmarks/results/DEVICE.json.

bookkeeping  parse and plan 100,000 and 1,000,000 cells; write, load and gather 1,000,000 rows in 1000 parts
hydra        a 64-cell grid against Hydra's stock sweeper and basic launcher with the same program a cell
shares       what a share costs beside its cells, by launcher, and the time to a first row
cores        the speed-up from one core to two, beside that of matrix products
grid         the 8640-cell grid of the README on Gaussian inputs, everything measured, cold
alternating  64 trainings of 200 rounds against PyTorch and plain JAX
one_step     a 61,440-cell grid end to end and cold, against PyTorch on a random sample of its cells
measuring    the measurements' share of a row
recovery     the recovery of a row on a core, and of a batch as an accelerator computes it
host         what of the host's work on rows the device does not hide
cold         compiles of quickstart, and four processes that begin together with one program
scaling      time against the size of the grid, d, width, n and seeds
normals      10^8 draws: moments, tails, distribution, and the time of one
precision    every measurement under float32, TensorFloat-32 and bfloat16 trainings of the same seeds; runs a second

Ratios are of medians in one run on one machine, each thing in a process of its own. The bench extra installs PyTorch.
"""

import argparse
import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def printed(script: str, *arguments: str, before: Sequence[str] = (), **environment: str) -> dict[str, Any]:
    """What a script of this folder prints as its last line, from a new process; `before`: what starts it."""
    command = [*before, sys.executable, str(HERE / script), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **environment})
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def ours(*arguments: str, before: Sequence[str] = ()) -> dict[str, Any]:
    """Our part of a benchmark, with a cold compilation cache."""
    with tempfile.TemporaryDirectory() as folder:
        return printed("ours.py", *arguments, before=before, XDG_CACHE_HOME=folder)


def peer(work: str, variant: str, count: int) -> dict[str, Any]:
    """A peer's rate, per second: the median, and the least and the greatest of its repeats."""
    found = printed("peers.py", work, variant, str(count))
    rates = found["done"] / np.asarray(found["seconds"])
    return {"rate": float(np.median(rates)), "least": float(rates.min()), "greatest": float(rates.max())}


@functools.cache
def machine() -> dict[str, Any]:
    """What everything is measured on."""
    return ours("machine")


def on_gpu() -> bool:
    """Whether JAX runs on a GPU here."""
    return not machine()["devices"][0].startswith("cpu")


def bookkeeping() -> dict[str, Any]:
    """Cells planned and rows stored."""
    return {"plan": {"100k": ours("planning", "1000"), "1m": ours("planning", "10000")}, "store": ours("rows")}


def hydra() -> dict[str, Any]:
    """64 cells by the fused sweeper and by Hydra's stock one, each cold: start-up and compiles included."""
    cells = ["-m", "data=gaussian", "d=16", "r=2", "width=16,32", "num_tasks=1,2,4,8", "seed=range(0,8)"]
    cells += ["n1=1024", "n2=1024"]
    seconds = {}
    for name in ("fused", "basic"):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            command = [sys.executable, "-m", "mtfl_jax", *cells, f"hydra/sweeper={name}", f"hydra.sweep.dir={folder}/o"]
            environment = {**os.environ, "XDG_CACHE_HOME": f"{folder}/cache"}
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
            seconds[name] = time.perf_counter() - start
    return {"cells": 64, "seconds": seconds, "ratio": seconds["basic"] / seconds["fused"]}


SMALL = ["data=gaussian", "d=16", "r=2", "width=16", "n1=256", "n2=256", "measure=recovery", "probe=none"]
JOINT = ["algorithm=joint", "steps=10", "seed=0,1"]
LAUNCHERS = {
    "basic": (64, 1, []),
    "joblib": (64, 2, ["cluster=joblib"]),
    # It starts all of them together, on the same cores.
    "submitit_local": (8, 2, ["hydra/launcher=submitit_local"]),
    "slurm": (16, 2, ["cluster=slurm_cpu", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=null"]),
    "ray": (64, 2, ["cluster=ray", "hydra.launcher.ray.remote.num_cpus=1"]),
}
"""Jobs, on how many cores they run, and what chooses the launcher."""


def can_launch(name: str) -> bool:
    """Whether a launcher is there."""
    if name == "slurm":
        return shutil.which("sinfo") is not None and subprocess.run(["sinfo"], capture_output=True).returncode == 0
    return name != "ray" or importlib.util.find_spec("ray") is not None


def shares() -> dict[str, Any]:
    """Core seconds of a share beside its cells: of a sweep whose rows are all there, and of one of a small cell a
    share whose program is in the cache; less what one process takes for all of it. And seconds to a first row.
    """
    out: dict[str, Any] = {"seconds_a_share": {}}
    with tempfile.TemporaryDirectory() as root:
        environment = {**os.environ, "XDG_CACHE_HOME": f"{root}/cache"}

        def seconds(folder: str, seeds: int, *more: str, first: bool = False) -> float:
            command = [sys.executable, "-m", "mtfl_jax", "-m", *SMALL, f"seed=range(0,{seeds})", *more]
            start = time.perf_counter()
            with subprocess.Popen(
                [*command, f"hydra.sweep.dir={root}/{folder}"], stdout=subprocess.DEVNULL, env=environment
            ) as run:
                while first and not list(Path(root, folder, "parts").glob("[!.]*")):
                    time.sleep(0.005)
                found = time.perf_counter() - start
                assert run.wait() == 0
            return found if first else time.perf_counter() - start

        out["first_row_seconds"] = {name: seconds(name, 2, first=True) for name in ("cold", "warm")}
        for name, (count, together, keys) in LAUNCHERS.items():
            if can_launch(name):
                jobs = [f"hydra.sweeper.jobs={count}", *keys]
                small = seconds(name, count, *jobs) - seconds(f"{name}-alone", count)
                finished = seconds(name, count, *jobs) - seconds(f"{name}-alone", count)
                each = {"small": small, "finished": finished}
                out["seconds_a_share"][name] = {kind: spent * together / count for kind, spent in each.items()}
    return out


def cores() -> dict[str, Any]:
    """Trainings and matrix products a second on one core and on two, each process kept to its cores."""
    out: dict[str, Any] = {}
    for count in (1, 2):
        kept = ",".join(map(str, sorted(os.sched_getaffinity(0))[:count]))
        of = ours("alternating", "rademacher", before=("taskset", "-c", kept))
        out[str(count)] = {"rate": of["runs"] / float(np.median(of["seconds"])), "sgemm_peak": of["sgemm_peak"]}
    one, two = out["1"], out["2"]
    return {**out, "speed_up": two["rate"] / one["rate"], "of_sgemm": two["sgemm_peak"] / one["sgemm_peak"]}


def grid() -> dict[str, Any]:
    """The grid of the README."""
    return ours("grid")


def alternating() -> dict[str, Any]:
    """Runs a second, ours and the peers'; the best PyTorch is the peer."""
    found: dict[str, Any] = {data: ours("alternating", data) for data in ("gaussian", "rademacher")}
    for of in found.values():
        rates = of["runs"] / np.asarray(of["seconds"])
        of |= {"rate": float(np.median(rates)), "least": float(rates.min()), "greatest": float(rates.max())}
    counts = {"loop": 8, "batched": 16, "bfloat16": 16, "processes": 8, "jit": 8, "jit_vmap": 16}
    if on_gpu():
        counts = {
            "loop": 8,
            "batched": 2048,
            "bfloat16": 2048,
            "compiled": 2048,
            "graphs": 2048,
            "jit": 8,
            "jit_vmap": 2048,
        }
    peers = {variant: peer("alternating", variant, count) for variant, count in counts.items()}
    # Ours are in float32, as the others; bfloat16 is beside ours of `precision`.
    best = max(peers[variant]["rate"] for variant in counts if variant != "bfloat16" and not variant.startswith("jit"))
    ratios = {data: found[data]["rate"] / best for data in ("gaussian", "rademacher")}
    return {**found, "peers": peers, "ratio_to_best_torch": ratios}


def one_step() -> dict[str, Any]:
    """Seconds of the grid, ours end to end and cold, the peers' by their rate on a sample of the cells."""
    found: dict[str, Any] = {data: ours("one_step", data) for data in ("gaussian", "rademacher")}
    counts = {"loop": 48, "batched": 48, "processes": 48, "moments": 480}
    if on_gpu():
        del counts["processes"]
    peers = {variant: peer("one_step", variant, count) for variant, count in counts.items()}
    cells = found["gaussian"]["cells"]
    for of in peers.values():
        of["grid_seconds"] = cells / of["rate"]
    best = min(peers[variant]["grid_seconds"] for variant in counts if variant != "moments")
    ratios = {data: best / found[data]["wall_seconds"] for data in ("gaussian", "rademacher")}
    by_moments = peers["moments"]["grid_seconds"] / found["gaussian"]["wall_seconds"]
    return {**found, "peers": peers, "ratio_to_best_torch": ratios, "ratio_to_torch_by_moments": by_moments}


def measuring() -> dict[str, Any]:
    """The measurements' share of a row."""
    return ours("measuring")


def recovery() -> dict[str, Any]:
    """The recovery of a row alone, on one core."""
    kept = str(min(os.sched_getaffinity(0)))
    return ours("recovery", before=("taskset", "-c", kept))


def host() -> dict[str, Any]:
    """The host's part of a row."""
    return ours("unhidden")


def cold() -> dict[str, Any]:
    """Compile seconds of quickstart, and the wall seconds of one process and of four that begin together with a small
    sweep of the same program, each from a cold cache.
    """
    out: dict[str, Any] = {}
    for name, count, keys in (("quickstart", 1, ["study=quickstart"]), ("one", 1, JOINT), ("four", 4, JOINT)):
        with tempfile.TemporaryDirectory() as root:
            environment = {**os.environ, "XDG_CACHE_HOME": f"{root}/cache"}
            command = [sys.executable, "-m", "mtfl_jax", "-m", *keys]
            start = time.perf_counter()
            runs = [
                subprocess.Popen([*command, f"hydra.sweep.dir={root}/{k}"], stdout=subprocess.DEVNULL, env=environment)
                for k in range(count)
            ]
            for run in runs:
                assert run.wait() == 0
            notes = [json.loads(note.read_text()) for note in Path(root).glob("*/runs/*.json")]
            out[name] = {
                "wall_seconds": time.perf_counter() - start,
                "compile_seconds": [note["compile_seconds"] for note in notes],
            }
    return out


def scaling() -> dict[str, Any]:
    """Cost against size."""
    return ours("scaling")


def precision() -> dict[str, Any]:
    """What reduced precision does to the measurements and to the time."""
    return ours("precision")


def normals() -> dict[str, Any]:
    """The quality and the cost of normal draws."""
    return ours("normals")


BENCHMARKS = {
    f.__name__: f
    for f in (
        *(bookkeeping, hydra, shares, cores, grid),
        *(alternating, one_step, measuring, recovery, host, cold, scaling, normals, precision),
    )
}

THRESHOLD = 0.2
"""How much a time may grow, or a rate or ratio fall, before --compare objects."""


def figures(node: Any, path: str = "") -> dict[str, float]:
    """The numbers that tell how fast something is, by their place: rates and ratios, and times of work that blocks."""
    if not isinstance(node, dict):
        name = path.rsplit(".", 1)[-1]
        rated = ".ratio" in path or name in ("rate", "wall_seconds", "cells_per_second", "row_seconds")
        return {path: float(node)} if rated and isinstance(node, int | float) else {}
    return {key: value for name, child in node.items() for key, value in figures(child, f"{path}.{name}").items()}


def slower(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What got slower by more than THRESHOLD, a line each; things measured on one side only are left out."""
    before, now = figures(old), figures(new)
    lines = []
    for name in before.keys() & now.keys():
        worse = now[name] / before[name] if "seconds" in name.rsplit(".", 1)[-1] else before[name] / now[name]
        if worse > 1 + THRESHOLD:
            lines.append(f"{name[1:]}: {before[name]:.4g} before, {now[name]:.4g} now")
    return sorted(lines)


def main() -> None:
    """Run the named benchmarks (default all), keep their results, and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument(
        "--compare", type=Path, metavar="OLD.json", help="exit 1 where something is 20%% slower than in it"
    )
    given = parser.parse_args()
    chosen = given.names or list(BENCHMARKS)
    if unknown := [name for name in chosen if name not in BENCHMARKS]:
        parser.error(f"{unknown[0]}: allowed: {', '.join(BENCHMARKS)}")
    old = json.loads(given.compare.read_text()) if given.compare else {}
    kind, count = machine()["devices"][0].split(": ")[-1].replace(" ", "-"), len(machine()["devices"])
    path = RESULTS / f"{kind}-{count}.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in chosen:
        print(name, flush=True)
        results[name] = {**BENCHMARKS[name](), "machine": machine()}
        print(json.dumps(results[name], indent=2), flush=True)
        RESULTS.mkdir(exist_ok=True)
        path.write_text(json.dumps(results, indent=2) + "\n")
    print(f"wrote {path}")
    if lines := slower(old, {name: results[name] for name in chosen}):
        sys.exit("\n".join(["slower than before:", *lines]))


if __name__ == "__main__":
    main()
