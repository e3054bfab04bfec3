"""What `mtfl` shows of a table: the printed summary and the figures of each study."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import RenderableType
from rich.table import Table

SHOWN = ["directions_recovered", "subspace_distance", "downstream_error"]
LABELS = {"one_step": "learned", "random_features": "random", "oracle": "oracle"}


def number(value: object) -> str:
    """A value for a person: four significant digits, em dash where missing."""
    if isinstance(value, np.ndarray):
        return " ".join(number(float(item)) for item in value)
    if value is None or value is pd.NA or (isinstance(value, float) and value != value):
        return "—"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def one_row(row: pd.Series) -> Table:
    """A row of results as name and value, the config before the measurements, without what does not apply."""
    out = Table("name", "value", title="one cell", title_justify="left")
    for name, value in row.items():
        if name == "step":
            out.add_section()
        if isinstance(value, np.ndarray) or not pd.isna(value):
            out.add_row(str(name), number(value))
    return out


def many_rows(table: pd.DataFrame) -> Table:
    """Several rows as a table of what varies among them and the main measurements, at most 40 rows."""
    plain = table.drop(columns=["feature_similarity", "contrastive_kernel"])
    measured = ["subspace_distance", "directions_recovered", "task_error", "downstream_error"]
    settings = list(plain.columns[: list(plain.columns).index("step") + 1])
    varying = [name for name in settings if plain[name].nunique() > 1]
    out = Table(*varying, *measured)
    for _, row in plain.head(40).iterrows():
        out.add_row(*(number(row[name]) for name in (*varying, *measured)))
    if len(plain) > 40:
        out.caption = f"the first 40 of {len(plain)} rows"
    return out


def quickstart(table: pd.DataFrame) -> Table:
    """Means over seeds by num_tasks: directions recovered by one step, and the parity error of its features
    against random features and the oracle.
    """
    r, seeds = table["r"].iloc[0], table["seed"].nunique()
    mean = table.pivot_table(index="num_tasks", columns="algorithm", aggfunc="mean", values=SHOWN)
    out = Table(
        title=f"One gradient step, {r} hidden directions in d = {table['d'].iloc[0]} (means of {seeds} seeds)",
        title_justify="left",
    )
    out.add_column("tasks", justify="right")
    out.add_column(f"directions\nfound of {r}", justify="right")
    out.add_column("subspace\ndistance", justify="right")
    algorithms = [name for name in LABELS if name in set(table["algorithm"])]
    for name in algorithms:
        out.add_column(f"{r}-parity error\n{LABELS[name]}", justify="right")
    for num_tasks, row in mean.iterrows():
        found = [f"{row[name, 'one_step']:.2f}" if (name, "one_step") in row else "—" for name in SHOWN[:2]]
        errors = [f"{row['downstream_error', name]:.1%}" for name in algorithms]
        out.add_row(str(num_tasks), *found, *errors)
    out.caption = "50% error is guessing. The downstream classifier is linear, on frozen features."
    return out


def plan(grid: Any, forecasts: Sequence[Any], limit: int) -> Table:
    """What a grid would run: a line a program, and the totals."""
    out = Table(title="what would run", title_justify="left")
    for name in ("algorithm", "cells", "trainings", "padded sizes", "memory", "arithmetic", "time"):
        out.add_column(name, justify="left" if name in ("algorithm", "padded sizes") else "right")
    for item in forecasts:
        program, bucket = item.bucket.program, item.bucket
        sizes = f"d {program.d} r {program.r} width {program.width} T {program.num_tasks} n {program.n1},{program.n2}"
        flops, seconds = f"{item.flops / 1e12:.3g} TFLOP", f"{item.seconds:.3g} s"
        families = program.tasks or " ".join(program.families)
        named = f"{program.algorithm}{' by moments' if program.groups else ''} {program.data} {families}"
        memory = f"{item.memory / 2**20:.3g} MiB"
        out.add_row(named, str(len(bucket.cells)), str(len(bucket)), sizes, memory, flops, seconds)
    flops, seconds = sum(item.flops for item in forecasts), sum(item.seconds for item in forecasts)
    trainings = sum(len(item.bucket) for item in forecasts)
    out.caption = (
        f"{len(grid)} cells, {trainings} trainings, {len(forecasts)} programs to compile, {flops / 1e12:.3g} TFLOP,"
        f" about {seconds:.3g} s on the planner's model machine; a device may give {limit / 2**30:.3g} GiB"
    )
    return out


TABLES: dict[str, Callable[[pd.DataFrame], RenderableType]] = {"quickstart": quickstart}
"""The printed table of each study by name."""


def show(study: str, table: pd.DataFrame) -> RenderableType:
    """What to print of a table."""
    if study in TABLES:
        return TABLES[study](table)
    return one_row(table.iloc[0]) if len(table) == 1 else many_rows(table)


def draw(study: str, table: pd.DataFrame, folder: Path) -> list[Path]:
    """Write the study's figure as PNG and PDF into the folder; the paths, none without a study."""
    if study not in TABLES:
        return []
    from mtfl_jax.analysis import figures  # matplotlib takes half a second to import

    figure = figures.FIGURES[study](table)
    paths = [folder / f"{study}.{kind}" for kind in ("png", "pdf")]
    for path in paths:
        figure.savefig(path, dpi=200)
    return paths
