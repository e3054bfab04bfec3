"""Any table: what varies in it, and the main measurements against that."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mtfl_jax.analysis import describe
from mtfl_jax.analysis.findings import Drawing, Findings, Listing

MEASURED = ("subspace_distance", "directions_recovered", "task_error", "downstream_error")
MOST_ROWS = 100
"""A listing of means has no more rows than this."""


def findings(table: pd.DataFrame) -> Findings:
    """Figures and means of the main measurements over whatever varies; no claim."""
    axes = describe.axes(table)
    measured = [name for name in MEASURED if describe.estimate(table[name]).n]
    if len(table) < 2:
        return Findings("One row" if len(table) else "No rows", "")
    title = f"Sweep over {', '.join(axes)}" if axes else "One setting"
    if not measured:
        return Findings(title, "")
    drawings = [_drawing(table, axes, measured)] if axes else []
    return Findings(title, "", drawings=drawings, listings=[_means(table, axes, measured)])


def _means(table: pd.DataFrame, axes: Sequence[str], measured: Sequence[str]) -> Listing:
    """Means over seeds at each setting, with standard errors."""
    group = table.groupby(list(axes), dropna=False).ngroup() if axes else pd.Series(0, table.index)
    rows = [
        [*map(describe.number, rows[list(axes)].iloc[0]), *(str(describe.estimate(rows[name])) for name in measured)]
        for _, rows in table[group < MOST_ROWS].groupby(group)
    ]
    part = f", the first {MOST_ROWS} of {group.max() + 1} settings" if group.max() >= MOST_ROWS else ""
    title = f"Means of {describe.seeds(table)} ± standard error{part}"
    return Listing(title, pd.DataFrame(rows, columns=[*axes, *measured]))


def _drawing(table: pd.DataFrame, axes: Sequence[str], measured: Sequence[str]) -> Drawing:
    """The measurements against the numeric axis of most values, a line for each value of another axis."""
    from mtfl_jax.analysis import figures

    sizes = {name: table[name].nunique() for name in axes}
    numbers = {name: describe.numeric(table[name]) for name in axes}
    x = max(axes, key=lambda name: (numbers[name], sizes[name]))
    # Names before numbers, few numbers before many: the first is a line a value, the others are held at one value.
    rest = sorted((name for name in axes if name != x), key=lambda name: numbers[name] and sizes[name])
    by, held = next(iter(rest), None), rest[1:]
    notes = []
    if held:
        group = table.groupby(held, dropna=False).ngroup()
        counts = group.value_counts()
        table = table[group == counts[counts == counts.max()].index.max()]
        notes.append(f"Shown where {', '.join(f'{name} = {describe.number(table[name].iloc[0])}' for name in held)}.")
    if by is not None and sizes[by] > figures.MOST_LINES:
        every = np.sort(table[by].dropna().unique())
        few = every[np.linspace(0, len(every) - 1, figures.MOST_LINES).round().astype(int)]
        table = table[table[by].isin(few)]
        notes.append(f"{len(few)} of {len(every)} values of {by} are shown.")
    diverged = int((table["status"] != "ok").sum())
    if diverged:
        notes.append(f"Rows that diverged: {diverged}; what they could not measure is left out.")
    measured = [name for name in measured if describe.estimate(table[name]).n] or list(measured)
    figure, panels = figures.panels(len(measured), columns=2)
    for ax, name in zip(panels, measured, strict=True):
        figures.curves(ax, table, x, name, by=by, log="x" if _spans_decades(table[x]) else "")
    if by is not None:
        panels[0].legend(title=by, fontsize=7, title_fontsize=8)
    seeds = table["seed"].nunique()
    band = f"Means of {seeds} seeds; bands and bars are one standard error." if seeds > 1 else "One seed."
    return Drawing("sweep", figure, " ".join([band, *notes]))


def _spans_decades(column: pd.Series) -> bool:
    """Whether a column holds positive numbers that differ by a factor of ten or more."""
    return describe.numeric(column) and bool(column.min() > 0) and bool(column.max() >= 10 * column.min())
