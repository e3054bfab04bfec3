"""How commands end: by a signal at any moment, by a reader that goes, by a full disk; never with a traceback."""

import copy
import errno
import itertools
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time

import differential
import documented
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_page import RUN

import mtfl_jax
from mtfl_jax import __main__, ends
from mtfl_jax.analysis import page
from mtfl_jax.analysis import status as status_of_folder
from mtfl_jax.sweeps import engine, notes, tables

SMALL = ["d=12", "r=2", "width=8", "n1=64", "n2=64", "n_test=32", "n_down=16", "num_tasks=2", "measure=recovery"]

STAGES = """
import os, signal, sys, time, traceback

sys.path.insert(0, {tests!r})
import differential
from mtfl_jax import __main__, app
from mtfl_jax.sweeps import compiling, engine, store, tables

# Nothing compiles: ends are what is tested. A chunk is a cell, and is written at once.
stand_in = differential.StandIn(differential.Truth())
engine.fitting = stand_in.fitting
engine.chunk_of = lambda bucket: compiling.Chunk(1, 1)
compiling.CHUNK_SECONDS = store.WRITE_SECONDS = 0.0


def play(stage, numbers):
    '''Send signals to this process in a call of a function.'''
    owner, name, at = {{
        "planning": (engine, "plan", 1),
        "compiling": (engine, "fitting", 1),
        "running": (engine, "_call", 3),
        "jobs": (engine, "_call", 3),
        "writing": (tables.pq, "write_table", 2),
        "merging": (tables, "merge", 1),
        "reporting": (app.page, "write", 1),
    }}[stage]
    real, calls = getattr(owner, name), []

    def halfway(*args, **kwargs):
        calls.append(0)
        if len(calls) == at:
            for number in numbers:
                os.kill(os.getpid(), number)
                time.sleep(0.5)
        return real(*args, **kwargs)

    setattr(owner, name, halfway)
    sys.argv = ["mtfl", "-m", *{small!r}, "seed=range(0,24)", "hydra.sweep.dir=out"]
    sys.argv += ["hydra.sweeper.jobs=2"] * (stage == "jobs")
    __main__.main()


def reap():
    pid, status = os.wait()
    print(children.pop(pid), os.waitstatus_to_exitcode(status), flush=True)


children = {{}}
for folder in sys.argv[1:]:
    if len(children) >= 2:
        reap()
    os.mkdir(folder)
    if pid := os.fork():
        children[pid] = folder
        continue
    os.chdir(folder)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY), descriptor)
    status, (stage, *numbers) = 0, folder.split("-")
    try:
        play(stage, list(map(int, numbers)))
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
        status = 99
    sys.stdout.flush()
    os._exit(status)
while children:
    reap()
"""

TWICE = (signal.SIGINT, signal.SIGINT)
SIGNALS = [(signal.SIGINT,), (signal.SIGTERM,), (signal.SIGHUP,), (signal.SIGUSR1,), TWICE]
"""What a process is sent: the first is answered and obeyed, a second one ends it at once."""
STAGES_OF_A_RUN = ["planning", "compiling", "running", "jobs", "writing", "merging", "reporting"]


def played(tmp_path, cases):
    """Run mtfl once a case (stage, signals), of which each sends itself those signals there: the folder of each."""
    code = STAGES.format(tests=os.path.dirname(__file__), small=SMALL)
    folders = ["-".join([stage, *(str(int(number)) for number in numbers)]) for stage, numbers in cases]
    command = [sys.executable, "-c", code, *folders]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    statuses = dict(line.split() for line in done.stdout.splitlines())
    for folder, (_, numbers) in zip(folders, cases, strict=True):
        assert int(statuses[folder]) == 128 + numbers[0], (folder, (tmp_path / folder / "stderr").read_text())
    return [tmp_path / folder for folder in folders]


