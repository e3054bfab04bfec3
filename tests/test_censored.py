"""Measurements that are only known to be at least something are no values: no mean has them, and fits count them."""

import numpy as np
import pandas as pd
import pytest
from test_fits import command  # noqa: F401

from mtfl_jax.analysis import comparison, crossings, describe, figures, fits, laws, plain, plots, report, studies
from mtfl_jax.analysis.findings import Findings

LIMIT = 300


def table_of(seeds=8, ceiling=LIMIT, **columns):
    """Rows as mtfl's of the steps to a threshold, like d·√n2, of which no more than `ceiling` are run."""
    axes = {"d": [8, 16], "n2": [64, 128, 256, 512, 1024], "seed": range(seeds)}
    rows = pd.MultiIndex.from_product(axes.values(), names=axes).to_frame(index=False)
    noise = np.exp(0.3 * np.random.default_rng(0).standard_normal(len(rows)))
    steps = rows["d"] * rows["n2"] ** 0.5 * noise
    return rows.assign(
        step=1,
        status="ok",
        test_loss=1 / steps,
        steps_to=steps.clip(upper=ceiling).round().astype("Int64"),
        steps_to_censored=(steps > ceiling).astype("boolean"),
        **columns,
    )


def known(table):
    """The values that are values, NaN elsewhere."""
    return table["steps_to"].astype(float).where(~table["steps_to_censored"].astype(bool))


def test_a_fit_counts_them_unasked(command, tmp_path):  # noqa: F811
    table = table_of().query("d == 8")
    fit = fits.fit(table, "n2", "steps_to")
    assert fit.censored == table["steps_to_censored"].sum() > 0
    assert fit == fits.fit(table, "n2", "steps_to", censored="steps_to_censored")
    other = table.rename(columns={"steps_to_censored": "censored"})
    assert fits.fit(other, "n2", "steps_to").parameters == fit.parameters
    # Its own comes before the other, which may be of another column.
    assert fits.fit(table.assign(censored=False), "n2", "steps_to").censored == fit.censored
    low, high = fit.intervals["exponent"]
    assert low < 0.5 < high
    taken = fits.fit(table.drop(columns="steps_to_censored"), "n2", "steps_to")
    assert taken.censored == 0
    assert taken.parameters["exponent"] < fit.parameters["exponent"]
    start = table.assign(at_start=table["n2"] == 64)
    assert fits.fit(start, "n2", "steps_to").at_most == 8
    found = laws.fit_by(table_of(), "n2", "steps_to", by="d")
    assert list(found["censored"]) == table_of().groupby("d")["steps_to_censored"].sum().tolist()
    table.to_csv(tmp_path / "t.csv", index=False)
    _, out, _ = command(tmp_path / "t.csv", "--x=n2", "--y=steps_to")
    assert f"at least: {fit.censored}" in out
    assert fit.value("exponent") in out


def test_rows_that_diverged_are_neither():
    table = table_of()
    bad = table["seed"] == 3
    # As they are kept: without measurements.
    lost = table.assign(**{name: table[name].mask(bad) for name in ("test_loss", "steps_to", "steps_to_censored")})
    lost["status"] = np.where(bad, "diverged", "ok")
    for own in (lost, table.assign(status=lost["status"])):
        fit = fits.fit(own.query("d == 8"), "n2", "steps_to")
        kept = fits.fit(table.query("d == 8 and seed != 3"), "n2", "steps_to")
        assert fit.diverged == 5
        assert (fit.parameters, fit.censored) == (kept.parameters, kept.censored)


def test_they_are_nobodys_x_and_in_no_mean_of_a_curve(command, tmp_path):  # noqa: F811
    table = table_of().query("d == 8")
    count = int(table["steps_to_censored"].sum())
    said = f"{count} of {len(table)} values are censored; allowed: rows without them"
    with pytest.raises(ValueError, match=f"^x=steps_to: {said}$"):
        fits.fit(table, "steps_to", "test_loss")
    with pytest.raises(ValueError, match=f"^error=steps_to: {said}$"):
        crossings.fit_crossings(table, "d", curve="n2", error="steps_to", epsilon=100)
    with pytest.raises(ValueError, match=f"^error=steps_to: {said}$"):
        crossings.crossings(table, curve="n2", error="steps_to", epsilon=100, by=["d"])
    table.to_csv(tmp_path / "t.csv", index=False)
    asked = ["--x=d", "--y=n2", "--crossing=steps_to=100"]
    assert command(tmp_path / "t.csv", *asked) == (2, "", f"mtfl-fit: --crossing=steps_to: {said}\n")
    asked = ["--x=steps_to", "--y=test_loss", "--where=steps_to_censored=false", "--pool=n2"]
    assert command(tmp_path / "t.csv", *asked)[0] == 0


