"""Samples and neurons that a downstream parity takes as d grows: on learned features, and on random ones."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mtfl_jax.analysis import crossings, describe, figures, fits
from mtfl_jax.analysis.findings import Drawing, Findings, Listing, Statement
from mtfl_jax.analysis.studies import STUDIES, Study

CLAIM = (
    "On learned features the samples n* and the neurons m* that a parity of the r directions takes do not grow with the"
    " input dimension d. On random features they grow like d^r at fixed r, and so exponentially along d = 2r."
)
EPSILON = 0.1
"""The error at which the parity counts as solved."""
FLAT = 0.15
"""An exponent no farther than this from 0 is flat."""
SLACK = 0.5
"""How far below r the exponent of random features may be at these small d."""
NAMES = {"one_step": "learned", "random_features": "random"}
SIZES = {"n_down": "samples n*", "width": "neurons m*"}


class Law(NamedTuple):
    """The crossings of some features' error curves against d at one r, and the power law through them."""

    features: str
    r: int
    curve: str
    points: pd.DataFrame
    fit: fits.Fit


def findings(table: pd.DataFrame) -> Findings:
    """n*(d) and m*(d) at the error EPSILON, their laws, and n* along d = 2r. Raises ValueError where no parity's error
    was measured.
    """
    probed = table["downstream_error"].notna() | (~describe.ok(table) & table["n_down"].notna())
    rows = table[probed & table["algorithm"].isin(list(NAMES))]
    if not describe.ok(rows).any() or rows.empty:
        raise ValueError("complexity needs the downstream errors of learned or random features: there are none")
    laws = [law for curve in SIZES for law in _laws(rows, curve)]
    statements = [_said(law) for law in laws]
    along = _crossed(_curves(rows[(rows["algorithm"] == "random_features") & (rows["d"] == 2 * rows["r"])], "n_down"))
    growth = (
        {model: _fit(along.rows, "n_down", model) for model in ("exponential", "power")}
        if len(along.points) > 1
        else {}
    )
    statements.append(_exponential(growth))
    shown = [law.fit for law in laws] + list(growth.values())
    names = [f"{NAMES[law.features]} features, r = {law.r}, {SIZES[law.curve]}" for law in laws]
    names += [f"random features, d = 2r, {SIZES['n_down']}, {model}" for model in growth]
    listings = [Listing("Exponents and rates", fits.table_of(dict(zip(names, shown, strict=True))))] if shown else []
    drawing = _drawing(rows, laws, along.points, growth)
    return Findings("What a parity takes as d grows", CLAIM, statements, [drawing], [*listings, _pretraining(rows)])


STUDIES.register(Study("complexity", "the samples and neurons that a downstream parity takes as d grows", findings))


class _Along(NamedTuple):
    rows: pd.DataFrame
    points: pd.DataFrame


def _curves(rows: pd.DataFrame, curve: str) -> pd.DataFrame:
    """The error curves along n_down or width: rows at that value of the other which has most points of the curve."""
    if rows.empty:
        return rows
    other = "width" if curve == "n_down" else "n_down"
    kept = rows.groupby(["algorithm", other])[curve].nunique().groupby("algorithm").idxmax()
    own = rows[[(algorithm, at) in set(kept) for algorithm, at in zip(rows["algorithm"], rows[other], strict=True)]]
    return own[own.groupby(["algorithm", "r", "d"])[curve].transform("nunique") > 1]


def _crossed(rows: pd.DataFrame, curve: str = "n_down") -> _Along:
    """The rows, and where each d's curve crosses EPSILON."""
    columns = ["d", f"{curve}_star", "censored", "at_start"]
    if rows.empty or not describe.ok(rows).any():
        return _Along(rows, pd.DataFrame(columns=columns))
    return _Along(rows, crossings.crossings(rows, curve=curve, error="downstream_error", epsilon=EPSILON, by=["d"]))


def _fit(rows: pd.DataFrame, curve: str, model: str) -> fits.Fit:
    return crossings.fit_crossings(rows, "d", curve=curve, error="downstream_error", epsilon=EPSILON, model=model)


def _laws(rows: pd.DataFrame, curve: str) -> list[Law]:
    """A law for each kind of features and r that has several d beyond 2r."""
    curves, found = _curves(rows, curve), []
    for algorithm in NAMES:
        own = curves[(curves["algorithm"] == algorithm) & (curves["d"] > 2 * curves["r"])]
        for r in sorted(own["r"].unique()):
            of_r = own[own["r"] == r]
            if of_r["d"][describe.ok(of_r)].nunique() > 1:
                points = _crossed(of_r, curve).points
                found.append(Law(algorithm, int(r), curve, points, _fit(of_r, curve, "power")))
    return found


