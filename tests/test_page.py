"""The page of a sweep: what it says, that it says it safely, and that a browser shows it."""

import copy
import functools
import html
import http.server
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.parse

import matplotlib as mpl
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from mtfl_jax import names
from mtfl_jax.analysis import comparison, describe, figures, findings, inline, page, plain, plots, report, studies
from mtfl_jax.analysis.describe import MAIN
from mtfl_jax.records import registering
from mtfl_jax.sweeps import store, tables

RUN = {
    "command": ["mtfl", "study=quickstart", "hydra.run.dir=a b"],
    "pid": 7,
    "host": "here",
    "config": {"study": "quickstart", "sweep": {"axes": {"num_tasks": [1, 16]}, "zip": [], "where": []}},
    "versions": {"mtfl_jax": "0.1.0", "jax": "0.10.2"},
    "platform": "Linux",
    "devices": ["cpu: cpu", "cpu: cpu"],
    "numerics": "float32-highest",
    "matmul_precision": "highest",
    "draws_schema": 2,
    "state": "finished",
    "updated": 1_000_070.0,
    "cells": 24,
    "buckets": 3,
    "skipped": 0,
    "done": 24,
    "diverged": 0,
    "compiled": 3,
    "compile_seconds": 4.0,
    "run_seconds": 65.0,
    "started": 1_000_000.0,
    "stopped": False,
    "failures": [],
}


def rows_of(**axes):
    """A table of every combination of the axes, with made-up measurements."""
    index = pd.MultiIndex.from_product(axes.values(), names=axes.keys())
    fixed = {"d": 16, "r": 2, "width": 32, "num_tasks": 8, "n_down": 64, "seed": 0, "algorithm": "one_step"}
    fixed |= {"probe_tasks": "parity", "probe_parity_size": "all"}
    table = pd.DataFrame({**fixed, "data": "rademacher", "step": 1, "status": "ok"} | dict(index.to_frame().items()))
    table = table.reset_index(drop=True)
    learned = table["algorithm"] == "one_step"
    table["subspace_distance"] = np.where(learned, 0.8 / np.sqrt(table["num_tasks"]), 1.0) + 0.01 * table["seed"]
    table["directions_recovered"] = np.where(learned, np.where(table["num_tasks"] > 1, 2, 1), 0)
    table["task_error"] = 0.3 - 0.001 * table["seed"]
    table["downstream_error"] = np.where(learned, 0.3 / table["num_tasks"], 0.5)
    return table


def quick(**axes):
    """Rows such as the quickstart study's."""
    return rows_of(**{"algorithm": ["one_step", "random_features"], "num_tasks": [1, 16], "seed": range(4), **axes})


def full(table):
    """The table with all columns of a results table, as `load` gives it."""
    columns = {name: table[name] if name in table else [None] * len(table) for name in store.schema().names}
    columns["id"] = np.arange(len(table), dtype=np.uint64)
    arrays = [pa.array(columns[field.name], field.type, from_pandas=True) for field in store.schema()]
    return pa.table(arrays, schema=store.schema())


def frame(table):
    return tables.frame(full(table)).drop(columns="id")


@pytest.fixture
def folder(tmp_path):
    """Write a results folder: its path."""

    def write(table, name="sweep", runs=(RUN,)):
        path = tmp_path / name
        for part in ("parts", "runs"):
            (path / part).mkdir(parents=True)
        pq.write_table(full(table), path / "parts" / "a.parquet")
        for number, run in enumerate(runs):
            (path / "runs" / f"{number}.json").write_text(json.dumps(run))
        return path

    return write


