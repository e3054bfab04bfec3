"""What the command `mtfl` does, by Hydra: compose, check, run, write, show."""

import argparse
import contextlib
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.text import Text
from yaml import YAMLError

import mtfl_jax
from mtfl_jax import ends, extend, help, running
from mtfl_jax.analysis import describe, page, report
from mtfl_jax.compose import (
    HYDRA_BASE,
    cell_values,
    conf_dir,
    keep_of,
    memory_share,
    moments_of,
    part_of,
    plain,
    require_study,
    sweep_of,
)
from mtfl_jax.config import FIELDS, require_field
from mtfl_jax.fields import ConfigError, one_of
from mtfl_jax.records import guess
from mtfl_jax.sweeps import engine, forecasts, identity, jobs, places, progress, store, tables, workers
from mtfl_jax.sweeps.grid import Grid
from mtfl_jax.sweeps.jobs import JobsFailedError, StoppedError

SHOWN_CELLS = 100_000
"""A table of more cells than this is not read back to be shown."""

PLANS = ("run", "only", "compile", "calibrate")
"""Whether to run, or only to say what would run, without or with compiling it."""

PRESETS = "study/sizes"
"""Where conf/ keeps STUDY_SIZE.yaml: what a study changes at another size than its default."""

BAD_INPUT = (ConfigError, HydraException, OmegaConfBaseException, OSError, YAMLError)


_SEVERAL = re.compile(r"(?:Ambiguous value for argument|Sweep parameters) '(.*?)'(?: requires --multirun|$)")
"""What Hydra says of several values without -m."""


def grid_of(composed: DictConfig) -> Grid:
    """The grid of a composed config: `sweep.axes` and `sweep.grids`, less the axes whose key the command line fixes."""
    overrides, sweep = list(HydraConfig.get().overrides.task), sweep_of(plain(composed.sweep), given_keys())
    values = {**extend.defaults(), **cell_values(composed)}
    preset = f"{composed.study}_{composed.size}"
    if composed.size != "default" and preset not in GlobalHydra.instance().config_loader().get_group_options(PRESETS):
        raise ConfigError("size", composed.size, f"allowed with study={composed.study}: default")

    def compose(choices: Mapping[str, str]) -> Mapping[str, Any]:
        if not choices:
            return values
        chosen = [f"{key}={name}" for key, name in choices.items()]
        return {**extend.defaults(), **cell_values(hydra.compose("config", [*overrides, *chosen]))}

    return Grid.of_sweep(sweep, compose)


def given_keys() -> set[str]:
    """The keys that the command line names; those that it sweeps are sweep.axes.KEY."""
    return {text.split("=")[0].lstrip("+~") for text in HydraConfig.get().overrides.task}


def own_study(name: str) -> None:
    """Import what a study of the user's own finds: NAME.py beside its YAML in a --config-dir. Raises ConfigError."""
    for entry in GlobalHydra.instance().config_loader().get_search_path().get_path():
        file = Path(str(entry.path).removeprefix("file://")) / "study" / f"{name}.py"
        if file.is_file():
            running.findings_of(name, file)


def task(composed: DictConfig, alone: bool = True) -> None:
    """Run the grid of one composed config into Hydra's output folder, and show it, unless the process that launched
    this one does (not `alone`).
    """
    output_dir = Path(HydraConfig.get().runtime.output_dir)
    console = progress.console(sys.stdout, quiet=not alone)
    listening = ends.listening(ends.BEGUN, clean=lambda: remove_if_empty(output_dir), say=alone, launched=True)
    said = contextlib.nullcontext() if alone else ends.in_lines("mtfl")
    with jobs.following(), said, listening as stop:
        try:
            _run(composed, output_dir, console, stop)
        except StoppedError:
            stop.hand_over()
            raise


