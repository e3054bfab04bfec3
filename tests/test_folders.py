"""Results folders by name: tidy tables, the sweeps below a folder, the newest of them, and `name=`."""

import os
import socket
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from differential import StandIn, Truth
from test_describe import draws, random_table
from test_page import RUN, full, rows_of

import mtfl_jax
from mtfl_jax.analysis import describe, fit_command, folders, page, plot_command, status
from mtfl_jax.sweeps import engine, notes, places, store

SMALL = ["d=8", "r=2", "width=8", "num_tasks=2", "n1=16", "n2=16", "n_down=8", "n_test=16"]


def made(path, table=None, *runs):
    """A results folder of rows and notes of runs."""
    folder = store.Folder(path)
    if table is not None:
        folder.append(full(table))
    for run in runs:
        folder._name = os.urandom(6).hex()
        folder.note({**RUN, **run})
    return path


# Tidy tables


@pytest.mark.parametrize("draw", draws(60, 15))
def test_a_tidy_table_has_what_varies_and_what_was_measured(tmp_path, draw):
    rng = np.random.default_rng(draw)
    table = random_table(rng).assign(directions_recovered=1)
    kept = [name for name in describe.MAIN if rng.random() < 0.5]
    made(tmp_path / "a", table.drop(columns=[name for name in describe.MAIN if name not in kept]))
    whole = mtfl_jax.load(tmp_path / "a")
    found = mtfl_jax.load(tmp_path / "a", tidy=True)
    before = list(whole)[: list(whole).index("step")]
    varies = {name for name in before if len({str(value) for value in whole[name]}) > 1}
    assert set(found) == {*varies, "seed", "step", "status", *kept}
    assert list(found) == [name for name in whole if name in found]
    pd.testing.assert_frame_equal(found, whole[list(found)])
    assert found.attrs["labels"]["d"] == "input dimension d"
    assert describe.axes(found) == describe.axes(whole)


def test_a_tidy_table_can_be_chosen_from_and_drawn(tmp_path):
    made(tmp_path / "a", rows_of(d=[8, 16], num_tasks=[1, 4], seed=range(3)))
    found = mtfl_jax.load(tmp_path / "a", tidy=True, where=[("d", "==", 8)])
    assert "d" not in found
    assert len(found) == 6
    assert mtfl_jax.plot(found).get_label()
    with pytest.raises(ValueError, match=r"tidy=True: .*; allowed: one of the two"):
        mtfl_jax.load(tmp_path / "a", tidy=True, columns=["d"])


# Sweeps below a folder


def own(state="finished", **more):
    """What a process of this host noted."""
    return {"host": socket.gethostname(), "state": state, "pid_namespace": notes.pid_namespace(), **more}


def test_a_folder_of_sweeps_lists_them(tmp_path):
    grid = {"study": "none", "sweep": {"axes": {"d": [8, 16], "seed": "range(0,3)"}, "zip": [], "where": []}}
    made(tmp_path / "none" / "old", rows_of(d=[8, 16], seed=range(3)), own(config=grid, updated=2e9, cells=6, done=6))
    made(tmp_path / "quickstart" / "new", None, own("running", pid=os.getpid(), updated=time.time(), started=4e9))
    made(tmp_path / "quickstart" / "dead", None, own("running", pid=2**22 - 1, updated=2.2e9, done=4))
    made(tmp_path / "quickstart" / "bad", None, own("failed", updated=2.1e9, failures=["bucket 1: no"]))
    python = made(tmp_path / "deep" / "a" / "b", rows_of(width=[8, 16], seed=[0]))
    os.utime(next((python / "parts").iterdir()), (1e9, 1e9))
    made(tmp_path / "too" / "deep" / "a" / "b", rows_of(seed=[0]))
    (tmp_path / "mine" / "runs").mkdir(parents=True)
    (tmp_path / "mine" / "runs" / "a.json").write_text("{}")
    found = mtfl_jax.load(tmp_path)
    names = [os.path.relpath(name, tmp_path) for name in found["folder"]]
    assert sorted(names) == sorted(["none/old", "quickstart/bad", "quickstart/dead", "quickstart/new", "deep/a/b"])
    assert list(found["updated"]) == sorted(found["updated"], reverse=True)
    rows = dict(zip(names, found.to_dict("records"), strict=True))
    states = {name: row["state"] for name, row in rows.items()}
    assert states["none/old"] == "finished"
    assert states["quickstart/new"] == "running"
    assert states["quickstart/dead"] == "stopped"
    assert states["quickstart/bad"] == "failed"
    assert pd.isna(states["deep/a/b"])
    assert rows["none/old"]["axes"] == "d, seed"
    assert (rows["none/old"]["rows"], rows["none/old"]["cells"], rows["none/old"]["left"]) == (6, 6, 0)
    assert (rows["quickstart/dead"]["rows"], rows["quickstart/dead"]["left"]) == (0, 20)
    assert rows["quickstart/dead"]["study"] == "quickstart"
    assert rows["deep/a/b"]["axes"] == "width"
    assert rows["deep/a/b"]["updated"] == pd.Timestamp(1e9, unit="s", tz="UTC")
    for asked in ({"columns": ["d"]}, {"tidy": True}, {"where": [("d", "==", 8)]}):
        with pytest.raises(FileNotFoundError, match="no results there; give the folder"):
            mtfl_jax.load(tmp_path, **asked)