def text_of(path):
    """What a reader of a page sees."""
    hidden = r"<(style|script|svg)\b.*?</\1>|<a class=\"file\".*?</a>"
    source = re.sub(hidden, "", path.read_text(), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", source)).split())


def files_of(*names):
    """The files of figures."""
    return [f"{name}.{kind}" for name in names for kind in ("png", "pdf", "csv")]


def test_the_page_says_what_was_run_and_found(folder):
    table = quick()
    table.loc[3, ["status", "diverged_step", "subspace_distance", "directions_recovered"]] = ["diverged", 2, None, None]
    other = {
        **RUN,
        "config": {**RUN["config"], "part": "1/2"},
        "started": 1_000_100.0,
        "updated": 1_000_200.0,
        "failures": ["bucket 2: out of memory"],
        "pid": 8,
    }
    made = page.write(folder(table, runs=(other, RUN)))
    assert [path.name for path in made.files] == ["index.html", *files_of("quickstart")]
    assert all(path.parent.name == "report" and path.stat().st_size > 1000 for path in made.files)
    assert made.problem is None
    said = text_of(made.files[0])
    for words in (
        "One gradient step, 2 hidden directions in d = 16",
        "Claim Trained on enough tasks",
        "supported With 16 tasks one step finds all 2 directions in 100% of 4 seeds",
        "means of 3 to 4 of 4 seeds, bands: one standard error",
        "rows 16 (15 ok, 1 diverged)",
        "grid num_tasks = 1, 16",
        "compile 8s, run 2m10s",
        "device 2 × cpu: cpu",
        "jax 0.10.2",
        "float32-highest",
        "draws schema 2",
        "1970-01-12 13:46:40",
        "1 program failed. 1 row diverged.",
        "bucket 2: out of memory",
        "num_tasks 1, 16",
        "seed 0…3",
        "width 32",
        "mtfl study=quickstart 'hydra.run.dir=a b'",
    ):
        assert words in said, words
    assert said.count("mtfl study=quickstart") == 1


def test_what_failed_and_then_ran_is_no_failure(folder):
    failed = {**RUN, "state": "failed", "failures": ["bucket 2: out of memory"]}
    said = text_of(page.write(folder(quick(), runs=(failed, {**RUN, "started": 1_000_050.0}))).files[0])
    assert "went wrong" not in said
    assert "failed 24" in said


def links(path):
    """What a page links to, and its anchors; nothing is fetched, and every link leads somewhere."""
    source = path.read_text()
    tag = r"<[a-z][^<>]*?"
    linked = re.findall(rf"{tag}\b(?:src|href)=\"([^\"]*)\"", source) + re.findall(r"\burl\(([^)]*)\)", source)
    anchors = re.findall(rf"{tag} id=\"([^\"]*)\"", source)
    assert len(set(anchors)) == len(anchors)
    for to in linked:
        if to.startswith("#"):
            assert to[1:] in anchors, to
        elif not to.startswith("data:"):
            assert (path.parent / urllib.parse.unquote(to)).is_file(), to
    return linked


def drawn_in(source):
    """The figures of a page."""
    return re.findall(r"<svg.*?</svg>", source, re.DOTALL)


def test_the_page_needs_nothing_else(folder):
    (path, *files) = page.write(folder(quick())).files
    linked = links(path)
    assert {to for to in linked if not to.startswith(("#", "data:"))} == {file.name for file in files}
    source = path.read_text()
    assert source.count("<script") == 1
    assert "<img" not in source
    assert '<html lang="en">' in source
    assert 'name="viewport"' in source
    assert re.search(r'aria-label="subspace distance[^"]* against number of tasks T', source)
    sections = ["claim", "said", "figures", "tables", "run", "settings", "repeat"]
    assert [to for to in linked if to in [f"#{name}" for name in sections]] == [f"#{name}" for name in sections]


def test_csvs_say_what_figures_and_tables_do(folder):
    table = frame(rows_of(num_tasks=[1, 4, 16], d=[8, 16], seed=range(3)))
    path, *_ = page.write(folder(table, runs=())).files
    shown = pd.read_csv(path.parent / "sweep.csv")
    own = shown[(shown["panel"] == 1) & (shown["series"] == 8)].set_index("x")
    of = table[table["d"] == 8].groupby("num_tasks")["subspace_distance"]
    np.testing.assert_allclose(own["value"], of.mean())
    np.testing.assert_allclose(own["high"] - own["low"], 2 * of.sem())
    source = path.read_text()
    sheets = dict(re.findall(r'download="([^"]*)" href="data:text/csv;charset=utf-8,([^"]*)"', source))
    means = pd.read_csv(io.StringIO(urllib.parse.unquote(html.unescape(sheets["means-of-3-seeds-standard-error.csv"]))))
    every = table.groupby(["d", "num_tasks"])["subspace_distance"]
    np.testing.assert_allclose(means["subspace_distance"], every.mean())
    np.testing.assert_allclose(means["subspace_distance_error"], every.sem())
    # Who points at a point is told the same.
    point = r"<title>8; number of tasks T 4; subspace distance \(sine of angle\) ([^<]*)</title>"
    (said,) = set(re.findall(point, source))
    mean, error = of.mean().loc[4], of.sem().loc[4]
    assert said == f"{mean:.4g} [{mean - error:.4g}, {mean + error:.4g}]"


def test_points_stand_where_they_are_drawn(folder):
    """The shapes that say values lie on the markers, in both layouts."""
    figure, panels = figures.panels(2)
    table = frame(rows_of(num_tasks=[1, 4, 16], d=[8, 16], seed=range(3)))
    for ax, name in zip(panels, ("subspace_distance", "task_error"), strict=True):
        figures.curves(ax, table, "num_tasks", name, by="d", log="x")
    before = figures.drawn(figure, "svg")
    made = inline.inline(figure, "x")
    assert figures.drawn(figure, "svg") == before
    for svg in (made.wide, made.narrow):
        circles, markers = (
            np.array(re.findall(rf'<{what} [^>]*?x="([\d.]+)" c?y="([\d.]+)"', svg), float)
            for what in ("circle", "use")
        )
        assert len(circles) == 12
        assert np.abs(circles[:, None] - markers).sum(2).min(1).max() < 0.2  # Both are rounded.
    # A bar of colours goes along, and all is as before, to a hundredth of the figure: layouts of bars are iterated.
    maps = plots.plot(table, kind="heat", facet="seed", x="num_tasks", y="d")
    figures.drawn(maps, "svg")
    before = [ax.get_position().bounds for ax in maps.axes]
    inline.inline(maps, "x")
    figures.drawn(maps, "svg")
    np.testing.assert_allclose([ax.get_position().bounds for ax in maps.axes], before, atol=0.01)
    boxes = [[float(of) for of in re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()] for svg in made[:2]]
    assert boxes[1][0] < 300 < boxes[0][0]
    assert boxes[1][1] > 1.9 * boxes[0][1]


def test_text_of_configs_is_escaped(folder):
    hostile = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
    run = {
        **RUN,
        "command": ["mtfl", hostile],
        "config": {"study": hostile, "sweep": {"axes": {hostile: [hostile]}, "zip": [], "where": [hostile]}},
        "host": hostile,
        "failures": [hostile],
        "devices": [hostile],
    }
    table = quick()
    table["data"] = np.where(table["seed"] < 2, hostile, "other [bold]")
    first, second = folder(table, "a&<b>", [run]), folder(quick(), "plain")
    for path in (page.write(first).files[0], page.compare([first, second], first / "two")[0]):
        source = path.read_text()
        assert source.count("<script") == 1
        assert "<script>alert" not in source
        assert "<img src=x" not in source
        assert "<b>" not in source
        assert hostile in html.unescape(source)
        links(path)


def test_the_same_rows_make_the_same_bytes(folder):
    path = folder(quick())
    once = {file: file.read_bytes() for file in page.write(path).files}
    shutil.rmtree(path / "report")
    assert {file: file.read_bytes() for file in page.write(path).files} == once


@pytest.mark.parametrize(
    ("table", "title", "drawn"),
    [
        (quick().head(0), "No rows", 0),
        (quick().head(1), "One row", 0),
        (rows_of(seed=range(3)), "One setting", 0),
        (rows_of(d=[8, 16], width=[8, 64], seed=range(3)), "Sweep over d, width", 2),
        (rows_of(data=["gaussian", "rademacher"], seed=[0]), "Sweep over data", 1),
        (
            rows_of(data=["a", "b"], tasks=["c", "d"], loss=["e", "f"]),
            "Sweep over data, tasks, loss",
            3,
        ),
        (quick().assign(subspace_distance=np.inf), "Sweep over algorithm, num_tasks", 2),
        (
            quick().drop(columns=list(MAIN)),
            "Sweep over algorithm, num_tasks",
            0,
        ),
        (rows_of(d=range(1, 41), width=range(10, 21), seed=[0, 1]), "Sweep over d, width", 2),
        (rows_of(width=range(10, 1210), seed=[0]), "Sweep over width", 1),
    ],
)
def test_any_table_has_a_page(folder, table, title, drawn):
    run = {**RUN, "config": {**RUN["config"], "study": "none"}}
    made = page.write(folder(table, runs=[run]))
    assert made.findings.title == title
    assert len(made.findings.drawings) == drawn
    assert made.problem is None
    assert title in text_of(made.files[0])
    links(made.files[0])


def test_plain_findings_hold_other_settings_at_one_value():
    table = frame(rows_of(num_tasks=[1, 4, 16], d=[8, 16], r=[2, 3], seed=range(3)))
    drawing, *others = plain.findings(table).drawings
    assert [other.name for other in others] == ["map", "settings"]
    means = "Means of 3 seeds; bands and bars are one standard error."
    assert drawing.caption == f"Against num_tasks, a line for each d. {means} Shown where r = 3."
    ax = drawing.figure.axes[0]
    assert ax.get_xscale() == "log"
    assert [line.get_label() for line in ax.lines] == ["8", "16"]
    assert list(ax.lines[0].get_xdata()) == [1, 4, 16]
    expected = table[(table["r"] == 3) & (table["d"] == 8)].groupby("num_tasks")["subspace_distance"].mean()
    np.testing.assert_allclose(ax.lines[0].get_ydata(), expected)


def test_defaults_that_follow_from_a_choice_are_no_axis():
    table = frame(rows_of(algorithm=["one_step", "joint"], num_tasks=[1, 4], seed=[0, 1]))
    table["bias"] = np.where(table["algorithm"] == "joint", "random", "zero")
    table["n1"] = table["num_tasks"] * 64
    assert describe.axes(table) == ["algorithm", "num_tasks"]


def test_curves_average_seeds_and_leave_out_what_is_not_finite():
    table = frame(rows_of(num_tasks=[1, 4], seed=range(3)))
    table["task_error"] = [0.1, 0.2, 0.3, 0.5, np.nan, np.inf]
    points = figures.mean_and_error(table, "num_tasks", "task_error")
    np.testing.assert_allclose(points["mean"], [0.2, 0.5])
    np.testing.assert_allclose(points["error"], [0.1 / np.sqrt(3), 0])


def test_the_page_shows_every_grid_of_a_sweep(folder):
    sweep = {"axes": {"seed": "range(0,8)"}, "grids": [{"d": [8, 16]}, {"r": [2, 3]}], "zip": [], "where": ["r <= d"]}
    made = page.write(folder(quick(), runs=[RUN | {"config": {"study": "none", "sweep": sweep}}]))
    words = "1) d = 8, 16; 2) r = 2, 3; each with seed = range(0,8); where r <= d"
    assert words in text_of(made.files[0])


def test_estimates_are_as_precise_as_their_errors():
    assert str(describe.estimate(pd.Series([0.1, 0.2, 0.3]))) == "0.200 ± 0.058"
    assert str(describe.estimate(pd.Series([1000.0, 1400.0]))) == "1200 ± 200"
    assert str(describe.estimate(pd.Series([0.5, None]))) == "0.5 (1 of 2)"
    assert str(describe.estimate(pd.Series([pd.NA], dtype="Int64"))) == "—"


def verdicts(table):
    return [said.supported for said in studies.of("quickstart", frame(table)).statements]


def test_quickstart_verdicts_follow_the_data():
    table = quick()
    assert verdicts(table) == [True, True, True]
    many = table["num_tasks"] == 16
    lost = table.assign(
        directions_recovered=np.where(many, 1, 2), downstream_error=np.where(many, 0.45, table["downstream_error"])
    )
    assert verdicts(lost) == [False, False, False]
    assert verdicts(table.assign(downstream_error=np.nan, directions_recovered=None)) == [None, None, None]
    assert verdicts(table[many]) == [True, None, True]
    assert verdicts(table[~many])[:2] == [None, True]
    assert verdicts(table[table["algorithm"] == "random_features"]) == [None, None, None]


def test_a_study_that_cannot_speak_leaves_the_plain_page(folder):
    made = page.write(folder(quick(r=[2, 3])))
    assert "quickstart" in made.problem
    assert "r varies" in made.problem
    assert made.findings.title == "Sweep over algorithm, r, num_tasks"
    assert made.problem in text_of(made.files[0])


def test_a_study_that_is_not_here_leaves_the_plain_page_and_says_how_to_get_it(folder, command, monkeypatch):
    monkeypatch.setattr(studies, "STUDIES", copy.deepcopy(studies.STUDIES))
    path = folder(quick(), "its folder", [{**RUN, "config": {**RUN["config"], "study": "mine"}}])
    (path / "mine.py").write_text("raise SystemExit('a report runs no code that it was not given')")
    line = "the findings of study mine are not here: mtfl-report FOLDER --extensions MODULE gives them"
    status, _, err = command(path)
    assert (status, err) == (0, f"mtfl-report: {line}\n")
    said = text_of(path / "report" / "index.html")
    assert f"Note: {line}." in said
    assert "Sweep over algorithm, num_tasks" in said
    # A page that is there may be one that the study made.
    page_of = path / "report" / "index.html"
    page_of.write_text("better")
    status, out, err = command(path)
    assert (status, out, err) == (1, "", f"mtfl-report: {line}; {page_of} stays as it is\n")
    assert page_of.read_text() == "better"


MINE = """
from mtfl_jax.analysis.findings import Findings

def findings(table):
    return Findings("What mine says", "a claim")
"""


def test_extensions_make_a_study_known(folder, command, tmp_path, monkeypatch):
    """By a module that registers it, and by the file of its name alone."""
    path = folder(quick(), "a", [{**RUN, "config": {**RUN["config"], "study": "mine"}, "extensions": ["mine:1f2e"]}])
    loaded = []

    def load(names):
        loaded.append(names)
        if names == ["broken"]:
            raise ImportError("no\nmodule")
        with registering("mine:1f2e"):
            studies.STUDIES.register(
                studies.Study("mine", "of mine", lambda t: findings.Findings("Registered", "a claim"))
            )

    monkeypatch.setattr("mtfl_jax.extend.load", load)
    empty = copy.deepcopy(studies.STUDIES)
    empty.clear()
    monkeypatch.setattr(studies, "STUDIES", empty)
    wrote = f"wrote {path}/results.parquet\nwrote {path}/report/index.html\n"
    assert command(path, "--extensions", "one", "two.py") == (0, wrote, "")
    assert loaded == [["one", "two.py"]]
    assert "Registered" in text_of(path / "report" / "index.html")
    assert "extensions mine:1f2e" in text_of(path / "report" / "index.html")

    empty = copy.deepcopy(studies.STUDIES)
    empty.clear()
    monkeypatch.setattr(studies, "STUDIES", empty)
    (tmp_path / "mine.py").write_text(MINE)
    assert command(path, path, "--extensions", tmp_path / "mine.py", "--out", tmp_path / "two")[0] == 0
    assert text_of(tmp_path / "two" / "index.html").count("What mine says") == 2 + 1
    assert len(loaded) == 1
    expected = "mtfl-report: --extensions=broken: ImportError: no module\n"
    assert command(path, "--extensions", "broken") == (2, "", expected)


def test_labels_of_a_table_are_learned(folder, monkeypatch):
    monkeypatch.setattr(names, "LABELS", dict(names.LABELS))
    monkeypatch.setattr(figures, "LABELS", names.LABELS)
    load = tables.load

    def labelled(path):
        table = load(path)
        table.attrs["labels"] = {"task_error": "how often it errs"}
        return table

    monkeypatch.setattr(page.tables, "load", labelled)
    source = page.write(folder(rows_of(d=[8, 16], seed=[0, 1]), runs=())).files[0].read_text()
    assert "how often it errs against input dimension d" in source


def test_the_page_leaves_out_what_a_diverged_row_holds(folder):
    table = rows_of(d=[8, 16], seed=range(6)).assign(task_error=0.25)
    bad = (table["d"] == 16) & (table["seed"] > 3)
    spoilt = table.assign(status=np.where(bad, "diverged", "ok"), task_error=table["task_error"].where(~bad, 0.97))
    spoilt["diverged_step"] = np.where(bad, 3, None)
    said = text_of(page.write(folder(spoilt, runs=())).files[0])
    assert "Means of 4 to 6 of 6 seeds" in said
    assert "0.25 (4 of 6)" in said
    assert "0.97" not in said
    assert "Rows that are not ok d seed status diverged_step 16 4 diverged 3 16 5 diverged 3" in said


def test_a_table_too_large_is_not_read(folder, monkeypatch):
    monkeypatch.setattr(page, "MOST_ROWS", 15)
    monkeypatch.setattr(page.tables, "load", None)
    made = page.write(folder(quick()))
    assert made.findings is None
    assert "16 rows are more than a page is made of" in text_of(made.files[0])
    assert "device 2 × cpu: cpu" in text_of(made.files[0])


def test_two_sweeps_side_by_side(folder, tmp_path):
    first = folder(quick(), "first")
    second = folder(quick(num_tasks=[1, 4]).assign(width=64), "second", [{**RUN, "versions": {"jax": "0.11"}}])
    path = page.compare([first, second], tmp_path / "two")[0]
    said = text_of(path)
    rows = "rows 16 of 16 only here 16 of 16 only here"
    assert f"Settings that differ key first second width 32 64 num_tasks 1, 16 1, 4 {rows} Other" in said
    assert "versions mtfl_jax 0.1.0 jax 0.10.2 jax 0.11" in said
    assert path.read_text().count(">Claim</h2>") == 2
    assert len(links(path)) > 10
    assert len(re.findall(r"<figure", path.read_text())) == 3


@pytest.fixture
def command(called):
    """Run `mtfl-report ARGS`: (exit status, stdout, stderr)."""
    return functools.partial(called, page.main)


@pytest.mark.slow
def test_the_command_writes_where_it_says(folder, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder(quick(), "a")
    folder(quick(), "b")
    status, out, err = command("a")
    assert (status, err) == (0, "")
    made = [f"wrote a/report/{name}" for name in ("index.html", *files_of("quickstart"))]
    assert out.splitlines() == ["wrote a/results.parquet", *made]  # The rows were in parts alone.
    assert command("a")[1].splitlines() == made
    names = ["index.html", *files_of("comparison", "1-quickstart", "2-quickstart")]
    assert command("a", "b") == (0, "".join(f"wrote report-a-b/{name}\n" for name in names), "")
    assert command("a", "b", "--out", "c") == (0, "".join(f"wrote c/{name}\n" for name in names), "")
    assert command("a", "--out", "d")[0] == 0
    assert (tmp_path / "d" / "quickstart.pdf").exists()


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["nowhere"], "nowhere: no results there; allowed: the folder of a sweep"),
        (["empty"], "empty: no results there; allowed: the folder of a sweep"),
        (["a", "nowhere"], "nowhere: no results there; allowed: the folder of a sweep"),
        (["a", "a", "empty"], "empty: no results there; allowed: the folder of a sweep"),
        ([], "the following arguments are required: FOLDER"),
        (["a", "--out", "a/parts/a.parquet"], "a/parts/a.parquet: File exists"),
    ],
)
def test_errors_of_the_command_are_one_line(folder, command, tmp_path, monkeypatch, args, line):
    monkeypatch.chdir(tmp_path)
    folder(quick(), "a")
    (tmp_path / "empty").mkdir()
    status, out, err = command(*args)
    assert (status, out) == (2, "")
    assert err.startswith(f"mtfl-report: {line}")
    assert err.count("\n") == 1