def _run(composed: DictConfig, output_dir: Path, console: Console, stop: ends.Stop) -> None:
    try:
        key, folder = _place(composed, output_dir)
        require_study(str(HydraConfig.get().runtime.choices.get("study")), composed.study)
        _require_own_folder()
        cluster = HydraConfig.get().runtime.choices.get("cluster")
        if cluster not in (None, "none") and HydraConfig.get().mode != RunMode.MULTIRUN:
            raise ConfigError("cluster", cluster, "allowed with -m")
        if HydraConfig.get().mode != RunMode.MULTIRUN and HydraConfig.get().sweeper.get("detach"):
            raise ConfigError("hydra.sweeper.detach", "true", "allowed with -m")
        extensions = extend.load(composed.extensions)
        extend.store_nodes(conf_dir())
        own_study(composed.study)
        grid = grid_of(composed)
        if said := grid.without_effect(key.removeprefix("sweep.axes.") for key in given_keys()):
            console.print(said, style="yellow", soft_wrap=True, highlight=False, markup=False)
        memory_fraction = memory_share(composed.memory_fraction)
        if composed.sweep.part == workers.AUTO:
            _require_common_folder(key, composed)
            composed.sweep.part = "/".join(map(str, workers.part()))
            workers.take_own()
        part = part_of(composed.sweep.part)
        moments, keep = moments_of(composed.moments), keep_of(composed.keep)
        how = str(one_of(*PLANS).parse("plan", composed.plan))
        if how != "run":
            there = store.Folder(folder, key, write=False, keep=keep).finished()
            remove_if_empty(output_dir)
            found = forecasts.forecast(
                grid,
                there,
                memory_fraction=memory_fraction,
                part=part,
                moments=moments,
                compiled=how != "only",
                calibrated=how == "calibrate",
                keep=keep,
            )
            console.print(report.plan(found))
            if any(item.problem for item in found.left):
                raise JobsFailedError("some programs cannot run")
            return
        sink = store.Folder(folder, key, keep=keep)
    except ConfigError:
        remove_if_empty(output_dir)
        raise
    if folder != output_dir:
        remove_if_empty(output_dir)

    go_on = jobs.go_on(key, folder)
    stop.now, stop.soon = f"stopped at once, the rows that were written are kept; {go_on}", ends.SOON
    # Without what it is called: another name makes no other grid.
    config = {name: value for name, value in plain(composed).items() if name != jobs.NAME}
    noting = running.Noting(sink, running.about(jobs.command(), config, extensions))
    stop.clean = lambda: noting.ends("stopped")
    with progress.display(console) as show:

        def notify(reached: engine.Progress) -> None:
            show(reached)
            noting.runs(reached)

        try:
            outcome = engine.execute(
                grid,
                sink,
                memory_fraction=memory_fraction,
                part=part,
                moments=moments,
                stop=lambda: stop.came != 0,
                notify=notify,
            )
        except ConfigError:  # The folder can be written no more; a note may yet find room.
            with contextlib.suppress(ConfigError):
                noting.ends("failed")
            raise
    stop.now, stop.soon = f"stopped before the report was written, every row is kept; {go_on}", ""
    stop.clean = lambda: None
    noting.ends(running.state_of(outcome))
    if stop.came:
        raise StoppedError(outcome.left, outcome.cells, go_on, stop.came)
    # Shares only append: who launched them shows all of them together, or, where nobody did, the one that ends last.
    if not jobs.driven(HydraConfig.get()):
        if part == (1, 1) or not engine.unfinished(grid, sink.finished()).any():
            finish(grid, sink, console)
        else:
            made = progress.several(outcome.done, "cell")
            console.print(f"share {part[0]}/{part[1]}: {made} more in {folder}", soft_wrap=True, highlight=False)
            console.print(
                f"mtfl-report {places.quoted(folder)} shows what all shares have made",
                soft_wrap=True,
                highlight=False,
            )
    if outcome.failures:
        raise JobsFailedError("\n".join(f"failed: {failure}" for failure in outcome.failures))


def _place(composed: DictConfig, output_dir: Path) -> tuple[str, Path]:
    """The key that names where the rows of this run go, and where that is: Hydra's folder, unless told otherwise."""
    key = jobs.folder_key(_raw(composed), _folder_key())
    if composed.folder is None:
        return key, output_dir
    return jobs.FOLDER, jobs.named_place(composed.folder)


def _raw(composed: DictConfig) -> dict[str, Any]:
    """The whole config, not resolved."""
    parts: Any = [OmegaConf.to_container(node, resolve=False) for node in (composed, HydraConfig.instance().cfg)]
    return {**parts[0], **parts[1]}


def _folder_key() -> str:
    """The key that names Hydra's folder of this run."""
    return "hydra.sweep.dir" if HydraConfig.get().mode == RunMode.MULTIRUN else "hydra.run.dir"


def _require_own_folder() -> None:
    """Raise ConfigError where the command line names the folder of a sweep for a run that is none."""
    for text in HydraConfig.get().overrides.hydra:
        key, _, value = text.lstrip("+~").partition("=")
        if key == "hydra.sweep.dir" != _folder_key():
            raise ConfigError(key, value, "allowed with -m; without it hydra.run.dir")


