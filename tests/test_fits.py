"""Fitted laws: recovery, coverage, censoring, verdicts, and the command `mtfl-fit`."""

import copy
import dataclasses
import itertools
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from mtfl_jax.analysis import crossings, fit_command, fits, laws
from mtfl_jax.records import registering

D = np.array([8.0, 16, 32, 64, 128, 256])
EXPONENTS = st.floats(0.3, 3) | st.floats(-3, -0.3)
LAWS = {
    "power": {"a": st.floats(0.01, 100), "exponent": EXPONENTS},
    "exponential": {"a": st.floats(0.01, 100), "rate": st.floats(-0.1, 0.1)},
    "power_floor": {
        "c": st.floats(0.5, 5),
        "a": st.floats(0.5, 5),
        "exponent": st.sampled_from([-1.2, -0.7, 0.6, 1.4]),
    },
    "broken_power": {
        "a": st.floats(0.1, 10),
        "exponent_before": st.floats(0.2, 1),
        "exponent_after": st.floats(1.5, 3),
        "break": st.floats(24, 80),
    },
    "sum": {
        "E": st.floats(0.5, 2),
        "A": st.floats(5, 50),
        "B": st.floats(5, 50),
        "alpha": st.floats(0.3, 0.8),
        "beta": st.floats(0.3, 0.8),
    },
}
EXAMPLE = {
    "power": {"a": 3.0, "exponent": 1.7},
    "exponential": {"a": 2.0, "rate": 0.02},
    "power_floor": {"c": 5.0, "a": 0.3, "exponent": 1.5},
    "broken_power": {"a": 80.0, "exponent_before": 1.0, "exponent_after": 2.0, "break": 40.0},
    "sum": {"E": 1.7, "A": 30.0, "B": 8.0, "alpha": 0.5, "beta": 0.35},
}


def law(model, p, x):
    """The laws written out a second time."""
    if model == "sum":
        return p["E"] + p["A"] * x[0] ** -p["alpha"] + p["B"] * x[1] ** -p["beta"]
    if model == "broken_power":
        u, turn = x / p["break"], p["exponent_after"] - p["exponent_before"]
        return p["a"] * u ** p["exponent_before"] * (1 + u**4) ** (turn / 4)
    if model == "exponential":
        return p["a"] * np.exp(p["rate"] * x)
    return p.get("c", 0) + p["a"] * x ** p["exponent"]


def campaign(model="power", seeds=16, noise=0.0, rng=0, parameters=None, heavy=False):
    """A table whose rows of one seed share a level and a slope of their noise, as paired draws do; and its x."""
    draw = np.random.default_rng(rng)
    if model == "sum":
        table = pd.DataFrame(
            [(n, m) for n in 10.0 ** np.arange(2, 7) for m in 10.0 ** np.arange(1, 6)], columns=["n", "m"]
        )
    else:
        table = pd.DataFrame({"d": D})
    rows = len(table)
    table = pd.concat([table.assign(seed=seed) for seed in range(seeds)], ignore_index=True)
    x = tuple(table.columns.drop("seed")) if model == "sum" else "d"
    u = np.log(table.iloc[:, 0]) - np.log(table.iloc[:, 0]).mean()
    level, slope = draw.normal(size=(2, seeds)).repeat(rows, axis=1)
    own = draw.standard_t(3, len(table)) if heavy else draw.normal(size=len(table))
    sizes = table[list(x)].to_numpy().T if model == "sum" else table["d"].to_numpy()
    table["y"] = law(model, parameters or EXAMPLE[model], sizes) * np.exp(noise * (level + slope * u + own))
    return table, x


@pytest.mark.parametrize("model", LAWS)
def test_noise_free_laws_are_found_exactly(model):
    @settings(deadline=None, derandomize=True, max_examples=25, database=None, phases=[Phase.explicit, Phase.generate])
    @given(st.fixed_dictionaries(LAWS[model]))
    def holds(parameters):
        table, x = campaign(model, 2, parameters=parameters)
        fit = fits.fit(table, x, "y", model, bootstraps=20)
        expected = [parameters[name] for name in fit.parameters]
        np.testing.assert_allclose(list(fit.parameters.values()), expected, rtol=1e-5, atol=1e-8)
        # A break near the largest x is not in what is left without them.
        assert model == "broken_power" or fit.held_out_error < 1e-3
        sizes = table[list(x)].to_numpy().T if model == "sum" else table["d"]
        np.testing.assert_allclose(fit.predict(sizes), table["y"], rtol=1e-6)

    holds()


@pytest.mark.parametrize("model", LAWS)
def test_noisy_laws_are_found_within_a_few_standard_errors(model):
    table, x = campaign(model, 16, noise=0.02 if model == "sum" else 0.1)
    fit = fits.fit(table, x, "y", model)
    assert fit.supported, fit.why
    for name, interval in fit.intervals.items():
        found = np.log([*interval, fit.parameters[name], EXAMPLE[model][name]])  # All are positive.
        error = (found[1] - found[0]) / 2 / stats.t.isf(0.025, 15)
        assert error > 0
        assert abs(found[2] - found[3]) < 4 * error
    assert fit.held_out_error < fit.held_out["constant"]
    assert (fit.seeds, fit.points, fit.censored) == (16, len(table), 0)


@pytest.mark.parametrize(
    ("model", "seeds", "heavy"), [("power", 4, False), ("power", 16, True), ("exponential", 16, False)]
)
@pytest.mark.slow
def test_intervals_cover_nominally_and_only_because_seeds_are_resampled(model, seeds, heavy):
    tables = 200
    name = "exponent" if model == "power" else "rate"

    def covered(seed):
        hits = 0
        for rng in range(tables):
            table, x = campaign(model, seeds, 0.1, rng=1000 + rng, heavy=heavy)
            low, high = fits.fit(table, x, "y", model, seed=seed, bootstraps=200, rng=rng).intervals[name]
            hits += low <= EXAMPLE[model][name] <= high
        return hits / tables

    # The 99.9% range of the share of hits if each has chance 0.95.
    least, most = stats.binom.ppf([0.0005, 0.9995], tables, 0.95) / tables
    assert least <= covered("seed") <= most
    assert covered(None) < least


