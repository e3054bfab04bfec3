"""How commands end: by a signal at any moment, by a reader that goes, by a full disk; never with a traceback."""

import itertools
import os
import signal
import subprocess
import sys

import pytest

from mtfl_jax.sweeps import notes, tables

SMALL = ["d=12", "r=2", "width=8", "n1=64", "n2=64", "n_test=32", "n_down=16", "num_tasks=2", "measure=recovery"]

STAGES = """
import os, signal, sys, time, traceback

sys.path.insert(0, {tests!r})
import differential
from mtfl_jax import __main__, app
from mtfl_jax.sweeps import compiling, engine, tables

# Nothing compiles: ends are what is tested. A chunk is a cell, and is written at once.
stand_in = differential.StandIn(differential.Truth())
engine.fitting = stand_in.fitting
engine.chunk_of = lambda bucket: compiling.Chunk(1, 1)
compiling.CHUNK_SECONDS = 0.0


def play(stage, numbers):
    '''Send signals to this process in a call of a function.'''
    owner, name, at = {{
        "planning": (engine, "plan", 1),
        "compiling": (engine, "fitting", 1),
        "running": (engine, "_call", 3),
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
                time.sleep(0.1)
        return real(*args, **kwargs)

    setattr(owner, name, halfway)
    sys.argv = ["mtfl", "-m", *{small!r}, "seed=range(0,12)", "hydra.sweep.dir=out"]
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
STAGES_OF_A_RUN = ["planning", "compiling", "running", "writing", "merging", "reporting"]


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
    if len(numbers) == 1:
        # The first signal leaves what ran, and says what is left; the state is that of an end that was meant.
        (note,) = notes.read(folder / "out")
        assert note["state"] == ("finished" if stage in ("merging", "reporting") else "stopped")
        assert (folder / "out" / "results.parquet").exists() == (stage == "reporting")
        rows = tables.count(tables.files_of(folder / "out"))
        assert rows == note["done"]
        if stage in ("running", "writing"):
            assert 0 < rows < 12
            assert f"stopped with {12 - rows} of 12 cells left" in lines[-1]


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
