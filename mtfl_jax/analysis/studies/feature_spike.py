"""The spike that one step of the first layer leaves in the spectrum of W, and how far it points along the target."""

import functools
from collections.abc import Iterator

import numpy as np
import pandas as pd

from mtfl_jax.analysis import crossings, describe, figures, published
from mtfl_jax.analysis.findings import Drawing, Findings, Statement
from mtfl_jax.analysis.published import Published
from mtfl_jax.analysis.studies import STUDIES, Study

CLAIM = (
    "One gradient step of the first layer adds a matrix of nearly rank one to it. At small rates it is lost in the bulk"
    " of the initial spectrum, and no feature is learnt; from a rate on an outlier leaves the bulk, and from the same"
    " rate on it points along the target (Ba et al. 2022, High-dimensional Asymptotics of Feature Learning)."
)
SOURCE = "the rank-one step of Ba et al. 2022, in the law of Benaych-Georges and Nadakuditi 2012"
DIFFERS = "d and width are finite here, and terms of the step beside the rank-one one are left out there"
SEEN, HALF = 1.1, 0.5
"""An outlier is seen at so many times the edge of the bulk, and features are learnt at so much of the overlap that the
samples allow: our choices.
"""
SIDES = ["n2", "d", "width"]
"""What may tell curves apart."""


def findings(table: pd.DataFrame) -> Findings:
    """Outlier and overlap by the rate. Raises ValueError where there are no rows of such a step."""
    known = {"singular_values", "head_init", "lr_n_power", "hermite_1"} <= set(table)
    every = table[(table["algorithm"] == "one_step") & (table["head_init"] == "random")] if known else table.head(0)
    good = pd.Series(False, every.index)
    if known:
        good = every["singular_values"].notna() & every["subspace_distance"].notna()
    if not good.any():
        raise ValueError("feature_spike needs rows of one_step with head_init=random, measure=representation: none")
    every = every.assign(
        rate=every["lr_w"] * every["n2"].astype(float) ** every["lr_n_power"].fillna(0.0).astype(float)
    )
    rows = every[good]
    rows = rows.assign(
        outlier=[values[0] for values in rows["singular_values"]], overlap=1 - rows["subspace_distance"] ** 2
    )
    figures.apart(rows, [*SIDES, "rate"], "overlap")
    beside = list(_beside(rows))
    said = [*published.statements(beside), *_together(rows)]
    listings = [published.listing(beside)] if beside else []
    return Findings(
        "The spike of one step",
        CLAIM,
        said,
        [_drawing(rows, describe.seeds(every, by=[*SIDES, "rate"], counted=good))],
        listings,
    )


STUDIES.register(
    Study("feature_spike", "the outlier that one step leaves in the spectrum of W, beside theory", findings)
)


def coefficients(hermite: list[float], n: float, d: float) -> tuple[float, float]:
    """Of a target Σ c_k he_k with Σ c_k² = 1: the squares of c_1, and of ‖Xᵀy/n‖ over n samples."""
    first = hermite[0] ** 2 / sum(c**2 for c in hermite)
    return first, first + d / n


