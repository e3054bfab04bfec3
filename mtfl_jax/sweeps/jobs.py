"""What the fused sweeper does with a command line: one job whose axes are the sweeps, or several shares of it."""

import contextlib
import itertools
import json
import multiprocessing
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from mtfl_jax import ends
from mtfl_jax.config import FIELDS
from mtfl_jax.fields import ConfigError
from mtfl_jax.sweeps import host, notes, progress

KEY = "hydra.sweep.dir"
"""The key that names the folder of jobs."""
SOON = "stops when what runs is finished and kept; once more stops at once"
"""The answer to the first signal."""
COMMAND = "MTFL_JAX_COMMAND"
"""The environment variable that says what the process was called with that launched this one."""
LOOK_SECONDS = 1.0
"""How often the notes of jobs in other processes are read."""

LAUNCHED: list[tuple[str, Path]] = []
"""Folders into which jobs ran in other processes, and the key of each: what is there is still to be shown."""


class JobsFailedError(Exception):
    """Failures of several jobs, one a line."""


class StoppedError(Exception):
    """A sweep that a signal stopped before its end: `left` of its `cells`, and how to go on."""

    def __init__(self, left: int, cells: int, go_on: str, number: int) -> None:
        super().__init__(left, cells, go_on, number)
        self.left, self.cells, self.go_on, self.number = left, cells, go_on, number

    def __str__(self) -> str:
        if self.cells and not self.left:
            return f"stopped before the report was written, every row is kept; {self.go_on}"
        how = f"stopped with {self.left} of {self.cells} cells left" if self.cells else "stopped"
        return f"{how}; {self.go_on}"


def go_on(key: str, folder: Path) -> str:
    """What makes a run go on that ended early, as a shell and Hydra take it."""
    text = str(folder)
    if not re.fullmatch(r"[\w./:+%@-]+", text):
        text = _quoted(text)
    return f"the same command with {shlex.quote(f'{key}={text}')} goes on"


def overrides_of_jobs(
    arguments: Sequence[str], params: Mapping[str, Any], split: Sequence[str], jobs: int, loader: ConfigLoader
) -> list[list[str]]:
    """The overrides of every job.

    Sweeps over a cell's fields become `sweep.axes` of each job, in their own text, so that a range stays a range;
    those named in `split`, and sweeps over anything else, become separate jobs, each of them in `jobs` shares.
    Raises ConfigError.
    """
    if jobs < 1:
        raise ConfigError("hydra.sweeper.jobs", jobs, "allowed: an integer from 1")
    parser = OverridesParser.create(config_loader=loader)
    texts = [f"{key}={value}" for key, value in params.items()]
    # What the command line says of a key replaces what params say.
    parsed = {override.key_or_group: override for override in parser.parse_overrides([*texts, *arguments])}
    fixed, alternatives = [], []
    for key in split:
        if key not in parsed or not parsed[key].is_sweep_override():
            raise ConfigError("hydra.sweeper.split", list(split), "allowed: keys that are swept")
    for key, override in parsed.items():
        axis = key.removeprefix("sweep.axes.")
        if not override.is_sweep_override():
            fixed.append(str(override.input_line))
        elif key in split or axis not in FIELDS:
            alternatives.append([f"{override.get_key_element()}={text}" for text in override.sweep_string_iterator()])
        else:
            fixed.append(f"++sweep.axes.{axis}={_quoted(_sweep_text(override))}")
    shares = [[f"++sweep.part={k}/{jobs}"] for k in range(1, jobs + 1)] if jobs > 1 else [[]]
    return [[*fixed, *choice, *share] for choice in itertools.product(*alternatives) for share in shares]


def _sweep_text(override: Override) -> str:
    """What a sweep is swept over, as the user wrote it; a glob of group names as the names."""
    if override.is_discrete_sweep() and "glob(" in str(override.input_line):
        return ",".join(override.sweep_string_iterator())
    return str(override.input_line).split("=", 1)[1]


def _quoted(text: str) -> str:
    return QuotedString(text=text, quote=Quote.single).with_quotes()


def launch(
    arguments: Sequence[str],
    params: Mapping[str, Any],
    split: Sequence[str],
    jobs: int,
    *,
    hydra_context: Any,
    task_function: Any,
    config: Any,
) -> list[Any]:
    """Run the jobs of a command line on the chosen launcher; their returns. Raises StoppedError, or JobsFailedError
    that names every failed job.
    """
    loader = hydra_context.config_loader
    batch = overrides_of_jobs(arguments, params, split, jobs, loader)
    configs = [loader.load_sweep_config(config, overrides) for overrides in batch]
    folders = list(dict.fromkeys(Path(str(one.hydra.sweep.dir)).absolute() for one in configs))
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=hydra_context, task_function=task_function, config=config
    )
    more = go_on(KEY, folders[0])
    looked_at = folders if all(shown(one.hydra) for one in configs) else []
    if type(launcher).__name__ == "BasicLauncher":  # In this process, one after the other; one alone shows itself.
        looked_at = looked_at if len(batch) > 1 else []
        with (
            ends.listening(f"stopped, the rows that were written are kept; {more}"),
            _told(1) if looked_at else contextlib.nullcontext(),
        ):
            returns, came = launcher.launch(batch, initial_job_idx=0), 0
    else:
        returns, came = _elsewhere(launcher, batch, configs[0], looked_at, more)
    LAUNCHED.extend((KEY, folder) for folder in looked_at)
    # Of a failed job JobReturn.return_value would print a line of its own before it raises.
    failed = {i: job._return_value for i, job in enumerate(returns) if job.status == JobStatus.FAILED}
    stopped = [error for error in failed.values() if isinstance(error, StoppedError)]
    if stopped or came:
        left, cells = (sum(getattr(error, name) for error in stopped) for name in ("left", "cells"))
        raise StoppedError(left, cells, more, came or stopped[0].number)
    if failed:
        raise JobsFailedError("\n".join(f"job {i}: {error}" for i, error in failed.items()))
    return list(returns)


