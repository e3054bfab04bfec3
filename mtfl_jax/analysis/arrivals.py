"""Steps that trainings take until they stop at a threshold (`steps_to`), and how they grow with d."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from mtfl_jax.analysis import describe, figures, fits

STEPS = "steps_to"


def lasts(rows: pd.DataFrame, settings: Sequence[str]) -> pd.DataFrame:
    """The last row of every training, which says when it stopped. settings: what may tell trainings apart beside their
    seeds. Raises ValueError where others do.
    """
    last = rows.sort_values("step").groupby([*settings, "seed"], dropna=False).tail(1).sort_index()
    figures.apart(rows, ["step", *settings], STEPS)
    return last


def laws(firsts: pd.DataFrame, by: str) -> dict[object, fits.Fit]:
    """Power laws of the steps in d for each value of a column that has them at three d or more."""
    return {value: fits.fit(own, "d", STEPS) for value, own in firsts.groupby(by) if own["d"].nunique() > 2}


def exponent(law: fits.Fit) -> describe.Estimate:
    """The exponent of a law of the steps, with a quarter of its 95% interval for its standard error."""
    low, high = law.intervals["exponent"]
    return describe.Estimate(law.parameters["exponent"], (high - low) / 4, law.seeds, law.seeds)


def drawing(firsts: pd.DataFrame, laws: Mapping[object, fits.Fit], by: str) -> tuple[Figure, str]:
    """Steps against d on logarithmic axes with the laws that are supported, and what a caption says of it."""
    figure, (ax,) = figures.panels(1)
    left = describe.censored(firsts, STEPS)
    good = describe.ok(firsts) & ~left
    figures.curves(ax, firsts[good], "d", STEPS, by=by, log="xy")
    for law in laws.values():
        if law.supported:
            figures.through(ax, law.predict, firsts["d"], color="black", linewidth=0.9, linestyle=":")
    counts = describe.seeds(firsts, by=["d", by], counted=good)
    caption = (
        f"Means of {counts}, bands: one standard error, dotted: the fitted laws. Trainings that did not get there,"
        f" which the laws count as such: {int(left.sum())}."
    )
    return figure, caption