def spiked(rate: np.ndarray, rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The largest singular value of W₀ + θ u vᵀ, and the squared overlap of its right singular vector with the target,
    at rates (k,) of the setting of `rows`, as width and d grow together.

    W₀ has entries of variance 1/d; θ = (rate/2) s ‖Xᵀy/n‖, ½ the mean slope of ReLU, s the norm of the heads. With
    c = width/d an outlier leaves the bulk, whose edge is 1 + √c, above θ = c^¼. Source: Benaych-Georges and Nadakuditi
    2012 for the law; Ba et al. 2022 for the step.
    """
    one = rows.iloc[0]
    c = float(one["width"] / one["d"])
    first, size = coefficients([float(one[f"hermite_{k}"]) for k in range(1, 5)], float(one["n2"]), float(one["d"]))
    theta = np.asarray(rate, float) / 2 * float(one["head_scale"]) * np.sqrt(size)
    out = theta > c**0.25
    safe = np.where(out, theta, 1.0)
    largest = np.where(out, np.sqrt((1 + safe**2) * (c + safe**2)) / safe, 1 + np.sqrt(c))
    seen = np.where(out, 1 - (c + safe**2) / (safe**2 * (safe**2 + 1)), 0.0)
    return largest, seen * first / size


def _edge(rows: pd.DataFrame) -> float:
    one = rows.iloc[0]
    return 1 + float(np.sqrt(one["width"] / one["d"]))


def _thresholds(rows: pd.DataFrame) -> dict[str, float]:
    """What the outlier and the overlap must reach."""
    _, most = spiked(np.array([1e6]), rows)
    return {"outlier": SEEN * _edge(rows), "overlap": HALF * float(most[0])}


def _rate(rates: np.ndarray, values: np.ndarray, threshold: float) -> float:
    """The rate from which on values are above, missing where they never or always are."""
    found = crossings.crossing(rates, -values, -threshold)
    return found.value if found.status == "crossed" else np.nan


def _rates(rows: pd.DataFrame, name: str, threshold: float) -> pd.Series:
    """The rate of each seed."""
    seeds = (own.sort_values("rate") for _, own in rows.groupby("seed"))
    return pd.Series([_rate(own["rate"].to_numpy(float), own[name].to_numpy(float), threshold) for own in seeds])


def _predicted(rows: pd.DataFrame, place: int, threshold: float) -> float:
    """That of theory, between the same rates: what lies between two is read off a line in either case."""
    rates = np.sort(rows["rate"].unique())
    return _rate(rates, _theory(place, rows, rates), threshold)


def _settings(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    for values, own in rows.groupby(SIDES):
        yield ", ".join(f"{name} = {value}" for name, value in zip(("n", "d", "width"), values, strict=True)), own


def _beside(rows: pd.DataFrame) -> Iterator[tuple[Published, describe.Estimate]]:
    words = {
        "outlier": f"rate at which the outlier is {SEEN:g} × the edge",
        "overlap": f"rate of {HALF:.0%} of the overlap",
    }
    for setting, own in _settings(rows):
        for place, (name, threshold) in enumerate(_thresholds(own).items()):
            theory = Published(
                f"{words[name]}, {setting}", SOURCE, _predicted(own, place, threshold), 0.0, differs=DIFFERS
            )
            yield theory, describe.estimate(_rates(own, name, threshold))


def _together(rows: pd.DataFrame) -> Iterator[Statement]:
    """Whether both appear at one rate."""
    for setting, own in _settings(rows):
        outlier, overlap = (describe.estimate(_rates(own, *of)) for of in _thresholds(own).items())
        verdict = None if not (outlier.n and overlap.n) else bool(0.5 < overlap.mean / outlier.mean < 2)
        yield Statement(
            verdict,
            f"{setting}: the outlier is seen from a rate of {outlier} on, the overlap from {overlap}, within twice.",
        )


def _theory(place: int, rows: pd.DataFrame, rate: np.ndarray) -> np.ndarray:
    return spiked(rate, rows)[place]


def _drawing(rows: pd.DataFrame, seeds: str) -> Drawing:
    figure, axes = figures.panels(2)
    # Numbers are told apart in their order, texts in that of their letters.
    by = "n2" if len(rows[SIDES[1:]].drop_duplicates()) == 1 else "setting"
    lines = pd.concat([own.assign(setting=setting) for setting, own in _settings(rows)])
    for place, (ax, name, label) in enumerate(
        zip(
            axes,
            ("outlier", "overlap"),
            ("largest singular value of W", "squared overlap with the target"),
            strict=True,
        )
    ):
        figures.curves(ax, lines, "rate", name, by=by, log="xy" if name == "outlier" else "x")
        for _, own in _settings(rows):
            theory = functools.partial(_theory, place, own)
            figures.through(ax, theory, own["rate"], points=200, color="black", linewidth=0.9, linestyle=":")
        ax.set(xlabel="rate of the step", ylabel=label)
    axes[0].legend(title=None if by == "setting" else "n", fontsize=7)
    caption = f"Means of {seeds}, bands: one standard error; dotted: {SOURCE}."
    return Drawing("feature_spike", figure, caption)