def test_what_reads_a_table_has_no_value_of_them():
    table = table_of()
    measured = describe.measured(table)
    np.testing.assert_array_equal(measured["steps_to"].to_numpy(float, na_value=np.nan), known(table))
    pd.testing.assert_series_equal(measured["test_loss"], table["test_loss"])
    pd.testing.assert_frame_equal(describe.measured(table, bounds=True), table)
    assert describe.measured(table_of(ceiling=1e9)).notna().all(axis=None)
    # Marks of anyone's table.
    others = pd.DataFrame({"y": [1, 2, 3, 4], "y_censored": [True, False, None, 1], "z_censored": True})
    assert describe.exact(others)["y"].isna().tolist() == [True, False, False, True]


def test_means_leave_them_out_and_count():
    table = table_of()
    listing = plain.means(describe.measured(table), ["d", "n2"], ["steps_to"])
    groups = known(table).groupby([table["d"], table["n2"]])
    np.testing.assert_allclose(listing.data["steps_to"], groups.mean())
    assert listing.data["steps_to_n"].tolist() == groups.count().tolist()
    lost = int(table["steps_to_censored"].sum())
    assert listing.note == f"Rows in which steps_to is censored: {lost}; they are left out."
    some = listing.data["steps_to_n"].between(1, 7)
    assert some.any()
    for text, count in zip(listing.table["steps_to"], listing.data["steps_to_n"], strict=True):
        assert text.endswith(f"({count} of 8)") == (0 < count < 8)
        assert (text == describe.MISSING) == (count == 0)


def test_the_terminal_and_the_page_leave_them_out_and_say_so(monkeypatch):
    from rich.console import Console

    table = table_of().drop(columns="test_loss")
    lost = int(table["steps_to_censored"].sum())
    said = f"Rows in which steps_to is censored: {lost}; they are left out."

    def shown(rows):
        console = Console(width=100)
        with console.capture() as captured:
            console.print(report.rows(rows, 100))
        return captured.get()

    assert said in shown(table)
    assert f"{known(table).mean():.4g}" not in shown(table)
    worst = table[table["d"].eq(16) & table["n2"].eq(1024)]
    assert str(LIMIT) not in shown(worst)
    # Of one row, its bound stands beside what says that it is one.
    assert [str(LIMIT) in line for line in shown(worst.head(1)).splitlines() if "steps_to " in line] == [True]
    found = plain.findings(table)
    assert all(said in drawing.caption for drawing in found.drawings if drawing.name != "losses")
    both = comparison.findings({"a": table, "b": table.assign(steps_to=table["steps_to"] + 1)})
    assert f"censored: {2 * lost}" in both.listings[0].note
    assert "Rows in which steps_to is censored: " in both.drawings[0].caption
    seen = []
    study = studies.Study("mine", "", lambda rows: seen.append(rows) or Findings("", ""))
    monkeypatch.setattr(studies, "named", lambda name: study)
    studies.of("mine", table)
    assert seen[0]["steps_to"].notna().all()  # A study fits them.


@pytest.mark.parametrize("kind", plots.KINDS)
def test_figures_leave_them_out_and_say_so(kind):
    table = table_of()
    figure = plots.plot(table, y=None if kind == "heat" else "steps_to", kind=kind)
    if kind == "heat":
        figure = plots.plot(table, x="n2", y="d", color="steps_to")
    lost = int(table["steps_to_censored"].sum())
    assert f"Rows in which steps_to is censored: {lost}; they are left out." in figure.get_label()
    means = known(table).groupby([table["d"], table["n2"]]).mean().dropna()
    ax = figure.axes[0]
    if kind == "line":
        drawn = [y for line in ax.get_lines() if line.get_marker() != "None" for y in line.get_ydata()]
        np.testing.assert_allclose(sorted(drawn), sorted(means))
        # A law over a line counts them all the same.
        law = fits.fit(table[table["d"] == 8], "n2", "steps_to")
        label = plots.plot(table, y="steps_to", fit="power").legends[0].get_texts()[0].get_text()
        assert label == f"8: {law.exponents()}{'' if law.supported else ' (not supported)'}"
    if kind == "heat":
        np.testing.assert_allclose(sorted(ax.collections[0].get_array().compressed()), sorted(means))
    # Also where a study gives a table with them.
    own = figures.mean_and_error(table[table["d"] == 8], "n2", "steps_to")["mean"]
    np.testing.assert_allclose(own, means[8])
