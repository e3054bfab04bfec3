"""Laws with breaks: what is found, what is said where the points cannot carry them; and the law of Chinchilla."""

import itertools
import os

import numpy as np
import pandas as pd
import pytest
from scipy import optimize
from test_fits import command  # noqa: F401

from mtfl_jax.analysis import crossings, fits, laws, models

X = np.geomspace(1, 1e6, 40)
EVERY = [(breaks, free) for breaks in (1, 2, 3) for free in ((), ("floor",), ("sharpness",), ("floor", "sharpness"))]


def named(breaks, free, slopes, places, sharp=models.SHARPNESS, a=1.0, c=0.0):
    """Parameters by the names that the law gives them."""
    law = models.broken(breaks, free)
    values = {"a": a, "c": c, "exponent": slopes[0]}
    values |= dict(zip([name for name in law.parameters if name.startswith("exponent")], slopes, strict=True))
    values |= dict(zip([name for name in law.parameters if name.startswith("break")], places, strict=True))
    values |= {name: sharp for name in law.parameters if name.startswith("sharpness")}
    return {name: values[name] for name in law.parameters}


def law_of(x, slopes, places, sharp=models.SHARPNESS, a=1.0, c=0.0):
    """The law written out a second time, as its source does: a product over the breaks."""
    y = a * (x / places[0]) ** slopes[0] if len(places) else a * x ** slopes[0]
    for place, before, after in zip(places, slopes, slopes[1:], strict=False):
        y = y * (1 + (x / place) ** (1 / sharp)) ** (sharp * (after - before))
    return c + y


def table_of(rng, *args, seeds=8, noise=0.02, x=X, **more):
    rows = pd.MultiIndex.from_product([x, range(seeds)], names=["x", "seed"]).to_frame(index=False)
    return rows.assign(y=law_of(rows["x"], *args, **more) * np.exp(noise * rng.standard_normal(len(rows))))


@pytest.mark.parametrize(("breaks", "free"), EVERY)
def test_noise_free_breaks_are_found_exactly(breaks, free):
    rng = np.random.default_rng(breaks)
    for _ in range(1 + (breaks < 3)):
        slopes = np.cumsum([rng.uniform(-1, -0.6), *rng.uniform(0.5, 1, breaks) * [(-1) ** i for i in range(breaks)]])
        places = 10.0 ** (np.linspace(0, 6, breaks + 2)[1:-1] + rng.uniform(-0.2, 0.2, breaks))
        sharp = rng.uniform(0.15, 0.6) if "sharpness" in free else models.SHARPNESS
        given = {"sharp": sharp, "a": 10.0 ** rng.uniform(-3, 3)}
        if "floor" in free:
            given["c"] = 0.3 * law_of(X, slopes, places, **given).min()
        table = table_of(rng, slopes, places, seeds=2, noise=0, **given)
        fit = fits.fit(table, "x", "y", "broken_power", breaks=breaks, free=free, bootstraps=20)
        expected = named(breaks, free, slopes, places, **given)
        np.testing.assert_allclose(list(fit.parameters.values()), list(expected.values()), rtol=1e-4)
        np.testing.assert_allclose(fit.predict(X), law_of(X, slopes, places, **given), rtol=1e-6)


def test_noisy_breaks_lie_within_their_intervals():
    slopes, places = [-0.1, -0.8, -0.25], [300.0, 2e4]
    given = {"sharp": 0.3, "c": 0.04}
    table = table_of(np.random.default_rng(0), slopes, places, seeds=16, noise=0.01, **given)
    fit = fits.fit(table, "x", "y", "broken_power", breaks=2, free=["floor", "sharpness"])
    assert fit.supported, fit.why
    assert fit.model == "broken_power (2 breaks, floor, sharpness)"
    assert fit.held_out_error < 0.2 < fit.held_out["constant"]
    for name, value in named(2, ("floor", "sharpness"), slopes, places, **given).items():
        low, high = fit.intervals[name]
        wide = (high - low) / 2
        assert low - wide < value < high + wide, name
        assert 0 < wide < 2 * abs(value), name


