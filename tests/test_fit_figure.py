"""`mtfl-fit --plot`: what is drawn is what was fitted."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from scipy import stats
from test_fits import campaign, command, curves  # noqa: F401

from mtfl_jax.analysis import command as commands
from mtfl_jax.analysis import fit_figure, fits, laws


def grouped(seeds=8, groups=(8, 16, 32), **columns):
    rng = np.random.default_rng(0)
    n = 2.0 ** np.arange(6, 15)
    rows = pd.MultiIndex.from_product([groups, n, range(seeds)], names=["d", "n", "seed"]).to_frame(index=False)
    noise = np.exp(0.1 * rng.standard_normal(len(rows)))
    return rows.assign(y=3 * rows["d"] * rows["n"] ** -0.5 * noise, **columns)


def points(ax):
    """The markers of a panel: colour, whether hollow, marker, x, y."""
    lines = [line for line in ax.get_lines() if line.get_marker() not in ("None", None) and len(line.get_xdata())]
    return [
        (to_hex(line.get_color()), line.get_markerfacecolor() == "white", line.get_marker(), *line.get_data())
        for line in lines
    ]


def said_of(line):
    """What the legend says of a line, whose words are kept together."""
    return line.get_label().replace("\xa0", " ")


def test_points_are_means_of_seeds_hollow_where_held_out_and_curves_are_the_laws():
    table = grouped()
    groups = laws.fit_each(table, "n", "y", by=["d"])
    figure = fit_figure.draw(groups, ["d"])
    (ax,) = figure.axes
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    found = points(ax)
    assert len({color for color, *_ in found}) == 3
    for group, (of, own) in zip(groups, table.groupby("d"), strict=True):
        means = np.exp(np.log(own["y"]).groupby(own["n"]).mean())
        held = sorted(means.index)[-3:]
        color = found[2 * list(table["d"].unique()).index(of)][0]
        for _, hollow, _, x, y in (one for one in found if one[0] == color):
            assert (sorted(x) == held) == hollow
            np.testing.assert_allclose(y, means[x])
        (curve,) = [line for line in ax.get_lines() if said_of(line) == f"{of}: {group.fit.exponents()}"]
        np.testing.assert_allclose(curve.get_ydata(), group.fit.predict(curve.get_xdata()))
        assert curve.get_xdata()[[0, -1]].tolist() == pytest.approx([64, 2**14])
    said = figure.get_label()
    assert said.startswith("y against n, a colour for each d: power. Points are geometric means with 95% intervals")
    assert "by resampling 8 seeds. Hollow ones were held out" in said
    assert figure.legends[0].get_title().get_text() == "d"


def test_intervals_of_points_are_those_of_their_seeds():
    table = grouped(seeds=24, groups=(8,))
    seen = fits.fit(table, "n", "y", bootstraps=2000).seen()
    logs = np.log(table["y"]).groupby(table["n"])
    np.testing.assert_allclose(np.log(seen.y), logs.mean())
    wide = 2 * stats.t.isf(0.025, 23) * logs.std() / np.sqrt(24)
    # A bootstrap of 24 has quantiles that are off by a fifth.
    np.testing.assert_allclose(np.log(seen.high / seen.low), wide, rtol=0.2)
    assert (seen.low < seen.y).all()
    assert (seen.y < seen.high).all()
    one = fits.fit(table[table["seed"] == 0], "n", "y").seen()
    np.testing.assert_allclose([one.low, one.high], [one.y] * 2)  # A row an x has nothing to be resampled.


def test_bounds_are_arrows_and_crossings_have_intervals():
    table = grouped(groups=(8,))
    table = table.assign(hit=table["y"] > 1.5, y=table["y"].clip(upper=1.5))
    fit = fits.fit(table, "n", "y", censored="hit")
    figure = fit_figure.draw([laws.Group((), fit, "")])
    arrows = [own for own in points(figure.axes[0]) if own[2] == r"$\uparrow$"]
    assert len(arrows) == 1
    assert len(arrows[0][3]) == fit.censored > 0
    assert (arrows[0][4] == 1.5).all()
    assert figure.get_label().endswith("An arrow up says at least.")
    groups = laws.fit_each(curves(3, largest=512), "d", "n", crossing=("error", 0.15), bootstraps=50)
    seen = groups[0].fit.seen()
    exact = seen.kind == 0
    assert 0 < exact.sum() < len(seen.y) == 5
    assert (seen.low < seen.high)[exact].all()
    assert np.isnan(seen.low[~exact]).all()
    assert fit_figure.draw(groups).axes[0].get_ylabel() == "n star"


def test_a_law_of_two_variables_is_drawn_against_what_was_measured():
    table, x = campaign("sum", 4, 0.01)
    groups = laws.fit_each(table, x, "y", "sum", bootstraps=20)
    (ax,) = fit_figure.draw(groups).axes
    found = points(ax)
    means = np.exp(np.log(table["y"]).groupby([table[name] for name in x]).mean())
    assert sum(len(own[3]) for own in found) == len(means) == 25
    for _, _, _, predicted, measured in found:
        np.testing.assert_allclose(predicted, measured, rtol=0.1)
    assert sorted(value for own in found for value in own[4]) == pytest.approx(sorted(means))
    assert ax.get_xlabel() == "y by the law"


@pytest.mark.parametrize("kind", commands.PICTURES)
def test_the_command_draws(command, tmp_path, kind):  # noqa: F811
    grouped().to_csv(tmp_path / "t.csv", index=False)
    asked = [tmp_path / "t.csv", "--x=n", "--y=y", "--by=d", "--bootstraps=20", f"--plot={tmp_path / 'f'}{kind}"]
    status, out, err = command(*asked)
    assert (status, err) == (0, "")
    assert " ".join(out.split()).endswith(f"the law that is drawn has them too. wrote {tmp_path / 'f'}{kind}")
    assert max(map(len, out.splitlines()[:-1])) <= 80
    magic = {".pdf": b"%PDF", ".png": b"\x89PNG", ".svg": b"<?xml"}
    assert (tmp_path / f"f{kind}").read_bytes().startswith(magic[kind])


def test_a_group_without_a_law_does_not_end_the_figure_of_the_others(command, tmp_path):  # noqa: F811
    table = grouped()
    table.loc[table["d"] == 16, "y"] = -1.0
    table = table[(table["d"] != 32) | (table["n"] < 100)]
    table.to_csv(tmp_path / "t.csv", index=False)
    figure = tmp_path / "f.png"
    asked = [tmp_path / "t.csv", "--x=n", "--y=y", "--by=d", "--bootstraps=20", f"--plot={figure}"]
    status, out, _ = command(*asked)
    assert (status, figure.exists()) == (1, True)
    (ax,) = fit_figure.draw(laws.fit_each(table, "n", "y", by=["d"], bootstraps=20), ["d"]).axes
    labels = [said_of(line) for line in ax.get_lines() if ": " in said_of(line)]
    assert labels[1:] == ["32: nothing fitted"]
    figure.unlink()
    status, out, _ = command(*asked, "--where=d=16")
    assert (status, figure.exists()) == (1, False)
    assert "there is no law to draw" in " ".join(out.split())


def test_figures_that_cannot_be_are_one_line(command, tmp_path):  # noqa: F811
    grouped(seeds=2, groups=range(1, 10)).to_csv(tmp_path / "t.csv", index=False)
    asked = [tmp_path / "t.csv", "--x=n", "--y=y", "--by=d", "--bootstraps=20"]
    for plot, said in (
        (tmp_path / "f.jpg", f"{tmp_path / 'f.jpg'}: allowed: a name that ends in .pdf, .png, .svg"),
        (tmp_path / "f.png", "9 laws: allowed: 1 to 8, --where keeps some"),
    ):
        assert command(*asked, f"--plot={plot}") == (2, "", f"mtfl-fit: --plot={said}\n")
    status, _, err = command(*asked, "--where=d=1", f"--plot={tmp_path / 'no' / 'f.png'}")
    assert status == 2
    assert err.startswith(f"mtfl-fit: --plot={tmp_path / 'no' / 'f.png'}: ")
    assert err.endswith("; allowed: a file that can be written\n")
