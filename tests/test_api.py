"""Sweeps and studies from Python: folders as the command line makes them, progress, interrupts, threads."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import threadpoolctl
from documented import LONG, environment

import mtfl_jax
from mtfl_jax import api
from mtfl_jax.sweeps import notes, progress

SMALL = {"d": 8, "r": 2, "width": 8, "n1": 32, "n2": 32, "n_test": 16, "n_down": 8, "measure": "recovery"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Whatever writes to the working folder writes here."""
    monkeypatch.chdir(tmp_path)


def test_a_folder_is_what_the_command_line_makes(mtfl, tmp_path, called):
    table = mtfl_jax.sweep(**SMALL, num_tasks=[1, 4], seed=range(3), folder="a")
    words = [f"{key}={value}" for key, value in SMALL.items()]
    made = mtfl("-m", *words, "num_tasks=1,4", "seed=range(0,3)", "hydra.sweep.dir=b")
    assert made.returncode == 0, made.stderr

    def names(folder):
        files = {str(path.relative_to(folder)) for path in folder.rglob("*")}
        return {name for name in files if not name.startswith(("parts/", "runs/"))}

    assert names(tmp_path / "a") == names(tmp_path / "b")
    pd.testing.assert_frame_equal(pd.read_parquet("a/results.parquet"), pd.read_parquet("b/results.parquet"))
    pd.testing.assert_frame_equal(mtfl_jax.load("a").sort_values(["num_tasks", "seed"], ignore_index=True), table)
    (own,), (other,) = (notes.read(tmp_path / name) for name in "ab")
    assert own.keys() == other.keys()
    assert own["state"] == other["state"] == "finished"
    assert own["command"][0].startswith("mtfl_jax.sweep(d=8, r=2,")
    assert "seed=range(0, 3), folder='a')" in own["command"][0]
    page = (tmp_path / "a/report/index.html").read_text()
    assert "num_tasks = 1,4; seed = range(0,3)" in page
    # The same call finds everything there, also that of the command line, and leaves the files as they are.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*") if path.suffix != ".json"}
    mtfl_jax.sweep(**SMALL, num_tasks=[1, 4], seed=range(3), folder="a")
    mtfl_jax.sweep(**SMALL, num_tasks=[1, 4], seed=range(3), folder="b")
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*") if path.suffix != ".json"}


def test_without_a_page():
    mtfl_jax.sweep(**SMALL, seed=range(2), folder="a", page=False)
    assert sorted(os.listdir("a")) == [".results.parquet.lock", "parts", "results.parquet", "runs"]
    mtfl_jax.sweep(**SMALL, seed=range(2), folder="a")
    assert os.path.exists("a/report/index.html")


@pytest.mark.parametrize(
    ("value", "text", "axis"),
    [
        (range(0, 8), "range(0, 8)", "range(0,8)"),
        (range(1, 9, 2), "range(1, 9, 2)", "range(1,9,2)"),
        ([1, 2], "[1, 2]", "1,2"),
        (np.array([0.5, 1.5]), "[0.5, 1.5]", "0.5,1.5"),
        (pd.Series([3, 4]), "[3, 4]", "3,4"),
        ("range(0,3)", "'range(0,3)'", "range(0,3)"),
        (np.float64(0.25), "0.25", "0.25"),
        (None, "None", "None"),
        (list(range(1000)), "[0, 1, 2, …, 999]", ",".join(map(str, range(1000)))),
        ([["hinge"], ["logistic", "hinge"]], "[['hinge'], ['logistic', 'hinge']]", "['hinge'],['logistic', 'hinge']"),
    ],
)
def test_what_was_run_is_written_as_it_may_be_again(value, text, axis):
    assert api._text(value) == text
    written = api._written({"axes": {"seed": value}, "grids": [], "zip": (), "where": "r <= d", "sample": None})
    json.dumps(written)
    assert written["sweep"]["where"] == ["r <= d"]
    several = isinstance(value, range | list | np.ndarray | pd.Series) or axis.startswith("range")
    assert written["sweep"]["axes"] == ({"seed": axis} if several else {})
    assert several or written["seed"] == value