def test_a_page_needs_no_jax_and_a_row_no_matplotlib(folder):
    one, several = folder(quick().head(1), "one"), folder(quick(), "several")
    code = (
        "import sys; from pathlib import Path; from mtfl_jax.analysis import page;"
        f"page.write(Path({str(one)!r})); assert not {{'jax', 'matplotlib'}} & set(sys.modules);"
        f"page.write(Path({str(several)!r})); assert 'jax' not in sys.modules and 'matplotlib' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_findings_read_well_in_a_narrow_terminal():
    console = Console(width=60, record=True, file=io.StringIO())
    said = findings.Statement(None, "one two three " * 20)
    listing = findings.Listing("means [x]", pd.DataFrame({"name [b]": ["a", "[red]"], "value": [1.0, None]}))
    console.print(report.findings(findings.Findings("Title", "claim", [said], [], [listing])))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 60
    assert "cannot tell: one two three" in " ".join(lines)
    assert any("[red]" in line and "—" in line for line in lines)


def test_drawing_changes_no_settings_of_matplotlib(folder):
    before = dict(mpl.rcParams)
    page.write(folder(quick()))
    assert dict(mpl.rcParams) == before


def weight(path):
    """Bytes of a page without its figures."""
    source = path.read_text()
    return len(re.sub(r"<svg.*?</svg>", "", source, flags=re.DOTALL).encode())


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow), 4])
@pytest.mark.slow
def test_several_sweeps(folder, tmp_path, count):
    """Of one name, with settings and measurements that others lack, and one of which nothing was measured."""
    made = [
        rows_of(d=[8, 16], num_tasks=[1, 4], seed=range(4)),
        rows_of(d=[16, 32], num_tasks=[1, 4], seed=range(2, 6)).assign(width=64, task_error=0.1),
        rows_of(d=[16], num_tasks=[1], seed=range(3)).assign(status="diverged", diverged_step=1),
        rows_of(d=[16], num_tasks=[1, 4], seed=[9]).assign(lr_w=0.5, subspace_distance=None),
    ]
    called = ["one/s", "two/s", "three/s", "four/s"][:count]
    folders = [folder(table, name, ()) for name, table in zip(called, made, strict=False)]
    path, *files = page.compare(folders, tmp_path / "out")
    beside = {urllib.parse.unquote(to) for to in links(path) if not to.startswith(("#", "data:"))}
    assert beside == {file.name for file in files}
    assert weight(path) < 500 * 1024
    said = text_of(path)
    differences = [f"{name} − one/s" for name in called[1:]]
    assert " ".join(["measurement d num_tasks", *called, *differences]) in said
    assert "two/s − one/s is paired by 2 shared seeds." in said
    assert ("three/s and one/s share no setting." in said) == (count > 2)
    assert ("four/s − one/s is of means, as they share too few seeds for pairs." in said) == (count > 3)
    assert f"Settings that differ key {' '.join(called)} d" in said
    assert path.read_text().count("<article") == count