def _said(law: Law) -> Statement:
    """Whether the exponent is what the claim says, by its interval: in, out or neither."""
    what = f"{NAMES[law.features].capitalize()} features, r = {law.r}, {SIZES[law.curve]}: "
    flat = law.features == "one_step"
    claim = f"claimed within {FLAT} of 0" if flat else f"claimed at least {law.r - SLACK:g}"
    lost = f", {law.fit.censored} of {law.fit.points} never reach {EPSILON:.0%} error" if law.fit.censored else ""
    low, high = law.fit.intervals["exponent"]
    if not law.fit.supported:
        if flat and law.fit.held_out["constant"] <= law.fit.held_out_error and max(-low, high) <= FLAT:
            errors = [fits.factor(law.fit.held_out[name]) for name in ("constant", "power")]
            text = f"a constant predicts the largest d to {errors[0]}, a power law to {errors[1]}"
            return Statement(True, f"{what}{text}, its exponent being {law.fit.value('exponent')}.")
        return Statement(None, f"{what}no law: {law.fit.why}{lost}.")
    allowed = (-FLAT, FLAT) if flat else (law.r - SLACK, np.inf)
    inside, outside = allowed[0] <= low and high <= allowed[1], high < allowed[0] or low > allowed[1]
    text = f"{what}exponent in d {law.fit.value('exponent')}, {claim}{lost}."
    return Statement(True if inside else False if outside else None, text)


def _exponential(growth: dict[str, fits.Fit]) -> Statement:
    """Whether n* of random features along d = 2r is better extrapolated by an exponential than by a power law."""
    if not growth:
        return Statement(None, "Along d = 2r: no rows of random features at several d.")
    found, power = growth["exponential"], growth["power"]
    if not found.supported:
        return Statement(None, f"Along d = 2r random features, samples n*: {found.why}.")
    text = (
        f"Along d = 2r random features take n* = exp({found.value('rate')} · d) samples up to a factor; an exponential"
        f" predicts the largest d to {fits.factor(found.held_out_error)}, a power law to"
        f" {fits.factor(power.held_out_error)}."
    )
    grows = found.intervals["rate"][0] > 0
    return Statement(grows and found.held_out_error < power.held_out_error, text)


def _drawing(rows: pd.DataFrame, laws: list[Law], along: pd.DataFrame, growth: dict[str, fits.Fit]) -> Drawing:
    figure, (samples, neurons, diagonal) = figures.panels(3)
    for ax, curve in ((samples, "n_down"), (neurons, "width")):
        for law in (law for law in laws if law.curve == curve):
            look = figures.style(law.features, 0) | {"marker": {2: "o", 3: "s"}.get(law.r, "^")}
            _points(ax, law.points, f"{curve}_star", look, f"{NAMES[law.features]}, r = {law.r}")
            _line(ax, law.fit, law.points["d"], look)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set(yscale="log", xlabel=figures.label("d"), ylabel=f"{SIZES[curve]} to {EPSILON:.0%} error")
    look = figures.style("random_features", 0)
    _points(diagonal, along, "n_down_star", look, "random")
    for model, fit in growth.items():
        _line(diagonal, fit, along["d"], look | {"linestyle": "-" if model == "exponential" else ":"}, model)
    diagonal.set(yscale="log", xlabel="input dimension d = 2r", ylabel=f"{SIZES['n_down']} to {EPSILON:.0%} error")
    for ax in (samples, neurons, diagonal):
        ax.grid(alpha=0.3)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=7)
    samples_of = describe.values(_curves(rows, "width")["n_down"]) or "—"
    caption = (
        f"Samples and neurons at which the error of the r-parity of the directions falls to {EPSILON:.0%}, by d;"
        f" right, along d = 2r. m* is from {samples_of} samples, and rises steeply where n* comes near that. Points are"
        f" crossings of the mean error of {describe.seeds(rows)}; a triangle that points up says at least, one that"
        " points down at most; lines are the fitted laws."
    )
    return Drawing("complexity", figure, caption)


def _points(ax: Axes, points: pd.DataFrame, name: str, look: dict[str, object], label: str) -> None:
    kinds = {"o": ~points["censored"] & ~points["at_start"], "^": points["censored"], "v": points["at_start"]}
    for marker, chosen in kinds.items():
        own = points[chosen.astype(bool)]
        if len(own):
            exact = marker == "o"
            shape = look["marker"] if exact else marker
            fill = look["color"] if exact else "none"
            called = label if exact else None
            ax.plot(own["d"], own[name], linestyle="none", marker=shape, color=look["color"], mfc=fill, label=called)


def _line(ax: Axes, fit: fits.Fit, d: pd.Series, look: dict[str, object], label: str | None = None) -> None:
    if fit.supported:
        figures.through(ax, fit.predict, d, color=look["color"], linestyle=look["linestyle"], linewidth=1, label=label)


def _pretraining(rows: pd.DataFrame) -> Listing:
    """What the learned features were learned from, at each d."""
    learned = rows[rows["algorithm"] == "one_step"].drop_duplicates(
        ["d", "r", "n1", "n2", "num_tasks", "seed", "width"]
    )
    learned = learned[learned["width"] == learned["width"].max()]
    lines = [
        [*map(describe.number, at), str(describe.estimate(own["subspace_distance"]))]
        for at, own in learned.groupby(["r", "d", "num_tasks", "n1", "n2"], dropna=False)
    ]
    columns = ["r", "d", "tasks", "n1", "n2", "subspace distance"]
    return Listing("Pretraining of the learned features", pd.DataFrame(lines, columns=columns))