def test_failures_are_raised():
    with pytest.raises(RuntimeError, match="cells"):
        mtfl_jax.sweep(**SMALL, seed=range(2), folder="a", memory_fraction=1e-12)
    (note,) = notes.read(api.Path("a"))
    assert note["state"] == "failed"


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_done(tmp_path):
    """As in a terminal: the first one finishes the chunk, and the same call goes on."""
    settings = dict(word.split("=") for word in LONG)
    code = f"import mtfl_jax; print(len(mtfl_jax.sweep(**{settings!r}, seed=range(400), folder='a', page=False)))"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=environment())
    while not list((tmp_path / "a" / "parts").glob("*")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert "stops when what runs is finished and kept; once more stops at once" in said
    last = said.strip().splitlines()[-1]
    kept = len(mtfl_jax.load("a"))
    assert last == f"KeyboardInterrupt: {kept} of 400 cells are kept in a; the same call goes on"
    assert 0 < kept < 400
    (note,) = notes.read(tmp_path / "a")
    assert note["state"] == "stopped"
    assert notes.left(note) == 400 - kept
    assert process.returncode in (1, -signal.SIGINT)
    assert len(mtfl_jax.sweep(**settings, seed=range(kept + 8), folder="a", page=False)) == kept + 8


def test_a_handler_of_the_programs_own_stays(monkeypatch):
    def own(number, frame):
        pass

    before = signal.signal(signal.SIGINT, own)
    try:
        with api._interrupts() as stop:
            assert signal.getsignal(signal.SIGINT) is own
            assert not stop()
    finally:
        signal.signal(signal.SIGINT, before)
    with api._interrupts() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_threads_sweep_at_once_and_into_one_folder(monkeypatch):
    """The rows that each call gives alone; BLAS has one thread while any runs, and then its own again."""
    calls = [
        {"num_tasks": [1, 4], "seed": range(6)},
        {"data": "gaussian", "tasks": "halfspace", "num_tasks": [2], "seed": range(6)},
        {"algorithm": "alternating", "steps": 4, "seed": range(4)},
        {"num_tasks": [1, 4], "seed": range(8)},
    ]
    alone = [mtfl_jax.sweep(**SMALL, **own) for own in calls]
    found, errors, limits = {}, [], []

    class Limited(threadpoolctl.threadpool_limits):
        def __init__(self, *given):
            limits.append("on")
            super().__init__(*given)

        def __exit__(self, *given):
            limits.append("off")
            super().__exit__(*given)

    monkeypatch.setattr(threadpoolctl, "threadpool_limits", Limited)

    def go(i, own):
        try:
            found[i] = mtfl_jax.sweep(**SMALL, **own, folder="together" if i % 2 else None, progress=True)
        except BaseException as error:
            errors.append(error)

    for _ in range(2):
        threads = [threading.Thread(target=go, args=pair) for pair in enumerate(calls)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        for i, table in enumerate(alone):
            pd.testing.assert_frame_equal(found[i], table)
    assert limits == ["on", "off"] * (len(limits) // 2)
    assert 1 <= len(limits) // 2 <= 2 * len(calls)


def test_a_bar_in_a_notebook(monkeypatch):
    shown = []

    class Handle:
        def update(self, data, raw):
            shown.append(data)

    def display(data, raw, display_id):
        shown.append(data)
        return Handle()

    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    with progress.display(SimpleNamespace(is_jupyter=True)) as show:
        show(
            SimpleNamespace(
                **{"cells": 8, "skipped": 2, "done": 3, "left": 3, "diverged": 0, "failures": []},
                compile_seconds=1.0,
                run_seconds=2.0,
                started=time.time() - 1,
            )
        )
    assert shown[0] == {"text/plain": "planning"}
    assert shown[1]["text/html"].startswith('<progress value="5" max="8"></progress> 5/8 cells, 2 there before')


def test_a_study():
    small = {"d": 8, "r": 2, "width": 16, "n1": 256, "n2": 256, "n_down": 32, "n_test": 64, "seed": range(2)}
    found = mtfl_jax.study("quickstart", **small, num_tasks=[1, 64], folder="q")
    assert len(found.table) == 3 * 2 * 2
    assert list(found.figures) == ["quickstart"]
    shown = found._repr_html_()
    assert shown.count("<img src=") == 1
    assert all(said.text.replace("<", "&lt;") in shown for said in found.findings.statements)
    assert str(found).startswith("One gradient step, 2 hidden directions in d = 8")
    assert "64 tasks" in str(found)
    assert notes.read(api.Path("q"))[0]["config"]["study"] == "quickstart"
    assert os.path.exists("q/report/quickstart.pdf")


def test_a_study_of_ones_own(tmp_path, repository):
    (tmp_path / "lab/study").mkdir(parents=True)
    yaml = (repository / "conf/study/quickstart.yaml").read_text().replace("study: quickstart", "study: mine")
    (tmp_path / "lab/study/mine.yaml").write_text(yaml)
    for name, text in {
        "bare": "study: bare\n",
        "other": yaml,
        "torn": "study: [",
        "axis": "# @package _global_\nstudy: axis\nsweep: {axis: {num_tasks: [1]}}\n",
        "code": yaml.replace("mine", "code"),
    }.items():
        (tmp_path / f"lab/study/{name}.yaml").write_text(text)
    (tmp_path / "lab/study/code.py").write_text("def findings(")
    small = {"d": 8, "r": 2, "width": 16, "n1": 64, "n2": 64, "n_down": 8, "n_test": 16, "seed": [0]}
    found = mtfl_jax.study("lab/study/mine.yaml", **small, num_tasks=[1, 4])
    assert len(found.table) == 6
    assert found.findings.claim == ""
    for name, size, said in (
        ("quickstar", "default", r"study=quickstar: allowed: complexity, .*did you mean quickstart"),
        ("quickstart", "huge", "size=huge: allowed with study=quickstart: default"),
        ("lab/study/no.yaml", "default", "study=lab/study/no.yaml: allowed"),
        ("none", "default", "study=none: allowed"),
        ("lab/study/bare.yaml", "default", "study=bare: its YAML must begin with"),
        ("lab/study/other.yaml", "default", "study=other: its YAML says study: mine"),
        ("lab/study/torn.yaml", "default", "its YAML cannot be read"),
        ("lab/study/axis.yaml", "default", r"sweep.axis=.*did you mean axes"),
        ("lab/study/code.yaml", "default", "study=code: .*says nothing of it"),
    ):
        with pytest.raises(ValueError, match=said):
            mtfl_jax.study(name, size=size)


def test_a_study_whose_findings_fail_keeps_its_rows(tmp_path, repository):
    (tmp_path / "lab/study").mkdir(parents=True)
    yaml = (repository / "conf/study/quickstart.yaml").read_text().replace("study: quickstart", "study: failing")
    (tmp_path / "lab/study/failing.yaml").write_text(yaml)
    (tmp_path / "lab/study/failing.py").write_text("def findings(table):\n    return 1 / 0\n")
    small = {"d": 8, "r": 2, "width": 8, "n1": 32, "n2": 32, "n_down": 8, "n_test": 16, "seed": [0]}
    with pytest.warns(UserWarning, match="findings of study failing could not be made .ZeroDivisionError"):
        found = mtfl_jax.study("lab/study/failing.yaml", **small, num_tasks=[1, 4])
    assert len(found.table) == 6


def test_what_has_no_effect_is_a_warning_at_the_call():
    with pytest.warns(UserWarning, match="lr has no effect") as caught:
        mtfl_jax.sweep(**SMALL, seed=[0], lr=0.5)
    assert caught[0].filename == __file__