@pytest.mark.slow
def test_a_page_of_several_is_the_same_when_made_again(folder, tmp_path):
    folders = [folder(rows_of(d=[8, 16], seed=[0, number]), f"{number}", ()) for number in range(1, 4)]
    once = {file: file.read_bytes() for file in page.compare(folders, tmp_path / "out")}
    shutil.rmtree(tmp_path / "out")
    assert {file: file.read_bytes() for file in page.compare(folders, tmp_path / "out")} == once


def test_sweeps_are_told_apart_by_as_much_of_their_paths_as_that_takes(tmp_path):
    for paths, called in (
        (["a", "b"], ["a", "b"]),
        (["x/a", "y/a", "y/b"], ["x/a", "y/a", "y/b"]),
        (["a", "b", "a"], ["a", "b", "a (3)"]),
        (["x/1/a", "x/2/a", "y/1/a"], ["x/1/a", "x/2/a", "y/1/a"]),
    ):
        assert page._told_apart([tmp_path / path for path in paths]) == called


def test_differences_are_paired_by_seed_where_seeds_are_shared():
    rng = np.random.default_rng(0)
    for shared in range(9):
        first = pd.Series(rng.normal(size=8), index=range(8))
        second = pd.Series(rng.normal(size=8), index=np.arange(8) + 8 - shared).sample(frac=1, random_state=0)
        found, pairs = comparison.difference(first, second)
        if shared > 1:
            apart = (second - first).dropna()
            expected = (apart.mean(), apart.std() / np.sqrt(shared), shared)
        else:
            expected = (second.mean() - first.mean(), np.sqrt((second.var() + first.var()) / 8), 0)
        np.testing.assert_allclose((found.mean, found.error, pairs), expected)
    alone = comparison.difference(pd.Series([1.0, np.nan], index=[3, 4]), pd.Series([3.0], index=[3]))
    assert (alone.found.mean, alone.found.error, alone.pairs) == (2.0, 0.0, 1)
    assert comparison.difference(pd.Series([np.nan]), pd.Series([1.0])).found.n == 0