def _require_common_folder(key: str, composed: DictConfig) -> None:
    """Raise ConfigError where each process would have a folder of its own, of the time at which it began."""
    raw = _raw(composed)
    if key == _folder_key() and jobs.timed(jobs.dir_of(raw, key).replace("${name}", str(raw[jobs.NAME]))):
        allowed = f"allowed with name=NAME or {key}=FOLDER, one for all processes"
        raise ConfigError(workers.KEY, workers.AUTO, allowed)


def finish(grid: Grid | None, sink: store.Folder, console: Console) -> None:
    """Merge the parts into results.parquet, write the report, and print what its study found or the grid's rows (None:
    all that are there).
    """
    merged, (found, files, problem) = sink.merge(), page.try_write(sink.path)
    if found is not None and found.claim:
        console.print(report.findings(found))
    elif grid is None or len(grid) <= SHOWN_CELLS:
        rows = sink.table()
        table = tables.frame(rows if grid is None else identity.in_order(grid, rows)).drop(columns="id")
        table = table.sort_values(describe.telling(table), kind="stable") if grid is None else table
        if 0 < len(table) <= SHOWN_CELLS:
            console.print(report.rows(table, console.width))
    if problem is not None:
        console.print(problem, style="yellow", soft_wrap=True, highlight=False, markup=False)
    for path in [merged, *files]:
        console.print(Text.assemble(("wrote", "green"), f" {path}"), soft_wrap=True)


def remove_if_empty(folder: Path) -> None:
    """Remove the folder Hydra made for a run that never started, and parents left empty."""
    try:
        while folder != Path.cwd():
            folder.rmdir()
            folder = folder.parent
    except OSError:
        pass  # Not empty: it was somebody's before.


