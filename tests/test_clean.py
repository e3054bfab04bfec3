"""`mtfl-clean`: rows that are to go do, whatever happens meanwhile no other is lost, and damage is said once."""

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
import warnings
from pathlib import Path

import numpy as np
import pytest
from test_folders import SMALL, made, own, stood_in  # noqa: F401
from test_page import full, rows_of

import mtfl_jax
from mtfl_jax.analysis import clean
from mtfl_jax.sweeps import places, store, tables


def ids(folder):
    """The identities of the rows of a folder."""
    return set(tables.ids(tables.stored(tables.files_of(folder))).tolist())


def parted(folder, rng, count=40):
    """A folder of rows in several parts, merged or not, of which some are in several files: its identities."""
    sink = store.Folder(folder)
    table = full(rows_of(seed=range(count)))
    edges = sorted({0, count, *rng.integers(0, count, 6).tolist()})
    for start, end in itertools.pairwise(edges):
        sink.append(table.slice(start, end - start))
        if rng.random() < 0.3:
            sink.merge()
        if rng.random() < 0.3:
            sink.append(table.slice(start, 2))
    return set(range(count))


@pytest.mark.parametrize("draw", range(5))
@pytest.mark.parametrize("remote", [False, True])
def test_rows_that_are_to_go_do_and_no_other(tmp_path, draw, remote):
    rng = np.random.default_rng(draw)
    folder = places.place(f"memory://{uuid.uuid4().hex}" if remote else tmp_path / "a")
    every = parted(folder, rng)
    before = mtfl_jax.load(folder).set_index("id")
    gone = set(rng.choice(40, rng.integers(1, 41), replace=False).tolist())
    assert tables.remove(folder, np.array(sorted(gone), np.uint64)) == []
    assert ids(folder) == every - gone
    after = mtfl_jax.load(folder).set_index("id")
    assert after.sort_index().equals(before[~before.index.isin(gone)].sort_index())
    # They can be made again.
    sink = store.Folder(folder)
    assert set(sink.finished().tolist()) == every - gone
    sink.append(full(rows_of(seed=range(40))))
    sink.merge()
    assert ids(folder) == every


class Killed(BaseException):
    """What ends a process at a moment."""


@pytest.mark.parametrize("draw", [0, *(pytest.param(draw, marks=pytest.mark.slow) for draw in (1, 2))])
def test_a_kill_before_any_step_loses_no_row(tmp_path, monkeypatch, draw):
    """From the chosen step on nothing is done to the disk, as of a process that is killed there."""
    step, done, ended = 0, [0], False

    def stepping(real):
        def one(*given, **named):
            if done[0] >= step:
                raise Killed
            done[0] += 1
            return real(*given, **named)

        return one

    while not ended:
        rng = np.random.default_rng(draw)
        folder = tmp_path / str(step)
        every = parted(folder, rng)
        gone = set(rng.choice(40, 15, replace=False).tolist())
        done[0] = 0
        with monkeypatch.context() as patched:
            for owner, name in ((Path, "replace"), (Path, "unlink"), (Path, "rename"), (os, "fsync")):
                patched.setattr(owner, name, stepping(getattr(owner, name)))
            try:
                tables.remove(folder, np.array(sorted(gone), np.uint64))
                ended = True
            except Killed:
                pass
        assert every - gone <= ids(folder) <= every
        tables.remove(folder, np.array(sorted(gone), np.uint64))
        assert ids(folder) == every - gone
        step += 1
    assert step > 4


REMOVES = """
import sys
import numpy as np
from pathlib import Path
from mtfl_jax.sweeps import tables
gone = np.arange(0, 600, 2, dtype=np.uint64)
print("now", flush=True)
tables.remove(Path(sys.argv[1]), gone)
"""


