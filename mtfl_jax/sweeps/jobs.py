"""What the fused sweeper does with a command line: one job whose axes are the sweeps, or several shares of it."""

import contextlib
import importlib.util
import itertools
import json
import multiprocessing
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from mtfl_jax import ends
from mtfl_jax.config import FIELDS
from mtfl_jax.fields import ConfigError
from mtfl_jax.names import NOT_NAMES
from mtfl_jax.sweeps import guard, host, notes, places, progress, store
from mtfl_jax.sweeps.composing import PART, Composed

KEY = "hydra.sweep.dir"
"""The key that names the folder of jobs, unless FOLDER does."""
FOLDER = "folder"
"""The key that names where rows go."""
NAME = "name"
"""The key that says what Hydra's folder is called, which otherwise is the time."""
COMMAND = "MTFL_JAX_COMMAND"
"""The environment variable that says what the process was called with that launched this one."""
DRIVER = "MTFL_JAX_DRIVER"
"""The environment variable that says which process of this host launched this one, and without which it is to stop."""
DETACHED = "MTFL_JAX_DETACHED"
"""The environment variable that says that nobody waits for this process."""
QUEUE = "SlurmLauncher"
"""The launcher whose jobs are a queue's."""
LOCAL = ("JoblibLauncher", "LocalLauncher")
"""Launchers that run jobs as processes of this host."""
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
    if key == NAME:
        return "the same command goes on"
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
            if override.is_interval_sweep():
                allowed = "one job a value needs values; allowed: a list, or a sweep such as 1,2,4 or range(0,8)"
                raise ConfigError(key, _sweep_text(override), allowed)
            alternatives.append([f"{override.get_key_element()}={text}" for text in override.sweep_string_iterator()])
        else:
            fixed.append(f"++sweep.axes.{axis}={_quoted(_sweep_text(override))}")
    if jobs > 1 and "sweep.part" in parsed:
        raise ConfigError("sweep.part", parsed["sweep.part"].value(), "allowed with hydra.sweeper.jobs=1")
    for key in ("cluster", NAME):
        if key in parsed and parsed[key].is_sweep_override():
            names = ",".join(parsed[key].sweep_string_iterator())
            raise ConfigError(key, names, "allowed: one, not a sweep")
    shares = [[f"{PART}{k}/{jobs}"] for k in range(1, jobs + 1)] if jobs > 1 else [[]]
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
    detach: bool = False,
    hydra_context: Any,
    task_function: Any,
    config: Any,
) -> list[Any]:
    """Run the jobs of a command line on the chosen launcher; their returns. detach: leave them in their queue, and the
    last one shows what all have made. Raises StoppedError, or JobsFailedError that names every failed job.
    """
    loader = Composed(hydra_context.config_loader)
    batch = overrides_of_jobs(arguments, params, split, jobs, hydra_context.config_loader)
    _ = config.hydra.sweep.dir  # The jobs then have the time that is in it from here, and so one folder.
    configs = [loader.load_sweep_config(config, overrides) for overrides in batch]
    places_ = [place_of(one) for one in configs]
    folders = list(dict.fromkeys(folder for _, folder in places_))
    key = places_[0][0]
    runs = all(OmegaConf.select(one, "plan", default="run") == "run" for one in configs)
    hydra_context = replace(hydra_context, config_loader=loader)
    context = {"hydra_context": hydra_context, "task_function": task_function, "config": config}
    if runs:
        launcher = Plugins.instance().instantiate_launcher(**context)
    else:  # A plan is for who asks.
        launcher = BasicLauncher()
        launcher.setup(**context)
    if detach and runs and type(launcher).__name__ != QUEUE:
        allowed = "allowed with hydra/launcher=submitit_slurm, as cluster=slurm_cpu has it: whose jobs are a queue's"
        raise ConfigError("hydra.sweeper.detach", "true", allowed)
    more = go_on(key, folders[0])
    looked_at = folders if runs and all(shown(one.hydra) for one in configs) else []
    if type(launcher).__name__ == "BasicLauncher":  # In this process, one after the other; one alone shows itself.
        looked_at = looked_at if len(batch) > 1 else []
        with (
            ends.listening(f"stopped, the rows that were written are kept; {more}"),
            _told(1) if looked_at else contextlib.nullcontext(),
        ):
            returns, came = launcher.launch(batch, initial_job_idx=0), 0
    else:
        returns, came = _elsewhere(launcher, batch, configs[0], looked_at, more, detach)
    looked_at = [] if detach else looked_at
    LAUNCHED.extend((key, folder) for folder in looked_at)
    # Of a failed job JobReturn.return_value would print a line of its own before it raises.
    failed = {i: job._return_value for i, job in enumerate(returns) if job.status == JobStatus.FAILED}
    stopped = [error for error in failed.values() if isinstance(error, StoppedError)]
    if stopped or came:
        left, cells = (sum(getattr(error, name) for error in stopped) for name in ("left", "cells"))
        raise StoppedError(left, cells, more, came or stopped[0].number)
    if failed:
        raise JobsFailedError("\n".join([*(f"job {i}: {error}" for i, error in failed.items()), more]))
    return list(returns)


