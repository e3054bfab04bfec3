"""How commands end: by signals at any stage, by a reader that goes, on a full disk, beside foreign files."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

import mtfl_jax
from mtfl_jax.analysis import page
from mtfl_jax.sweeps import notes, tables

SMALL = {"d": 12, "r": 2, "width": 8, "n1": 64, "n2": 64, "n_down": 16, "n_test": 32, "probe": "none"}
CELLS = ["-m", *(f"{key}={value}" for key, value in SMALL.items()), "num_tasks=1,2", "seed=range(1,21)"]
CELLS += ["hydra.sweep.dir=out"]

STAGES = {
    "starting": "mtfl_jax.compose:plain",
    "planning": "mtfl_jax.sweeps.engine:plan",
    "compiling": "mtfl_jax.sweeps.compiling:compiled",
    "running": "mtfl_jax.sweeps.engine:_call",
    "writing": "mtfl_jax.sweeps.tables:append",
    "merging": "mtfl_jax.sweeps.tables:merge",
    "reporting": "mtfl_jax.analysis.page:write",
}
"""What each stage begins with."""

AT_A_STAGE = """
import importlib, os, sys, time
from mtfl_jax import __main__, app
from mtfl_jax.sweeps import compiling
compiling.CHUNK_SECONDS = compiling.WRITE_SECONDS = 0.0
where, number, times, *sys.argv[1:] = sys.argv[1:]
module, name = where.split(":")
real, calls = getattr(importlib.import_module(module), name), []
def stage(*args, **options):
    calls.append(1)
    if len(calls) == 2 or name not in ("_call", "append"):
        for _ in range(int(times)):
            os.kill(os.getpid(), int(number))
            time.sleep(0.3)
    return real(*args, **options)
for other in list(sys.modules.values()):
    if getattr(other, "__name__", "").startswith("mtfl_jax") and getattr(other, name, None) is real:
        setattr(other, name, stage)
__main__.mtfl()
"""


def stopped(cwd, stage, number, times=1):
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "import mtfl_jax.app\n" + AT_A_STAGE,
            STAGES[stage],
            str(int(number)),
            str(times),
            *CELLS,
        ],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
    )


def check_stop(mtfl, cwd, stage, number, times=1):
    """One signal is answered and ends the command with its number, no row is lost, and the same command goes on."""
    done = stopped(cwd, stage, number, times)
    assert done.returncode == 128 + number, (stage, done.stderr)
    lines = done.stderr.splitlines()
    assert lines, stage
    assert all(line.startswith("mtfl: stop") for line in lines), done.stderr
    assert "Traceback" not in done.stdout
    if stage in ("planning", "compiling", "running", "writing"):
        assert lines[0] == "mtfl: stopping after the chunk that runs (once more: at once)"
        assert lines[-1].endswith(f"the same command with hydra.sweep.dir={cwd}/out goes on")
        if times == 1 and stage in ("running", "writing"):
            assert "of 40 cells left" in lines[-1]
            assert [note["state"] for note in notes.read(cwd / "out")] == ["stopped"]
    assert not list(cwd.glob("out/*/.*partial"))
    if stage == "running" and times == 1:
        (note,) = notes.read(cwd / "out")
        page.write(cwd / "out")
        said = f"Part of the sweep: {notes.left(note)} of its cells were left when it was stopped"
        assert said in (cwd / "out" / "report" / "index.html").read_text()
    again = mtfl(*CELLS)
    assert (again.returncode, again.stderr) == (0, "")
    assert "Part of the sweep" not in (cwd / "out" / "report" / "index.html").read_text()
    table = mtfl_jax.load(cwd / "out")
    assert sorted(zip(table["num_tasks"], table["seed"], strict=True)) == [(t, s) for t in (1, 2) for s in range(1, 21)]


def test_a_signal_stops_a_run_and_the_same_command_goes_on(mtfl, tmp_path):
    check_stop(mtfl, tmp_path, "running", signal.SIGTERM)


@pytest.mark.slow
def test_a_second_signal_stops_at_once(mtfl, tmp_path):
    check_stop(mtfl, tmp_path, "compiling", signal.SIGINT, times=2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.slow
def test_any_signal_at_any_stage(mtfl, tmp_path, stage, number):
    check_stop(mtfl, tmp_path, stage, number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("delay", [0.1, 0.3, 0.6, 1.0, 1.5])
@pytest.mark.slow
def test_a_signal_while_the_command_starts(tmp_path, number, delay):
    process = subprocess.Popen(
        [sys.executable, "-m", "mtfl_jax", *CELLS],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=delay)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode in (128 + number, -number)
    assert "Traceback" not in out + err
    assert len(err.splitlines()) <= 2


def test_an_ignored_signal_stays_ignored(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
         "from mtfl_jax import ends\n"
         "with ends.listening('now', 'soon') as stop:\n"
         "    os.kill(os.getpid(), signal.SIGHUP)\n"
         "    os.kill(os.getpid(), signal.SIGUSR1)\n"
         "    import time; time.sleep(0.2)\n"
         "print(stop.came == signal.SIGUSR1, signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL)"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("True True\n", "mtfl: soon\n")


# Readers that go, and files that are others'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished sweep whose folder has markup in its name."""
    path = tmp_path_factory.mktemp("ends") / "[bold]red" / "[" / "b]"
    done = subprocess.run(
        [sys.executable, "-m", "mtfl_jax", *CELLS[:-1], f"hydra.sweep.dir={str(path)!r}"],
        capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    assert f"wrote {path}/results.parquet" in done.stdout
    return path


COMMANDS = ["report", "status", "fit"]


def run_command(name, *args, **options):
    code = f"import sys; sys.argv[0] = 'mtfl-{name}'; from mtfl_jax.__main__ import {name}; {name}()"
    given = ["--x=seed", "--y=subspace_distance"] if name == "fit" else []
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args), *given], capture_output=True, text=True, timeout=60, **options
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_a_path_is_no_markup(name, folder):
    done = run_command(name, folder)
    assert done.returncode in ((0, 1) if name == "fit" else (0,)), done.stderr
    assert "Traceback" not in done.stderr
    assert name == "fit" or str(folder) in done.stdout