def assert_clean_end(case, folder):
    """No traceback, a line that acknowledges, one that says how to go on, and no half-written file."""
    stage, numbers = case
    out, err = ((folder / stream).read_text() for stream in ("stdout", "stderr"))
    name = signal.Signals(numbers[0]).name
    assert "Traceback" not in out + err, (case, err)
    lines = [line for line in err.splitlines() if line]
    assert lines[0].startswith(f"mtfl: {name}: stop"), (case, err)
    assert "the same command with hydra.sweep.dir=" in lines[-1], (case, err)
    assert lines[-1].endswith("goes on")
    assert len(lines) <= 2
    assert not list(folder.rglob("*.partial")), case
    if stage in ("merging", "reporting"):
        assert "every row is kept" in lines[-1]
        assert len(lines) == 1
    if (stage, len(numbers)) != ("planning", 2):
        # The state is that of an end that was meant.
        (note,) = notes.read(folder / "out")
        assert note["state"] == ("finished" if stage in ("merging", "reporting") else "stopped")
    if len(numbers) == 1:
        # The first signal leaves what ran, and says what is left.
        assert (folder / "out" / "results.parquet").exists() == (stage == "reporting")
        rows = tables.count(tables.files_of(folder / "out"))
        assert rows == note["done"]
        if stage in ("running", "jobs", "writing"):
            # Of jobs in this process the first, and no other begins.
            cells = 12 if stage == "jobs" else 24
            assert 0 < rows < cells
            assert f"stopped with {cells - rows} of {cells} cells left" in lines[-1]


def test_a_signal_at_any_stage_is_a_clean_end(tmp_path):
    """One signal a stage; the slow campaign plays all of them at all stages."""
    cases = [(stage, SIGNALS[i % 5]) for i, stage in enumerate(STAGES_OF_A_RUN)]
    cases.append(("running", TWICE))
    for case, folder in zip(cases, played(tmp_path, cases), strict=True):
        assert_clean_end(case, folder)


@pytest.mark.slow
def test_every_signal_at_every_stage_is_a_clean_end(tmp_path):
    cases = list(itertools.product(STAGES_OF_A_RUN, SIGNALS))
    for case, folder in zip(cases, played(tmp_path, cases), strict=True):
        assert_clean_end(case, folder)


# Imports

BEGINS = """
import os, signal, sys, threading


class Finder:
    '''Sends this process its signals when a module is first asked for, as imports take a second or more.'''

    def find_spec(self, name, path=None, target=None):
        if name == {module!r} and numbers:
            while numbers:
                os.kill(os.getpid(), numbers.pop(0))
            threading.Event().wait(20)


numbers = list(map(int, sys.argv.pop(1).split(",")))
sys.meta_path.insert(0, Finder())
from mtfl_jax import __main__, ends

__main__.{command}()
"""