def one_line(error: Exception) -> str:
    """What a user needs of an error, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, ConfigError) or not lines:
        return str(error)
    if isinstance(error, MissingConfigException) and "Available options" in str(error):
        # "In 'config': Could not find 'data/x'", the options, then where Hydra looked.
        group, _, choice = lines[0].rsplit("'", 2)[1].rpartition("/")
        options = list(itertools.takewhile(lambda line: not line.startswith("Config search path"), lines[2:]))
        return str(ConfigError(group, choice, f"allowed: {', '.join(options)}{guess(choice, options)}"))
    if several := _SEVERAL.match(lines[0]):
        key, value = several[1].removeprefix("sweep.axes.").split("=", 1)
        hint = f"several are a sweep: mtfl -m '{key}={value}'"
        with contextlib.suppress(KeyError, ConfigError, HydraException):
            listed = OverridesParser.create().parse_override(f"{key}=[{value}]")
            FIELDS[key].type.parse(key, listed.value())
            hint += f", a list is '{key}=[{value}]'"
        return str(ConfigError(key, value, f"allowed: one value; {hint}"))
    if lines[0].startswith("Interpolation key 'study' not found"):
        name = next((text.split("=", 1)[1] for text in sys.argv if text.startswith("study=")), "")
        return str(ConfigError("study", name, f"its YAML does not say so; allowed: a line study: {name}"))
    if lines[0].startswith("Could not override"):
        key = lines[0].split("'")[1]
        value = next((text.split("=", 1)[1] for text in sys.argv if text.startswith(f"{key}=")), "")
        if key.startswith("hydra."):
            return str(ConfigError(key, value, "unknown key; allowed: the keys that --hydra-help names"))
        try:
            require_field(key, value)
        except ConfigError as unknown:
            return str(unknown)
    if isinstance(error, OSError) and error.filename is not None:
        key = "hydra.sweep.dir" if any(text.startswith("hydra.sweep.dir=") for text in sys.argv) else "hydra.run.dir"
        return str(store.unwritable(error.filename, error, key))
    return " ".join(lines)


def job_of(raised: list[Exception], main_process: int) -> Callable[[DictConfig], None]:
    """The function Hydra runs. In this process errors go to `raised`: Hydra would print lines of its own about them.
    In a launcher's worker they are raised, to travel back. After a signal no job begins.
    """

    def job(composed: DictConfig) -> None:
        if any(isinstance(error, StoppedError) for error in raised):
            return
        try:
            task(composed, alone=os.getppid() != main_process or not jobs.shown(HydraConfig.get()))
        except (*BAD_INPUT, StoppedError, JobsFailedError) as error:
            if os.getpid() != main_process:
                raise
            raised.append(error)

    return job


def main() -> None:
    """Run `mtfl`. A bad input is one line on stderr and exit status 2, failed cells are 1, a stop is 128 + its signal.

    HYDRA_FULL_ERROR=1 shows where an error rose.
    """
    before = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing.
    raised: list[Exception] = []
    if "--version" in sys.argv[1:]:
        print(f"mtfl_jax {mtfl_jax.__version__}")
        return
    try:
        try:
            sys.argv[1:] = options_first(sys.argv[1:])
            require_name(sys.argv[1:])
            extend.load(named_extensions(sys.argv[1:]))
            extend.store_nodes(conf_dir())
            help.register()
        except BAD_INPUT as error:
            raised.append(error)
        entry = hydra.main(config_path=str(conf_dir()), config_name="config", **HYDRA_BASE)
        jobs.LAUNCHED.clear()
        try:
            if not raised:
                entry(job_of(raised, os.getpid()))()
        except (*BAD_INPUT, StoppedError, JobsFailedError, ValueError) as error:
            gone = isinstance(error, OSError) and error.errno in ends.GONE
            # Hydra's word on its options; other errors of this kind are faults of ours.
            known = isinstance(error, BAD_INPUT) or str(error).startswith("Only one of --")
            if gone or (isinstance(error, ValueError) and not known):
                raise
            raised.append(error)
        if not any(isinstance(problem, StoppedError) for problem in raised):
            raised += _finish_launched()
        if raised and before == "1":
            raise raised[0]
        stderr = progress.console(sys.stderr, soft_wrap=True, highlight=False, markup=False)
        for problem in raised:
            whole = isinstance(problem, JobsFailedError | StoppedError)
            for line in str(problem).splitlines() if whole else [one_line(problem)]:
                stderr.print(f"mtfl: {line}", style="red")
        if raised:
            ends.leave(max(exit_status(problem) for problem in raised))
    finally:
        os.environ["HYDRA_FULL_ERROR"] = before


def _finish_launched() -> list[Exception]:
    """Show what jobs in other processes have made, as of a run in this one; what went wrong."""
    console, problems = progress.console(sys.stdout), list[Exception]()
    for key, folder in jobs.LAUNCHED:
        if not tables.files_of(folder):
            continue
        with ends.listening(f"stopped before the report was written, every row is kept; {jobs.go_on(key, folder)}"):
            try:
                finish(None, store.Folder(folder, key), console)
            except BAD_INPUT as error:
                problems.append(error)
    return problems


def options_first(arguments: list[str]) -> list[str]:
    """The arguments with their options before all KEY=VALUE: between them Hydra's parser does not find them."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            given, _ = get_args_parser().parse_known_intermixed_args(arguments)
    except SystemExit:
        return arguments  # Hydra will say what is wrong.
    overrides, options, left = given.overrides, list[str](), list(given.overrides)
    for argument in arguments:
        if left and argument == left[0]:
            left.pop(0)
        else:
            options.append(argument)
    return [*options, *overrides]


def require_name(arguments: list[str]) -> None:
    """Raise ConfigError where a command line names a folder that is none: Hydra would make it, wherever that is."""
    for text in arguments:
        if text.split("=")[0].lstrip("+") == jobs.NAME:
            override = OverridesParser.create().parse_override(text)
            if not override.is_sweep_override():
                jobs.require_name(override.value())


def named_extensions(arguments: list[str]) -> list[str]:
    """The extensions that a command line names, else those of the YAML of the study it names: Hydra must know of their
    settings before it reads the rest. Raises ConfigError where they are swept.
    """
    given = {text.split("=")[0].lstrip("+"): text for text in arguments}
    if "extensions" in given:
        override = OverridesParser.create().parse_override(given["extensions"])
        if override.is_sweep_override():
            raise ConfigError("extensions", given["extensions"].split("=", 1)[1], "allowed: one list, not a sweep")
        value = override.value()
        return [str(one) for one in (value if isinstance(value, list) else [value] if value else [])]
    if "study" not in given:
        return []
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config-dir", "-cd")
    folders = [conf_dir(), *filter(None, [parser.parse_known_args(arguments)[0].config_dir])]
    named = given["study"].split("=", 1)[1].split(",")
    files = [Path(folder) / "study" / f"{name}.yaml" for name in named for folder in folders]
    studies = [OmegaConf.load(file) for file in files if file.is_file()]
    return [str(one) for study in studies for one in OmegaConf.select(study, "extensions") or ()]


def exit_status(error: Exception) -> int:
    """The status that says what went wrong."""
    return 128 + error.number if isinstance(error, StoppedError) else 1 if isinstance(error, JobsFailedError) else 2