@pytest.mark.parametrize("name", ["mtfl", *COMMANDS])
def test_a_reader_that_goes_is_no_traceback(name, folder):
    read, write = os.pipe()
    os.close(read)
    code = f"import sys; sys.argv[0] = '{name}'; from mtfl_jax.__main__ import {name}; {name}()"
    args = {"mtfl": ["plan=only"], "fit": [folder, "--x=seed", "--y=subspace_distance"]}.get(name, [folder])
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], stdout=write, stderr=subprocess.PIPE, text=True, timeout=60,
        cwd=folder.parent,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


FOREIGN = ["", "{", "[]", "null", '"text"', "{}", '{"state": "running"}', "\ud800", "[" * 100_000, '{"pid": "x"}']


@pytest.mark.parametrize("name", ["report", "status"])
def test_foreign_json_is_named_and_left_out(name, folder):
    (own,) = (folder / "runs").glob("*.json")
    spoilt = json.dumps({**json.loads(own.read_text()), "started": "yesterday"})
    for place, text in enumerate([*FOREIGN, spoilt]):
        (folder / "runs" / f"x{place}.json").write_bytes(text.encode(errors="surrogatepass"))
    try:
        done = run_command(name, folder)
    finally:
        for path in (folder / "runs").glob("x*.json"):
            path.unlink()
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == len(FOREIGN) + 1
    assert all(line.startswith(f"mtfl-{name}: {folder}/runs/x") for line in done.stderr.splitlines())


def test_the_state_of_a_dead_process_is_known(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    (tmp_path / "runs").mkdir()
    texts = dict.fromkeys(("platform", "numerics", "matmul_precision"), "x") | {"state": "running"}
    counts = dict.fromkeys(("diverged", "compiled", "draws_schema"), 1) | {"cells": 9, "skipped": 2, "done": 3}
    times = {"started": 1.0, "updated": 2.0, "compile_seconds": 1.0, "run_seconds": 1.0}
    config = {"study": "none", "sweep": {"axes": {"d": 1}, "zip": [], "where": []}}
    lists = {"command": ["mtfl", "d=1"], "devices": [], "failures": [], "versions": {}}
    base = {**texts, **counts, **times, **lists, "host": socket.gethostname(), "pid": process.pid, "config": config}
    other = {**base, "config": {**base["config"], "d": 3}}
    here = {**other, "pid": os.getpid()}
    away = {**other, "host": "another", "config": {**base["config"], "d": 4}}
    for place, note in enumerate([base, here, away]):
        (tmp_path / "runs" / f"{place}.json").write_text(json.dumps(note))
    done = run_command("status", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines = done.stdout.splitlines()
    assert first == f"{tmp_path}: 0 rows, 12 cells left, 1 process runs"
    states = sorted(line.split(":")[0].rstrip("0123456789hms") for line in lines if not line.startswith(" "))
    assert states == ["ended without a word", "running", "silent for "]


def test_a_full_disk_is_one_line_and_keeps_what_is_there(here, tmp_path, monkeypatch):
    real = tables.append
    assert here(*CELLS, "seed=range(1,11)")[0] == 0

    def full(path, rows):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(tables, "append", full)
    status, _, err = here(*CELLS)
    assert status == 1
    assert err.startswith(f"mtfl: hydra.sweep.dir={tmp_path}/out: No space left on device; the rows that were written")
    assert len(err.splitlines()) == 1
    monkeypatch.setattr(tables, "append", real)
    status, out, err = here(*CELLS)
    assert (status, err) == (0, "")
    assert "20 there before" in out
    assert len(mtfl_jax.load("out")) == 40


@pytest.mark.slow
def test_jobs_of_other_processes_print_what_a_run_prints(mtfl, tmp_path):
    done = mtfl(*CELLS, "hydra.sweeper.jobs=2", "hydra/launcher=joblib")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"2 jobs by JoblibLauncher into {tmp_path}/out"
    assert any(line.startswith("40/40 cells") for line in lines)
    for name in ("results.parquet", "report/index.html"):
        assert lines.count(f"wrote {tmp_path}/out/{name}") == 1
    assert {tuple(note["command"]) for note in notes.read(tmp_path / "out")} == {
        ("mtfl", *CELLS, "hydra.sweeper.jobs=2", "hydra/launcher=joblib")
    }