def test_a_wide_huber_loss_is_least_squares():
    table, _ = campaign("power", 4, 0.1)
    slope, level = np.polyfit(np.log(table["d"]), np.log(table["y"]), 1)
    fit = fits.fit(table, "d", "y", delta=1e3, bootstraps=20)
    np.testing.assert_allclose(list(fit.parameters.values()), [np.exp(level), slope], rtol=1e-8)


def test_power_floor_agrees_with_curve_fit():
    table, _ = campaign("power_floor", 4, 0.1)

    def log_law(x, c, a, b):
        return np.log(c + a * x**b)

    theirs, _ = optimize.curve_fit(log_law, table["d"], np.log(table["y"]), [5, 0.3, 1.5], xtol=1e-12, ftol=1e-12)
    fit = fits.fit(table, "d", "y", "power_floor", delta=1e3, bootstraps=20)
    np.testing.assert_allclose(list(fit.parameters.values()), theirs, rtol=1e-5)


def test_huber_loss_agrees_with_a_minimum_found_otherwise():
    table, _ = campaign("broken_power", 4, 0.2, heavy=True)
    u, log_y = np.log(table["d"]), np.log(table["y"])

    def loss(theta):
        values = dict(
            zip(EXAMPLE["broken_power"], [np.exp(theta[0]), theta[1], theta[2], np.exp(theta[3])], strict=True)
        )
        size = np.abs(log_y - np.log(law("broken_power", values, np.exp(u))))
        return np.sum(np.where(size < 0.1, size**2 / 2, 0.1 * (size - 0.05)))

    fit = fits.fit(table, "d", "y", "broken_power", delta=0.1, bootstraps=20)
    found = np.log(list(fit.parameters.values()))
    found[1:3] = [fit.parameters["exponent_before"], fit.parameters["exponent_after"]]
    options = {"xatol": 1e-10, "fatol": 1e-14, "maxiter": 20000, "maxfev": 20000}
    best = optimize.minimize(loss, found + 0.05, method="Nelder-Mead", options=options)
    assert loss(found) <= best.fun + 1e-9


def test_outliers_hardly_move_a_law():
    table, _ = campaign("power", 16, 0.02)
    spoilt = table.assign(y=np.where(table.index % 19 == 3, table["y"] * 1000, table["y"]))
    before, after = (fits.fit(own, "d", "y", bootstraps=20).parameters["exponent"] for own in (table, spoilt))
    assert abs(before - after) < 0.02


def censored_campaign(rng):
    """A power law seen only up to a ceiling, and which rows hit it: three in ten."""
    table, _ = campaign("power", 16, 0.3, rng=rng)
    ceiling = table["y"].quantile(0.7)
    return table.assign(hit=table["y"] > ceiling, y=table["y"].clip(upper=ceiling))


@pytest.mark.slow
def test_censored_points_count():
    true, tables = EXAMPLE["power"]["exponent"], 100
    found = {"counted": [], "dropped": [], "taken as exact": []}
    covered = 0
    for rng in range(tables):
        table = censored_campaign(rng)
        fit = fits.fit(table, "d", "y", censored="hit", bootstraps=100, rng=rng)
        low, high = fit.intervals["exponent"]
        covered += low <= true <= high
        assert fit.censored == table["hit"].sum() > 0.25 * len(table)
        found["counted"].append(fit.parameters["exponent"])
        for name, other in (("dropped", table[~table["hit"]]), ("taken as exact", table)):
            found[name].append(fits.fit(other, "d", "y", bootstraps=20).parameters["exponent"])
    bias = {name: np.mean(values) - true for name, values in found.items()}
    error = np.std(found["counted"]) / np.sqrt(tables)
    assert abs(bias["counted"]) < 4 * error
    assert bias["dropped"] < -8 * error
    assert bias["taken as exact"] < -8 * error
    assert covered >= stats.binom.ppf(0.0005, tables, 0.95)


def test_points_known_to_be_at_most_mirror_those_at_least():
    table = censored_campaign(0)
    up = fits.fit(table, "d", "y", censored="hit", bootstraps=50)
    down = fits.fit(table.assign(y=1 / table["y"]), "d", "y", at_most="hit", bootstraps=50)
    assert (down.at_most, down.censored) == (up.censored, 0)
    np.testing.assert_allclose(down.parameters["exponent"], -up.parameters["exponent"], rtol=1e-6)
    np.testing.assert_allclose(down.intervals["exponent"], -np.array(up.intervals["exponent"])[::-1], rtol=1e-3)


@pytest.mark.parametrize("model", ["power", "exponential", "power_floor", "broken_power"])
def test_auto_finds_the_law(model):
    table, _ = campaign(model, 16, 0.01)
    fit = fits.fit(table, "d", "y", "auto", bootstraps=20)
    assert fit.model == model
    assert set(fit.held_out) == {"power", "exponential", "power_floor", "broken_power", "constant"}


def test_a_flat_curve_is_a_law_with_exponent_zero():
    table, _ = campaign("power", 16, 0.02, parameters={"a": 16.0, "exponent": 0.0})
    fit = fits.fit(table, "d", "y", "auto")
    assert fit.model == "power"
    assert fit.supported
    low, high = fit.intervals["exponent"]
    assert low < 0 < high < 0.1


def test_order_of_rows_does_not_matter():
    table, _ = campaign("power", 8, 0.1)
    fit, other = (fits.fit(own, "d", "y") for own in (table, table.sample(frac=1, random_state=0)))
    np.testing.assert_allclose(fit.intervals["exponent"], other.intervals["exponent"], rtol=1e-5)


def test_rows_are_resampled_where_there_are_no_seeds():
    table, _ = campaign("power", 8, 0.1)
    fit = fits.fit(table.drop(columns="seed"), "d", "y")
    assert fit.seeds == 0
    assert "for want of seeds" in fit.sentence()
    assert fits.fit(table.assign(seed=1), "d", "y").intervals == fit.intervals


