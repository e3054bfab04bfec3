"""Scaling laws of recovery and test loss against T, n1, n2, d, width and steps: the exponents are the product."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from mtfl_jax.analysis import describe, figures, fits
from mtfl_jax.analysis.findings import Drawing, Findings, Listing, Statement
from mtfl_jax.analysis.studies import STUDIES, Study

CLAIM = (
    "The recovery of the directions improves as a power of the number of tasks and of the samples, and worsens as a"
    " power of the input dimension; the test loss of a trained network follows power laws too, some with a floor."
)
AXES = ("num_tasks", "n1", "n2", "d", "width", "step")
SIGNS = {"num_tasks": -1, "n1": -1, "n2": -1, "d": 1}
"""Which way the distance of one step should go along an axis; none is claimed along the others."""
MODELS = ("power", "power_floor", "broken_power")
FAR = 2.0
"""A law that misses the largest x by more than this factor, when fitted to the smaller ones, is not established."""
LEAST = 4
"""A law is fitted to this many points or more."""


class Law(NamedTuple):
    """A measurement along one axis, all else at its usual value: what was trained, the rows, the fit."""

    what: str
    y: str
    x: str
    rows: pd.DataFrame
    fit: fits.Fit


def findings(table: pd.DataFrame) -> Findings:
    """The law of each measurement along each axis that has enough values. Raises ValueError where none has."""
    at_once = table[table["algorithm"] == "one_step"]
    trained = table[table["algorithm"] == "joint"]
    fixed = _last(trained[trained["samples"] == "fixed"])
    laws = _laws("one step", at_once, "subspace_distance", AXES[:-1])
    laws += _laws("joint, fixed samples", fixed, "test_loss", AXES[:-1])
    fresh = trained[trained["samples"] == "fresh"]
    laws += [
        law for y in ("test_loss", "subspace_distance") for law in _laws("joint, fresh samples", fresh, y, ("step",))
    ]
    if not laws:
        raise ValueError(f"scaling needs {LEAST} values of an axis or more, of {', '.join(AXES)}: none has them")
    statements = [_said(law) for law in laws]
    names = {f"{law.y.replace('_', ' ')} of {law.what} against {law.x}": law.fit for law in laws}
    whys = [_why(law) for law in laws]
    table_of = fits.table_of(names).assign(supported=[f"no: {why}" if why else "yes" for why in whys])
    listing = Listing("Exponents", table_of)
    return Findings("Scaling laws", CLAIM, statements, [_drawing(laws)], [listing])


STUDIES.register(Study("scaling", "scaling laws of recovery and test loss", findings))


def _last(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["step"] == rows["step"].max()]


def _laws(what: str, rows: pd.DataFrame, y: str, axes: tuple[str, ...]) -> list[Law]:
    """A law along each axis, at the value of the other axes that most rows have. Rows that diverged are there, for the
    fit to count them out.
    """
    rows = rows[(rows[y].astype(float) > 0) | ~describe.ok(rows)]
    found = []
    for x in axes:
        own = rows
        for other in (name for name in axes if name != x):
            # What is missing bears on no row.
            if own[other].notna().any():
                own = own[own[other] == _usual(rows, other, axes)]
        if own[x][describe.ok(own)].nunique() >= LEAST:
            best = min((fits.fit(own, x, y, model) for model in MODELS), key=_extrapolates)
            found.append(Law(what, y, x, own, best))
    return found


def _usual(rows: pd.DataFrame, name: str, axes: tuple[str, ...]) -> object:
    """The value of an axis at which most other axes vary."""
    others = [axis for axis in axes if axis != name and rows[axis].notna().any()]
    counts = rows.groupby(name)[others].nunique().sum(axis=1)
    return counts.idxmax()


def _extrapolates(fit: fits.Fit) -> tuple[bool, float]:
    """Supported laws first, then by the error of predicting the largest x."""
    return not fit.supported, fit.held_out_error if np.isfinite(fit.held_out_error) else np.inf


def _why(law: Law) -> str:
    """Why a law is not established; empty where it is."""
    if not law.fit.supported:
        return law.fit.why
    if law.fit.held_out_error > np.log(FAR):
        return f"it misses the largest {law.x} by more than a factor {FAR:g}"
    return ""


def _said(law: Law) -> Statement:
    text = f"{law.what.capitalize()}, against {law.x}: {law.fit.sentence()}."
    if not law.fit.supported:
        return Statement(None, text)
    if why := _why(law):
        return Statement(None, f"{text} {why[0].upper()}{why[1:]}.")
    sign = SIGNS.get(law.x) if law.what == "one step" else None
    if sign is None:
        return Statement(True, text)
    low, high = law.fit.intervals[law.fit.law.exponents[-1]]
    right, wrong = (high < 0, low > 0) if sign < 0 else (low > 0, high < 0)
    return Statement(True if right else False if wrong else None, text)


def _drawing(laws: list[Law]) -> Drawing:
    figure, panels = figures.panels(len(laws), columns=3)
    for ax, law in zip(panels, laws, strict=True):
        figures.curves(ax, law.rows, law.x, law.y, log="xy")
        # One line, whose look says what was trained.
        line = ax.get_lines()[0]
        look = figures.style({"one step": "one_step"}.get(law.what, "joint"), 0)
        line.set(color=look["color"], marker=look["marker"], linestyle="none")
        for band in ax.collections:
            band.set_facecolor(look["color"])
        if not _why(law):
            figures.through(ax, law.fit.predict, law.rows[law.x], color="black", linewidth=0.9)
        ax.set_title(law.what, fontsize=9)
    rows = pd.concat([law.rows for law in laws])
    caption = (
        f"Means of {describe.seeds(rows)}, bands: one standard error; lines are the fitted laws of the table, where the"
        " data support one: robust fits of the logarithm, which lie below the mean where rows are skewed. Of"
        f" {', '.join(MODELS)} each is the one that predicts the largest x best, so its held-out error is a low one."
    )
    return Drawing("scaling", figure, caption)
