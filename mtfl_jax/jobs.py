"""What the fused sweeper does with a command line: one job whose axes are the sweeps, or several shares of it."""

import contextlib
import itertools
import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from omegaconf import OmegaConf
from rich.console import Console

from mtfl_jax import ends
from mtfl_jax.config import FIELDS
from mtfl_jax.fields import ConfigError
from mtfl_jax.finish import finish
from mtfl_jax.sweeps import notes, progress, store, tables


class JobsFailedError(Exception):
    """Failures of several jobs, one a line."""


class StoppedError(Exception):
    """A sweep that a signal stopped before its end."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message, number)
        self.number = number

    def __str__(self) -> str:
        return str(self.args[0])


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
        if not override.is_sweep_override():
            fixed.append(str(override.input_line))
        elif key in split or key not in FIELDS:
            alternatives.append([f"{override.get_key_element()}={text}" for text in override.sweep_string_iterator()])
        else:
            fixed.append(f"++sweep.axes.{key}={_quoted(_sweep_text(override))}")
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
    """Run the jobs of a command line on the chosen launcher; their returns. Raises JobsFailedError that names every
    failed job, and StoppedError where a signal came while jobs of other processes ran.
    """
    loader = hydra_context.config_loader
    batch = overrides_of_jobs(arguments, params, split, jobs, loader)
    for overrides in batch:
        loader.load_sweep_config(config, overrides)
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=hydra_context, task_function=task_function, config=config
    )
    # Hydra imports its plugins anew: their classes are not those of their modules.
    if type(launcher).__name__ == "BasicLauncher":
        return _returned(launcher.launch(batch, initial_job_idx=0))
    folder, console = Path(str(config.hydra.sweep.dir)).resolve(), Console()
    logs = OmegaConf.select(config, "hydra.launcher.submitit_folder", throw_on_resolution_failure=False)
    console.print(
        f"{len(batch)} jobs by {type(launcher).__name__} into {folder}" + (f", their logs in {logs}" if logs else ""),
        **_PLAINLY,
    )
    again = f"the same command with hydra.sweep.dir={folder} goes on"
    soon = "waiting for the jobs, which stop after the chunks that run (once more: at once)"
    with ends.listening(f"stopped at once; {again}", soon) as signal, _followed(folder, console), _told_to_jobs():
        returns = launcher.launch(batch, initial_job_idx=0)
    if signal.came:
        raise StoppedError(f"stopped; {again}", signal.came)
    _returned(returns)
    if tables.files_of(folder):
        with ends.listening(f"stopped; the rows are kept, and mtfl-report {folder} makes their page"):
            finish(None, store.Folder(folder, "hydra.sweep.dir"), console)
    return list(returns)


_PLAINLY: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
_OUTPUT, _COMMAND = "MTFL_JAX_OUTPUT", "MTFL_JAX_COMMAND"
"""Environment variables: where the process that launched this one prints to, and what it was called with."""
FOLLOW_SECONDS = 1.0
"""How often the notes of jobs are read."""


def _returned(returns: Sequence[Any]) -> list[Any]:
    # Of a failed job JobReturn.return_value would print a line of its own before it raises.
    failures = [f"job {i}: {job._return_value}" for i, job in enumerate(returns) if job.status == JobStatus.FAILED]
    if failures:
        raise JobsFailedError("\n".join(failures))
    return list(returns)


def _output() -> str:
    """What standard output is, as text that is the same in another process."""
    found = os.fstat(1)
    return f"{found.st_dev}:{found.st_ino}:{found.st_rdev}"


def speaks() -> bool:
    """Whether this process prints how far it is: not where the one that launched it does, to the same place."""
    return os.environ.get(_OUTPUT) != _output()


def command() -> list[str]:
    """What the user typed: of the process that launched this one, if one did."""
    return list(json.loads(os.environ.get(_COMMAND, "null")) or ["mtfl", *sys.argv[1:]])


@contextlib.contextmanager
def _told_to_jobs() -> Iterator[None]:
    os.environ |= {_OUTPUT: _output(), _COMMAND: json.dumps(command())}
    try:
        yield
    finally:
        del os.environ[_OUTPUT], os.environ[_COMMAND]


@contextlib.contextmanager
def _followed(folder: Path, console: Console) -> Iterator[None]:
    """Show how far the jobs in a folder are together, from what they note there."""
    begun, ended = time.time(), threading.Event()

    def follow(show: Callable[[Any], None]) -> None:
        while not ended.wait(FOLLOW_SECONDS):
            with warnings.catch_warnings(action="ignore"):
                found = [note for note in notes.read(folder) if note["started"] >= begun]
            if found:
                show(_together(found))

    with progress.display(console) as show:
        thread = threading.Thread(target=follow, args=(show,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _together(found: Sequence[Mapping[str, Any]]) -> SimpleNamespace:
    """Several processes as one progress."""
    counted = ("cells", "skipped", "done", "diverged", "compile_seconds", "run_seconds")
    sums = {name: sum(note[name] for note in found) for name in counted}
    failures = [failure for note in found for failure in note["failures"]]
    left = sum(map(notes.left, found))
    return SimpleNamespace(**sums, failures=failures, left=left, started=min(note["started"] for note in found))
