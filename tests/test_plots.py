"""`mtfl-plot` and `mtfl_jax.plot`: what a figure shows is what the table says, and nothing is averaged in silence."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import mtfl_jax
from mtfl_jax.analysis import figures, plot_command, plots

ALL = {"n2": [256, 512, 1024, 2048, 4096], "num_tasks": [1, 4, 16], "d": [16, 32], "tasks": ["balanced", "uniform"]}


def table_of(seeds=6, **axes):
    """A table as mtfl's, of measurements that its settings tell."""
    axes = {**axes, "seed": list(range(seeds))}
    rows = pd.MultiIndex.from_product(axes.values(), names=axes).to_frame(index=False)
    rng = np.random.default_rng(0)
    size = 2.0 * rows["n2"] ** -0.5 if "n2" in rows else pd.Series(0.3, rows.index)
    scale = rows.get("num_tasks", 1) ** -0.25 * (rows.get("d", 16) / 16) ** 0.5
    distance = size * scale * np.exp(0.1 * rng.standard_normal(len(rows)))
    return rows.assign(step=1, status="ok", diverged_step=pd.NA, subspace_distance=distance, task_error=0.5 * distance)


def lines(figure, panel=0):
    """The marked lines of a panel: label, x, y."""
    found = [line for line in figure.axes[panel].get_lines() if line.get_marker() not in ("None", None)]
    return {line.get_label(): line.get_xydata() for line in found}


def test_lines_are_the_means_of_the_rows():
    table = table_of(n2=ALL["n2"], num_tasks=ALL["num_tasks"], d=ALL["d"])
    figure = plots.plot(table)
    means = table.groupby(["num_tasks", "d", "n2"])["subspace_distance"].mean()
    # The color takes few values, the panels more.
    assert [ax.get_title() for ax in figure.axes] == [f"num_tasks = {t}" for t in ALL["num_tasks"]]
    for panel, num_tasks in enumerate(ALL["num_tasks"]):
        found = lines(figure, panel)
        assert list(found) == ["16", "32"]
        for d in ALL["d"]:
            np.testing.assert_allclose(found[str(d)], means[num_tasks, d].reset_index())
    assert {ax.get_xscale() for ax in figure.axes} == {"log"}
    assert figure.get_label() == (
        "subspace distance (sine of angle) against samples of a representation step n2, a line for each d, a panel for"
        " each num_tasks. Mean of 6 seeds; bands are one standard error."
    )


@pytest.mark.parametrize("agg", figures.AGGREGATES)
@pytest.mark.parametrize("band", figures.BANDS)
def test_bands(agg, band):
    table = table_of(20, n2=ALL["n2"][:2])
    if (agg, band) == ("median", "se"):
        with pytest.raises(ValueError, match="band=se: allowed with agg=median: ci, quantile, none"):
            plots.plot(table, agg=agg, band=band)
        return
    found = figures.summary(table, "n2", "subspace_distance", agg, band)
    for n2, own in table.groupby("n2")["subspace_distance"]:
        centre, low, high = found.loc[n2]
        assert centre == own.agg(agg)
        if band == "se":
            np.testing.assert_allclose([centre - low, high - centre], stats.sem(own))
        elif band == "quantile":
            np.testing.assert_allclose([low, high], np.quantile(own, [0.25, 0.75]))
        elif band == "none":
            assert low == centre == high
        elif agg == "mean":
            np.testing.assert_allclose([low, high], stats.t.interval(0.95, 19, own.mean(), stats.sem(own)))
        else:
            # The 6th and the 15th of 20 are an interval of the median at 95.9% by the binomial law.
            ordered = np.sort(own)
            assert ordered[3] <= low <= ordered[8]
            assert ordered[11] <= high <= ordered[16]
    figure = plots.plot(table, agg=agg, band=band)
    assert (band == "none") == ("bands" not in figure.get_label())


def test_a_map_is_the_means_of_the_rows():
    table = table_of(n2=ALL["n2"], num_tasks=ALL["num_tasks"], d=ALL["d"])
    lost = (table["n2"] == 512) & (table["num_tasks"] == 4) & (table["d"] == 32)
    table = table.assign(status=table["status"].where(~lost, "diverged"))
    figure = plots.plot(table, x="n2", y="num_tasks", color="subspace_distance", facet="d", log="c")
    means = table.groupby(["d", "num_tasks", "n2"])["subspace_distance"].mean().where(lambda m: m > 0)
    means.loc[(32, 4, 512)] = np.nan
    for panel, d in enumerate(ALL["d"]):
        (mesh,) = figure.axes[panel].collections
        np.testing.assert_allclose(np.ma.filled(mesh.get_array(), np.nan), means[d].unstack())
        assert isinstance(mesh.norm, mpl.colors.LogNorm)
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == [str(n2) for n2 in ALL["n2"]]


