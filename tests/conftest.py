"""Shared fixtures."""

import collections
import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jaxlib.version
import pytest
from jaxtyping import install_import_hook

# Compiling is most of what the tests cost, and they test results, not speed: half the time at the lowest level, a third
# where loops need not pass through MLIR (XLA ends a process over a flag that it does not know). Set before JAX starts,
# and inherited by the processes that tests start.
flags = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
flags += ["--xla_cpu_use_fusion_emitters=false"] * (jaxlib.version.__version_info__ < (0, 11))
os.environ.setdefault("XLA_FLAGS", " ".join(flags))
# Two devices, so that every sweep of a test is shared between devices.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
# Compiled programs go into a folder of this process, whatever the environment says: never into the user's, and not
# into that of another pytest-xdist worker, as JAX writes its entries in place and another would read half of one.
cache = tempfile.TemporaryDirectory(prefix="mtfl-tests-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = cache.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# A shell without job control has what it puts in the background ignore Ctrl-C, and so would all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # As under nohup.
# Before anything imports them, and in this process only: every annotation of these modules is checked at every call.
install_import_hook("mtfl_jax.learning", "beartype.beartype")


def pytest_addoption(parser):
    """How large the campaigns are."""
    parser.addoption(
        "--grids", type=int, default=80, help="random grids of real trainings, and ten times as many of others"
    )


LONG = ("every_example", "kill_nine", "many_real_trainings")
"""Names of tests that take minutes."""


def is_long(item):
    """Whether a test is one of those."""
    return any(name in item.name for name in LONG)


def pytest_collection_modifyitems(items):
    """Start the longest tests first, so that none runs alone at the end."""
    items.sort(key=lambda item: not is_long(item))


NO_TIME = "not begun: no time is left before MTFL_TESTS_UNTIL"


def pytest_runtest_setup(item):
    """Begin no test that may not end before MTFL_TESTS_UNTIL, a time in seconds: a run of them all has a limit."""
    until = float(os.environ.get("MTFL_TESTS_UNTIL", "inf"))
    if time.time() + (1000 if is_long(item) else 200) > until:
        pytest.skip(NO_TIME)


def pytest_terminal_summary(terminalreporter):
    """Say how many tests of which were not begun."""
    left = [report.nodeid for report in terminalreporter.stats.get("skipped", []) if NO_TIME in str(report.longrepr)]
    if left:
        counts = collections.Counter(name.partition("[")[0] for name in left)
        named = ", ".join(f"{name} × {count}" for name, count in counts.items())
        terminalreporter.write_line(f"{len(left)} tests {NO_TIME}: {named}")


def pytest_collection_finish():
    """Search for garbage less often, and not among modules and tests, which stay: tracing makes many small objects."""
    gc.freeze()
    gc.set_threshold(20_000)


@pytest.fixture
def called(monkeypatch, capsys):
    """Call what a command does in this process: (exit status, stdout, stderr)."""

    def run(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["mtfl", *map(str, arguments)])
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = stop.code
        return (status, *capsys.readouterr())

    return run


@pytest.fixture(autouse=True, scope="module")
def room_for_programs():
    """A worker of many modules keeps no more compiled programs than the system allows mappings for."""
    yield
    from mtfl_jax.sweeps import mappings

    mappings.make_room()


@pytest.fixture
def mtfl(tmp_path):
    """Run `python -m mtfl_jax ARGS` in a fresh folder (or in cwd): the finished process with its output as text."""

    def run(*args, cwd=tmp_path, **environment):
        return subprocess.run(
            [sys.executable, "-m", "mtfl_jax", *args],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=240,
            env={**os.environ, "COLUMNS": "100", **environment},
        )

    return run


@pytest.fixture(scope="session")
def repository():
    """The checkout that the tests are of."""
    return Path(__file__).parents[1]


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """Run main() with arguments in an empty folder: (exit status, stdout, stderr)."""
    from mtfl_jax.app import main

    monkeypatch.chdir(tmp_path)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["mtfl", *args])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = stop.code
        return (status, *capsys.readouterr())

    return run