def begun(tmp_path, command, numbers, module="numpy"):
    code = BEGINS.format(command=command, module=module)
    given = [sys.executable, "-c", code, ",".join(map(str, map(int, numbers))), "out"]
    start = time.monotonic()
    done = subprocess.run(given, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    return done, time.monotonic() - start


@pytest.mark.parametrize("numbers", SIGNALS, ids=str)
def test_a_signal_while_imports_run_is_a_clean_end(tmp_path, numbers):
    done, seconds = begun(tmp_path, "main", numbers)
    assert done.returncode == 128 + numbers[0]
    assert done.stderr == f"mtfl: {signal.Signals(numbers[0]).name}: stopped\n"
    assert done.stdout == ""
    assert seconds < 15, "it must not wait until the imports are done"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", documented.COMMANDS)
def test_the_other_commands_stop_at_once(tmp_path, command):
    done, _ = begun(tmp_path, command, [signal.SIGINT])
    assert (done.returncode, done.stderr) == (130, f"mtfl-{command}: SIGINT: stopped\n")


def test_an_ignored_signal_stays_ignored():
    """As of nohup."""
    code = (
        "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from mtfl_jax import ends\n"
        "with ends.listening('no') as stop: os.kill(os.getpid(), signal.SIGHUP); print(stop.came)\n"
        "print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("0\nTrue\n", "")


NOTEBOOK = """
import os, signal, sys

sys.path.insert(0, {tests!r})
import differential
import mtfl_jax
from mtfl_jax.sweeps import compiling, engine

engine.fitting = differential.StandIn(differential.Truth()).fitting
engine.chunk_of = lambda bucket: compiling.Chunk(1, 1)
real, calls = engine._call, []


def call(*args):
    calls.append(0)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGINT)
    return real(*args)


engine._call = call
try:
    mtfl_jax.sweep(d=8, r=2, n1=64, n2=64, n_down=8, n_test=32, seed=range(12), folder="out")
except KeyboardInterrupt:
    print("interrupted with", len(mtfl_jax.load("out")))
"""


def test_python_keeps_its_own_ctrl_c(tmp_path):
    """A sweep in a notebook says that it stops, raises KeyboardInterrupt, and keeps the rows that were made."""
    code = NOTEBOOK.format(tests=os.path.dirname(__file__))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"interrupted with [1-9]\d*\n", done.stdout), done
    assert done.stderr == "stops when what runs is finished and kept; once more stops at once\n"


# Readers that go


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A folder that a sweep was run into: of a name that is rich's markup."""
    folder = tmp_path_factory.mktemp("ends") / "[b]" / "[/red] out"
    mtfl_jax.sweep(d=[8, 12], r=2, width=8, n1=64, n2=64, n_test=32, measure="recovery", probe="none", folder=folder)
    for number, change in enumerate(({"failures": ["1 cell (x=[/b]:b:): [bold]no"]}, {"state": "stopped"})):
        note = RUN | change | {"config": RUN["config"] | {"study": "none"}}
        (folder / "runs" / f"{number}.json").write_text(json.dumps(note))
    return folder


def piped(code, *args, to, cwd=None):
    """Run Python code with arguments whose stdout a reader reads: the finished process, with the code's status."""
    line = shlex.join([sys.executable, "-c", code, *map(str, args)])
    command = ["bash", "-c", f"{line} {to}; exit ${{PIPESTATUS[0]}}"]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("command", "to"),
    [
        ("status FOLDER", "| true"),
        ("status FOLDER", "2>&1 | head -c 1"),
        ("report FOLDER", "| true"),
        ("fit FOLDER --x d --y num_params", "| true"),
        ("main --help", "| head -c 1"),
    ],
)
@pytest.mark.slow
def test_a_reader_that_goes_ends_a_command_without_a_word(swept, command, to):
    name, *args = command.split()
    done = piped(
        f"from mtfl_jax import __main__; __main__.{name}()", *(swept if arg == "FOLDER" else arg for arg in args), to=to
    )
    assert done.stderr == ""
    assert done.returncode in (0, 1)


def test_a_run_goes_on_without_its_reader(tmp_path):
    """The rows are what it is for."""
    run = f"sys.argv = ['mtfl', '-m', *{SMALL!r}, 'seed=range(0,3)', 'hydra.sweep.dir=out']; __main__.main()"
    done = piped(STAGES.format(tests=os.path.dirname(__file__), small=SMALL) + run, to="| true", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(mtfl_jax.load(tmp_path / "out")) == 3
    assert (tmp_path / "out" / "report" / "index.html").exists()


def test_markup_in_a_path_is_a_path(swept, here, monkeypatch, capsys):
    for command in ("status", "report"):
        monkeypatch.setattr(sys, "argv", [f"mtfl-{command}", str(swept)])
        getattr(__main__, command)()
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert f"wrote {swept}/report/index.html" in out
    assert "failed: 1 cell (x=[/b]:b:): [bold]no" in out
    result, out, err = here(*SMALL, f"hydra.run.dir='{swept}'", "plan=only")
    assert (result, err) == (0, "")


# What is in runs/

SOME = [None, True, -1, 2**70, 1e308, float("nan"), "[/b]", [], [1], {}, {"axes": 3}]


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(drawn=st.data())
@pytest.mark.filterwarnings("ignore:.*left out, it is no note:UserWarning")
def test_whatever_a_note_holds_commands_go_on(swept, capsys, monkeypatch, drawn):
    """Anything in the place of anything: it is shown or left out, with a line, and nothing raises."""
    note = copy.deepcopy(RUN)
    for _ in range(drawn.draw(st.integers(1, 3))):
        place = note
        key = drawn.draw(st.sampled_from(sorted(place)))
        while isinstance(place[key], dict) and place[key] and drawn.draw(st.booleans()):
            place = place[key]
            key = drawn.draw(st.sampled_from(sorted(place)))
        place[key] = drawn.draw(st.sampled_from(SOME))
    (swept / "runs" / "7.json").write_text(json.dumps(note))
    found = notes.read(swept, warn=False)
    assert len(found) in (3, 4)
    assert page._facts(page.Sweep("name", None, 3, found), {})
    page._processes(found)
    page._failures(found)
    monkeypatch.setattr(sys, "argv", ["mtfl-status", str(swept)])
    status_of_folder.main()
    assert " rows, " in capsys.readouterr().out
    (swept / "runs" / "7.json").unlink()


@pytest.mark.filterwarnings("default:.*left out, it is no note:UserWarning")
@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '"a"', "[" * 100_000, "\0", "{}"])
def test_a_file_that_is_no_note_is_named_in_a_line(swept, monkeypatch, capsys, text):
    path = swept / "runs" / "x.json"
    path.write_text(text)
    try:
        monkeypatch.setattr(sys, "argv", ["mtfl-status", str(swept)])
        __main__.status()
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"mtfl-status: {path}: left out, it is no note of a run (")
    finally:
        path.unlink()