def test_a_bucket_of_sweeps_lists_them():
    url = f"memory://{os.urandom(6).hex()}"
    for name in ("a", "b/c"):
        made(places.place(f"{url}/{name}"), rows_of(d=[8, 16], seed=[0]), {"updated": 1e9 + len(name)})
    found = mtfl_jax.load(url)
    assert [name.removeprefix(url) for name in found["folder"]] == ["/b/c", "/a"]
    assert list(found["rows"]) == [2, 2]
    with pytest.raises(FileNotFoundError, match="no results there"):
        mtfl_jax.load(f"{url}/nothing")


# The newest


def test_latest_is_the_newest_wherever_a_folder_is_read(tmp_path, monkeypatch, called):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="latest: no sweeps below outputs/; give the folder that mtfl printed"):
        mtfl_jax.load("latest")
    status_, out, err = called(status.main, "latest")
    assert (status_, out) == (2, "")
    assert "latest: no sweeps below outputs/" in err
    assert err.count("\n") == 1
    for place, name in enumerate(["none/a", "scaling/c", "none/b"]):
        rows = rows_of(d=[8, 16, 32, 64], n_down=[place + 1], seed=range(3))
        made(tmp_path / "outputs" / name, rows, own(updated=2e9 + place % 2))
    newest = "outputs/scaling/c"
    for main, *arguments in (
        (page.main, "latest"),
        (status.main, "latest"),
        (fit_command.main, "latest", "--x", "d", "--y", "subspace_distance", "--bootstraps", "20"),
        (plot_command.main, "latest", "--out", "p.png"),
    ):
        status_, out, err = called(main, *arguments)
        assert status_ in (0, 1), err
        assert err.startswith(f"latest: {newest}\n"), err
        assert out
    assert (tmp_path / newest / "report" / "index.html").exists()
    assert set(mtfl_jax.load("latest")["n_down"]) == {2}
    assert set(mtfl_jax.plot("latest").get_label())
    # What is written is not looked for, and what is called so is that.
    assert called(page.main, newest, "--out", "latest")[0] == 0
    assert (tmp_path / "latest" / "index.html").exists()
    with pytest.raises(FileNotFoundError, match="latest: no results there"):
        mtfl_jax.load("latest")


