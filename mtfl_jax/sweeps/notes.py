"""What processes note in the runs/ of a results folder, read again: how far each is, and all of them together.

Imports no jax, so that a folder can be looked at in a moment.
"""

import functools
import json
import math
import os
import re
import shlex
import socket
import subprocess
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtfl_jax.sweeps import places

RUNS, DEAD = "running", "ended without a word"
"""The states of a process that runs, and of one that noted so and is there no more."""
SLURM_SECONDS = 5.0
"""Seconds that Slurm has for an answer."""
_HOW = ("plan", "moments", "memory_fraction", "folder")
"""Keys of a config that say how its cells are run, not which."""


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _count(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def _seconds(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and 0 <= value < 2e11


def _axes(value: Any) -> bool:
    return value is None or isinstance(value, dict)


def _grids(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(map(_axes, value)))


def _config(value: Any) -> bool:
    """Whether it says of which study and grid a run is."""
    if not (isinstance(value, dict) and "study" in value and isinstance(value.get("sweep"), dict)):
        return False
    sweep = value["sweep"]
    return {"axes", "zip", "where"} <= set(sweep) and _axes(sweep["axes"]) and _grids(sweep.get("grids"))


NOTED: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("state", "host", "platform", "numerics", "matmul_precision"), _text),
    **dict.fromkeys(("command", "devices", "failures"), _texts),
    **dict.fromkeys(("pid", "cells", "skipped", "done", "diverged", "compiled", "draws_schema"), _count),
    **dict.fromkeys(("started", "updated", "compile_seconds", "run_seconds"), _seconds),
    "versions": lambda value: isinstance(value, dict),
    "config": _config,
}
"""What every note has, and what of it is as it must be."""


def read(folder: Path, warn: bool = True) -> list[dict[str, Any]]:
    """The notes of a folder, that of the process which started first the first; a file in runs/ that is none is left
    out, and named in a warning.
    """
    found, paths = [], places.listed(folder / "runs", ".json")
    remote = places.contents(list(filter(places.is_remote, paths)))
    for path in paths:
        try:
            text = remote[path] if path in remote else path.read_text(encoding="utf-8")
            note = json.loads(text)
        except (OSError, ValueError, RecursionError) as error:
            problem = f"{type(error).__name__}: {str(error) or 'too deep'}"
        else:
            problem = _problem(note)
        if not problem:
            found.append(note)
        elif warn:
            warnings.warn(f"{path}: left out, it is no note of a run ({problem})", stacklevel=2)
    return sorted(found, key=lambda note: (note["started"], note["updated"], note["host"], note["pid"]))


def _problem(note: Any) -> str:
    """Why something is no note, else nothing."""
    if not isinstance(note, dict):
        return "not a JSON object"
    wrong = [name for name, right in NOTED.items() if name not in note or not right(note[name])]
    wrong += ["extensions"] * (not _texts(note.get("extensions", [])))
    shown = ", ".join(wrong[:3]) + ", …" * (len(wrong) > 3)
    return f"{shown}: missing, or of another kind" if wrong else ""


def dead(note: Mapping[str, Any]) -> bool:
    """Whether a process that noted that it runs is there no more: one of this host and container, or of a job that
    Slurm, where it can be asked, does not have any more.
    """
    if note["state"] != RUNS:
        return False
    if note["host"] == socket.gethostname() and note.get("pid_namespace") in (None, pid_namespace()):
        return gone(note["pid"], note["updated"])
    job = note.get("slurm_job")
    return isinstance(job, str) and re.fullmatch(r"\d+(_\d+)?", job) is not None and not _queued(job)


def state(note: Mapping[str, Any]) -> str:
    """What a process does, as far as its note and this host say."""
    return DEAD if dead(note) else str(note["state"])


def pid_namespace() -> str:
    """In which numbering of processes this one has its number, as each container has one of its own; empty where the
    system does not say.
    """
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def slurm_job(environment: Mapping[str, str] = os.environ) -> str | None:
    """The Slurm job that this process is of, as squeue names it."""
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment.get('SLURM_ARRAY_TASK_ID', '')}"
    return environment.get("SLURM_JOB_ID")


@functools.cache
def _queued(job: str) -> bool:
    """Whether Slurm has a job; True where it does not say."""
    try:
        asked = subprocess.run(
            ["squeue", "-h", "-o", "%i", "-j", job], capture_output=True, text=True, timeout=SLURM_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return True
    # Of a job that has ended it has forgotten after some minutes.
    return bool(asked.stdout.strip()) if asked.returncode == 0 else "Invalid job id" not in asked.stderr


def gone(pid: int, since: float) -> bool:
    """Whether a process of this host that was there at a time is there no more."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass  # It is another user's, or of a number that no process has here.
    return _another(pid, since)


def _another(pid: int, since: float) -> bool:
    """Whether the process of a number has ended and only its parent does not know, or began after a time; False where
    the system does not say.
    """
    try:
        # After the name, which may hold anything, in brackets: the state, and as the 20th when it started.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        booted = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
        began = int(booted.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, StopIteration):
        return False
    return fields[0] in "ZX" or began > since + 60  # The boot is known to the second, and clocks are set.


def latest(notes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of every grid that was run the notes that say what is left of it: those of its last run, one a share."""
    found: dict[str, dict[Any, Mapping[str, Any]]] = {}
    for note in notes:
        part, shares = note["config"]["sweep"].get("part"), found.setdefault(grid(note), {})
        # A grid that is run in other shares than before is another run of all of it.
        if any(_shares(other) != _shares(part) for other in shares):
            shares.clear()
        shares[part] = note
    return [note for shares in found.values() for note in shares.values()]


def grid(note: Mapping[str, Any]) -> str:
    """The grid that a process ran a share of, in words."""
    config = note["config"]
    own = {key: value for key, value in config.items() if key not in _HOW}
    return json.dumps({**own, "sweep": {**config["sweep"], "part": None}}, sort_keys=True)


def _shares(part: Any) -> str:
    """Of how many shares a part "k/K" is one."""
    return str(part or "1/1").partition("/")[2]


def command(note: Mapping[str, Any]) -> str:
    """What a process was called with, as a shell takes it; a call of Python's as it is."""
    words = note["command"]
    return str(words[0]) if len(words) == 1 and "(" in words[0] else shlex.join(words)


def left(note: Mapping[str, Any]) -> int:
    """Cells that a process had still to run when it wrote its note."""
    return int(note["cells"] - note["skipped"] - note["done"])