# mtfl-status


def test_status_sums_up_and_knows_the_dead(tmp_path, monkeypatch, capsys):
    child = subprocess.Popen([sys.executable, "-c", ""])
    own = {"host": socket.gethostname(), "state": "running", "updated": time.time(), "done": 6, "skipped": 0}
    while not notes.dead(own | {"pid": child.pid}):
        time.sleep(0.01)  # Nobody has waited for it: it is there, and has ended.

    def part(k, **changes):
        config = copy.deepcopy(RUN["config"])
        config["sweep"]["part"] = f"{k}/3"
        return RUN | own | {"cells": 8, "config": config, "started": time.time() - 60} | changes

    made = [RUN | {"config": part(1)["config"], "state": "stopped", "done": 2, "cells": 8}]
    made += [part(1, pid=os.getpid()), part(2, pid=child.pid), part(3, host="elsewhere", updated=time.time() - 600)]
    (tmp_path / "runs").mkdir()
    for number, note in enumerate(made):
        (tmp_path / "runs" / f"{number}.json").write_text(json.dumps(note))
    monkeypatch.setattr(sys, "argv", ["mtfl-status", str(tmp_path)])
    __main__.status()
    out, err = capsys.readouterr()
    assert err == ""
    first, *lines = out.splitlines()
    assert first == "0 rows, 18/24 cells, 4 processes: 1 stopped, 2 running, 1 ended without a word"
    states = [line.partition(":")[0] for line in lines]
    assert states == ["stopped", "ended without a word", "running", "silent for 10m00s"]
    assert ["to go" in line for line in lines] == [False, False, True, True]
    child.wait()
    assert notes.dead(made[2])
    assert not notes.dead(made[1])
    # The number of a process is given again.
    assert notes.dead({**made[1], "updated": 1e9})


def test_cells_of_several_grids_are_said_to_be_such():
    """Grids may have cells in common, as where one is extended, which no note tells."""
    more = copy.deepcopy(RUN["config"])
    more["sweep"]["axes"] = {"seed": "range(0,16)"}
    made = [RUN | {"cells": 8, "skipped": 0, "done": 8}, RUN | {"config": more, "cells": 16, "skipped": 8, "done": 8}]
    said = status_of_folder.summary(made, 16, {"finished": 2})
    assert said == "16 rows, 24/24 cells of 2 grids, 2 processes: 2 finished"
    assert status_of_folder.summary(made[:1], 8, {"finished": 1}) == "8 rows, 8/8 cells, 1 process: 1 finished"


