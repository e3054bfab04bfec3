"""The Hydra entry point `mtfl`: compose, check, run, write, show."""

import itertools
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mtfl_jax.analysis import report
from mtfl_jax.config import ConfigError, cell_values, conf_dir, plain, require_field
from mtfl_jax.sweep import engine, grid, store


def task(composed: DictConfig) -> None:
    """Run the cells of one composed config and leave results, settings and figures in Hydra's run folder."""
    start = time.time()
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        overrides = [text for text in HydraConfig.get().overrides.task if not text.startswith("study=")]
        study = composed.get("study")

        def compose(choices: list[str]) -> Mapping[str, Any]:
            return cell_values(
                hydra.compose("config", [f"study={study}", *overrides, *choices]) if choices else composed
            )

        given = {text.split("=")[0].lstrip("+~") for text in overrides}
        axes = {key: spec for key, spec in plain(composed.sweep.axes).items() if key not in given}
        cells = grid.cells(axes, compose)
        store.claim(folder)
    except ConfigError:
        remove_if_empty(folder)
        raise

    console = Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        running = bar.add_task("cells", total=len(cells))
        table = engine.run_cells(cells, lambda done: bar.advance(running, done))
    facts = {
        "command": ["mtfl", *sys.argv[1:]],
        "cells": len(cells),
        "seconds": round(time.time() - start, 2),
        **store.environment(),
    }
    store.write(folder, table, OmegaConf.to_yaml(composed, resolve=True), facts)
    console.print(report.show(study, table))
    files = [folder / store.RESULTS, *report.draw(study, table, folder)]
    for path in files:
        console.print(f"[green]wrote[/] {path}", soft_wrap=True, highlight=False)


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
        options = itertools.takewhile(lambda line: not line.startswith("Config search path"), lines[2:])
        return str(ConfigError(group, choice, f"allowed: {', '.join(options)}"))
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
        return str(
            ConfigError("hydra.run.dir", error.filename, f"{error.strerror}; allowed: a folder that can be written")
        )
    return " ".join(lines)


def main() -> None:
    """Run `mtfl`; a bad input is one line on stderr and exit status 2. HYDRA_FULL_ERROR=1 shows where it rose."""
    before = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing.
    raised: list[Exception] = []

    def job(composed: DictConfig) -> None:
        try:
            task(composed)
        except (ConfigError, HydraException, OmegaConfBaseException, OSError) as error:
            raised.append(error)  # Raised through Hydra, it would print a line of its own.

    try:
        hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(job)()
        if raised:
            raise raised[0]
    except (ConfigError, HydraException, OmegaConfBaseException, OSError) as error:
        if before == "1":
            raise
        Console(stderr=True).print(
            f"mtfl: {one_line(error)}", style="red", soft_wrap=True, highlight=False, markup=False
        )
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        os.environ["HYDRA_FULL_ERROR"] = before


if __name__ == "__main__":
    main()