def noisy(**columns):
    table, _ = campaign("power", 8, 0.05)
    return table.assign(**columns)


UNSUPPORTED = {
    "few x": (lambda t: t[t["d"] <= 16], "power", "2 distinct d, 1 without the largest; power has 2 parameters"),
    "one x": (lambda t: t[t["d"] == 16], "power", "1 distinct d, 0 without"),
    "few x for broken": (lambda t: t[t["d"] <= 64], "broken_power", "broken_power has 4 parameters"),
    "narrow": (lambda t: t.assign(d=1 + t["d"] / 512), "power", "d spans a factor of 1.48 only"),
    "mostly censored": (lambda t: t.assign(c=t["d"] > 24), "power", "32 of 48 points are censored"),
    "all censored": (lambda t: t.assign(c=True), "power", "48 of 48 points are censored"),
    "noise": (
        lambda t: t.assign(y=np.exp(8 * np.random.default_rng(0).normal(size=len(t)))),
        "power",
        "the interval of exponent",
    ),
    "no floor": (lambda t: t.assign(y=t["d"] ** 2), "power_floor", "no sign of a floor c"),
    "no break": (lambda t: t, "broken_power", "the break could be anywhere"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_the_data_cannot_support_is_said(case):
    change, model, why = UNSUPPORTED[case]
    table = change(noisy())
    fit = fits.fit(table, "d", "y", model, censored="c" if "c" in table else None, bootstraps=100)
    assert not fit.supported
    assert why in fit.why
    assert fit.why in fit.sentence()
    assert fits.table_of({"it": fit})["supported"].item() == f"no: {fit.why}"


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({"y": -1.0}, {}, "y=y: 48 of 48 values are missing, infinite or not positive; allowed: "),
        ({"y": [np.nan, 0, np.inf] + [1.0] * 45}, {}, "y=y: 3 of 48"),
        ({"d": 0.0}, {}, "x=d: 48 of 48"),
        ({"y": "high"}, {}, "y=y: not a column of numbers"),
        ({}, {"y": "loss"}, "y=loss: allowed: the columns d, seed, y"),
        ({}, {"model": "cubic"}, "model=cubic: allowed: auto, power,"),
        ({}, {"model": "sum"}, "x=d: allowed: 2 columns for model=sum"),
        ({}, {"x": ("d", "y")}, "x=d,y: allowed: 1 column for model=power"),
        ({}, {"seed": "run"}, "seed=run: allowed: the columns"),
        ({"seed": [None] + [1] * 47}, {}, "seed=seed: 1 values are missing"),
        ({"c": "no"}, {"censored": "c"}, "censored=c: not a column of true and false"),
        ({"c": True}, {"censored": "c", "at_most": "c"}, "at_most=c: 48 rows are also marked by c"),
        ({}, {"bootstraps": 3}, "bootstraps=3: allowed: an integer from 20"),
        ({}, {"level": 1.0}, "level=1.0: allowed: "),
        ({}, {"delta": 0.0}, "delta=0.0: allowed: "),
    ],
)
def test_bad_input_is_one_line(change, options, said):
    with pytest.raises(ValueError, match="allowed") as caught:
        fits.fit(noisy(**change), **({"x": "d", "y": "y"} | options))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_empty_table():
    with pytest.raises(ValueError, match="x=d: the table has no rows"):
        fits.fit(noisy().head(0), "d", "y")


