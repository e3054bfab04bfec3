"""What tells rows apart, and which rows count: in every view of a table."""

import io
import itertools
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from rich.table import Table
from test_page import frame, rows_of

from mtfl_jax import names
from mtfl_jax.analysis import comparison, crossings, describe, figures, fits, page, plain, report


def test_points_of_intervals_are_told_from_what_advances_together():
    table = pd.DataFrame({"d": [8, 16, 32, 64] * 2, "n1": [1, 2, 3, 4] * 2, "lr_a": [0.1, 0.4, 0.2, 0.3] * 2})
    table = table.assign(seed=[0] * 4 + [1] * 4, step=1, status="ok", diverged_step=None, subspace_distance=0.5)
    assert describe.axes(table) == ["d"]
    assert describe.sampled(table, ["d"]) == [("d", "lr_a")]
    assert describe.moving(["d"], [("d", "lr_a")]) == ["d", "lr_a"]
    assert describe.sampled(table.drop(columns="lr_a"), ["d"]) == []
    found = plain.findings(table)
    assert found.title == "Sweep over d, lr_a"
    assert [drawing.name for drawing in found.drawings] == ["points", "settings"]
    assert list(found.listings[0].table)[:2] == ["d", "lr_a"]


def test_no_module_of_analysis_imports_jax():
    code = (
        "import importlib, pkgutil, sys, mtfl_jax.analysis, mtfl_jax.names, mtfl_jax.learning.kernel_limits\n"
        "found = list(pkgutil.walk_packages(mtfl_jax.analysis.__path__, 'mtfl_jax.analysis.'))\n"
        "for module in found: importlib.import_module(module.name)\n"
        "assert len(found) > 15 and not {'jax', 'hydra', 'mtfl_jax.config'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Whatever tells rows apart is seen

COLUMNS = {
    "algorithm": ("str", ["joint", "one_step"]),
    "loss": ("object", ["hinge", "linear", None]),
    "d": ("int64", [8, 16]),
    "n1": ("Int64", [64, 128, None]),
    "weight_decay": ("float64", [0.5, 0.50001, 0.0, None]),
    "momentum": ("Float64", [0.9, None]),
    "shared_inputs": ("boolean", [True, False, None]),
    "split_batch": ("bool", [True, False]),
    "losses": ("string", ["a+b", "a", None]),
    "extensions": ("object", ["mine 1f", "mine 2e", None]),
    "seed": ("int64", [0, 1, 2]),
    "draws": ("int64", [2]),
    "step": ("Int64", [1, 2]),
}
"""Settings of every type that a column may have, and values of theirs."""


def random_table(rng):
    """Rows that differ in their settings or seed; each column has all, few or one of its values."""
    count, columns = rng.integers(2, 12), {}
    for name, (kind, values) in COLUMNS.items():
        few = rng.permutation(len(values))[: rng.choice([1, 2, len(values)], p=[0.5, 0.2, 0.3])]
        drawn = rng.choice(few, count) if rng.random() < 0.7 else np.sort(rng.choice(few, count))
        columns[name] = pd.Series([values[place] for place in drawn], dtype=kind)
    table = pd.DataFrame(columns).drop_duplicates(ignore_index=True)
    good = rng.random(len(table)) < 0.8
    table = table.assign(status=np.where(good, "ok", "diverged"), diverged_step=pd.array([None] * len(table), "Int64"))
    measured = {name: rng.random(len(table)) for name in describe.MAIN}
    return table.assign(**measured)


def keys(table, columns):
    """What each row has in the columns, written by hand: a tuple with None for what is missing."""
    values = [[None if pd.isna(value) else value for value in table[name]] for name in columns]
    return [tuple(column[place] for column in values) for place in range(len(table))]


def same_setting(table):
    """Pairs of rows that differ in no setting but their seed."""
    found = keys(table, [name for name in COLUMNS if name != "seed"])
    return {pair for pair in itertools.combinations(range(len(table)), 2) if found[pair[0]] == found[pair[1]]}


def agreeing(cells):
    return {pair for pair in itertools.combinations(range(len(cells)), 2) if cells[pair[0]] == cells[pair[1]]}


def cells_of(shown):
    """The texts of a terminal table, a tuple a row."""
    return list(zip(*([str(cell) for cell in column.cells] for column in shown.columns), strict=True))


def tables_in(shown):
    """The terminal tables of a group."""
    return [part for part in shown.renderables if isinstance(part, Table)]


def draws(count, fast):
    """Numbers of random tables, of which all but the first are slow."""
    return [draw if draw < fast else pytest.param(draw, marks=pytest.mark.slow) for draw in range(count)]


@pytest.mark.parametrize("draw", draws(400, 100))
def test_no_view_takes_two_settings_for_one(draw):
    table = random_table(np.random.default_rng(draw))
    distinct = {name: len(set(keys(table, [name]))) for name in COLUMNS}
    varies = [name for name in COLUMNS if distinct[name] > 1]
    one = same_setting(table)

    assert describe.varying(table) == varies
    axes = describe.axes(table)
    assert set(axes) <= set(varies) - {"seed"}
    assert agreeing(keys(table, axes)) == one
    assert agreeing(describe.groups(table, axes)) == one
    for place, name in enumerate(axes):
        assert not describe.follows(table, name, axes[:place])

    told = describe.telling(table)
    assert agreeing(keys(table, told)) == set()
    (shown,) = map(cells_of, tables_in(report.many_rows(describe.measured(table), width=1000)))
    told = told if len(shown) == len(table) else axes  # Of many rows the means.
    # Beside the settings only the status and the measurements are shown.
    settings = [row[: len(told)] for row in shown]
    assert agreeing(settings) == set() or not told

    good = describe.ok(table)
    count = len(set(keys(table, [name for name in COLUMNS if name != "seed"])))
    found = plain.means(describe.measured(table), axes, list(describe.MAIN)).table
    assert len(found) == count
    assert len(set(keys(found, axes))) == count
    counted = str(len(table)) if good.all() else f"{good.sum()} of {len(table)}"
    assert describe.estimate(describe.measured(table)["task_error"]).counted() == counted

    sheets = {sheet["title"]: [row[0] for row in sheet["rows"]] for sheet in page._settings(table)}
    assert sheets.get("Those that vary", []) == varies
    constant = [name for name in COLUMNS if distinct[name] == 1 and table[name].notna().any()]
    assert sheets.get("The same for all rows", []) == constant


@pytest.mark.parametrize("draw", draws(40, 10))
def test_any_table_can_be_drawn_and_no_row_is_lost(draw):
    rng = np.random.default_rng(1000 + draw)
    table, other = (random_table(rng).assign(status="ok") for _ in range(2))
    for found in (plain.findings(table), comparison.findings({"a": table, "b": other})):
        for drawing in found.drawings:
            figures.svg(drawing.figure)


@pytest.mark.parametrize("draw", draws(60, 20))
def test_two_sweeps_differ_wherever_a_setting_does(draw):
    rng = np.random.default_rng(2000 + draw)
    first, second = random_table(rng), random_table(rng)
    rows = {row[0]: row[1:] for row in comparison.settings_apart([first, second])}
    for name in COLUMNS:
        one, other = (set(keys(own, [name])) for own in (first, second))
        assert (name in rows) == (one != other)
    assert ("rows" in rows) == (set(keys(first, COLUMNS)) != set(keys(second, COLUMNS)))
    assert all(one != other for name, (one, other) in rows.items() if name != "rows")
    assert comparison.settings_apart([first, first.sample(frac=1, random_state=0)]) == []
    assert comparison.settings_apart([first, first.head(0)]) == [("rows", f"{len(first)}", "0")]


def test_two_sweeps_differ_where_only_a_value_in_the_middle_does():
    first = frame(rows_of(n_down=list(range(100, 140)), seed=[0]))
    second = first.assign(n_down=first["n_down"].replace(120, 9000).replace(139, 9001).replace(9000, 120))
    second.loc[5, "n_down"] = 139
    (row, rows) = comparison.settings_apart([first, second])
    assert row[0] == "n_down"
    assert row[1] != row[2]
    assert rows == ("rows", "1 of 40 only here", "1 of 40 only here")


def decays():
    table = rows_of(seed=[0, 1], width=[0])
    table = pd.concat([table.assign(weight_decay=0.5), table.assign(weight_decay=None)], ignore_index=True)
    return frame(table.assign(width=32, task_error=[0.1, 0.1, 0.9, 0.9]))


def test_null_is_a_setting_like_another():
    table = decays()
    assert describe.axes(table) == ["weight_decay"]
    found = plain.findings(table)
    assert found.title == "Sweep over weight_decay"
    assert found.listings[0].title == "Means of 2 seeds ± standard error"
    assert list(found.listings[0].table["weight_decay"]) == ["0.5", "—"]
    assert list(found.listings[0].table["task_error"]) == ["0.1", "0.9"]
    ax = found.drawings[0].figure.axes[0]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0.5", "—"]
    varying, same = page._settings(table)
    assert ["weight_decay", "0.5, —"] in varying["rows"]
    assert "weight_decay" not in [row[0] for row in same["rows"]]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(report.rows(table, 200))
    assert "weight_decay" in console.export_text()


def test_a_line_of_null_is_drawn_and_named():
    table = decays()
    table = pd.concat([table.assign(d=d) for d in (8, 16, 32)], ignore_index=True)
    ax = plt.figure().add_subplot()
    figures.curves(ax, table, "d", "task_error", by="weight_decay")
    lines = [line for line in ax.lines if not line.get_label().startswith("_")]
    assert [(line.get_label(), list(line.get_ydata())) for line in lines] == [("0.5", [0.1] * 3), ("—", [0.9] * 3)]
    plt.close()


def test_curves_refuse_rows_of_several_settings():
    ax = plt.figure().add_subplot()
    with pytest.raises(ValueError, match="rows of one d, seed differ in weight_decay; allowed: one row for each"):
        figures.curves(ax, decays(), "d", "task_error")
    plt.close()


def test_settings_are_shown_with_the_digits_that_tell_them_apart():
    assert describe.texts(pd.Series([0.1, 0.25, None])) == ["0.1", "0.25", "—"]
    assert describe.texts(pd.Series([0.7, 0.7000000000000001])) == ["0.7", "0.7000000000000001"]
    assert describe.values(pd.Series([0.5, 0.50001])) == "0.5, 0.50001"


def test_values_show_what_is_missing():
    assert describe.values(pd.Series([3, 1, 2, None], dtype="Int64")) == "1…3, —"
    assert describe.values(pd.Series([None, None], dtype=object)) == ""


# A row that diverged has no measurements


def diverging():
    """Six seeds at two learning rates; at the second the last two diverged, with finite numbers left in their rows."""
    table = rows_of(seed=range(6), lr_w=[1.0, 300.0]).assign(task_error=0.125, contrastive_loss=1.0)
    bad = (table["seed"] > 3) & (table["lr_w"] == 300)
    table = table.assign(status=np.where(bad, "diverged", "ok"), task_error=np.where(bad, 0.9, 0.125), num_params=5)
    return frame(table)


def test_a_diverged_row_has_no_measurements():
    table = describe.measured(diverging())
    bad = table["status"] != "ok"
    assert bad.sum() == 2
    for name in describe.measurements(table):
        assert table.loc[bad, name].isna().all(), name
        if name in ("task_error", "num_params", "contrastive_loss"):
            assert table.loc[~bad, name].notna().all(), name
    pd.testing.assert_frame_equal(describe.measured(table), table)
    whole = diverging().assign(status="ok")
    assert describe.measured(whole) is whole


def test_a_table_of_others_counts_whole():
    table = pd.DataFrame({"d": [1, 2], "status": ["done", "failed"]})
    assert describe.ok(table).all()
    assert describe.ok(table.drop(columns="status")).all()
    assert list(describe.ok(table.assign(status=["ok", None]))) == [True, False]
    assert list(describe.ok(table.assign(status=["diverged", "diverged"]))) == [False, False]


def test_means_say_of_how_many_they_are():
    found = plain.findings(diverging())
    assert found.listings[0].title == "Means of 4 to 6 of 6 seeds ± standard error"
    assert list(found.listings[0].table["task_error"]) == ["0.125", "0.125 (4 of 6)"]
    assert "Means of 4 to 6 of 6 seeds; " in found.drawings[0].caption
    assert "Rows that diverged: 2; they are left out." in found.drawings[0].caption
    table = diverging()
    assert describe.seeds(table[table["lr_w"] == 300]) == "4 of 6 seeds"
    assert describe.seeds(table[table["lr_w"] == 1]) == "6 seeds"
    assert describe.seeds(table, whole=True) == "6 seeds"
    assert describe.seeds(table[table["seed"] == 0]) == "one seed"
    lost = table.assign(status=np.where(table["lr_w"] == 1, "ok", "diverged"))
    assert describe.seeds(lost) == "6 seeds, none at 1 of 2 settings"
    assert describe.seeds(lost.assign(status="diverged")) == "none of 6 seeds"


def printed(table, width):
    """What the terminal shows of a table, in lines."""
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(report.rows(table, width))
    return console.export_text().splitlines()


def test_the_terminal_shows_the_status_where_a_row_is_not_ok():
    table = diverging()
    assert len(table) > report.FEW_ROWS
    assert printed(table, 200)[-1].rstrip() == "2 of 12 rows diverged and count in no mean"
    assert "0.9" not in "".join(printed(table, 200))
    table = table[table["lr_w"] == 300]
    assert "status" not in "".join(printed(table[table["status"] == "ok"], 200))
    assert "".join(printed(table, 200)).count("diverged") == 2
    assert "0.9" not in "".join(printed(table, 200))
    assert "0.9" not in "".join(printed(table[table["status"] != "ok"].head(1), 200))


def words(lines):
    """What stands in lines, whatever breaks them."""
    return "".join(character for line in lines for character in line if not character.isspace())


@pytest.mark.parametrize("draw", draws(300, 60))
def test_the_terminal_cuts_no_number_whatever_its_width(draw):
    rng = np.random.default_rng(3000 + draw)
    table = random_table(rng)
    repeats = rng.integers(1, 12)
    table = pd.concat([table.assign(seed=table["seed"] + 3 * again) for again in range(repeats)], ignore_index=True)
    scale = 10.0 ** rng.integers(-9, 9, len(describe.MAIN))
    table = table.assign(**{name: at * rng.random(len(table)) for name, at in zip(describe.MAIN, scale, strict=True)})
    table = table.assign(own=rng.random(len(table)), another_measurement_of_mine=1.0)
    width = int(rng.choice([30, 40, 60, 80, 120, 250]))
    lines = printed(table, width)
    assert max(map(len, lines)) <= width
    good = describe.measured(table)
    axes = describe.axes(table)
    measured = [name for name in describe.main_measurements(table, describe.MAIN) if describe.estimate(good[name]).n]
    left = words(lines).partition("columnsfor")[2]
    kept = [name for name in measured if name not in left]
    assert kept or not measured
    assert kept == measured[: len(kept)]
    if not measured or len(table) <= report.FEW_ROWS:
        return
    groups = describe.groups(table, axes)
    if not axes or groups.max() + 1 == len(table):
        return
    # Each number is in one line, with at most what is behind its mean in another.
    for group in range(min(groups.max() + 1, report.MOST_ROWS)):
        for name in kept:
            parts = str(describe.estimate(good.loc[groups == group, name])).replace(" ±", "\n±").replace(" (", "\n(")
            assert all(any(part in line for line in lines) for part in parts.split("\n"))
    bad = int((~describe.ok(table)).sum())
    assert (f"{bad} of {len(table)} rows diverged" in " ".join(" ".join(lines).split())) == bool(bad)


def test_the_terminal_shows_means_of_many_rows_with_headers_that_can_be_read():
    table = frame(rows_of(d=[16, 64], num_tasks=[1, 16], n2=[1024, 8192], lr_w=[1.0, 10.0], seed=range(8)))
    rng = np.random.default_rng(0)
    table = table.assign(**{name: rng.random(len(table)) for name in describe.MAIN})
    lines = printed(table, 80)
    assert lines[0] == "Means of 8 seeds ± standard error"
    for name in ("d", "num_tasks", "n2", "lr_w", *describe.MAIN):
        assert name in lines[2].split() or all(part in lines[1] + lines[2] for part in name.split("_")), name
    assert len([line for line in lines if line.lstrip().startswith(("16", "64"))]) == 16
    assert printed(table, 200)[1].split() == ["d", "num_tasks", "n2", "lr_w", *describe.MAIN]
    few = table[table["seed"] == 0].head(report.FEW_ROWS)
    assert "Means" not in printed(few, 80)[0]


def test_the_terminal_says_how_many_settings_there_are_and_what_has_them_all():
    table = frame(rows_of(n_down=range(1, 60), seed=[0, 1]))
    lines = printed(table, 80)
    assert lines[0] == "Means of 2 seeds ± standard error, the first 40 of 59 settings"
    assert lines[-1] == "results.parquet has all of them"
    lines = printed(table[table["seed"] == 0], 30)
    assert lines[0] == "the first 40 of 59 rows"
    assert "no room in 30 columns for task_error, downstream_error" in " ".join(map(str.strip, lines))


def test_the_terminal_shows_one_setting_of_many_seeds_as_one_cell():
    table = frame(rows_of(seed=range(64))).assign(status=["ok"] * 60 + ["diverged"] * 4)
    lines = printed(table, 80)
    assert lines[0] == "One setting: means of 60 of 64 seeds ± standard error"
    assert any("0…63" in line for line in lines)
    mean = describe.estimate(describe.measured(table)["subspace_distance"])
    assert any(f"{mean}" in line and "(60 of 64)" in line for line in lines)


def test_what_guessing_gives_is_said_and_drawn():
    table = frame(rows_of(d=[8, 16], seed=range(50))).assign(n_test=1000)
    names_of = ["task_error", "downstream_error"]
    assert list(names.GUESSING) == names_of
    rng = np.random.default_rng(0)
    # Two standard errors of n samples at chance 0.5 are 1 / √n; fewer than 1 guess in 20 looks better than that.
    chance, good = rng.binomial(1000, 0.5, len(table)) / 1000, 0.5 - 1.1 / np.sqrt(1000)
    assert describe.guessing(table.assign(**dict.fromkeys(names_of, good))) == []
    (said,) = describe.guessing(table.assign(task_error=good, downstream_error=chance))
    lost = int(said.removeprefix("downstream_error is no better than guessing (0.5) in ").removesuffix(" of 100 rows"))
    assert 90 <= lost <= 100
    one = table.head(1).assign(task_error=0.5, downstream_error=np.nan)
    assert describe.guessing(one) == ["task_error is no better than guessing (0.5)"]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(report.rows(one, 200))
    assert "task_error is no better than guessing (0.5)" in console.export_text()

    noise = table.assign(downstream_error=chance)
    for log, floor in (((), True), ("y", False)):
        ax = plt.figure().add_subplot()
        figures.curves(ax, noise, "d", "downstream_error", log=log)
        (line,) = (line for line in ax.lines if set(line.get_ydata()) == {0.5})
        assert "guessing" in [text.get_text() for text in ax.texts]
        assert (ax.get_ylim()[0] <= 0) == floor
        assert not floor or ax.get_ylim()[1] >= 0.55
        assert line
    figures.curves(other := plt.figure().add_subplot(), noise.assign(test_loss=0.5), "d", "test_loss")
    assert not other.texts
    plt.close("all")


def test_measurements_of_a_users_own_are_shown():
    table = frame(rows_of(d=[8, 16], seed=[0, 1])).assign(effective_rank=[3.0, 3.0, 5.0, 5.0])
    assert list(plain.findings(table).listings[0].table["effective_rank"]) == ["3", "5"]
    (shown,) = tables_in(report.many_rows(table, width=200))
    assert "effective_rank" in [str(column.header) for column in shown.columns]
    names.learn({"effective_rank": "effective rank (of W)"})
    assert figures.label("effective_rank") == "effective rank (of W)"
    del names.LABELS["effective_rank"]
    assert figures.label("effective_rank") == "effective rank"


def test_laws_are_fitted_without_rows_that_diverged():
    table = rows_of(d=[8, 16, 32, 64], seed=range(6))
    table = table.assign(task_error=table["d"] ** 0.5 * (1 + 0.01 * table["seed"]))
    bad = table.index % 6 == 5
    spoilt = frame(table.assign(status=np.where(bad, "diverged", "ok"), task_error=table["task_error"].where(~bad, 99)))
    found, clean = (fits.fit(own, "d", "task_error", bootstraps=50) for own in (spoilt, frame(table[~bad])))
    assert found.parameters == clean.parameters
    assert (found.diverged, found.points, clean.diverged) == (4, 20, 0)
    assert found.sentence().endswith("; left out: 4 rows that diverged")
    assert fits.table_of({"it": found})["points"].item() == "20; left out: 4 rows that diverged"
    with pytest.raises(ValueError, match="TABLE=24 rows: every one of them diverged; allowed: "):
        fits.fit(spoilt.assign(status="diverged"), "d", "task_error")


def test_crossings_are_of_rows_that_did_not_diverge():
    table = pd.DataFrame(list(itertools.product([4, 8, 16], [1, 10, 100], range(4))), columns=["d", "n", "seed"])
    table = table.assign(error=np.clip(table["d"] / table["n"] / 4, None, 0.5), status="ok")
    options = {"curve": "n", "error": "error", "epsilon": 0.2}
    bad = (table["seed"] == 3) & (table["n"] == 10)
    spoilt = table.assign(status=np.where(bad, "diverged", "ok"), error=table["error"].where(~bad, 0.5))
    for own in (spoilt, spoilt.assign(error=spoilt["error"].where(~bad))):
        expected = crossings.crossings(table[~bad], by=["d"], **options)
        pd.testing.assert_frame_equal(crossings.crossings(own, by=["d"], **options), expected)
        assert crossings.fit_crossings(own, "d", bootstraps=20, **options).diverged == 3
