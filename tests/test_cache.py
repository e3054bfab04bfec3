"""An entry of the compilation cache that was not written to its end costs one compilation, as if it were not there."""

import os
import subprocess
import sys
import warnings
import zlib

import jax
import pytest

from mtfl_jax.sweeps import cache

COUNTED = """
import collections
import jax
import jax.numpy as jnp
import mtfl_jax
from mtfl_jax.sweeps import machine

seen = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: seen.update([name.rpartition("/")[2]]))
machine.devices()
{}
print(seen["cache_hits"], "read", seen["cache_misses"], "written")
"""
PROGRAMS = """
for n in (3, 4):
    jax.jit(lambda x: jnp.sort(x @ x.T)).lower(jax.ShapeDtypeStruct((n, n), "float32")).compile()
"""
CELL = "mtfl_jax.run(d=8, r=2, width=8, num_tasks=2, n1=16, n2=16, n_down=8, n_test=16)"
NAME = "jit_run-" + "0" * 63


@pytest.fixture
def process(tmp_path):
    """Run code in a process with a cache of this test: how many entries it read and wrote. It says nothing else."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment["XDG_CACHE_HOME"] = str(tmp_path)

    def run(code):
        command = [sys.executable, "-c", COUNTED.format(code)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.strip()

    return run


@pytest.mark.parametrize("left", [0, 100])
@pytest.mark.slow
def test_a_torn_entry_is_written_anew(process, tmp_path, left):
    assert process(PROGRAMS) == "0 read 2 written"
    entry, _ = (tmp_path / "mtfl_jax/compiled").glob("jit__lambda-*-cache")
    os.truncate(entry, left)
    assert process(PROGRAMS) == "1 read 1 written"
    assert process(PROGRAMS) == "2 read 0 written"


@pytest.mark.slow
def test_torn_entries_of_a_sweep_are_written_anew(process, tmp_path):
    *_, written, _ = process(CELL).split()
    entries = sorted((tmp_path / "mtfl_jax/compiled").glob("*-cache"))
    assert len(entries) == int(written) > 0
    for path in entries:
        os.truncate(path, path.stat().st_size - 1)
    assert process(CELL) == f"0 read {written} written"
    assert process(CELL) == f"{written} read 0 written"


def test_only_what_is_torn_is_removed(tmp_path, monkeypatch):
    whole, other = zlib.compress(b"a program" * 99), cache.ZSTD + b"which this Python cannot judge"
    monkeypatch.setattr(cache, "zstd", None)
    kept = {f"{NAME}1-cache": whole, f"{NAME}2-cache": other, f"{NAME}3-atime": b"", f"more_{NAME}4-cache": b""}
    torn = {f"{NAME}5-cache": whole[:-1], f"{NAME}6-cache": b"", f"{NAME}7-cache": b"\0" * len(whole)}
    for name, text in {**kept, **torn}.items():
        (tmp_path / name).write_bytes(text)
    assert cache.remove_torn(tmp_path, "jit_run") == 3
    assert {path.name for path in tmp_path.iterdir()} == kept.keys()
    assert cache.remove_torn(tmp_path, "jit_run") == cache.remove_torn(tmp_path / "none", "jit_run") == 0


@pytest.fixture
def folder(tmp_path):
    """A cache of this test, in this process."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_warning_is_shown_where_nothing_is_mended(folder, monkeypatch):
    text = "Error reading persistent compilation cache entry for 'jit_run': error: no such machine"
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        shown = []
        monkeypatch.setattr(warnings, "showwarning", lambda message, *rest, **named: shown.append(str(message)))
        cache.mend()
        (folder / f"{NAME}1-cache").write_bytes(b"")
        for _ in range(2):
            warnings.warn(text, stacklevel=1)
        warnings.warn_explicit("another", UserWarning, "file", 1)
    assert shown == [text, "another"]