def test_sizes_that_go_together_cannot_be_told_apart():
    m = np.tile(10.0 ** np.arange(1, 9), 4)
    table = pd.DataFrame(
        {"n": 10 * m, "m": m, "y": law("sum", EXAMPLE["sum"], (10 * m, m)), "seed": np.arange(32) // 8}
    )
    fit = fits.fit(table, ("n", "m"), "y", "sum", bootstraps=20)
    assert not fit.supported
    assert "n and m go together" in fit.why


def test_one_seed_gives_crossings_no_intervals():
    fit = crossings.fit_crossings(curves(0, seeds=1), "d", curve="n", error="error", epsilon=0.15)
    assert fit.why == "one seed gives no intervals"
    assert np.isnan(fit.intervals["exponent"]).all()
    assert 1 < fit.parameters["exponent"] < 3


def test_formulas_and_table():
    table, x = campaign("sum", 4)
    found = {
        "learned": fits.fit(campaign("power", 4)[0], "d", "y", bootstraps=20),
        "loss": fits.fit(table, x, "y", "sum", bootstraps=20),
    }
    assert found["learned"].formula() == "y = 3 · d^1.7"
    assert found["loss"].formula() == "y = 1.7 + 30/n^0.5 + 8/m^0.35"
    cells = fits.table_of(found)
    assert list(cells["what"]) == ["learned", "loss"]
    assert cells["exponent"][0] == "exponent 1.7 (1.7 to 1.7)"
    assert cells["held-out error"][0] == "×1"
    assert all(isinstance(cell, str) for cell in cells.to_numpy().ravel())
    broken = fits.fit(campaign("broken_power", 4)[0], "d", "y", "broken_power", bootstraps=20)
    assert broken.formula() == "y = 80 · (d/40)^1 · (1 + (d/40)^4)^0.25"


def test_crossing():
    n = [1, 10, 100, 1000]
    assert crossings.crossing(n, [0.5, 0.4, 0.2, 0.1], 0.3) == (pytest.approx(10**1.5), "crossed")
    assert crossings.crossing(n, [0.5, 0.2, 0.4, 0.1], 0.3) == (pytest.approx(10 ** (2 + 1 / 3)), "crossed")
    assert crossings.crossing(n, [0.5, 0.2, 0.2, 0.4], 0.3) == (1000, "never")
    assert crossings.crossing(n, [0.1, 0.1, 0.1, 0.1], 0.3) == (1, "at_start")
    assert crossings.crossing([8], [0.1], 0.3) == (8, "at_start")
    for bad in (([1, 1], [1, 0]), ([0, 1], [1, 0]), ([1, 2], [1, np.nan]), ([1, 2], [1]), ([], [])):
        with pytest.raises(ValueError, match="allowed"):
            crossings.crossing(*bad, 0.5)


N = 2.0 ** np.arange(3, 13)


def curves(rng, seeds=16, noise=0.3, largest=4096):
    """Error curves that cross 0.15 at about d²; the curves of a seed are shifted together."""
    draw = np.random.default_rng(rng)
    table = pd.DataFrame([(d, n, s) for d in (8, 12, 16, 24, 32) for n in N[largest >= N] for s in range(seeds)])
    table.columns = ["d", "n", "seed"]
    level, slope = noise * draw.normal(size=(2, seeds))[:, table["seed"]]
    half = 0.315 * table["d"] ** 2 * np.exp(level + slope / 2 * np.log(table["d"] / 16))
    table["error"] = 0.5 / (1 + (table["n"] / half) ** 1.5) + 0.02 * noise * draw.normal(size=len(table))
    return table


def test_crossings_of_means_over_seeds():
    table = pd.concat([curves(0, noise=0).assign(algorithm="a"), curves(1, noise=0).assign(algorithm="b")])
    found = crossings.crossings(table, curve="n", error="error", epsilon=0.15, by=["algorithm", "d"])
    assert list(found.columns) == ["algorithm", "d", "n_star", "censored", "at_start"]
    assert len(found) == 10
    assert not found[["censored", "at_start"]].any(axis=None)
    # Interpolation between points a factor 2 apart is off by a few percent.
    exact = 0.315 * found["d"] ** 2 * (0.35 / 0.15) ** (1 / 1.5)
    np.testing.assert_allclose(found["n_star"], exact, rtol=0.1)
    with pytest.raises(ValueError, match="rows repeat another's"):
        crossings.crossings(table, curve="n", error="error", epsilon=0.15, by=["d"])


def test_fitted_crossings_cover():
    tables, hits = 200, 0
    for rng in range(tables):
        fit = crossings.fit_crossings(curves(rng), "d", curve="n", error="error", epsilon=0.15, bootstraps=100, rng=rng)
        low, high = fit.intervals["exponent"]
        hits += low <= 2 <= high
    least, most = stats.binom.ppf([0.0005, 0.9995], tables, 0.95) / tables
    assert least <= hits / tables <= most


def test_fitted_crossings_agree_with_a_fit_of_the_crossings():
    table = curves(3, largest=512)
    points = crossings.crossings(table, curve="n", error="error", epsilon=0.15, by=["d"])
    assert points["censored"].any()
    assert not points["censored"].all()
    whole = crossings.fit_crossings(table, "d", curve="n", error="error", epsilon=0.15, bootstraps=50)
    apart = fits.fit(points, "d", "n_star", censored="censored", at_most="at_start", bootstraps=50)
    np.testing.assert_allclose(list(whole.parameters.values()), list(apart.parameters.values()), rtol=1e-8)
    assert (whole.y, whole.seeds, whole.points) == ("n_star", 16, 5)
    assert whole.censored == points["censored"].sum()


@pytest.fixture
def command(monkeypatch, capsys):
    """Run `mtfl-fit` with arguments: (exit status, stdout, stderr)."""

    def run(*args, columns="80"):
        monkeypatch.setattr(sys, "argv", ["mtfl-fit", *map(str, args)])
        monkeypatch.setenv("COLUMNS", columns)
        with pytest.raises(SystemExit) as stop:
            fit_command.main()
        return (stop.value.code, *capsys.readouterr())

    return run


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_command_fits_a_table_from_anywhere(command, tmp_path, kind):
    table = censored_campaign(0).rename(columns={"hit": "censored"}).assign(algorithm="a")
    table = pd.concat([table, table.assign(algorithm="b", y=1.0, censored=False)])
    path = tmp_path / f"table.{kind}"
    table.to_csv(path, index=False) if kind == "csv" else table.to_parquet(path)
    status, out, err = command(path, "--x", "d", "--y", "y", "--where", "algorithm=a", "--model", "auto")
    fit = fits.fit(table[table["algorithm"] == "a"], "d", "y", "auto", censored="censored")
    assert (status, err) == (0, "")
    assert fit.formula() in out
    assert f"exponent  {fit.value('exponent')}" in out
    assert "resampling 16 seeds" in out
    assert f"at least: {fit.censored}" in out
    assert all(f"{name} ×" in out.replace("\n  ", " ") for name in ("exponential", "broken_power", "constant"))
    assert out.endswith("supported\n")


def test_command_fits_two_variables_and_crossings(command, tmp_path):
    table, _ = campaign("sum", 4, 0.01)
    table.to_csv(tmp_path / "loss.csv", index=False)
    status, out, _ = command(tmp_path / "loss.csv", "--x", "n,m", "--y", "y", "--model", "sum", columns="30")
    assert status == 0
    assert "beta" in out
    assert max(map(len, out.splitlines())) <= 30
    curves(0).to_csv(tmp_path / "curves.csv", index=False)
    status, out, _ = command(tmp_path / "curves.csv", "--x", "d", "--y", "n", "--crossing", "error=0.15")
    assert status == 0
    assert out.startswith("n_star = ")


def test_command_reads_a_results_folder(command, tmp_path):
    pytest.importorskip("jax")
    import pyarrow as pa

    from mtfl_jax.sweeps import store

    rows = campaign("power", 4, 0.05)[0].astype({"d": int, "seed": int}).rename(columns={"y": "test_loss"})
    columns = {name: rows[name] for name in rows} | {"id": np.arange(len(rows))}
    arrays = [pa.array(columns.get(field.name, [None] * len(rows)), field.type) for field in store.schema()]
    folder = store.Folder(tmp_path / "out")
    folder.append(pa.table(arrays, schema=store.schema()))
    status, out, err = command(tmp_path / "out", "--x", "d", "--y", "test_loss")
    assert (status, err) == (0, "")
    assert out.startswith("test_loss = ")
    assert "4 seeds" in out


def results(rows, path):
    """A results folder of the rows."""
    import pyarrow as pa

    from mtfl_jax.sweeps import store

    columns = {name: rows[name] for name in rows} | {"id": np.arange(len(rows))}
    arrays = [
        pa.array(columns.get(field.name, [None] * len(rows)), field.type, from_pandas=True) for field in store.schema()
    ]
    store.Folder(path).append(pa.table(arrays, schema=store.schema()))
    return path


def test_command_leaves_out_rows_that_diverged(command, tmp_path):
    rows = campaign("power", 6, 0.01)[0].astype({"d": int, "seed": int}).rename(columns={"y": "test_loss"})
    bad = rows["seed"] > 3
    rows = rows.assign(step=1, status=np.where(bad, "diverged", "ok"), test_loss=rows["test_loss"].where(~bad, 7))
    left = results(rows[~bad], tmp_path / "ok")
    _, expected, _ = command(left, "--x", "d", "--y", "test_loss")
    rows.to_csv(tmp_path / "table.csv", index=False)
    for path in (results(rows, tmp_path / "all"), tmp_path / "table.csv"):
        status, out, err = command(path, "--x", "d", "--y", "test_loss")
        assert (status, err) == (0, "")
        assert out.replace("left out: 12 rows that diverged\n", "") == expected
        assert "left out: 12 rows that diverged\n" in out
    rows.assign(status="diverged").to_csv(tmp_path / "none.csv")
    status, out, err = command(tmp_path / "none.csv", "--x", "d", "--y", "test_loss")
    assert (status, out) == (2, "")
    assert err == "mtfl-fit: TABLE=36 rows: every one of them diverged; allowed: one or more that did not\n"


def test_command_says_what_it_takes_for_one(command, tmp_path):
    rows = campaign("power", 4, 0.01)[0].astype({"d": int, "seed": int}).rename(columns={"y": "test_loss"})
    rows = rows.assign(step=1, status="ok", n1=2 * rows["d"])
    both = pd.concat([rows.assign(weight_decay=0.5), rows.assign(weight_decay=None)], ignore_index=True)
    path = results(both, tmp_path / "all")
    asked = [path, "--x", "d", "--y", "test_loss"]
    status, out, err = command(*asked)
    assert (status, out) == (2, "")
    ways = "--where weight_decay=VALUE keeps one, --by weight_decay fits each, --pool weight_decay takes all for one"
    assert err == f"mtfl-fit: --x=d: rows of one fit differ in weight_decay = 0.5, —; allowed: {ways}\n"
    status, out, _ = command(*asked, "--pool", "weight_decay")
    assert status == 0
    assert "fitted as one: weight_decay = 0.5, —\n" in out
    assert "n1" not in out
    assert command(*asked, "--pool", "n2")[0] == 2
    assert command(*asked, "--pool", "decay")[2].startswith("mtfl-fit: --pool=decay: allowed: the columns d, ")
    for value in ("null", "0.5"):
        status, out, _ = command(path, "--x", "d", "--y", "test_loss", "--where", f"weight_decay={value}")
        assert status == 0
        assert "points: 24;" in out
        assert "fitted as one" not in out
    status, out, _ = command(*asked, "--by", "weight_decay")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()[-3:-1]] == ["0.5", "—"]
    _, _, err = command(path, "--x", "d", "--y", "test_loss", "--where", "weight_decay=1")
    assert err.endswith("no such row; allowed for weight_decay: 0.5, null\n")


