"""A staircase against a monomial by online SGD: how the steps to learn grow with d, beside what theory says."""

import pandas as pd

from mtfl_jax.analysis import arrivals, describe, figures, fits, published
from mtfl_jax.analysis.arrivals import STEPS
from mtfl_jax.analysis.findings import Drawing, Findings, Listing, Statement
from mtfl_jax.analysis.published import Beside, Published
from mtfl_jax.analysis.studies import STUDIES, Study

CLAIM = (
    "SGD learns z1 + z1 z2 + z1 z2 z3 in O(d) steps, as each term leads to the next; not so its last term alone, though"
    " that is of the same degree and of the same coordinates (Abbe, Boix-Adsera and Misiakiewicz 2022)."
)
SOURCE = "Abbe, Boix-Adsera and Misiakiewicz 2022, The merged-staircase property"
DIFFERS = (
    "a power law over the d of the table, where the source has d to infinity; 100 neurons and one rate for all d, where"
    " the source has wide networks of mean-field scale and rates that fall with d"
)
STAIRCASE, MONOMIAL = FAMILIES = ("staircase", "monomial")
SETTINGS = ["tasks", "degree", "d", "width", "n2", "lr"]
"""What may tell the study's trainings apart beside their seeds."""


def findings(table: pd.DataFrame) -> Findings:
    """How steps grow. Raises ValueError where neither target was trained until it was learnt."""
    rows = table[table["tasks"].isin(FAMILIES)] if "tasks" in table else table.head(0)
    if rows.empty or STEPS not in rows or rows[STEPS].isna().all():
        raise ValueError("staircase needs rows of staircases or monomials with stop_when=r2: there are none")
    firsts = arrivals.lasts(rows, SETTINGS)
    laws = arrivals.laws(firsts, "tasks")
    beside = _beside(laws)
    drawings = [_curves(rows)]
    if not describe.censored(firsts, STEPS).all():
        drawings.append(_steps(firsts, laws))
    listings = [published.listing(beside)] if beside else []
    if laws:
        listings.append(Listing("Steps to learn", fits.table_of({str(name): law for name, law in laws.items()})))
    said = [Statement(law.supported or None, f"{name}, {law.sentence()}.") for name, law in laws.items()]
    return Findings("Staircases", CLAIM, [*published.statements(beside), *said, *_apart(laws)], drawings, listings)


STUDIES.register(Study("staircase", "a staircase against a monomial by online SGD, beside published rates", findings))


def _beside(laws: dict[object, fits.Fit]) -> Beside:
    law = laws.get(STAIRCASE)
    if law is None or not law.supported:
        return []
    theirs = Published("exponent of d in the staircase's steps", SOURCE, 1.0, 0.0, side="≤", differs=DIFFERS)
    return [(theirs, arrivals.exponent(law))]


def _apart(laws: dict[object, fits.Fit]) -> list[Statement]:
    """Whether the monomial's steps grow faster than the staircase's."""
    if set(laws) != set(FAMILIES) or not all(law.supported for law in laws.values()):
        return [Statement(None, "Whether the monomial's steps grow faster takes a law of either that is supported.")]
    low, high = (laws[name].intervals["exponent"] for name in FAMILIES)
    verdict = True if high[0] > low[1] else False if high[1] < low[0] else None
    text = " and ".join(f"{laws[name].parameters['exponent']:.2f} of the {name}" for name in (MONOMIAL, STAIRCASE))
    return [Statement(verdict, f"The monomial's steps grow faster with d than the staircase's: exponents {text}.")]


def _curves(rows: pd.DataFrame) -> Drawing:
    figure, axes = figures.panels(len(FAMILIES))
    for ax, name in zip(axes, FAMILIES, strict=True):
        own = rows[rows["tasks"] == name]
        if len(own):
            figures.curves(ax, own, "step", "r2", by="d", log="x")
            ax.legend(title="d", fontsize=7)
        ax.set(title=name, xlabel="steps", ylabel="R²")
    caption = (
        f"R² on fresh samples of trainings that stop once they have learnt: means of {describe.seeds(rows)}, bands: one"
        " standard error."
    )
    return Drawing("staircase", figure, caption)


def _steps(firsts: pd.DataFrame, laws: dict[object, fits.Fit]) -> Drawing:
    figure, caption = arrivals.drawing(firsts, laws, "tasks")
    ax = figure.axes[0]
    ax.set(xlabel="d", ylabel="steps to learn")
    ax.legend()
    at = ", ".join(f"{value:g}" for value in sorted(firsts["stop_at"].unique()))
    return Drawing("staircase-steps", figure, f"Steps until R² is {at}. {caption}")
