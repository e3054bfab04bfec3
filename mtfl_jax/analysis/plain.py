"""Any table: what varies in it, the main measurements against that, and which setting matters."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mtfl_jax.analysis import describe
from mtfl_jax.analysis.findings import Drawing, Findings, Listing

MOST_ROWS = 200
"""A listing of means has no more rows than this."""
LOSSES = ("train_loss", "test_loss")


def findings(table: pd.DataFrame, rows: int = MOST_ROWS) -> Findings:
    """Figures and means of the main measurements over whatever varies; no claim. rows: of a listing at most."""
    table = describe.measured(table)
    axes = describe.axes(table)
    measured = main(table)
    if len(table) < 2:
        return Findings("One row" if len(table) else "No rows", "")
    points = describe.sampled(table, axes)
    every = describe.moving(axes, points)
    title = f"Sweep over {', '.join(every)}" if axes else "One setting"
    if not measured:
        return Findings(title, "")
    if points:
        drawings = _points(table, every, measured[0], points[0])
    else:
        drawings = _drawings(table, axes, measured) if axes else []
    # At points of intervals every value of an axis is a setting, which explains all.
    matters = [_matters(table, axes, measured)] if len(axes) > 1 and not points else []
    return Findings(title, "", drawings=drawings, listings=[*matters, means(table, every, measured, rows)])


def main(table: pd.DataFrame) -> list[str]:
    """The main measurements of which a table has numbers."""
    return [name for name in describe.main_measurements(table, describe.MAIN) if describe.estimate(table[name]).n]


def means(table: pd.DataFrame, axes: Sequence[str], measured: Sequence[str], most: int = MOST_ROWS) -> Listing:
    """Means over seeds at each setting, with standard errors, of the first `most` settings."""
    group = describe.groups(table, axes)
    first = np.unique(group, return_index=True)[1][:most]
    shown = list(zip(*(describe.texts(table[name].iloc[first], table[name]) for name in axes), strict=True)) or [()]
    rows, numbers = [], []
    for texts, place, (_, own) in zip(shown, first, table[group < most].groupby(group[group < most]), strict=True):
        found = {name: describe.estimate(own[name]) for name in measured}
        rows.append([*texts, *map(str, found.values())])
        row: dict[str, Any] = {name: table[name].iloc[place] for name in axes}
        for name, of in found.items():
            row |= {name: of.mean, f"{name}_error": of.error if of.n > 1 else np.nan, f"{name}_n": of.n}
        numbers.append(row)
    part = f", the first {most} of {group.max() + 1} settings" if group.max() >= most else ""
    title = f"Means of {describe.seeds(table)} ± standard error{part}"
    note = " ".join(describe.left_out(table, measured))
    return Listing(title, pd.DataFrame(rows, columns=[*axes, *measured]), pd.DataFrame(numbers), note)


def _matters(table: pd.DataFrame, axes: Sequence[str], measured: Sequence[str]) -> Listing:
    """The share of the variance of each measurement that each axis explains."""
    shares, headers = {}, {}
    for name in measured:
        values = table[name].to_numpy(float, na_value=np.nan)
        own, values = table[np.isfinite(values)], values[np.isfinite(values)]
        log = pd.api.types.is_float_dtype(table[name]) and describe.spans_decades(pd.Series(values))
        values = np.log(values) if log else values
        shares[name] = {axis: explained(values, describe.codes(own[axis])) for axis in axes}
        every = describe.groups(own, axes)
        shares[name]["seed"] = 1 - explained(values, every) if len(own) > every.max() + 1 else np.nan
        headers[name] = f"{'log ' * log}{name} (n = {len(own):,})"
    found = pd.DataFrame(shares)
    found = pd.concat([found.loc[list(axes)].sort_values(measured[0], ascending=False, kind="stable"), found.tail(1)])
    counts = [
        int(describe.codes(table[name]).max()) + 1 if name in axes else table["seed"].nunique() for name in found.index
    ]
    texts = found.map(lambda share: describe.MISSING if np.isnan(share) else f"{share:.1%}").rename(columns=headers)
    texts.insert(0, "values", counts)
    note = (
        "The share of a measurement's variance that lies between the means at each value of a setting, whatever the"
        " others are; of seed, that among rows of one setting. Not in it are interactions, which are what then lacks to"
        " 100%; where a sweep is not balanced, shares overlap."
    )
    data = found.rename_axis("setting").reset_index()
    return Listing("Which setting matters", texts.rename_axis("setting").reset_index(), data, note)


def explained(values: np.ndarray, group: np.ndarray) -> float:
    """The share of the variance of values (n,) that lies between the means of groups (n,); NaN where there is none."""
    counts = np.bincount(group)
    means = np.bincount(group, values)[counts > 0] / counts[counts > 0]
    total = float(((values - values.mean()) ** 2).sum())
    between = float((counts[counts > 0] * (means - values.mean()) ** 2).sum())
    return between / total if total > 1e-24 * float((values**2).sum()) else np.nan


def _points(table: pd.DataFrame, axes: Sequence[str], measured: str, pair: tuple[str, str]) -> list[Drawing]:
    """A measurement, averaged over all else, at the points of two settings that move together, and all settings side by
    side.
    """
    from mtfl_jax.analysis import plots

    first, second = pair
    average = plots.averages(table, [first], measured)
    at = np.unique(describe.groups(table, [first]), return_index=True)[1][average.index]
    once = table.iloc[at].assign(**{measured: average.to_numpy()})
    plan = plots.planned(once, kind="scatter", x=first, y=second, color=measured)
    figure = plots.draw(plan)
    others = [name for name in axes if name not in pair]
    over = f" It is the mean over {', '.join([*others, 'seed'])}." if len(table) > len(once) else ""
    figure.set_label(f"{figure.get_label()}{over}")
    found = {"points": figure, "settings": plots.parallel(table, axes, measured)}
    return [Drawing(name, figure, str(figure.get_label())) for name, figure in found.items()]


def _drawings(table: pd.DataFrame, axes: Sequence[str], measured: Sequence[str]) -> list[Drawing]:
    """The measurements as lines, the losses along the steps, a map of two settings, and all settings side by side."""
    from mtfl_jax.analysis import plots

    plan = plots.planned(table, kind="line", y=measured[0], hold=True, panels=False)
    found = {"sweep": plots.beside(plan, measured)}
    losses = [name for name in LOSSES if name in table and describe.estimate(table[name]).n]
    if "step" in axes and losses:
        plan = plots.planned(table, kind="line", x="step", y=losses[0], hold=True, panels=False)
        found["losses"] = plots.beside(plan, losses)
    if len(axes) > 1:
        found["map"] = plots.draw(plots.planned(table, kind="heat", color=measured[0], hold=True))
    if len(axes) > 2:
        found["settings"] = plots.parallel(table, axes, measured[0])
    return [Drawing(name, figure, str(figure.get_label())) for name, figure in found.items()]