def lawful(rng, groups, seeds=4, noise=0.02):
    """Rows of a power law for each of the groups, an exponent each, in no order."""
    n, seed = np.array([64, 128, 256, 512, 1024]), range(seeds)
    parts = []
    for group in groups:
        own = pd.MultiIndex.from_product([n, seed], names=["n2", "seed"]).to_frame(index=False)
        power, errors = rng.uniform(-1, -0.2), np.exp(noise * rng.standard_normal(len(own)))
        parts.append(own.assign(**group, test_loss=own["n2"] ** power * errors))
    return pd.concat(parts, ignore_index=True).sample(frac=1, random_state=0, ignore_index=True)


@pytest.mark.parametrize("draw", range(6))
def test_each_law_of_several_is_that_of_its_rows(draw):
    rng = np.random.default_rng(draw)
    values = {"d": [8, 16, 32], "tasks": ["balanced", None], "lr_w": [0.5, 0.50001]}
    by = [str(name) for name in rng.permutation(list(values))[: rng.integers(1, 4)]]
    every = [dict(zip(by, each, strict=True)) for each in itertools.product(*(values[name] for name in by))]
    table = lawful(rng, every)
    model = ["power", "auto"][draw % 2]
    found = laws.fit_by(table, "n2", "test_loss", model, by=by, bootstraps=20)
    assert len(found) == len(every)
    for group in every:
        rows, law = table, found
        for name, value in group.items():
            rows, law = (one[one[name].isna() if value is None else one[name] == value] for one in (rows, law))
        (row,) = law.to_dict("records")
        own = fits.fit(rows, "n2", "test_loss", model, bootstraps=20)
        assert (row["y"], row["x"], row["model"]) == ("test_loss", "n2", own.model)
        for name, value in own.parameters.items():
            assert (row[name], row[f"{name}_low"], row[f"{name}_high"]) == (value, *own.intervals[name])
        for name in ("points", "seeds", "censored", "at_most", "diverged", "held_out_error", "supported", "why"):
            assert row[name] == getattr(own, name)


