"""Figures of the studies, drawn from tables; colours are Okabe and Ito's, told apart without colour by markers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtfl_jax.analysis.report import LABELS

STYLES: dict[str, dict[str, Any]] = {
    "one_step": {"color": "#0072B2", "marker": "o"},
    "random_features": {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    "oracle": {"color": "#555555", "marker": "^", "linestyle": ":"},
}


def mean_and_error(table: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """Mean and standard error of the mean over seeds of y at each x: columns mean, error; index x."""
    grouped = table.groupby(x)[y]
    error: pd.Series = grouped.std() / np.sqrt(grouped.count())
    return pd.DataFrame({"mean": grouped.mean(), "error": error.fillna(0)}).astype(float)


def _curves(ax: Axes, table: pd.DataFrame, y: str) -> None:
    for name, style in STYLES.items():
        of_name = table[table["algorithm"] == name]
        if len(of_name):
            points = mean_and_error(of_name, "num_tasks", y)
            ax.plot(points.index, points["mean"], label=LABELS[name], markersize=4, **style)
            low, high = points["mean"] - points["error"], points["mean"] + points["error"]
            ax.fill_between(points.index, low, high, color=style["color"], alpha=0.2, linewidth=0)
    ax.set_xscale("log", base=2)
    ax.set_xlabel("number of tasks T")
    ax.grid(alpha=0.3)


def quickstart(table: pd.DataFrame) -> Figure:
    """Subspace distance, directions recovered and downstream parity error against the number of tasks."""
    r, d, seeds = table["r"].iloc[0], table["d"].iloc[0], table["seed"].nunique()
    figure = Figure(figsize=(9.6, 3.2), layout="constrained")
    axes: list[Axes] = list(np.ravel(figure.subplots(1, 3)))
    distance, found, error = axes
    for ax, name in ((distance, "subspace_distance"), (found, "directions_recovered"), (error, "downstream_error")):
        _curves(ax, table, name)
    distance.set(ylabel="subspace distance", ylim=(-0.03, 1.03))
    found.set(ylabel=f"directions recovered of {r}", ylim=(-0.1, r + 0.1))
    n_down = int(table["n_down"].iloc[0])
    error.set(ylabel=f"test error of {r}-parity", ylim=(-0.015, 0.53), title=f"linear classifier, {n_down} samples")
    error.axhline(0.5, color="black", linewidth=0.6)
    distance.legend(title="features", fontsize=8)
    width = table["width"].iloc[0]
    figure.suptitle(f"d = {d}, r = {r}, width {width}; mean of {seeds} seeds, band: one standard error", fontsize=9)
    return figure


FIGURES: dict[str, Callable[[pd.DataFrame], Figure]] = {"quickstart": quickstart}
"""The figure of each study by name."""