def place_of(config: Any) -> tuple[str, Path]:
    """The key that names where rows of a sweep go, and where that is. Raises ConfigError."""
    own = folder_key(OmegaConf.to_container(config, resolve=False), KEY)
    named = OmegaConf.select(config, FOLDER, default=None)
    if named is None:
        return own, Path(str(config.hydra.sweep.dir)).absolute()
    return FOLDER, named_place(named)


def folder_key(raw: Any, key: str) -> str:
    """The key that names Hydra's folder, of a whole config that is not resolved: `key`, or `name` where that is given.
    Raises ConfigError for a name that is none, or names nothing.
    """
    if timed(name := raw[NAME]):
        return key
    require_name(name)
    if "${name}" not in dir_of(raw, key):
        raise ConfigError(NAME, name, f"allowed without {key}, which names the folder")
    if raw[FOLDER] is not None:
        raise ConfigError(NAME, name, f"allowed without {FOLDER}, which names the folder")
    return NAME


def dir_of(raw: Any, key: str) -> str:
    """What the config, not resolved, says of the folder of `hydra.run.dir` or `hydra.sweep.dir`."""
    run = str(raw["hydra"]["run"]["dir"])
    return str(raw["hydra"][key.split(".")[1]]["dir"]).replace("${hydra.run.dir}", run)


def timed(text: Any) -> bool:
    """Whether a folder that is called so has a name of the time at which a process began."""
    return "${now:" in str(text)


def require_name(name: Any) -> None:
    """Raise ConfigError unless something can be the name of a folder in another."""
    # Of a number Hydra does not keep how it was written.
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.+-]{0,99}", name) or name in NOT_NAMES:
        others = ", ".join(NOT_NAMES)
        allowed = f"allowed: letters, digits and _, after the first also . + -, but no number, nor {others}"
        raise ConfigError(NAME, "null" if name is None else name, allowed)


def named_place(named: Any) -> Path:
    """Where the key `folder` says that rows go. Raises ConfigError."""
    if not isinstance(named, str):
        raise ConfigError(FOLDER, named, "allowed: one folder, or the URL of one")
    return places.place(named, FOLDER).absolute()


def driven(config: Any) -> bool:
    """Whether this process runs one of several jobs, by Hydra's config, which the one that launched them shows."""
    return COMMAND in os.environ and DETACHED not in os.environ and shown(config)


def shown(config: Any) -> bool:
    """Whether jobs of Hydra's config that run in other processes are shown by the one that launched them, together:
    those of the fused sweeper, where they write into its folder and not each into one below.
    """
    with contextlib.suppress(OmegaConfBaseException):
        return str(config.sweeper._target_).endswith(".FusedSweeper") and Path(str(config.sweep.subdir)) == Path(".")
    return False