def test_laws_of_each_group_are_of_crossings_and_of_several_variables_too():
    table = pd.concat([curves(draw).assign(kind=str(draw)) for draw in (0, 1)], ignore_index=True)
    found = laws.fit_by(table, "d", "n", by="kind", crossing=("error", 0.15), bootstraps=20)
    for row in found.to_dict("records"):
        own = crossings.fit_crossings(
            table[table["kind"] == row["kind"]], "d", curve="n", error="error", epsilon=0.15, bootstraps=20
        )
        assert (row["y"], row["exponent"], row["exponent_low"]) == (
            "n_star",
            own.parameters["exponent"],
            own.intervals["exponent"][0],
        )
    table = pd.concat([campaign("sum", draw, 0.01)[0].assign(kind=str(draw)) for draw in (4, 5)], ignore_index=True)
    found = laws.fit_by(table, ("n", "m"), "y", "sum", by=["kind"], bootstraps=20)
    assert list(found["x"]) == ["n,m"] * 2
    assert found[["alpha", "beta", "E"]].notna().all(axis=None)


def test_a_group_that_has_no_law_does_not_end_the_others(command, tmp_path):
    rng = np.random.default_rng(0)
    table = lawful(rng, [{"d": 8}, {"d": 16}, {"d": 32}])
    table.loc[table["d"] == 16, "test_loss"] = -1.0
    table = table[(table["d"] != 32) | (table["n2"] < 100)]
    table.to_csv(tmp_path / "t.csv", index=False)
    status, out, err = command(tmp_path / "t.csv", "--x", "n2", "--y", "test_loss", "--by", "d")
    assert (status, err) == (1, "")
    said = " ".join(out.split())
    assert "d = 16: not supported: y=test_loss: 20 of 20 values are missing, infinite or not positive" in said
    assert "d = 32: not supported: 1 distinct n2" in said
    found = laws.fit_by(table, "n2", "test_loss", by="d")
    assert list(found["supported"]) == [True, False, False]
    assert found["exponent"].notna().tolist() == [True, False, False]
    assert command(tmp_path / "t.csv", "--x", "n2", "--y", "test_loss", "--by", "d", "--where", "d=8")[0] == 0
    every = laws.fit_by(table[table["d"] == 16], "n2", "test_loss", by="d")
    assert (every["points"].item(), every["model"].item()) == (0, None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"by": "dd"}, "by=dd: allowed: the columns"),
        ({"by": "n2"}, "by=n2: allowed: columns that the law is not of"),
        ({"by": "d", "model": "line"}, "model=line: allowed: auto, power"),
        ({"by": "d", "censored": "cut"}, "censored=cut: allowed: the columns"),
        ({"by": "d", "bootstraps": 3}, "bootstraps=3: allowed: an integer from 20"),
        ({"by": "d", "crossing": ("error", 0.1)}, "error=error: allowed: the columns"),
        ({"by": "a"}, "by=a: the law has a number of that name; allowed: a column of another name"),
    ],
)
def test_what_is_wrong_for_every_group_is_raised(given, said):
    table = lawful(np.random.default_rng(0), [{"d": 8, "a": 1}, {"d": 16, "a": 1}])
    with pytest.raises(ValueError, match=re.escape(said)):
        laws.fit_by(table, "n2", "test_loss", **{"bootstraps": 20, **given})


@pytest.mark.parametrize("key", ["x", "y", "by", "pool"])
def test_a_column_of_lists_is_refused_in_a_line(key):
    table = lawful(np.random.default_rng(0), [{"d": 8}, {"d": 16}])
    table = table.assign(step=1, status="ok", lists=[[1.0, 2.0]] * len(table))
    asked = {"x": "n2", "y": "test_loss", key: "lists"}
    with pytest.raises(ValueError, match=f"^{key}=lists: a column of lists; allowed: one of numbers or names$"):
        laws.fit_by(table, **asked, bootstraps=20)


def test_rows_of_several_settings_are_one_law_only_where_that_is_said():
    rows = lawful(np.random.default_rng(0), [{"d": d, "num_tasks": t} for d in (8, 16) for t in (1, 4)])
    rows = rows.assign(n1=2 * rows["d"], step=1, status="ok")
    rows = rows[["d", "num_tasks", "n1", "n2", "seed", "step", "status", "test_loss"]]
    options = {"bootstraps": 20}
    with pytest.raises(
        ValueError, match=r"^x=n2: rows fitted as one differ in d = 8, 16 and num_tasks = 1, 4; allowed"
    ):
        laws.fit_by(rows, "n2", "test_loss", **options)
    with pytest.raises(ValueError, match=r"differ in num_tasks = 1, 4; allowed"):
        laws.fit_by(rows, "n2", "test_loss", by="d", **options)
    assert len(laws.fit_by(rows, "n2", "test_loss", by="d", pool="num_tasks", **options)) == 2
    assert len(laws.fit_by(rows, "n2", "test_loss", pool=["d", "num_tasks"], **options)) == 1
    assert len(laws.fit_by(rows, "n2", "test_loss", by=["n1", "num_tasks"], **options)) == 4
    assert len(laws.fit_by(rows.drop(columns="step"), "n2", "test_loss", **options)) == 1  # Nobody's settings.


