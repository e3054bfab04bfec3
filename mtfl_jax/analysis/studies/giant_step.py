"""One giant step of the first layer, then a new head by ridge: the test error by n, beside published numbers."""

import pandas as pd

from mtfl_jax.analysis import describe, figures, published
from mtfl_jax.analysis.findings import Drawing, Findings, Statement
from mtfl_jax.analysis.published import Beside, Published
from mtfl_jax.analysis.studies import STUDIES, Study

CLAIM = (
    "One step whose size grows as √(n·width) learns features of a two-index target from n ~ d² samples, once its linear"
    " part is removed: a ridge head on them has a smaller error than on the initial ones (Dandi et al. 2023, How"
    " Two-Layer Neural Networks Learn, One (Giant) Step at a Time)."
)
SOURCE = "Dandi et al. 2023, GiantStep, single_step.ipynb"
SETTING = {
    **{"d": 512, "width": 1024, "r": 2, "lr_w": 10.0, "lr_n_power": 0.5, "lr_width_power": 0.5},
    **{"head_penalty": 1.0, "remove_degree": "linear", "down_remove_degree": "linear", "down_samples": "training"},
}
"""The source's sizes and rates."""
ERRORS = {3326: (0.3360, 0.0063), 29532: (0.2068, 0.0059), 262144: (0.0774, 0.0021)}
"""Its test errors by n, with their standard deviations over ten draws of the data."""
DIFFERS = (
    "the source's ± {spread} is over ten draws of the data at one W₀ and one head; ours draws them all: its number is"
    " taken for one run. The linear part in our test error is the training samples', in the source's the test samples'"
)
"""As in the notebook the head is fitted on the samples of the step. Measured in NumPy on 20,000 test samples, means of
six and of three draws at the first two n: by the training samples' linear part 0.332 and 0.197, by the test samples'
0.340 and 0.214; the source has 100,000 test samples.
"""
LEARNED, RANDOM = "one_step", "random_features"
NAMES = {LEARNED: "after one step", RANDOM: "initial features"}
ERROR = "test_mse"
SETTINGS = ["algorithm", "d", "width", "n_down"]
"""What may tell rows apart beside their seeds."""


def findings(table: pd.DataFrame) -> Findings:
    """Errors of the heads by n. Raises ValueError where no head of a real label's was fitted."""
    known = {"probe", "downstream_r2", "target_scale"} <= set(table)
    rows = table[table["probe"] == "head"] if known else table.head(0)
    rows = rows[rows["algorithm"].isin(list(NAMES))]
    if rows.empty or rows["downstream_r2"].isna().all():
        raise ValueError("giant_step needs rows of one_step or random_features with probe=head and real labels: none")
    # Labels have this variance by construction, and their mean is 0.
    rows = rows.assign(**{ERROR: (1 - rows["downstream_r2"]) * rows["target_scale"] ** 2})
    figures.apart(rows, SETTINGS, ERROR)
    beside = _beside(rows)
    listings = [published.listing(beside)] if beside else []
    return Findings("A giant step", CLAIM, [*published.statements(beside), *_gains(rows)], [_drawing(rows)], listings)


STUDIES.register(Study("giant_step", "one giant step and a new head by ridge, beside published errors", findings))


def _beside(rows: pd.DataFrame) -> Beside:
    """The source's numbers, those that the table has rows for."""
    own = rows[(rows["algorithm"] == LEARNED) & (rows["n2"] == rows["n_down"])]
    for name, value in SETTING.items():
        own = own[own[name] == value] if name in own else own.head(0)
    found = []
    for n, (value, spread) in ERRORS.items():
        of_n = own[own["n_down"] == n]
        if len(of_n):
            theirs = Published(f"test MSE, n = {n}", SOURCE, value, differs=DIFFERS.format(spread=spread))
            found.append((theirs, describe.estimate(of_n[ERROR])))
    return found


def _gains(rows: pd.DataFrame) -> list[Statement]:
    """Whether a head on the step's features does better than on the initial ones, at the most samples."""
    said = []
    for _, own in rows.groupby(["d", "width"]):
        both = {name: own[own["algorithm"] == name] for name in NAMES}
        shared = set.intersection(*(set(part["n_down"]) for part in both.values()))
        if not shared:
            continue
        most = max(shared)
        after, before = (describe.estimate(part[part["n_down"] == most][ERROR]) for part in both.values())
        text = f"From {most} samples the test MSE is {after} after one step, {before} on the initial features."
        said.append(Statement(published.less(after, before), text))
    return said or [Statement(None, "Whether the step's features are better takes rows of initial ones beside them.")]


def _drawing(rows: pd.DataFrame) -> Drawing:
    figure, (ax,) = figures.panels(1)
    figures.curves(ax, rows.assign(features=rows["algorithm"]), "n_down", ERROR, by="features", log="xy", names=NAMES)
    for n, (value, spread) in ERRORS.items():
        if n in set(rows["n_down"]):
            ax.errorbar(n, value, spread, color="black", marker="x", capsize=3, linestyle="none", zorder=5)
    ax.set(xlabel="samples n", ylabel="test MSE")
    ax.legend(fontsize=7)
    caption = (
        "Test error of a ridge head on features after one step and on initial ones, fitted on the step's n samples:"
        f" means of {describe.seeds(rows, by=SETTINGS, counted=rows[ERROR].notna())}, bands: one standard error."
        f" Crosses: {SOURCE}, with standard deviations."
    )
    return Drawing("giant_step", figure, caption)