# A full disk


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES], ids=errno.errorcode.get)
@pytest.mark.parametrize("at", ["write_table", "ParquetWriter"])
def test_a_full_disk_is_one_line_that_names_the_folder(here, tmp_path, monkeypatch, number, at):
    """As pyarrow says it, of a part and of results.parquet."""

    def full(*_, **__):
        raise OSError(number, "Error writing bytes to file")

    monkeypatch.setattr(engine, "fitting", differential.StandIn(differential.Truth()).fitting)
    monkeypatch.setattr(tables.pq, at, full)
    result, _, err = here("-m", *SMALL, "seed=0,1", "hydra.sweep.dir=out")
    assert result == 2
    assert err.startswith(f"mtfl: hydra.sweep.dir={tmp_path}/out: {os.strerror(number)}; allowed: a folder with room")
    assert err.endswith("what was written is kept, and the same command goes on\n")
    assert err.count("\n") == 1
    (note,) = notes.read(tmp_path / "out")
    assert note["state"] == ("failed" if at == "write_table" else "finished")
    if at == "write_table":
        with pytest.raises(ValueError, match="folder=out: "):
            mtfl_jax.sweep(d=8, r=2, n1=64, n2=64, n_down=8, n_test=32, folder="out")


# Those who asked


LAUNCHER = """
import signal, sys
from mtfl_jax import __main__, ends


def put_back(number, frame):
    print("handed over", number, flush=True)
    sys.exit(7)


signal.signal(signal.SIGUSR2, put_back)
__main__.main()
"""


def test_a_launcher_hears_of_its_signal_when_everything_is_kept(tmp_path):
    """Not before, between two steps of the engine, which would take what it raises for a fault of the program."""
    words = [*SMALL, "algorithm=joint", "steps=50", "seed=range(0,100000)", f"hydra.sweep.dir={tmp_path}/out"]
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, "-m", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    parts = tmp_path / "out" / "parts"
    while not any(parts.glob("*.parquet")):
        time.sleep(0.1)
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGUSR2)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 7, err
    assert "handed over 12" in out
    assert "SIGUSR2: stops when what runs is finished" in err
    assert "Traceback" not in err
    (note,) = notes.read(tmp_path / "out")
    assert note["state"] == "stopped"
    assert note["failures"] == []
    assert mtfl_jax.load(tmp_path / "out")["seed"].nunique() == note["done"] > 0


def test_slurm_is_waited_for(monkeypatch):
    """Where it asks, and where the program that puts the job back is ended with the job; else nothing is."""
    waited = []

    def handed(number, handler=None):
        stop = ends.Stop("mtfl", "", "", lambda: None, False)
        stop.came, stop.theirs = number, {signal.SIGUSR2: handler} if handler else {}
        waited.clear()
        stop.hand_over(waited.append)
        return bool(waited)

    def ended(number, frame):
        raise subprocess.CalledProcessError(-15, ["scontrol", "requeue"])

    def refused(number, frame):
        raise RuntimeError("timed-out too many times")

    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert not handed(signal.SIGTERM)
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert handed(signal.SIGTERM)
    assert not handed(signal.SIGINT)
    with pytest.raises(subprocess.CalledProcessError):
        handed(signal.SIGUSR2, ended)
    assert waited
    with pytest.raises(RuntimeError, match="too many times"):
        handed(signal.SIGUSR2, refused)
    assert not waited


def test_a_process_of_another_host_is_dead_when_slurm_has_its_job_no_more(tmp_path, monkeypatch):
    squeue = tmp_path / "squeue"
    squeue.write_text(
        '#!/bin/sh\ncase "$5" in 7_1) echo 7_1;; 8) exit 0;;\n'
        "9) echo slurm_load_jobs error: Invalid job id specified >&2; exit 1;;\n"
        "*) echo no controller >&2; exit 1;; esac\n"
    )
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    notes._queued.cache_clear()
    far = {"state": "running", "host": "elsewhere", "pid": 1, "updated": time.time()}
    found = [notes.dead({**far, "slurm_job": job}) for job in ("7_1", "8", "9", "10", "x; rm", None)]
    assert found == [False, True, True, False, False, False]
    assert not notes.dead({**far, "slurm_job": "8", "state": "finished"})
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    notes._queued.cache_clear()
    assert not notes.dead({**far, "slurm_job": "8"})
    assert notes.slurm_job({"SLURM_JOB_ID": "5"}) == "5"
    assert notes.slurm_job({"SLURM_JOB_ID": "5", "SLURM_ARRAY_JOB_ID": "4", "SLURM_ARRAY_TASK_ID": "2"}) == "4_2"
    assert notes.slurm_job({}) is None
