"""Results folders in an object store (`sweeps.places`): here in memory, in tests/test_s3.py on a server."""

import concurrent.futures
import itertools
import re
import sys
import threading
import uuid
import warnings
from pathlib import Path

import numpy as np
import pytest
from differential import Alone, StandIn, Truth, exactly, planned, planned_grid, resume

import mtfl_jax
from mtfl_jax import compose
from mtfl_jax.analysis import page, status
from mtfl_jax.fields import ConfigError
from mtfl_jax.sweeps import engine, identity, notes, places, store, tables
from mtfl_jax.sweeps.grid import Grid
from mtfl_jax.sweeps.progress import facts
from mtfl_jax.sweeps.rows import schema

SMALL = {"algorithm": "oracle", "d": 8, "r": 2, "width": [8, 12], "measure": "recovery", "probe": "none"}


@pytest.fixture
def url():
    """A folder in memory that nothing else uses."""
    return f"memory://{uuid.uuid4().hex}/a folder"


@pytest.fixture
def stood_in(monkeypatch):
    """The engine with the stand-in for compiled programs."""
    monkeypatch.setattr(engine, "fitting", StandIn(Truth()).fitting)


def test_a_sweep_is_kept_and_goes_on(url, stood_in):
    first = mtfl_jax.sweep(**SMALL, seed=range(3), folder=url)
    more = mtfl_jax.sweep(**SMALL, seed=range(5), folder=url)
    assert first["id"].isin(more["id"]).all()
    files = len(tables.files_of(places.place(url)))
    again = mtfl_jax.sweep(**SMALL, seed=range(5), folder=url)
    assert len(tables.files_of(places.place(url))) == files  # Nothing ran.
    assert again.equals(more)
    store.Folder(url).merge()
    loaded = mtfl_jax.load(url)
    assert sorted(loaded["id"]) == sorted(more["id"])
    assert len(mtfl_jax.load(f"{url}/results.parquet")) == 10
    few = mtfl_jax.load(url, columns=["seed"], where=[("width", "==", 8)])
    assert (list(few), len(few)) == (["seed"], 5)


@pytest.mark.parametrize("i", range(4))
def test_any_grid_is_resumed(url, stood_in, i):
    numbers = itertools.count(40 + 100 * i)
    spec = next(spec for spec, _ in map(planned_grid, numbers) if planned(spec) and not any_refused(spec))
    resume(store.Folder(url), spec, planned(spec), Alone(), exactly)


def any_refused(spec):
    return any(cell.refused is not None for cell in planned(spec))


def grid_of(**axes):
    return Grid({**{name: [value] for name, value in SMALL.items()}, "width": [8], **axes}, compose.composed)


def test_pages_and_notes_are_objects_too(url, stood_in, monkeypatch, capsys):
    grid, sink = grid_of(seed=range(20)), store.Folder(url)
    about = {**dict.fromkeys(("host", "platform", "numerics", "matmul_precision"), "x"), "pid": 1, "draws_schema": 1}
    about |= {"command": ["mtfl"], "devices": [], "versions": {}, "state": "running"}
    about |= {"config": {"study": "none", "sweep": {"axes": {}, "zip": [], "where": []}}}
    noted = []
    real = tables.whole
    monkeypatch.setattr(tables, "whole", lambda path, write: (noted.append(path.suffix), real(path, write)))

    def note(progress, state="running"):
        sink.note({**about, **facts(progress, state)})

    progress = engine.execute(grid, sink, chunk=1, notify=note)
    # Of many chunks one note and one part, as each is a request; the end is always noted.
    assert noted == [".json", ".parquet"]
    note(progress, "finished")
    folder = places.place(url)
    assert [one["done"] for one in notes.read(folder)] == [20]
    made = page.write(folder)
    assert {path.name for path in made.files} >= {"index.html"}
    assert all(places.there(path) for path in made.files)
    assert "20" in (folder / "report" / "index.html").read_text()
    monkeypatch.setattr(sys, "argv", ["mtfl-status", url])
    status.main()
    assert capsys.readouterr().out.startswith("20 rows")


def test_whoever_merges_last_has_every_part(url, stood_in, monkeypatch):
    """Two that merge at once, where neither sees the other: what one lacks comes while it writes."""
    folder, more = store.Folder(url), store.Folder(url)
    engine.execute(grid_of(seed=range(3)), folder)
    real = tables._write_merged

    def late(path, found, less=None):
        if not hasattr(late, "done"):
            late.done = True
            engine.execute(grid_of(seed=range(3, 5)), more)
            more.merge()
        real(path, found, less)

    monkeypatch.setattr(tables, "_write_merged", late)
    folder.merge()
    assert len(mtfl_jax.load(f"{url}/results.parquet")) == 5