def test_laws_are_kept_as_numbers_and_for_a_paper(command, tmp_path):
    table = lawful(np.random.default_rng(1), [{"my_d%": "a_b & c"}, {"my_d%": "x$^2$ #1"}]).assign(z=1)
    table.loc[table["my_d%"] == "a_b & c", "test_loss"] *= 1e9
    table = pd.concat([table, table.head(4).assign(**{"my_d%": "few"})], ignore_index=True)
    table.to_csv(tmp_path / "t.csv", index=False)
    asked = [tmp_path / "t.csv", "--x", "n2", "--y", "test_loss", "--by", "my_d%"]
    status, out, err = command(*asked, "--out", tmp_path / "laws.csv")
    assert (status, err) == (1, "")
    assert out.endswith(f"wrote {tmp_path / 'laws.csv'}\n")
    numbers = laws.fit_by(table, "n2", "test_loss", by="my_d%")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "laws.csv"), numbers.replace("", np.nan), check_dtype=False)
    assert command(*asked, "--out", tmp_path / "laws.tex")[0] == 1
    text = (tmp_path / "laws.tex").read_text()
    assert text.startswith("% test_loss against n2 for each my_d%: power\n% 95% intervals, by resampling ")
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{lrrrrl}"):
        assert text.count(rule) == 1
    body = [
        line.removesuffix(r" \\").split(" & ") for line in re.sub(r"\\&", "AND", text).splitlines() if " & " in line
    ]
    assert body[0] == [r"my\_d\%", "exponent", "a", "points", "held-out error", "supported"]
    assert [row[0] for row in body[1:]] == [r"a\_b AND c", "few", r"x\$\textasciicircum 2\$ \#1"]
    assert body[2][1:3] == ["---", "---"]
    for row, law in zip((body[1], body[3]), numbers[numbers["supported"]].to_dict("records"), strict=True):
        for name, cell in (("exponent", row[1]), ("a", row[2])):
            shown = [
                float(number.replace(r" \times 10^{", "e").rstrip("}")) for number in re.findall(r"\$([^$]+)\$", cell)
            ]
            expected = [law[name], law[f"{name}_low"], law[f"{name}_high"]]
            np.testing.assert_allclose(shown, expected, rtol=5.1e-3)  # Three digits.
    assert command(*asked, "--out", tmp_path / "no" / "laws.csv")[0] == 2
    status, out, err = command(*asked[:-2], "--out", tmp_path / "laws.txt")
    assert (status, out) == (2, "")
    assert err == f"mtfl-fit: --out={tmp_path}/laws.txt: allowed: a name that ends in .csv, .tex\n"


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_several_laws_fit_the_terminal(command, tmp_path, columns):
    table = lawful(np.random.default_rng(1), [{"d": d, "family": name} for d in (8, 16) for name in ("one", "other")])
    table.to_csv(tmp_path / "t.csv", index=False)
    asked = [tmp_path / "t.csv", "--x", "n2", "--y", "test_loss", "--by", "d,family", "--bootstraps", "20"]
    status, out, _ = command(*asked, columns=str(columns))
    assert status == 0
    assert max(map(len, out.splitlines())) <= columns
    for group in laws.fit_each(table, "n2", "test_loss", by=["d", "family"], bootstraps=20):
        assert all(part in out for part in group.fit.value("exponent").replace(" (", "\n(").split("\n"))


def test_extensions_bring_a_law(command, tmp_path, monkeypatch):
    from mtfl_jax.analysis import models

    monkeypatch.setattr(models, "MODELS", copy.deepcopy(models.MODELS))
    for module in (fits, fit_command):
        monkeypatch.setattr(module, "MODELS", models.MODELS)
    loaded = []

    def load(names):
        loaded.append(names)
        with registering("laws:0"):
            models.MODELS.register(dataclasses.replace(models.POWER, name="mine", text="{y} = mine {a} {x} {exponent}"))

    monkeypatch.setattr("mtfl_jax.extend.load", load)
    campaign("power", 4, 0.01)[0].to_csv(tmp_path / "table.csv", index=False)
    given = [tmp_path / "table.csv", "--x", "d", "--y", "y", "--model", "mine"]
    assert command(*given)[0] == 2
    status, out, err = command(*given, "--extensions", "laws.py")
    assert (status, err, loaded) == (0, "", [["laws.py"]])
    assert out.startswith("y = mine ")


def test_command_says_what_the_data_cannot_support(command, tmp_path):
    noisy().query("d <= 16").to_csv(tmp_path / "few.csv")
    status, out, err = command(tmp_path / "few.csv", "--x", "d", "--y", "y")
    assert (status, err) == (1, "")
    assert "not supported: 2 distinct d" in out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--x", "d", "--y", "loss"], "mtfl-fit: --y=loss: allowed: the columns d, seed, y"),
        (["--x", "d,seed", "--y", "y"], "--x=d,seed: allowed: 1 column"),
        (["--x", "d", "--y", "y", "--model", "line"], "--model=line: allowed: auto, power"),
        (["--x", "d", "--y", "y", "--where", "d=9"], "--where=d=9: no such row; allowed for d: 8.0, 16.0"),
        (["--x", "d", "--y", "y", "--where", "e=9"], "--where=e=9: allowed: COLUMN=VALUE, columns d, seed, y"),
        (["--x", "d", "--y", "y", "--at-most", "z"], "--at-most=z: allowed: the columns"),
        (["--x", "d", "--y", "y", "--crossing", "z=1"], "--crossing=z: allowed: the columns"),
        (["--x", "d", "--y", "y", "--crossing", "y"], "--crossing=y: allowed: COLUMN=NUMBER"),
        (["--x", "d", "--y", "y", "--crossing", "y=1", "--censored", "z"], "--crossing=y=1: allowed: without"),
        (["--x", "d"], "--y"),
        (["--x", "d", "--y", "y", "--level", "high"], "--level"),
    ],
)
def test_bad_arguments_are_one_line(command, tmp_path, args, said):
    noisy().to_csv(tmp_path / "table.csv", index=False)
    status, out, err = command(tmp_path / "table.csv", *args)
    assert (status, out) == (2, "")
    assert err.startswith("mtfl-fit: ")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "text"), [("no.csv", None), ("no", None), ("x.txt", "a"), ("x.parquet", "a"), ("x.csv", ""), ("", None)]
)
def test_bad_tables_are_one_line(command, tmp_path, name, text):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    status, out, err = command(path, "--x", "d", "--y", "y")
    assert (status, out) == (2, "")
    assert err.startswith(f"mtfl-fit: TABLE={path}: ")
    assert "allowed: " in err
    assert err.count("\n") == 1


def test_fits_need_no_jax():
    code = "import sys, mtfl_jax.analysis.fit_command; assert not {'jax', 'matplotlib', 'hydra'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_law_that_may_be_none_is_called_so():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"x": np.repeat([1.0, 2, 4, 8, 16], 8), "seed": np.tile(np.arange(8), 5)})
    noise = np.exp(0.001 * rng.standard_normal(40))
    flat, steep = (fits.fit(table.assign(y=table["x"] ** power * noise), "x", "y") for power in (0, 0.5))
    said = "supported, and so is no dependence at all: the interval of exponent holds 0"
    assert (fit_command.lines(flat)[-1], fit_command.lines(steep)[-1]) == (said, "supported")