def _elsewhere(
    launcher: Any, batch: Sequence[Sequence[str]], config: Any, folders: Sequence[Path], more: str, detach: bool
) -> tuple[Sequence[Any], int]:
    """Run jobs in other processes, and show how far they are, unless they are to be left (`detach`): their returns, and
    the signal that came, else 0.

    Processes that are started on this host end with this one, so they are told to stop, and awaited. The jobs of a
    queue go on without a command that a signal ends, which names them; one that is killed names nothing, and so they
    are cancelled.
    """
    console = progress.console(sys.stdout, soft_wrap=True, highlight=False, markup=False)
    name = str(
        OmegaConf.select(config, "hydra.runtime.choices.hydra/launcher", default=None) or type(launcher).__name__
    )
    logs = OmegaConf.select(config, "hydra.launcher.submitit_folder", default=None)
    where = f"; logs in {str(logs).partition('/%')[0]}" if logs else ""
    together = at_once(config, len(batch))
    share = f"1/{together} of the cores and memory of this host"
    each = f"; {together} at a time, each with {share}" if together > 1 else ""
    into = " and ".join(map(str, folders)) or "a folder each"
    console.print(f"{len(batch)} jobs on {name} into {into}{where}{each}")
    local = type(launcher).__name__ in LOCAL
    looks = f"mtfl-status {places.quoted(folders[0])} says how far they are; " if folders else ""
    now = f"stopped at once; {more}" if local else f"stopped waiting, the jobs are the launcher's; {looks}{more}"
    soon = ends.SOON if local else ""
    with (
        guard.guarding() as guarded,
        ends.listening(now, soon, clean=lambda: _tell(signal.SIGKILL) if local else guarded.let_go()) as stop,
    ):
        stop.first = lambda: _tell(signal.SIGTERM) if local else None

        def queued(found: Sequence[Any]) -> None:
            ids = ", ".join(str(job.job_id) for job in found)
            if detach:
                console.print(f"{ids} are in the queue (scancel ends them); {looks}{more}")
            elif not local:
                guarded.watch(guard.cancelling([str(job.job_id) for job in found]))
                stop.now = f"stopped waiting; {ids} go on in the queue (scancel ends them); {looks}{more}"

        watched = _watched([] if detach else folders, console)
        with watched, _told(together, local, detach), _awaited(queued, detach), ends.held_back():
            if local:
                with contextlib.suppress(ImportError):  # Of another joblib, or none.
                    from joblib.externals.loky.backend import resource_tracker

                    resource_tracker.ensure_running()  # It lets some signals through again, now and not later.
            returns: Sequence[Any] = []
            since = time.time()
            for again in (False, True):
                try:
                    with ends.held_back():
                        returns = launcher.launch(batch, initial_job_idx=0)
                except Exception as error:
                    # A worker that is stopped while it starts is an error of the launcher's own.
                    if stop.came:
                        break
                    if isinstance(error, ConfigError | HydraException | OmegaConfBaseException | OSError):
                        raise
                    died = type(error).__name__ == "TerminatedWorkerError"
                    if again or not died:
                        begun = [note for note in _noted(folders) if note["started"] >= since]
                        raise JobsFailedError(
                            "\n".join([f"{name}: {_lines(error)[0]}", *[more] * bool(begun)])
                        ) from error
                    lost = f"{name}: a worker has died, and the jobs beside it with it; all go on once"
                    print(f"mtfl: {lost}", file=sys.stderr, flush=True)
                else:
                    break
        return returns, stop.came


