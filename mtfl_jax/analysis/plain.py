"""Any table: what varies in it, and the main measurements against that."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mtfl_jax.analysis import describe
from mtfl_jax.analysis.findings import Drawing, Findings, Listing

MOST_ROWS = 100
"""A listing of means has no more rows than this."""


def findings(table: pd.DataFrame) -> Findings:
    """Figures and means of the main measurements over whatever varies; no claim."""
    table = describe.measured(table)
    axes = describe.axes(table)
    measured = [name for name in describe.main_measurements(table, describe.MAIN) if describe.estimate(table[name]).n]
    if len(table) < 2:
        return Findings("One row" if len(table) else "No rows", "")
    title = f"Sweep over {', '.join(axes)}" if axes else "One setting"
    if not measured:
        return Findings(title, "")
    drawings = [_drawing(table, axes, measured)] if axes else []
    return Findings(title, "", drawings=drawings, listings=[means(table, axes, measured)])


def means(table: pd.DataFrame, axes: Sequence[str], measured: Sequence[str], most: int = MOST_ROWS) -> Listing:
    """Means over seeds at each setting, with standard errors, of the first `most` settings."""
    group = describe.groups(table, axes)
    first = np.unique(group, return_index=True)[1][:most]
    shown = list(zip(*(describe.texts(table[name].iloc[first], table[name]) for name in axes), strict=True)) or [()]
    rows = [
        [*texts, *(str(describe.estimate(rows[name])) for name in measured)]
        for texts, (_, rows) in zip(shown, table[group < most].groupby(group[group < most]), strict=True)
    ]
    part = f", the first {most} of {group.max() + 1} settings" if group.max() >= most else ""
    title = f"Means of {describe.seeds(table)} ± standard error{part}"
    return Listing(title, pd.DataFrame(rows, columns=[*axes, *measured]))


def _drawing(table: pd.DataFrame, axes: Sequence[str], measured: Sequence[str]) -> Drawing:
    """The measurements against the numeric axis of most values, a line for each value of another axis."""
    from mtfl_jax.analysis import figures

    sizes = {name: int(describe.codes(table[name]).max()) + 1 for name in axes}
    numbers = {name: describe.numeric(table[name]) for name in axes}
    # An axis that has no value in some rows has no place for them; it is drawn as names.
    whole = {name: numbers[name] and not table[name].isna().any() for name in axes}
    x = max(axes, key=lambda name: (whole[name], numbers[name], sizes[name]))
    # Names before numbers, few numbers before many: the first is a line a value, the others are held at one value.
    rest = sorted((name for name in axes if name != x), key=lambda name: numbers[name] and sizes[name])
    by, held = next(iter(rest), None), rest[1:]
    notes = []
    if held:
        group = describe.groups(table, held)
        counts = np.bincount(group)
        most = np.flatnonzero(counts == counts.max())[-1]
        first = [int(np.argmax(group == most))]
        named = [f"{name} = {describe.texts(table[name].iloc[first], table[name])[0]}" for name in held]
        table = table[group == most]
        notes.append(f"Shown where {', '.join(named)}.")
    if by is not None and sizes[by] > figures.MOST_LINES:
        places = describe.codes(table[by])
        few = np.linspace(0, places.max(), figures.MOST_LINES).round().astype(int)
        table = table[np.isin(places, few)]
        notes.append(f"{len(few)} of {places.max() + 1} values of {by} are shown.")
    diverged = int((~describe.ok(table)).sum())
    if diverged:
        notes.append(f"Rows that diverged: {diverged}; they are left out.")
    measured = [name for name in measured if describe.estimate(table[name]).n] or list(measured)
    figure, panels = figures.panels(len(measured), columns=2)
    for ax, name in zip(panels, measured, strict=True):
        figures.curves(ax, table, x, name, by=by, log="x" if describe.spans_decades(table[x]) else "")
    if by is not None:
        panels[0].legend(title=by, fontsize=7, title_fontsize=8)
    seeds = describe.seeds(table)
    band = "One seed." if seeds == "one seed" else f"Means of {seeds}; bands and bars are one standard error."
    return Drawing("sweep", figure, " ".join([band, *notes]))