def test_tables_of_other_columns_are_gathered():
    """A setting that only a later table has is a setting."""
    first, second = frame(rows_of(d=[8, 16], seed=[0, 1])), frame(rows_of(d=[8, 16], seed=[0, 1]))
    second.insert(0, "mine", 0.5)
    both = plots.gathered({"a": first, "b": second})
    settings = describe.settings(first)
    assert describe.settings(both) == ["folder", *settings[:-1], "mine", "step"]
    assert describe.measurements(both) == describe.measurements(first)
    assert len(both) == 8


def test_what_axes_explain_adds_up():
    """Of a balanced sweep main effects, interactions and seeds are the whole."""
    rng = np.random.default_rng(1)
    d, width, _ = (axis.ravel() for axis in np.meshgrid(range(3), range(4), range(5), indexing="ij"))
    for interaction in (0.0, 1.0):
        effects = rng.normal(size=3)[d] + rng.normal(size=4)[width] + interaction * rng.normal(size=(3, 4))[d, width]
        noise = rng.normal(size=(12, 5))
        # Noise that does not move the mean of a setting.
        noise = (noise - noise.mean(axis=1, keepdims=True)).ravel()
        values = effects + noise
        alone = plain.explained(values, d) + plain.explained(values, width)
        seed = 1 - plain.explained(values, 4 * d + width)
        np.testing.assert_allclose(seed, noise.var() / values.var())
        assert (abs(alone + seed - 1) < 1e-9) == (interaction == 0)
    assert np.isnan(plain.explained(np.full(4, 0.1), np.arange(4)))


