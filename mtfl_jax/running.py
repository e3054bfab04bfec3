"""A grid run into a folder, as `mtfl` and Python do it: what runs/ says of the process while it runs."""

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtfl_jax.analysis import page, studies
from mtfl_jax.fields import ConfigError
from mtfl_jax.sweeps import engine, machine, notes, progress, store


def about(command: Sequence[str], config: Mapping[str, Any], extensions: Sequence[str]) -> dict[str, Any]:
    """What a process notes of itself: its command, as words of a shell or a call of Python's alone; the composed
    config; the extensions, NAME:HASH each; and where it runs.
    """
    return {
        "command": list(command),
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "pid_namespace": notes.pid_namespace(),
        "slurm_job": notes.slurm_job(),
        "config": dict(config),
        "extensions": list(extensions),
        "findings": studies.known(config["study"]),
        **machine.environment(),
    }


def findings_of(name: str, file: Path) -> None:
    """Run the file of a study of the user's own, which says what it finds. Raises ConfigError."""
    try:
        studies.from_file(name, file)
    except Exception as error:  # It is the user's code.
        raise ConfigError("study", name, f"{file} says nothing of it ({page.one_line(error)})") from error


class Noting:
    """Notes how far a process is in the runs/ of its folder."""

    def __init__(self, sink: store.Folder, about: Mapping[str, Any]) -> None:
        self._sink, self._about = sink, about
        self._last: engine.Progress | None = None

    def runs(self, reached: engine.Progress) -> None:
        """It has come so far."""
        self._last = reached
        self._note(notes.RUNS)

    def ends(self, state: str) -> None:
        """It has ended where it was last."""
        if self._last is not None:
            self._note(state)

    def _note(self, state: str) -> None:
        self._sink.note({**self._about, **progress.facts(self._last, state)})


def state_of(outcome: engine.Progress) -> str:
    """How a run has ended, in a word."""
    return "stopped" if outcome.stopped else "failed" if outcome.failures else "finished"
