"""Sparse parities by minibatch SGD on a hinge loss: epochs to solve from a set, steps to solve from new samples."""

import numpy as np
import pandas as pd

from mtfl_jax.analysis import describe, figures, fits, published
from mtfl_jax.analysis.findings import Drawing, Findings, Listing, Statement
from mtfl_jax.analysis.published import Beside, Published
from mtfl_jax.analysis.studies import STUDIES, Study
from mtfl_jax.names import OK

CLAIM = (
    "SGD on a two-layer ReLU network learns the parity of k of n bits, though its error hardly moves until late: from"
    " new samples within some n^(αk) steps (Barak et al. 2022, Hidden Progress in Deep Learning), and from a set of"
    " some hundred, if that and the network are large enough."
)
STEPS = "steps_to_solve"
CENSORED = describe.CENSORED.format(STEPS)
SOLVED = {"batches": 0.0, "fresh": 0.01}
"""The test error at which a parity is solved: from a set, no test sample is wrong, as in the source; from new samples
it is our choice.
"""
SOURCE = "SutroYaro, docs/findings/exp_sgd_speed.md"
DIFFERS = (
    "first layer from N(0, 1/n) and heads from 0, in the source N(0, 2/n) and N(0, 2/width); the output has no bias;"
    " only the first layer's weights decay, in the source heads and biases too"
)
EPOCHS = {(200, 1000): 7.0, (100, 500): 18.0, (64, 500): 21.0}
"""Epochs to solve the parity of 3 of 20 bits by (width, samples), as the source has them."""
FAILS = (64, 200)
"""The (width, samples) that do not solve it there."""
TRAINING = ["r", "d", "width", "n2", "lr", "seed"]
"""What tells the study's trainings apart."""


def findings(table: pd.DataFrame) -> Findings:
    """Epochs and steps to solve. Raises ValueError where no parity was trained in batches or on new samples."""
    rows = table[(table["algorithm"] == "joint") & (table["tasks"] == "parity")] if "tasks" in table else table.head(0)
    if rows.empty or rows["task_error"].isna().all():
        raise ValueError("sparse_parity needs rows of joint on parities with task_error: there are none")
    sets, new = (rows[rows["samples"] == kind] for kind in SOLVED)
    beside = _beside(sets)
    firsts = _firsts(new, SOLVED["fresh"])
    laws = {int(str(k)): fits.fit(own, "d", STEPS) for k, own in firsts.groupby("r") if own["d"].nunique() > 2}
    drawings = [_curves(sets)] if len(sets) else []
    if len(firsts) and not firsts[CENSORED].all():
        drawings.append(_steps(firsts, laws))
    listings = [published.listing(beside)] if beside else []
    if laws:
        listings.append(Listing("Steps to solve", fits.table_of({f"k = {k}": law for k, law in laws.items()})))
    return Findings("Sparse parities", CLAIM, [*published.statements(beside), *_growth(laws)], drawings, listings)


STUDIES.register(Study("sparse_parity", "parities of few bits by minibatch SGD, beside published numbers", findings))


def _epochs(rows: pd.DataFrame) -> pd.Series:
    """How often trainings in batches have seen their set, by their steps."""
    batch = rows["batch"].astype(float) if "batch" in rows else pd.Series(np.nan, rows.index)
    return rows["step"] / np.ceil(rows["n2"].astype(float) / batch)


def _firsts(rows: pd.DataFrame, error: float) -> pd.DataFrame:
    """A row a training: the first step measured at which its error is no more than this; where there is none, the last
    step, as a number that is censored, or the training's own status if some of its rows are not ok. Raises ValueError
    where trainings differ in other settings.
    """
    figures.apart(rows, ["step", *(name for name in TRAINING if name != "seed")], "task_error")
    found = []
    for values, own in rows.assign(epochs=_epochs(rows)).sort_values("step").groupby(TRAINING):
        solved = own[own["task_error"].le(error).fillna(False).astype(bool)]
        at = solved.iloc[0] if len(solved) else own.iloc[-1]
        status = OK if len(solved) or describe.ok(own).all() else own["status"][~describe.ok(own)].iloc[0]
        found.append((*values, int(at["step"]), at["epochs"], not len(solved), status))
    return pd.DataFrame(found, columns=[*TRAINING, STEPS, "epochs", CENSORED, "status"])