@given(st.lists(st.floats(-1e300, 1e300), min_size=3, max_size=3))
@settings(deadline=None, derandomize=True, max_examples=500, database=None)
def test_digits_follow_the_interval(numbers):
    low, value, high = sorted(numbers)
    shown = [float(text) for text in fits.texts(value, low, high)]
    half = (high - low) / 2
    for number, text in zip((value, low, high), shown, strict=True):
        # Two digits of half the width leave a tenth of it at most, and no number has more than six.
        assert abs(text - number) <= max(0.051 * half, 0.51e-5 * abs(number), 0.0 if half else 0.51e-2 * abs(number))
        assert low < 0 < high or np.sign(text) == np.sign(number)
    assert shown[1] <= shown[0] <= shown[2]


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((-0.4842, -0.50931, -0.46109), ("-0.484", "-0.509", "-0.461")),
        ((2.04e-8, 1.91e-8, 2.2e-8), ("2.04e-08", "1.91e-08", "2.2e-08")),
        ((477.83, 289.8, 739.0), ("480", "290", "740")),
        ((1234567.0, 1034567.0, 1434567.0), ("1.23e+06", "1.03e+06", "1.43e+06")),
        ((0.00012, -0.021, 0.019), ("0", "-0.021", "0.019")),
        ((0.003, 0.0, 1.0), ("0.003", "0", "1")),
        ((1.7, 1.7, 1.7), ("1.7", "1.7", "1.7")),
        ((3.14159, np.nan, np.nan), ("3.14", "nan", "nan")),
        ((3.14159, 0.0, np.inf), ("3.14", "0", "inf")),
    ],
)
def test_digits(numbers, said):
    assert fits.texts(*numbers) == said


@pytest.mark.parametrize("draw", range(4))
@pytest.mark.parametrize("model", ["power", "exponential", "power_floor"])
def test_what_is_printed_is_what_was_fitted_in_any_units(command, tmp_path, model, draw):
    rng = np.random.default_rng(draw)
    of_x, of_y = 10.0 ** rng.uniform(-7, 7, 2)
    table, _ = campaign(model, 6, 0.03, rng=draw)
    plain = fits.fit(table, "d", "y", model, bootstraps=50)
    table = table.assign(d=table["d"] * of_x, y=table["y"] * of_y)
    fit = fits.fit(table, "d", "y", model, bootstraps=50)
    slope = fit.law.exponents[0]
    unit = 1 / of_x if model == "exponential" else 1.0
    np.testing.assert_allclose(fit.parameters[slope], plain.parameters[slope] * unit, rtol=1e-4)
    assert fit.supported == plain.supported
    table.to_csv(tmp_path / "t.csv", index=False)
    asked = [tmp_path / "t.csv", "--x=d", "--y=y", f"--model={model}", "--bootstraps=50"]
    _, out, _ = command(*asked, columns="200")
    cells = laws.texts_of([laws.Group((), fit, "")], ())
    command(*asked, "--out", tmp_path / "t.tex")
    tex = (tmp_path / "t.tex").read_text()
    for name, value in fit.parameters.items():
        low, high = fit.intervals[name]
        text = fit.value(name)
        assert text == cells[name].item()
        assert f"{name} {text}" in " ".join(out.split())
        shown = np.array([float(number) for number in re.split(r" \(| to |\)", text)[:3]])
        assert (np.abs(shown - [value, low, high]) <= 0.06 * (high - low) / 2 + 1e-5 * abs(value)).all()
        assert (shown != 0).all() or low <= 0 <= high
        first = text.split()[0]
        assert first in fit.formula()
        assert fit.formula() in out
        if fit.supported:
            assert laws._tex(first) in tex
    assert fit.value(slope) in fit.exponents()
    assert not fit.supported or fit.value(slope) in fit.sentence()
    assert fit.value(slope) in fits.table_of({"it": fit})["exponent"].item()


def test_rounding_of_no_exponent_is_0():
    table, _ = campaign("power", 4, parameters={"a": 16.0, "exponent": 0.0})
    for factor in (1e-6, 1.0, 1e6):
        for model in ("power", "exponential"):
            fit = fits.fit(table.assign(d=table["d"] * factor, y=table["y"] / 3), "d", "y", model, bootstraps=20)
            (name,) = fit.law.exponents
            assert fit.value(name) == "0 (0 to 0)"


def test_delta_is_where_the_loss_turns_linear(command, tmp_path):
    table, _ = campaign("power", 4, 0.1, heavy=True)
    u, log_y = np.log(table["d"]), np.log(table["y"])
    table.to_csv(tmp_path / "t.csv", index=False)
    for delta in (1e-3, 0.05, 3.0):

        def loss(theta, delta=delta):
            size = np.abs(log_y - theta[0] - theta[1] * u)
            return np.where(size < delta, size**2 / 2, delta * (size - delta / 2)).sum() / delta

        options = {"xatol": 1e-9, "fatol": 1e-12, "maxiter": 4000}
        best = optimize.minimize(loss, [1, 1.7], method="Nelder-Mead", options=options)
        fit = fits.fit(table, "d", "y", delta=delta, bootstraps=50)
        assert loss([np.log(fit.parameters["a"]), fit.parameters["exponent"]]) <= best.fun * (1 + 1e-6)
        found = laws.fit_by(table, "d", "y", delta=delta, bootstraps=50)
        assert found["exponent"].item() == fit.parameters["exponent"]
        _, out, _ = command(tmp_path / "t.csv", "--x=d", "--y=y", f"--delta={delta}", "--bootstraps=50")
        assert fit.value("exponent") in out
    status, out, err = command(tmp_path / "t.csv", "--x=d", "--y=y", "--delta=0")
    assert (status, out, err) == (2, "", "mtfl-fit: --delta=0.0: allowed: above 0\n")