def test_settings_side_by_side_are_all_of_them():
    table = table_of(2, n2=ALL["n2"], num_tasks=ALL["num_tasks"], d=ALL["d"])
    axes = ["n2", "num_tasks", "d"]
    figure = plots.parallel(table, axes, "subspace_distance")
    (drawn,) = (of for of in figure.axes[0].collections if isinstance(of, mpl.collections.LineCollection))
    means = table.groupby(axes)["subspace_distance"].mean().sort_values()
    np.testing.assert_allclose(drawn.get_array(), means)
    for line, setting in zip(drawn.get_segments(), means.index, strict=True):
        for place, (name, value) in enumerate(zip(axes, setting, strict=True)):
            # Each lies in its value's share of the axis.
            assert int(line[place, 1] * len(ALL[name])) == ALL[name].index(value)
    many = table_of(1, n2=range(1, 31), num_tasks=range(1, 31), d=ALL["d"])
    figure = plots.parallel(many, axes, "subspace_distance")
    assert len(figure.axes[0].collections[0].get_segments()) == plots.MOST_SETTINGS
    assert f"{plots.MOST_SETTINGS} of 1800 settings" in figure.get_label()


def test_what_is_left_over_is_held_and_said():
    """Then any table is drawn, and its caption says which rows are."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        table = table_of(2, n2=ALL["n2"], num_tasks=list(range(1, 12)), d=ALL["d"], tasks=ALL["tasks"])
        table = table[rng.random(len(table)) < rng.uniform(0.1, 1)]
        for kind in ("line", "heat"):
            plan = plots.planned(table, kind=kind, hold=True, panels=False)
            kept = [name for name in (plan.x, plan.y, plan.color) if name in ALL]
            assert not plan.table.duplicated([*kept, "seed"]).any()
            for name in set(ALL) - set(kept):
                assert f"{name} = {plan.table[name].unique().item()}" in plan.notes[0]
            assert kind == "heat" or plan.table[plan.color].nunique() <= figures.MOST_LINES
            caption = plots.draw(plan).get_label()
            assert all(note in caption for note in plan.notes)


@pytest.mark.parametrize(("factor", "scale"), [(2, "linear"), (9.9, "linear"), (11, "log"), (1e4, "log")])
def test_scales_are_logarithmic_where_numbers_span_a_decade(factor, scale):
    table = table_of(2, d=[16, 32])
    table["subspace_distance"] = np.where(table["d"] == 16, 0.1, 0.1 * factor)
    assert plots.plot(table).axes[0].get_yscale() == scale
    assert plots.plot(table, log="").axes[0].get_yscale() == "linear"
    # Nothing is a ratio to 0.
    assert plots.plot(table.assign(subspace_distance=table["subspace_distance"] - 0.1)).axes[0].get_yscale() == "linear"
    assert plots.plot(table.assign(subspace_distance=table["d"] ** 5)).axes[0].get_yscale() == "linear"


def test_numbers_beside_logarithmic_scales_are_written_as_they_are():
    figure = plots.plot(table_of(2, n2=ALL["n2"], num_tasks=ALL["num_tasks"]), log="xy")
    figures.drawn(figure, "svg")
    axis = figure.axes[0].yaxis
    texts = [text.get_text() for text in axis.get_ticklabels(which="both") if text.get_text()]
    assert {float(text) for text in texts}
    assert all("e" not in text for text in texts)


def test_points_are_the_rows():
    table = table_of(n2=ALL["n2"], num_tasks=ALL["num_tasks"])
    figure = plots.plot(table, x="task_error", y="subspace_distance", color="num_tasks")
    points = np.concatenate([of.get_offsets() for of in figure.axes[0].collections])
    assert sorted(map(tuple, points)) == sorted(zip(table["task_error"], table["subspace_distance"], strict=True))
    graded = plots.plot(table, x="task_error", color="n2", kind="scatter", log="c")
    assert len(graded.axes) == 1
    graded = plots.plot(table_of(20, num_tasks=ALL["num_tasks"]), x="task_error", color="seed")
    assert len(graded.axes) == 2  # The second is the bar of colours.


def test_a_law_stands_over_each_line():
    table = table_of(n2=ALL["n2"], num_tasks=ALL["num_tasks"])
    figure = plots.plot(table, fit="power", log="xy")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [label.partition(":")[0] for label in labels] == ["1", "4", "16"]
    assert all(-0.6 < float(label.split()[2]) < -0.4 for label in labels)
    with pytest.raises(ValueError, match="fit=nonsense: allowed: "):
        plots.plot(table, fit="nonsense")


def test_several_folders_are_told_apart(tmp_path):
    small = {"d": 8, "r": 2, "width": [8, 12], "measure": "recovery", "probe": "none", "seed": range(2)}
    for name, algorithm in (("a", "oracle"), ("b", "random_features")):
        mtfl_jax.sweep(algorithm=algorithm, folder=tmp_path / name, **small)
    figure = mtfl_jax.plot([tmp_path / "a", tmp_path / "b"], color="folder")
    assert list(lines(figure)) == ["a", "b"]
    alone = mtfl_jax.plot(str(tmp_path / "a"))
    np.testing.assert_array_equal(next(iter(lines(alone).values())), lines(figure)["a"])


AXES = st.fixed_dictionaries({}, optional={name: st.integers(1, len(values)) for name, values in ALL.items()})


@settings(max_examples=60, deadline=None)
@given(AXES, st.sampled_from([None, *plots.KINDS]), st.sampled_from([None, *ALL, "subspace_distance"]), st.data())
def test_any_table_is_drawn_or_refused_in_a_line(counts, kind, color, data):
    """Whatever is asked for: never rows of one point that differ in more than their seed."""
    table = table_of(3, **{name: ALL[name][:count] for name, count in counts.items()})
    x = data.draw(st.sampled_from([None, *counts, "task_error"]))
    try:
        plan = plots.planned(table, kind=kind, color=color, x=x)
        figure = plots.plot(table, kind=kind, color=color, x=x)
    except ValueError as error:
        key, _, rest = str(error).partition("=")
        assert key in ("x", "y", "color", "facet", "table")
        assert "allowed" in rest
        return
    again = plots.plot(table, kind=kind, color=color, x=x)
    assert figures.drawn(figure, "svg") == figures.drawn(again, "svg")
    if plan.kind != "scatter":
        kept = [name for name in (plan.x, plan.y, plan.color, plan.facet) if name in counts]
        assert not table.duplicated([*kept, "seed"]).any()


ANY = ["n2", "tasks", "seed", "status", "diverged_step", "subspace_distance", "task_error", "lists", "zero", "mixed"]


def table_of_any():
    """A table with columns of every sort: numbers, names, flags, lists, what no row has, zeros."""
    table = table_of(2, n2=[256, 512, 1024], tasks=["balanced", "uniform"])
    few = [value if place % 2 else None for place, value in enumerate(table["subspace_distance"])]
    return table.assign(lists=[[1.0, 2.0]] * len(table), zero=0.0, mixed=few)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_whatever_column_is_asked_for_the_answer_is_a_figure_or_a_line(data):
    asked = {name: data.draw(st.sampled_from([None, *ANY]), label=name) for name in ("x", "y", "color", "facet")}
    asked["kind"] = data.draw(st.sampled_from([None, *plots.KINDS]))
    asked["log"] = data.draw(st.sampled_from([None, "", "x", "xy", "xyc"]))
    asked["fit"] = data.draw(st.sampled_from([None, "power"]))
    where = data.draw(st.sampled_from([None, *ANY]))
    refused = None
    try:
        figures.drawn(plots.plot(table_of_any(), **asked, where=[] if where is None else [f"{where}=1"]), "svg")
    except ValueError as error:
        refused = str(error)
    if refused is None:
        assert all(asked[name] != "lists" for name in ("x", "y", "color", "facet"))
    else:
        key, _, rest = refused.partition("=")
        assert key in (*asked, "where", "table"), refused
        assert "allowed" in rest, refused
        assert "\n" not in refused


def test_no_tables_are_a_line():
    for nothing in ([], {}):
        with pytest.raises(ValueError, match=r"^table=.*: allowed: a table, or one or more folders"):
            mtfl_jax.plot(nothing)


def test_the_command(tmp_path, monkeypatch, called):
    monkeypatch.chdir(tmp_path)
    table_of(n2=ALL["n2"], num_tasks=ALL["num_tasks"]).to_csv(tmp_path / "t.csv", index=False)
    for name in ("a.pdf", "b.png", "c.svg"):
        status, out, err = called(plot_command.main, tmp_path / "t.csv", "--out", tmp_path / name, "--size", "column")
        assert (status, err) == (0, "")
        caption, wrote = out.splitlines()
        assert caption.endswith("Mean of 6 seeds; bands are one standard error.")
        assert wrote == f"wrote {tmp_path / name}"
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    for arguments, said in (
        (["--x", "n3"], "--x=n3: allowed: the columns "),
        (["--kind", "pie"], "--kind=pie: allowed: line, heat, scatter"),
        (["--log", "z"], "--log=z: allowed: letters of xyc"),
        (["--where", "n2=7"], "--where=n2=7: no such row; allowed for n2: 256"),
        (["--out", tmp_path / "x.gif"], f"--out={tmp_path}/x.gif: allowed: a name that ends in .pdf, .png, .svg"),
        (["--out", tmp_path / "none" / "x.pdf"], f"--out={tmp_path}/none/x.pdf: "),
        (["--facet", "n2", "--x", "d"], "--x=d: allowed: the columns "),
    ):
        status, _, err = called(plot_command.main, tmp_path / "t.csv", *arguments)
        assert status == 2
        (line,) = err.splitlines()
        assert line.startswith(f"mtfl-plot: {said}")
    table_of(n2=[256], d=[16]).assign(status="diverged").to_csv(tmp_path / "all.csv", index=False)
    status, _, err = called(plot_command.main, tmp_path / "all.csv")
    assert (status, err) == (2, "mtfl-plot: table=6 rows: nothing was measured; allowed: rows that are ok\n")
    status, _, err = called(plot_command.main, tmp_path / "nothing")
    assert (status, err.count("\n")) == (2, 1)