@pytest.mark.parametrize("free", [(), pytest.param(("floor", "sharpness"), marks=pytest.mark.slow)])
def test_no_other_search_of_the_same_loss_goes_lower(free):
    rng = np.random.default_rng(1)
    given = {"sharp": 0.3, "c": 0.05} if free else {}
    slopes, places = [-0.1, -0.9, -0.2], [100.0, 1e4]
    table = table_of(rng, slopes, places, seeds=2, noise=0.05, **given)
    delta = 0.02
    law = models.broken(2, free)
    x, log_y = table["x"].to_numpy(), np.log(table["y"].to_numpy())

    def loss(theta):
        values = theta.copy()
        values[law.logged()] = np.exp(theta[law.logged()])
        by = dict(zip(law.parameters, values, strict=True))
        exponents = [by[f"exponent_{i}"] for i in range(3)]
        y = by["a"] * (x / by["break_1"]) ** exponents[0]
        for i in (1, 2):
            sharp = by.get(f"sharpness_{i}", models.SHARPNESS)
            y *= (1 + (x / by[f"break_{i}"]) ** (1 / sharp)) ** (sharp * (exponents[i] - exponents[i - 1]))
        size = np.abs(log_y - np.log(by.get("c", 0) + y))
        return np.where(size < delta, size**2 / 2, delta * (size - delta / 2)).sum()

    fit = fits.fit(table, "x", "y", "broken_power", breaks=2, free=free, delta=delta, bootstraps=20)
    found = np.array(list(fit.parameters.values()))
    true = np.array(list(named(2, free, slopes, places, **given).values()))
    for theta in (found, true):
        theta[law.logged()] = np.log(theta[law.logged()])
    bounds = list(zip(*law.bounds(x[None], log_y), strict=True))
    best = min(
        optimize.minimize(loss, np.clip(start, *np.transpose(bounds)), method="L-BFGS-B", bounds=bounds).fun
        for start in (found, true, *(true + 0.3 * rng.standard_normal((3, len(true)))))
    )
    assert loss(found) <= best * (1 + 1e-6)


@pytest.mark.parametrize(
    ("slopes", "places", "free", "name"),
    [
        ([-0.5], [], (), "power"),
        ([-0.7], [], ("floor",), "power_floor"),
        ([-0.1, -0.9], [100.0], (), "broken_power"),
        ([-0.1, -0.9, -0.2], [30.0, 1e3], (), "broken_power (2 breaks)"),
    ],
)
def test_the_number_of_breaks_is_that_which_extrapolates(slopes, places, free, name):
    c = 0.01 if free else 0.0
    table = table_of(np.random.default_rng(2), slopes, places, c=c, noise=0.01, seeds=4)
    fit = fits.fit(table, "x", "y", "broken_power", breaks="auto", free=free, bootstraps=50)
    assert fit.model == name
    assert fit.supported, fit.why
    assert list(fit.held_out)[:2] == ["power_floor", "broken_power (floor)"] if free else ["power", "broken_power"]
    assert len(fit.held_out) == models.MOST_BREAKS + 2