def driven(config: Any) -> bool:
    """Whether this process runs one of several jobs, by Hydra's config, which the one that launched them shows."""
    return COMMAND in os.environ and shown(config)


def shown(config: Any) -> bool:
    """Whether jobs of Hydra's config that run in other processes are shown by the one that launched them, together:
    those of the fused sweeper, where they write into its folder and not each into one below.
    """
    with contextlib.suppress(OmegaConfBaseException):
        return str(config.sweeper._target_).endswith(".FusedSweeper") and Path(str(config.sweep.subdir)) == Path(".")
    return False


def _elsewhere(
    launcher: Any, batch: Sequence[Sequence[str]], config: Any, folders: Sequence[Path], more: str
) -> tuple[Sequence[Any], int]:
    """Run jobs in other processes, and show how far they are: their returns, and the signal that came, else 0.

    The processes that joblib starts end with this one, so they are told to stop, and awaited. The jobs of a queue go on
    without the command that put them there.
    """
    console = progress.console(sys.stdout, soft_wrap=True, highlight=False, markup=False)
    name = str(
        OmegaConf.select(config, "hydra.runtime.choices.hydra/launcher", default=None) or type(launcher).__name__
    )
    logs = OmegaConf.select(config, "hydra.launcher.submitit_folder", default=None)
    where = f"; logs in {str(logs).partition('/%')[0]}" if logs else ""
    together = at_once(config, len(batch))
    memory = f"; {together} at a time, each with 1/{together} of the memory of this host" if together > 1 else ""
    into = " and ".join(map(str, folders)) or "a folder each"
    console.print(f"{len(batch)} jobs on {name} into {into}{where}{memory}")
    queue = logs is not None
    looks = f"mtfl-status {shlex.quote(str(folders[0]))} says how far they are; " if folders else ""
    now = f"stopped waiting, the jobs are the launcher's; {looks}{more}" if queue else f"stopped at once; {more}"
    with ends.listening(now, "" if queue else SOON, clean=lambda: None if queue else _tell(signal.SIGKILL)) as stop:
        stop.first = lambda: None if queue else _tell(signal.SIGTERM)
        with _watched(folders, console), _told(together), ends.held_back():
            if not queue:
                with contextlib.suppress(ImportError):  # Of another joblib, or none.
                    from joblib.externals.loky.backend import resource_tracker

                    resource_tracker.ensure_running()  # It lets some signals through again, now and not later.
            try:
                with ends.held_back():
                    returns = launcher.launch(batch, initial_job_idx=0)
            except Exception:
                if not stop.came:
                    raise
                returns = []  # A worker that is stopped while it starts is an error of the launcher's own.
        return returns, stop.came


def at_once(config: Any, jobs: int) -> int:
    """How many of a sweep's jobs the launcher of Hydra's config runs on this host at the same time; 1 where it does not
    say, as of a queue.
    """
    launcher = str(OmegaConf.select(config, "hydra.launcher._target_", default="")).rpartition(".")[2]
    if launcher == "LocalLauncher":  # submitit's, which starts them all.
        return jobs
    if launcher == "JoblibLauncher":
        import joblib

        with contextlib.suppress(ValueError):  # Of a number that joblib will refuse.
            return min(jobs, joblib.effective_n_jobs(OmegaConf.select(config, "hydra.launcher.n_jobs")))
    return 1


def command() -> list[str]:
    """What the user typed, also where this process was launched by the one that was told."""
    return list(json.loads(os.environ.get(COMMAND, "null")) or ["mtfl", *sys.argv[1:]])


@contextlib.contextmanager
def _told(together: int) -> Iterator[None]:
    """Let the jobs know what the user typed, and how many of them run on this host at the same time."""
    os.environ.update({COMMAND: json.dumps(command()), host.JOBS: str(together)})
    try:
        yield
    finally:
        del os.environ[COMMAND], os.environ[host.JOBS]


def _tell(number: int) -> None:
    """Send a signal to the processes that this one has started."""
    for child in multiprocessing.active_children():
        if child.pid is not None:
            with contextlib.suppress(OSError):
                os.kill(child.pid, number)


@contextlib.contextmanager
def _watched(folders: Sequence[Path], console: Console) -> Iterator[None]:
    """Show how far jobs in other processes are, by what they note, all of them together."""
    before = {_who(note) for note in _noted(folders)}
    done = threading.Event()

    def look() -> None:
        last = 0.0
        with progress.display(console) as show:
            while True:
                ended = done.wait(LOOK_SECONDS)
                found = [note for note in _noted(folders) if _who(note) not in before]
                updated = max((note["updated"] for note in found), default=0.0)
                if updated > last:
                    show(_together(found))
                    last = updated
                if ended:
                    return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _noted(folders: Sequence[Path]) -> list[dict[str, Any]]:
    return [note for folder in folders for note in notes.read(folder, warn=False)]


def _who(note: Mapping[str, Any]) -> tuple[Any, ...]:
    return note["host"], note["pid"], note["started"]


def _together(found: Sequence[Mapping[str, Any]]) -> SimpleNamespace:
    """What several processes noted as the progress of one."""
    counts = ("cells", "skipped", "done", "diverged", "compile_seconds", "run_seconds")
    return SimpleNamespace(
        **{name: sum(note[name] for note in found) for name in counts},
        left=sum(map(notes.left, found)),
        started=min(note["started"] for note in found),
        failures=[failure for note in found for failure in note["failures"]],
    )