def test_the_page_says_which_setting_matters(folder):
    table = rows_of(d=[8, 16], width=[32, 64], seed=range(3))
    table["subspace_distance"] = 0.1 * table["width"] / 32 + 1e-3 * table["seed"] + 1e-3 * table["d"] / 8
    said = text_of(page.write(folder(table, runs=())).files[0])
    row = r"{} \d ([\d.]+)% .*?"
    found = re.search(f"Which setting matters setting values (.*?) {row.format('width')}{row.format('d')}", said)
    assert found[1].startswith("subspace_distance (n = 12) ")
    assert float(found[2]) > 99 > 1 > float(found[3])


def test_a_page_without_its_figures_is_light(folder):
    """Whatever is swept; and so many points say their values, no more."""
    table = rows_of(d=range(8, 48), width=range(10, 30), num_tasks=[1, 4], seed=[0])
    path = page.write(folder(table, runs=[{**RUN, "config": {**RUN["config"], "study": "none"}}] * 30)).files[0]
    assert 50 * 1024 < weight(path) < 500 * 1024
    assert all(svg.count("<title>") <= inline.MOST_POINTED for svg in drawn_in(path.read_text()))
    (said,) = re.findall(r"This page is ([\d,]+) KiB", path.read_text())
    assert abs(int(said.replace(",", "")) - path.stat().st_size / 1024) < 1