UNSUPPORTED = {
    "one break of two": ([-0.1, -0.9], [1e3], {}, 2, (), "there is no sign of a break between exponent_"),
    "no floor": ([-0.1, -0.9], [1e3], {}, 1, ("floor",), "there is no sign of a floor c"),
    "a kink": ([-0.1, -0.9], [1e3], {"sharp": 0.01}, 1, ("sharpness",), "sharpness"),
    "few points": ([-0.1, -0.9], [3.0], {"x": 2.0 ** np.arange(7)}, 2, (), "(2 breaks) has 6 parameters"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_breaks_that_points_cannot_carry_are_not_supported(case):
    slopes, places, given, breaks, free, why = UNSUPPORTED[case]
    table = table_of(np.random.default_rng(3), slopes, places, noise=0.05, **given)
    fit = fits.fit(table, "x", "y", "broken_power", breaks=breaks, free=free)
    assert not fit.supported
    assert why in fit.why


@pytest.mark.parametrize(("breaks", "free"), EVERY)
def test_breaks_in_order_are_the_same_curve(breaks, free):
    law = models.broken(breaks, free)
    theta = np.random.default_rng(0).standard_normal((50, len(law.parameters)))
    x = np.geomspace(0.1, 10, 9)[None]
    ordered = law.ordered(theta)
    np.testing.assert_allclose(law.curve(ordered, x)[0], law.curve(theta, x)[0], rtol=1e-9, atol=1e-9)
    at = [law.parameters.index(name) for name in law.parameters if name.startswith("break")]
    assert (np.diff(ordered[:, at], axis=1) >= 0).all()
    np.testing.assert_allclose(law.ordered(ordered), ordered)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"breaks": 0}, "breaks=0: allowed: auto, an integer from 1"),
        ({"breaks": "two"}, "breaks=two: allowed: auto, an integer from 1"),
        ({"breaks": 1.5}, "breaks=1.5: allowed: auto, an integer from 1"),
        ({"free": "ceiling"}, "free=ceiling: allowed: floor, sharpness"),
        ({"breaks": 2, "model": "power"}, "breaks=2: allowed with model=broken_power"),
        ({"free": ["floor"], "model": "auto"}, "free=floor: allowed with model=broken_power"),
    ],
)
def test_breaks_that_cannot_be_are_one_line(command, tmp_path, given, said):  # noqa: F811
    table = table_of(np.random.default_rng(0), [-0.5], [], seeds=2)
    with pytest.raises(ValueError, match="allowed") as caught:
        fits.fit(table, "x", "y", **({"model": "broken_power"} | given))
    assert str(caught.value) == said
    with pytest.raises(ValueError, match="allowed"):
        laws.fit_by(table, "x", "y", **({"model": "broken_power"} | given))
    table.to_csv(tmp_path / "t.csv")
    asked = {"model": "broken_power"} | given
    asked = [f"--{key}={value if not isinstance(value, list) else ','.join(value)}" for key, value in asked.items()]
    assert command(tmp_path / "t.csv", "--x=x", "--y=y", *asked) == (2, "", f"mtfl-fit: --{said}\n")


def test_breaks_of_several_groups_and_of_crossings(command, tmp_path):  # noqa: F811
    rng = np.random.default_rng(4)
    table = pd.concat(
        [table_of(rng, [-0.1, -0.9], [place], noise=0.01).assign(d=d) for d, place in ((8, 50.0), (16, 500.0))]
    )
    options = {"breaks": 1, "free": "sharpness", "delta": 0.05, "bootstraps": 20}
    found = laws.fit_by(table, "x", "y", "broken_power", by="d", **options)
    assert list(found["model"]) == ["broken_power (sharpness)"] * 2
    np.testing.assert_allclose(found["break"], [50, 500], rtol=0.1)
    np.testing.assert_allclose(found["sharpness"], models.SHARPNESS, rtol=0.3)
    table.to_csv(tmp_path / "t.csv", index=False)
    given = [f"--{key}={value}" for key, value in options.items()]
    asked = [tmp_path / "t.csv", "--x=x", "--y=y", "--by=d", "--model=broken_power", *given]
    status, out, err = command(*asked, f"--out={tmp_path / 'laws.csv'}", columns="200")
    assert (status, err) == (0, "")
    assert "sharpness" in out
    kept = pd.read_csv(tmp_path / "laws.csv")
    pd.testing.assert_frame_equal(kept, found.replace("", np.nan), check_dtype=False)
    n = 2.0 ** np.arange(16)
    curves = pd.DataFrame(itertools.product(X[::3], n, range(2)), columns=["x", "n", "seed"])
    curves["error"] = 1 / (1 + curves["n"] / (100 * law_of(curves["x"], [0.1, 0.9], [1e3])))
    options = {"curve": "n", "error": "error", "epsilon": 0.5, "bootstraps": 20}
    fit = crossings.fit_crossings(curves, "x", model="broken_power", breaks=1, free="floor", **options)
    assert "broken_power (floor)" in fit.model