# A name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["name=a/b"], "name=a/b: allowed: letters, digits"),
        (["name=../a"], "name=../a: allowed: letters, digits"),
        (["name=.."], "name=..: allowed: letters, digits"),
        (["name=''"], "name=: allowed: letters, digits"),
        (["name=null"], "name=null: allowed: letters, digits"),
        (["name=true"], "name=True: allowed: letters, digits"),
        (["+name=/a"], "name=/a: allowed: letters, digits"),
        (["name='a b'"], "name=a b: allowed: letters, digits"),
        (["name=latest"], "nor latest, parts, runs, report"),
        (["name=report"], "name=report: allowed: letters, digits"),
        (["name=2026_11_27"], "but no number"),
        (["name=a", "folder=x"], "name=a: allowed without folder"),
        (["name=a", "hydra.run.dir=x"], "name=a: allowed without hydra.run.dir"),
        (["-m", "seed=0,1", "name=a", "hydra.sweep.dir=x"], "name=a: allowed without hydra.sweep.dir"),
        (["-m", "seed=0,1", "name=a", "folder=x", "hydra.sweeper.jobs=2"], "name=a: allowed without folder"),
        (["-m", "seed=0,1", "name=a/b"], "name=a/b: allowed: letters, digits"),
        (["-m", "seed=0,1", "name=a,b"], "name=a,b: allowed: one, not a sweep"),
    ],
)
def test_a_name_that_cannot_be_is_one_line_and_leaves_nothing(here, tmp_path, arguments, said):
    (tmp_path / "in" / "there").mkdir(parents=True)
    os.chdir(tmp_path / "in" / "there")
    code, out, err = here(*SMALL, *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["in", "there"]


@pytest.fixture
def stood_in(monkeypatch):
    """The engine with the stand-in for compiled programs."""
    monkeypatch.setattr(engine, "fitting", StandIn(Truth()).fitting)


@pytest.mark.usefixtures("stood_in")
def test_a_name_is_a_folder_that_goes_on(here, tmp_path):
    assert here(*SMALL, "name=first")[0] == 0
    assert here(*SMALL, "name=first", "plan=only")[1] == "1 of 1 cell there before\n"
    code, out, _ = here("-m", *SMALL, "name=first", "seed=0,1,2")
    assert code == 0
    assert "1 there before" in out
    assert here("-m", *SMALL, "name=first", "seed=3,4", "hydra/sweeper=basic")[0] == 0
    assert sorted(mtfl_jax.load("outputs/none/first")["seed"]) == [0, 1, 2, 3, 4]
    assert [path.name for path in (tmp_path / "outputs" / "none").iterdir()] == ["first"]
    # Its name is no part of what was run.
    configs = [note["config"] for note in notes.read(tmp_path / "outputs" / "none" / "first")]
    assert not any("name" in config for config in configs)
    assert here(*SMALL, "name=v1.2-b_3", "hydra.run.dir=out/${name}")[0] == 0
    assert len(mtfl_jax.load("out/v1.2-b_3")) == 1


@pytest.mark.slow
def test_a_name_is_one_folder_for_all_processes(mtfl, tmp_path):
    sweep = ["-m", *SMALL, "seed=range(0,4)", "name=shared"]
    for words, count in ((sweep[:-1], 1), (sweep, 2)):  # The time is one name too.
        done = mtfl(*words, "cluster=joblib", "hydra.sweeper.jobs=2")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("results.parquet") == 1
        assert len(list((tmp_path / "outputs" / "none").iterdir())) == count
        assert list(mtfl_jax.load(tmp_path / "outputs")["rows"]) == [4] * count
    command = [sys.executable, "-m", "mtfl_jax", *sweep[:-2], "seed=range(0,8)", sweep[-1], "sweep.part=auto"]
    started = [
        subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PMI_RANK": str(k), "PMI_SIZE": "2"})
        for k in range(2)
    ]
    assert [process.wait() for process in started] == [0, 0]
    assert sorted(mtfl_jax.load(tmp_path / "outputs" / "none" / "shared")["seed"]) == list(range(8))


def test_who_gave_a_name_is_not_told_of_another_key():
    from mtfl_jax.sweeps import jobs

    assert jobs.go_on("name", places.place("outputs/none/a")) == "the same command goes on"
    assert jobs.go_on("hydra.run.dir", places.place("a")) == "the same command with hydra.run.dir=a goes on"


def test_a_table_is_loaded_without_jax(tmp_path):
    made(tmp_path / "a", rows_of(seed=[0]), {})
    code = (
        f"import sys, mtfl_jax; mtfl_jax.load({str(tmp_path)!r}); mtfl_jax.load({str(tmp_path / 'a')!r}, tidy=True)\n"
    )
    code += "assert not {'jax', 'hydra', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_state_is_that_of_the_last_run_of_every_grid():
    first, second = ({**RUN["config"], "d": d} for d in (8, 16))
    run = [{**RUN, "config": config, "state": state} for config, state in ((first, "failed"), (second, "finished"))]
    assert folders.state_of(run) == "failed"
    assert folders.state_of([*run, {**run[0], "state": "stopped"}]) == "stopped"
    assert folders.state_of([*run, {**run[0], "state": "finished"}]) == "finished"