class _Awaited:
    """A job of submitit, of which a loss is told in a line when all have ended, and not raised when it is found."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def results(self) -> list[JobReturn]:
        """What the job returned."""
        try:
            return list(self.job.results())
        except Exception as error:  # Of many kinds, with the whole log of the job in them.
            said = _lines(error)
            if any("has not produced any output" in line for line in said):
                # Slurm knows more of an end than that there was one.
                known = str(self.job.state).partition(" ")[0]
                said = [f"it has ended without a word{'' if known == 'FINISHED' else f' ({known})'}"]
            lost = JobReturn(status=JobStatus.FAILED)
            lost.return_value = JobsFailedError(f"{self.job.job_id}: {said[-1]}; its log is {self.job.paths.stderr}")
            return [lost]


def _lines(error: Exception) -> list[str]:
    """What an error says, in lines that say something; at least its kind."""
    return [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]


class _Left:
    """A job of submitit that is not awaited."""

    def results(self) -> list[JobReturn]:
        """That it was submitted."""
        left = JobReturn(status=JobStatus.COMPLETED)
        left.return_value = None
        return [left]


@contextlib.contextmanager
def _awaited(queued: Callable[[Sequence[Any]], object], detach: bool) -> Iterator[None]:
    """Let submitit's jobs all come to their end, whatever becomes of one, or be left; `queued` hears which they are."""
    if "submitit" not in sys.modules and importlib.util.find_spec("submitit") is None:
        yield
        return
    import submitit

    usual = submitit.AutoExecutor.map_array

    def map_array(self: Any, *given: Any) -> list[_Awaited] | list[_Left]:
        found = usual(self, *given)
        queued(found)
        return [_Left() for _ in found] if detach else [_Awaited(job) for job in found]

    submitit.AutoExecutor.map_array = map_array  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        submitit.AutoExecutor.map_array = usual  # type: ignore[method-assign]


@contextlib.contextmanager
def following() -> Iterator[None]:
    """Stop, as by a signal, when the process of this host has gone that launched this one, and end then, also after
    this work: who started this process may wait for more to come.
    """
    driver, since = os.environ.get(DRIVER, ""), time.time()

    def follow() -> None:
        while not notes.gone(int(driver), since):
            time.sleep(LOOK_SECONDS)
        if done.is_set():
            os._exit(128 + signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    if not driver.isdigit() or int(driver) == os.getpid():
        yield
        return
    done = threading.Event()
    threading.Thread(target=follow, daemon=True).start()
    try:
        yield
    finally:
        done.set()
        if notes.gone(int(driver), since):
            os._exit(128 + signal.SIGTERM)


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
def _told(together: int, local: bool = False, detach: bool = False) -> Iterator[None]:
    """Let the jobs know what the user typed, how many of them run on this host at the same time, where they are `local`
    that they are to end with this process, and where they are left (`detach`) that nobody waits for them.
    """
    known = {COMMAND: json.dumps(command()), host.JOBS: str(together), DRIVER: str(os.getpid()) if local else ""}
    known |= {DETACHED: "1"} if detach else {}
    os.environ.update(known)
    try:
        yield
    finally:
        for name in known:
            del os.environ[name]


def _tell(number: int) -> None:
    """Send a signal to the jobs that this process has started: joblib's, and those of submitit's processes, which await
    theirs.
    """
    started = {child.pid for child in multiprocessing.active_children() if child.pid is not None}
    if not started:
        started = {pid for child in _children(os.getpid()) for pid in _children(child)}
    for pid in started:
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def _children(pid: int) -> list[int]:
    """The processes that one has started, of those that are there; none where the system does not say."""
    found = list[int]()
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, file.read_text().split())
    return found


@contextlib.contextmanager
def _watched(folders: Sequence[Path], console: Console) -> Iterator[None]:
    """Show how far jobs in other processes are, by what they note, all of them together."""
    seconds = store.STORE_SECONDS if any(map(places.is_remote, folders)) else LOOK_SECONDS
    before = {_who(note) for note in _noted(folders)}
    done = threading.Event()

    def look() -> None:
        last = 0.0
        with progress.display(console) as show:
            while True:
                ended = done.wait(seconds)
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