@pytest.mark.slow
@pytest.mark.parametrize("draw", range(4))
def test_a_kill_at_any_moment_loses_no_row(tmp_path, draw):
    sink, table = store.Folder(tmp_path), full(rows_of(seed=range(600)))
    for start in range(0, 600, 4):
        sink.append(table.slice(start, 4))
    process = subprocess.Popen([sys.executable, "-c", REMOVES, tmp_path], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"now\n"
    time.sleep(np.random.default_rng(draw).uniform(0, 0.6))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    every, gone = set(range(600)), set(range(0, 600, 2))
    assert every - gone <= ids(tmp_path) <= every
    tables.remove(tmp_path, np.array(sorted(gone), np.uint64))
    assert ids(tmp_path) == every - gone


@pytest.mark.parametrize("remote", [False, True])
def test_writers_and_readers_meanwhile_lose_nothing(tmp_path, monkeypatch, remote):
    """One appends and merges, one cleans again and again, and one reads."""
    # As a store has it; fsspec's memory shows an object while it is written.
    monkeypatch.setattr(places, "put", lambda file, path: path.fs.pipe_file(path.path, Path(file).read_bytes()))
    folder = places.place(f"memory://{uuid.uuid4().hex}" if remote else tmp_path / "a")
    table = full(rows_of(seed=range(120)))
    store.Folder(folder).append(table.slice(0, 20))
    kept, problems = set(range(0, 20, 2)), []
    stop = threading.Event()

    def write():
        sink = store.Folder(folder)
        for start in range(20, 120, 5):
            sink.append(table.slice(start, 5))
            if start % 3 == 0:
                sink.merge()
        stop.set()

    def read():
        while not stop.is_set():
            if not kept <= set(mtfl_jax.load(folder)["id"]):
                problems.append("a row was not seen")

    threads = [threading.Thread(target=write), threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    while not stop.is_set():
        tables.remove(folder, np.arange(1, 20, 2, dtype=np.uint64))
    for thread in threads:
        thread.join()
    tables.remove(folder, np.arange(1, 20, 2, dtype=np.uint64))
    assert ids(folder) == kept | set(range(20, 120))
    assert not problems


# The command


def test_the_command_says_how_many_and_removes_them_when_told(tmp_path, called):
    table = rows_of(d=[8, 16], seed=range(4)).assign(diverged_step=None)
    table.loc[[1, 6], ["status", "diverged_step"]] = ["diverged", 3]
    folder = made(tmp_path / "a", table, own())
    store.Folder(folder).merge()
    asked = [folder, "--where", "status=diverged"]
    assert called(clean.main, *asked) == (0, "2 of 8 rows would go; --yes removes them\n", "")
    assert len(mtfl_jax.load(folder)) == 8
    assert called(clean.main, *asked, "--where", "d=16")[1] == "1 of 8 rows would go; --yes removes them\n"
    (folder / "report").mkdir()
    (folder / "report" / "index.html").write_text("before")
    code, out, err = called(clean.main, *asked, "--yes")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "removed 2 of 8 rows; the command that made them makes them again",
        f"the report is that of before; mtfl-report {folder} makes it again",
    ]
    assert set(mtfl_jax.load(folder)["status"]) == {"ok"}
    assert len(mtfl_jax.load(folder)) == 6
    code, _, err = called(clean.main, *asked)
    assert code == 2
    assert err.endswith("--where=status=diverged: no such row; allowed for status: ok\n")
    assert called(clean.main, folder, "--where", "step=1", "--yes")[0] == 0
    assert len(mtfl_jax.load(folder)) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--damaged or --where=COLUMN=VALUE: allowed: one of them"),
        (["--damaged", "--where", "d=16"], "allowed: one of them"),
        (["--where", "dd=16"], "--where=dd=16: allowed: COLUMN=VALUE, columns "),
        (["--where", "d=99"], "--where=d=99: no such row; allowed for d: 16"),
    ],
)
def test_a_bad_argument_is_a_line(tmp_path, called, arguments, said):
    folder = made(tmp_path / "a", rows_of(seed=[0]))
    code, out, err = called(clean.main, folder, *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    code, out, err = called(clean.main, tmp_path / "nothing", "--where", "d=16")
    assert (code, out) == (2, "")
    assert "no results there; allowed: the folder of a sweep" in err


def test_a_folder_in_which_a_sweep_runs_is_left(tmp_path, called):
    folder = made(tmp_path / "a", rows_of(seed=[0]), own("running", pid=os.getpid(), updated=time.time()))
    for arguments in (["--where", "d=16", "--yes"], ["--damaged"]):
        code, out, err = called(clean.main, folder, *arguments)
        assert (code, out) == (2, "")
        assert f"a sweep runs there, process {os.getpid()} on {socket.gethostname()}; allowed: when it has ended" in err
    assert len(mtfl_jax.load(folder)) == 1
    # One that has ended without a word, and one of another host that has been silent for an hour, do not run.
    for more in (own("running", pid=2**22 - 1), {"state": "running", "host": "far", "updated": time.time() - 3700}):
        other = made(tmp_path / uuid.uuid4().hex, rows_of(seed=[0]), more)
        assert called(clean.main, other, "--where", "d=16", "--yes")[0] == 0


@pytest.mark.usefixtures("stood_in")
def test_the_same_command_makes_again_what_was_removed(here, called):
    sweep = ["-m", *SMALL, "d=8,12", "seed=range(0,3)", "name=a"]
    assert here(*sweep)[0] == 0
    before = mtfl_jax.load("outputs/none/a").sort_values("id", ignore_index=True)
    assert called(clean.main, "latest", "--where", "d=12", "--yes")[0] == 0
    assert len(mtfl_jax.load("latest")) == 3
    code, out, _ = here(*sweep)
    assert code == 0
    assert "3 there before" in out
    assert mtfl_jax.load("latest").sort_values("id", ignore_index=True).equals(before)


# Damage


def damaged(folder):
    """A folder of two parts of which one is cut short: that one."""
    sink = store.Folder(folder)
    for start in (0, 3):
        sink.append(full(rows_of(seed=range(6))).slice(start, 3))
    part = tables.files_of(sink.path)[0]
    part.write_bytes(part.read_bytes()[:-50])
    return part


@pytest.mark.parametrize(
    "command", ["report", "status", "clean", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fit", "plot"))]
)
def test_damage_is_one_line_a_command_that_says_what_to_do(tmp_path, command):
    made(tmp_path / "a b", None, own())
    part = damaged(tmp_path / "a b")
    more = {"fit": ["--x", "d", "--y", "task_error"], "plot": ["--x", "seed"], "clean": ["--where", "d=16"]}
    script = f"from mtfl_jax import __main__; __main__.{command}()"
    given = ["a b", *more.get(command, [])]
    done = subprocess.run(
        [sys.executable, "-c", script, *given], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stderr.splitlines() if "left out" in line]
    assert len(lines) == 1, done.stderr
    assert re.fullmatch(
        rf"mtfl-{command}: a b/parts/{part.name}: left out, it cannot be read \(.+\); mtfl-clean 'a b' --damaged moves"
        " it aside, and the same command makes its rows again",
        lines[0],
    )
    assert "UserWarning" not in done.stderr


def test_python_warns_once(tmp_path):
    damaged(tmp_path / "a")
    code = "import mtfl_jax; [mtfl_jax.load('a') for _ in range(3)]; mtfl_jax.load('.')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr.count("UserWarning: a/parts/") == 1


@pytest.mark.parametrize("remote", [False, True])
def test_damaged_files_are_moved_aside_and_their_other_rows_kept(tmp_path, called, remote, monkeypatch):
    monkeypatch.setattr(tables, "GROUP_ROWS", 2)
    folder = places.place(f"memory://{uuid.uuid4().hex}" if remote else tmp_path / "a")
    part = damaged(folder)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        code, out, err = called(clean.main, folder, "--damaged")
    assert (code, err) == (0, "")
    assert out == "1 file moved aside; the command that made their rows makes again what is lost\n"
    assert [str(one.message) for one in said] == [
        f"{part}: it cannot be read whole and was moved to {part.name}.unreadable-1"
    ]
    kept = ids(folder)
    assert len(kept) == 3
    assert places.there(part.parent / f"{part.name}.unreadable-1")
    assert called(clean.main, folder, "--damaged") == (0, "no file is damaged\n", "")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(mtfl_jax.load(folder)["id"]) == kept
    # A table that is damaged is moved aside too, and rows that are to go do from the other files.
    path = folder / tables.RESULTS
    path.write_bytes(path.read_bytes()[:-50])
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        assert called(clean.main, folder, "--damaged")[1].startswith("1 file moved aside")
    assert places.there(folder / f"{tables.RESULTS}.unreadable-1")


def test_rows_are_removed_beside_a_damaged_part_which_stays(tmp_path, called):
    part = damaged(tmp_path / "a")
    before = part.read_bytes()
    with pytest.warns(UserWarning, match="left out"):
        code, out, _ = called(clean.main, tmp_path / "a", "--where", "d=16", "--yes")
    assert code == 0
    assert out.splitlines()[-1].startswith("1 file cannot be read whole: mtfl-clean ")
    assert part.read_bytes() == before