# Chinchilla: Hoffmann et al. (2022), approach 3: Huber's loss of log loss, linear from 1e-3 on. The optimum of that
# objective is Besiroglu et al.'s (2024), "Chinchilla Scaling: A replication attempt".

CHINCHILLA = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
DELTA = 1e-3


def generated(rng):
    """Runs at nine budgets of compute and at most 16 sizes each, of the published law, with residuals of long tails."""
    budgets, sizes = np.meshgrid(np.geomspace(6e18, 3e21, 9), np.geomspace(7e7, 1.6e10, 16))
    N = sizes.ravel()
    D = budgets.ravel() / 6 / N
    N, D = N[(D > 3e8) & (D < 5e11)], D[(D > 3e8) & (D < 5e11)]
    loss = CHINCHILLA["E"] + CHINCHILLA["A"] / N ** CHINCHILLA["alpha"] + CHINCHILLA["B"] / D ** CHINCHILLA["beta"]
    return pd.DataFrame({"N": N, "D": D, "loss": loss * np.exp(0.004 * rng.standard_t(3, len(N)))})


def published(rng):
    """The 245 runs that Besiroglu et al. read off Hoffmann et al.'s figure, without the five of the largest loss."""
    if "MTFL_CHINCHILLA" not in os.environ:
        pytest.skip("MTFL_CHINCHILLA names no file svg_extracted_data.csv of epoch-research/analyzing-chinchilla")
    table = pd.read_csv(os.environ["MTFL_CHINCHILLA"]).rename(columns={"Model Size": "N"})
    table = table.assign(D=table["Training FLOP"] / 6 / table["N"])[["N", "D", "loss"]].dropna()
    return table[table["loss"] < table["loss"].nlargest(5).min()]


@pytest.mark.parametrize(
    ("source", "draw"), [(generated, 0), pytest.param(generated, 1, marks=pytest.mark.slow), (published, 0)]
)
def test_chinchilla_is_where_its_authors_objective_has_its_minimum(source, draw):
    table = source(np.random.default_rng(draw))
    logs = np.log(table[["N", "D", "loss"]].to_numpy().T)

    def objective(theta):
        e, a, b, alpha, beta = theta
        terms = np.stack([np.full(len(table), e), a - alpha * logs[0], b - beta * logs[1]])
        total = np.logaddexp.reduce(terms)
        share = np.exp(terms - total)
        residual = total - logs[2]
        size = np.abs(residual)
        slope = np.clip(residual, -DELTA, DELTA)
        gradient = [*(share @ slope), *-((share[1:] * logs[:2]) @ slope)]
        # In units in which the search's own tolerances are small.
        return 1e6 * np.where(size < DELTA, size**2 / 2, DELTA * (size - DELTA / 2)).sum(), 1e6 * np.array(gradient)

    starts = itertools.product((0.5,), (5.0, 15.0), (5.0, 15.0), (0.5,), (0.5,))
    best = min(
        optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000, "maxcor": 30}).fun
        for start in starts
    )
    fit = fits.fit(table, ("N", "D"), "loss", "sum", delta=DELTA)
    theta = [value if name in ("alpha", "beta") else np.log(value) for name, value in fit.parameters.items()]
    assert objective(theta)[0] <= best * (1 + 1e-7)
    assert fit.supported, fit.why
    for name, value in CHINCHILLA.items():
        low, high = fit.intervals[name]
        assert low < value < high, name