@pytest.mark.slow
def test_many_that_merge_at_once(stood_in):
    for _ in range(20):
        url = f"memory://{uuid.uuid4().hex}"
        ready = threading.Barrier(8)

        def one(seed, url=url, ready=ready):
            sink = store.Folder(url)
            sink.append(identity.in_order(*grid_and_rows(seed)))
            ready.wait()
            sink.merge()

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(one, range(8)))
        assert len(mtfl_jax.load(f"{url}/results.parquet")) == 8


def grid_and_rows(seed):
    grid, sink = grid_of(seed=[seed]), store.Memory()
    engine.execute(grid, sink)
    return grid, sink.table()


def test_a_damaged_table_is_moved_aside_and_a_damaged_part_left_out(url, stood_in):
    sink = store.Folder(url)
    engine.execute(grid_of(seed=range(3)), sink)
    sink.merge()
    folder = places.place(url)
    whole = (folder / "results.parquet").read_bytes()
    (folder / "results.parquet").write_bytes(whole[:-20])
    (folder / "parts" / "x.parquet").write_bytes(b"PAR1")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        sink.merge()
    assert {"left out, it cannot be read" in str(one.message) for one in said} == {True, False}
    assert (folder / "results.parquet.unreadable-1").read_bytes() == whole[:-20]
    assert tables.count([folder / "results.parquet"]) == 3
    (folder / "parts" / "x.parquet").unlink()
    (folder / "results.parquet").write_bytes(b"something of mine")
    with pytest.raises(ConfigError, match="not a Parquet file; it is not overwritten"):
        sink.merge()


def test_what_a_name_stands_for(tmp_path, monkeypatch):
    assert places.place("a/b") == Path("a/b")
    assert places.place(tmp_path) == tmp_path
    assert places.place(f"file://{tmp_path}/a%20b") == tmp_path / "a b"
    found = places.place("memory://x/y")
    assert places.is_remote(found)
    assert places.place(found) is found
    assert not places.is_remote(tmp_path)
    assert str(places.place("MEMORY://x/Y")) == "memory://x/Y"
    for name in ("s3://b/*", "s3:///a", "s3://", "s3:b", "S3:/b", "", " ", "file://a/b", "file:a", "file://"):
        with pytest.raises(ConfigError, match=rf"^folder={re.escape(name)}: .*allowed: "):
            places.place(name)
    assert places.place("a:b") == Path("a:b")
    with pytest.raises(ConfigError, match=r"TABLE=nosuch://b: .*allowed: s3://BUCKET/"):
        places.place("nosuch://b", "TABLE")
    monkeypatch.setitem(sys.modules, "upath", None)
    for text, extra in (("s3://b/x", "s3"), ("gs://b/x", "gcs")):
        with pytest.raises(ConfigError, match=rf"{text}: allowed after pip install 'mtfl_jax\[{extra}\]'"):
            places.place(text)


def test_a_name_that_cannot_be_is_a_line(here):
    status, out, err = here("folder=s3:b:x")
    assert (status, out) == (2, "")
    assert err.startswith("mtfl: folder=s3:b:x: allowed: s3://BUCKET/…")


def test_a_store_that_does_not_answer_is_a_line(url, monkeypatch):
    class GoneError(Exception):
        pass

    def gone(*_, **__):
        raise GoneError("no\nroute")

    where = places.place(url)
    monkeypatch.setattr(type(where.fs), "put_file", gone)
    with pytest.raises(ConfigError, match=r"folder=memory://.*: GoneError: no route; allowed: "):
        store.Folder(url).append(schema().empty_table())
    monkeypatch.setattr(type(where), "glob", gone)
    with pytest.raises(ConfigError, match=r"folder=memory://.*: GoneError: no route; allowed: "):
        store.Folder(url)
    with pytest.raises(OSError, match="GoneError: no route"):
        mtfl_jax.load(url)


def test_nothing_is_left_on_this_host(url, stood_in, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    sink = store.Folder(url)
    engine.execute(grid_of(seed=range(3)), sink)
    sink.merge()
    assert list(tmp_path.iterdir()) == []
    assert np.array_equal(np.sort(sink.finished()), sink.finished())