def test_losses_are_drawn_along_the_steps():
    table = rows_of(algorithm=["alternating", "joint"], step=[1, 2, 4, 8, 16], seed=range(2))
    table["train_loss"] = table["test_loss"] = 1.0 / table["step"] ** 2
    sweep, losses, *_ = plain.findings(frame(table)).drawings
    assert losses.name == "losses"
    assert [ax.get_ylabel() for ax in losses.figure.axes] == ["train loss", "test loss"]
    assert {(ax.get_xscale(), ax.get_yscale()) for ax in losses.figure.axes} == {("log", "log")}
    assert {ax.get_xlabel() for ax in (*losses.figure.axes, *sweep.figure.axes)} == {"step"}


# A page that loads the other in a frame and says what it sees there, after doing something.
LOOK = """<!DOCTYPE html><link rel="icon" href="data:,">
<iframe src="PAGE" width="WIDTH" height="800" SANDBOX></iframe><pre></pre>
<script>
onload = () => {
  const seen = document.querySelector("iframe").contentDocument;
  const shown = node => node.getClientRects().length > 0;
  const box = node => { const of = node.getBoundingClientRect(); return [of.width, of.height]; };
  const figures = [...seen.querySelectorAll("svg")].filter(shown);
  const found = {
    wide: seen.documentElement.scrollWidth,
    title: seen.title,
    figures: figures.map(svg => [...box(svg), svg.getAttribute("aria-label").length]),
    images: [...seen.images].map(image => image.naturalWidth),
    text: (seen.querySelector("main") ?? seen.body).innerText,
    did: (() => { DO })(),
  };
  document.querySelector("pre").textContent = JSON.stringify(found);
};
</script>"""


