"""Sparse parities by minibatch SGD on a hinge loss: epochs to solve from a set, steps to solve from new samples."""

import numpy as np
import pandas as pd

from mtfl_jax.analysis import arrivals, describe, figures, fits, published
from mtfl_jax.analysis.arrivals import STEPS
from mtfl_jax.analysis.findings import Drawing, Findings, Listing, Statement
from mtfl_jax.analysis.published import Beside, Published
from mtfl_jax.analysis.studies import STUDIES, Study

CLAIM = (
    "SGD on a two-layer ReLU network learns the parity of k of n bits, though its error hardly moves until late: from"
    " new samples within some n^(αk) steps (Barak et al. 2022, Hidden Progress in Deep Learning), and from a set of"
    " some hundred, if that and the network are large enough."
)
SOURCE = "SutroYaro, docs/findings/exp_sgd_speed.md"
DIFFERS = (
    "first layer from N(0, 1/n) and heads from 0, in the source N(0, 2/n) and N(0, 2/width); the output has no bias;"
    " only the first layer's weights decay, in the source heads and biases too"
)
EPOCHS = {
    (200, 1000): 7.0,
    (64, 1000): 8.0,
    (100, 1000): 9.0,
    (100, 500): 18.0,
    (200, 500): 19.0,
    (64, 500): 21.0,
}
"""Epochs to solve the parity of 3 of 20 bits by (width, samples), as the source has them."""
FAILS = (64, 200)
"""The (width, samples) that do not solve it there."""
TRAINING = ["r", "d", "width", "n2", "lr"]
"""What tells the study's settings apart."""


def findings(table: pd.DataFrame) -> Findings:
    """Epochs and steps to solve. Raises ValueError where no parity was trained until it was solved."""
    rows = table[(table["algorithm"] == "joint") & (table["tasks"] == "parity")] if "tasks" in table else table.head(0)
    if rows.empty or STEPS not in rows or rows[STEPS].isna().all():
        raise ValueError("sparse_parity needs rows of joint on parities with stop_when=task_error: there are none")
    sets, new = (rows[rows["samples"] == kind] for kind in ("batches", "fresh"))
    beside = _beside(arrivals.lasts(sets, TRAINING))
    firsts = arrivals.lasts(new, TRAINING)
    laws = arrivals.laws(firsts, "r")
    drawings = [_curves(sets)] if len(sets) else []
    if len(firsts) and not describe.censored(firsts, STEPS).all():
        drawings.append(_steps(firsts, laws))
    listings = [published.listing(beside)] if beside else []
    if laws:
        listings.append(Listing("Steps to solve", fits.table_of({f"k = {k}": law for k, law in laws.items()})))
    return Findings("Sparse parities", CLAIM, [*published.statements(beside), *_growth(laws)], drawings, listings)


STUDIES.register(Study("sparse_parity", "parities of few bits by minibatch SGD, beside published numbers", findings))


def _per_epoch(rows: pd.DataFrame) -> pd.Series:
    """Steps that trainings in batches take to see their set once."""
    return -(-rows["n2"].astype(float) // rows["batch"].astype(float))


def _beside(sets: pd.DataFrame) -> Beside:
    """The source's numbers, those that the table has trainings for."""
    found = []
    for width, n in (*EPOCHS, FAILS):
        own = sets[(sets["width"] == width) & (sets["n2"] == n) & (sets["d"] == 20) & (sets["r"] == 3)]
        setting, good = f"3 of 20 bits, width {width}, {n} samples", describe.ok(own)
        if not len(own):
            continue
        if (width, n) == FAILS:
            share = (~describe.censored(own, STEPS)).astype(float).where(good)
            found.append((Published(f"{setting}: share of runs that solve it", SOURCE, 0.0, differs=DIFFERS), share))
        else:
            epochs = describe.exact(own)[STEPS].where(good) / _per_epoch(own)
            found.append((Published(f"{setting}: epochs", SOURCE, EPOCHS[width, n], differs=DIFFERS), epochs))
    return [(theirs, describe.estimate(ours)) for theirs, ours in found]


def _growth(laws: dict[object, fits.Fit]) -> list[Statement]:
    """Whether steps to solve grow as n^(αk), and α."""
    said = [
        Statement(None if not law.supported else bool(law.intervals["exponent"][0] > 0), f"k = {k}, {law.sentence()}.")
        for k, law in laws.items()
    ]
    good = {k: law for k, law in laws.items() if law.supported}
    if len(good) < 2:
        return [*said, Statement(None, "How the exponent grows with k: fewer than two laws are supported.")]
    alphas = {
        k: [value / float(str(k)) for value in (law.parameters["exponent"], *law.intervals["exponent"])]
        for k, law in good.items()
    }
    text = ", ".join(f"{a:.2f} ({low:.2f} to {high:.2f}) at k = {k}" for k, (a, low, high) in alphas.items())
    exponents = [good[k].parameters["exponent"] for k in good]
    return [*said, Statement(bool(np.all(np.diff(exponents) > 0)), f"Steps grow as n^(αk) with α {text}.")]


def _curves(sets: pd.DataFrame) -> Drawing:
    names = sets["width"].astype(str) + ", " + sets["n2"].astype(str)
    rows = sets.assign(epoch=sets["step"] / _per_epoch(sets), network=names)
    figure, (ax,) = figures.panels(1)
    figures.curves(ax, rows, "epoch", "task_error", by="network", log="x")
    ax.set(xlabel="epoch", ylabel="test error")
    ax.legend(title="width, samples", fontsize=7)
    bits = " and ".join(f"{r} of {d} bits" for r, d in rows[["r", "d"]].drop_duplicates().itertuples(index=False))
    caption = (
        f"Parity of {bits} from a fixed set, by trainings that stop when no test sample is wrong: means of"
        f" {describe.seeds(rows)}, bands: one standard error."
    )
    return Drawing("sparse_parity", figure, caption)


def _steps(firsts: pd.DataFrame, laws: dict[object, fits.Fit]) -> Drawing:
    figure, caption = arrivals.drawing(firsts, laws, "r")
    ax = figure.axes[0]
    ax.set(xlabel="bits n", ylabel="steps to solve")
    ax.legend(title="bits of the parity k", fontsize=7)
    at = ", ".join(f"{value:.0%}" for value in sorted(firsts["stop_at"].unique()))
    return Drawing("sparse_parity-steps", figure, f"New samples at every step, until the test error is {at}. {caption}")