def _beside(sets: pd.DataFrame) -> Beside:
    """The source's numbers, those that the table has trainings for."""
    firsts, found = _firsts(sets, SOLVED["batches"]), []
    for width, n in (*EPOCHS, FAILS):
        own = firsts[(firsts["width"] == width) & (firsts["n2"] == n) & (firsts["d"] == 20) & (firsts["r"] == 3)]
        setting = f"3 of 20 bits, width {width}, {n} samples"
        if not len(own):
            continue
        if (width, n) == FAILS:
            share = (~own[CENSORED]).astype(float).where(describe.ok(own))
            found.append((Published(f"{setting}: share of runs that solve it", SOURCE, 0.0, differs=DIFFERS), share))
        else:
            epochs = own["epochs"].mask(own[CENSORED] | ~describe.ok(own))
            found.append((Published(f"{setting}: epochs", SOURCE, EPOCHS[width, n], differs=DIFFERS), epochs))
    return [(theirs, describe.estimate(ours)) for theirs, ours in found]


def _growth(laws: dict[int, fits.Fit]) -> list[Statement]:
    """Whether steps to solve grow as n^(αk), and α."""
    said = [
        Statement(None if not law.supported else bool(law.intervals["exponent"][0] > 0), f"k = {k}, {law.sentence()}.")
        for k, law in laws.items()
    ]
    good = {k: law for k, law in laws.items() if law.supported}
    if len(good) < 2:
        return [*said, Statement(None, "How the exponent grows with k: fewer than two laws are supported.")]
    alphas = {
        k: [value / k for value in (law.parameters["exponent"], *law.intervals["exponent"])] for k, law in good.items()
    }
    text = ", ".join(f"{a:.2f} ({low:.2f} to {high:.2f}) at k = {k}" for k, (a, low, high) in alphas.items())
    exponents = [good[k].parameters["exponent"] for k in sorted(good)]
    return [*said, Statement(bool(np.all(np.diff(exponents) > 0)), f"Steps grow as n^(αk) with α {text}.")]


def _curves(sets: pd.DataFrame) -> Drawing:
    names = sets["width"].astype(str) + ", " + sets["n2"].astype(str)
    rows = sets.assign(epoch=_epochs(sets), network=names)
    figure, (ax,) = figures.panels(1)
    figures.curves(ax, rows, "epoch", "task_error", by="network")
    ax.set(xlabel="epoch", ylabel="test error")
    ax.legend(title="width, samples", fontsize=7)
    bits = " and ".join(f"{r} of {d} bits" for r, d in rows[["r", "d"]].drop_duplicates().itertuples(index=False))
    caption = f"Parity of {bits} from a fixed set: means of {describe.seeds(rows)}, bands: one standard error."
    return Drawing("sparse_parity", figure, caption)


def _steps(firsts: pd.DataFrame, laws: dict[int, fits.Fit]) -> Drawing:
    figure, (ax,) = figures.panels(1)
    good = describe.ok(firsts) & ~firsts[CENSORED]
    rows = firsts[good]
    figures.curves(ax, rows, "d", STEPS, by="r", log="xy")
    for law in laws.values():
        if law.supported:
            x = np.geomspace(float(firsts["d"].min()), float(firsts["d"].max()), 50)
            ax.plot(x, law.predict(x), color="black", linewidth=0.9, linestyle=":")
    ax.set(xlabel="bits n", ylabel="steps to solve")
    ax.legend(title="bits of the parity k", fontsize=7)
    left, counts = int(firsts[CENSORED].sum()), describe.seeds(firsts, by=["d", "r"], counted=good)
    caption = (
        f"New samples at every step: first step measured at which the test error is at most {SOLVED['fresh']:.0%};"
        f" means of {counts}, bands: one standard error, dotted: the fitted laws. Trainings that did not"
        f" get there, which the laws count as such: {left}."
    )
    return Drawing("sparse_parity-steps", figure, caption)