@pytest.fixture
def browser(tmp_path):
    """Open a page below tmp_path in headless Chromium: (what is seen, what was asked for, the console's lines)."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        assert not os.environ.get("MTFL_REQUIRE_CHROMIUM"), "chromium is required here and not installed"
        pytest.skip("chromium is not installed (apt-get install chromium)")
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, code="-", size="-"):
            asked.append((self.path, int(code)))

        def log_error(self, *args):
            pass

        def end_headers(self):
            self.send_header("Cache-Control", "no-store")
            super().end_headers()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=tmp_path))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def look(path, width=360, do="", scripts=True):
        said = {"PAGE": urllib.parse.quote(str(path.relative_to(tmp_path))), "WIDTH": str(width), "DO": do}
        said["SANDBOX"] = "" if scripts else 'sandbox="allow-same-origin"'
        source = re.sub("PAGE|WIDTH|DO|SANDBOX", lambda found: said[found[0]], LOOK.replace("DOCTYPE", "doctype"))
        (tmp_path / "look.html").write_text(source)
        asked.clear()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
        options += ["--virtual-time-budget=5000", f"--user-data-dir={tmp_path / 'user'}", "--dump-dom"]
        done = subprocess.run(
            [chromium, *options, f"http://127.0.0.1:{server.server_port}/look.html"],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        seen = json.loads(html.unescape(re.search(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)[1]))
        return seen, asked[1:], [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    yield look
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_browser_shows_the_figures_and_has_nothing_to_say(folder, browser, tmp_path):
    first, second = folder(quick(), "first"), folder(rows_of(d=[8, 16], seed=range(3)), "second & <last>")
    for path, count in ((page.write(first).files[0], 1), (page.compare([first, second], tmp_path / "two")[0], 3)):
        for width, across in ((420, 360), (1200, 400)):
            seen, asked, console = browser(path, width)
            assert asked == [(f"/{path.relative_to(tmp_path)}", 200)]
            assert console == []
            assert len(seen["figures"]) == count
            assert all(of[0] >= across and of[-1] > 20 for of in seen["figures"])
            assert seen["wide"] <= width
            assert "first" in seen["title"]
        # Without scripts nothing is missing that can be read.
        plain_text = browser(path, 1200, scripts=False)[0]["text"]
        assert plain_text.split() == seen["text"].split()


def test_panels_stand_above_each_other_on_a_phone(folder, browser):
    path = page.write(folder(quick())).files[0]
    (phone,), (desk,) = (browser(path, width)[0]["figures"] for width in (420, 1200))
    assert phone[0] < 420 < 900 < desk[0]
    assert phone[1] > 2 * phone[0]
    assert desk[1] < 0.5 * desk[0]


SORT = """
const table = [...seen.querySelectorAll("table")].find(table => table.caption.textContent.startsWith("Means"));
const heads = [...table.tHead.rows[0].cells];
const column = name => heads.findIndex(head => head.textContent.trim() === name);
const cells = name => [...table.tBodies[0].rows].filter(shown).map(row => row.cells[column(name)].textContent);
const before = cells("subspace_distance");
const found = [1, 2, 3].map(() => {
  heads[column("subspace_distance")].querySelector("button").click();
  return cells("subspace_distance");
});
const filter = table.closest(".sheet").querySelector("input");
const filtered = ["16", "num_tasks=16", "d=8 num_tasks=16", "nothing"].map(text => {
  filter.value = text;
  filter.dispatchEvent(new Event("input"));
  return cells("d").map((d, place) => [d, cells("num_tasks")[place]]);
});
const point = seen.querySelector(".values circle"), tip = seen.querySelector(".tip"), hidden = tip.hidden;
point.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
return {before, found, filtered, hidden, tip: tip.hidden ? "" : tip.textContent};
"""


def test_tables_are_sorted_and_filtered_and_points_say_their_values(folder, browser):
    table = rows_of(d=[8, 16, 32], num_tasks=[1, 4, 16], seed=range(2))
    # Nothing was measured at a setting.
    lost = (table["d"] == 8) & (table["num_tasks"] == 4)
    table["subspace_distance"] = (table["subspace_distance"] * table["d"] / 8).where(~lost)
    seen, _, console = browser(page.write(folder(table, runs=())).files[0], 1200, SORT)
    assert console == []
    did = seen["did"]
    numbers = [float(cell.split()[0]) for cell in did["before"] if cell != "—"]
    assert len(numbers) == 8
    up, down, again = did["found"]
    assert [float(cell.split()[0]) for cell in up[:-1]] == sorted(numbers)
    assert [float(cell.split()[0]) for cell in down[:-1]] == sorted(numbers, reverse=True)
    assert up[-1] == down[-1] == "—"
    assert again == did["before"]
    every = [[str(d), str(tasks)] for d in (8, 16, 32) for tasks in (1, 4, 16)]
    anywhere, exact, both, none = did["filtered"]
    assert [row for row in every if "16" in row] == [row for row in anywhere if "16" in row]
    assert exact == [row for row in every if row[1] == "16"]
    assert (both, none) == ([["8", "16"]], [])
    assert did["hidden"]
    assert did["tip"].startswith("8; number of tasks T 1; subspace distance (sine of angle) ")


def test_the_browser_would_see_a_broken_page(browser, tmp_path):
    (tmp_path / "broken.html").write_text("<img src=missing.png><script>console.error('so')</script>")
    seen, asked, console = browser(tmp_path / "broken.html")
    assert seen["images"][0] == 0
    assert ("/missing.png", 404) in asked
    assert any("so" in line for line in console)
