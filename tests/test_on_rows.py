"""Functions that hear of rows while a sweep runs, and what a table's rows say of its trainings."""

import json
import sys
import threading
import time

import differential
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import mtfl_jax
from mtfl_jax.analysis import trackers
from mtfl_jax.fields import ConfigError
from mtfl_jax.sweeps import compiling, engine, listeners, store

SMALL = {"d": 8, "r": 2, "width": 4, "num_tasks": 2, "n1": 16, "n2": 16, "n_test": 8, "n_down": 4}


@pytest.fixture
def quick(monkeypatch):
    """Sweeps whose programs are a stand-in, a training a chunk, written at once."""
    monkeypatch.setattr(engine, "fitting", differential.StandIn(differential.Truth()).fitting)
    monkeypatch.setattr(engine, "chunk_of", lambda bucket: compiling.Chunk(1, 1))
    monkeypatch.setattr(store, "WRITE_SECONDS", 0.0)


def same(heard, table):
    """Whether rows that were heard are those of a table."""
    found = pd.concat(heard).set_index("id").sort_index()
    return found.equals(table.set_index("id").sort_index())


class Heard(list):
    """Rows that were heard, in order, and in which thread; whether that is all."""

    closed = 0

    def __call__(self, rows):
        self.append(rows)
        self.thread = threading.current_thread()

    def close(self):
        self.closed += 1


@pytest.mark.parametrize("folder", [True, False])
def test_all_new_rows_are_heard_in_order_and_in_another_thread(quick, tmp_path, monkeypatch, folder):
    monkeypatch.setattr(listeners, "PIECE", 3)
    given = {"folder": tmp_path} if folder else {}
    one, two = Heard(), Heard()
    axes = {**SMALL, "algorithm": "alternating", "steps": 5, "lr_w": [0.1, 1.0]}
    table = mtfl_jax.sweep(**axes, seed=range(4), on_rows=[one, two], **given)
    assert same(one, table)
    assert [rows["id"].tolist() for rows in one] == [rows["id"].tolist() for rows in two]
    assert (one.closed, two.closed) == (1, 1)
    assert one.thread is not threading.main_thread()
    assert one[0].attrs["axes"] == ["lr_w", "seed"]
    assert one[0].attrs["labels"] == table.attrs["labels"]
    if folder:
        later = Heard()
        whole = mtfl_jax.sweep(**axes, seed=range(6), on_rows=later, folder=tmp_path)
        assert same(later, whole[~whole["id"].isin(table["id"])])


def test_a_slow_listener_does_not_hold_the_sweep_and_hears_all_in_the_end(quick, monkeypatch):
    """The engine has ended before the second rows are heard; the call ends when all are."""
    go_on, ended = threading.Event(), []
    heard = Heard()

    def slow(rows):
        assert go_on.wait(60)
        heard(rows)

    real = engine.execute

    def execute(*args, **options):
        done = real(*args, **options)
        ended.append(len(heard))
        go_on.set()
        return done

    monkeypatch.setattr("mtfl_jax.sweeps.engine.execute", execute)
    table = mtfl_jax.sweep(**SMALL, seed=range(10), on_rows=slow)
    assert ended == [0]
    assert same(heard, table)


def test_the_thread_takes_a_small_share_while_the_sweep_runs():
    """A listener that computes is given rows no faster than its share of the time allows."""

    def busy(rows):
        until = time.thread_time() + 0.01
        while time.thread_time() < until:
            pass

    sink, spent = store.Memory(), []
    part = pa.table({"id": pa.array([1], pa.uint64())})
    with listeners.told(sink, [busy, lambda rows: spent.append(time.monotonic())], []) as heard:
        began = time.monotonic()
        for _ in range(100):
            heard.append(part)
        time.sleep(1.5)
        during, seconds = len(spent), time.monotonic() - began
        # Some more milliseconds each for what makes a DataFrame of it.
        assert 1 <= during <= seconds * listeners.SHARE / 0.01 + 1
    assert len(spent) == 100  # The rest, in the end.


def test_one_that_says_that_it_takes_long_waits_until_that_is_its_share():
    calls = []

    def long(rows):
        calls.append(len(rows))

    long.seconds = 10.0
    with listeners.told(store.Memory(), [long], []) as heard:
        for k in range(3):
            heard.append(pa.table({"id": pa.array([k], pa.uint64())}))
        time.sleep(0.3)
        assert calls == []
    assert calls == [1, 1, 1]


def test_one_that_raises_is_named_once_and_the_others_and_the_sweep_go_on(quick):
    heard, calls = Heard(), []

    def broken(rows):
        calls.append(len(rows))
        raise OSError("no\nserver")

    said = r"on_rows: .*broken hears no more \(OSError: no server\); the sweep goes on"
    with pytest.warns(UserWarning, match=said) as warned:
        table = mtfl_jax.sweep(**SMALL, seed=range(8), on_rows=[broken, heard])
    assert len(warned) == 1
    assert len(calls) == 1
    assert same(heard, table)


def test_what_was_written_before_an_interrupt_is_heard(quick, tmp_path, monkeypatch):
    real, calls, heard = engine._call, [], Heard()

    def call(*args):
        calls.append(0)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(engine, "_call", call)
    with pytest.raises(KeyboardInterrupt):
        mtfl_jax.sweep(**SMALL, seed=range(12), on_rows=heard, folder=tmp_path)
    assert same(heard, mtfl_jax.load(tmp_path))
    assert heard.closed == 1
    assert not any(thread.name == "mtfl-listeners" for thread in threading.enumerate())


def test_what_is_no_function_is_refused():
    with pytest.raises(ConfigError, match=r"on_rows='tensorboard': allowed: a function of a DataFrame"):
        mtfl_jax.sweep(**SMALL, on_rows=["tensorboard"])


# Trainings


@pytest.fixture(scope="module")
def table():
    """Trainings of several steps, n_down and algorithms, some of which diverge."""
    given = {**SMALL, "n_down": [4, 8], "steps": 3, "seed": range(2), "lr_w": [0.1, 1e30]}
    return mtfl_jax.sweep(**given, algorithm=["alternating", "one_step"])


def test_a_training_has_what_its_rows_say(table):
    found = list(trackers.trainings(table))
    assert len({one.key for one in found}) == len(found) == 8
    assert sorted(place for one in found for place in one.places) == list(range(len(table)))
    for one in found:
        rows = table.iloc[list(one.places)]
        assert "n_down" not in one.settings
        for name, value in one.settings.items():
            assert (rows[name] == value).all()
        assert one.settings["seed"] == rows["seed"].iloc[0]
        good = rows[rows["status"] == "ok"]
        assert set(one.measured) == set(good["step"])
        assert one.status == ("ok" if len(good) == len(rows) else "diverged")
        for row in good.to_dict("records"):
            measured = one.measured[row["step"]]
            assert measured[f"downstream_error/n_down_{row['n_down']}"] == row["downstream_error"]
            assert measured["subspace_distance"] == row["subspace_distance"]
            assert "downstream_error" not in measured
            assert not any("similarity" in name for name in measured)
    assert {one.status for one in found} == {"ok", "diverged"}


def test_a_training_is_the_same_however_its_rows_come(table, tmp_path):
    """In pieces, from a file, in another order: its key and its settings as JSON are the same."""
    known = {one.key: json.dumps(one.settings, sort_keys=True) for one in trackers.trainings(table)}
    table.to_parquet(tmp_path / "results.parquet")
    shuffled = table.sample(frac=1, random_state=0)
    parts = [shuffled.iloc[k : k + 5] for k in range(0, len(table), 5)]
    for rows in [mtfl_jax.load(tmp_path), *parts]:
        for one in trackers.trainings(rows):
            assert json.dumps(one.settings, sort_keys=True) == known[one.key]
    assert next(trackers.trainings(table)).name == "alternating"
    table.attrs["axes"] = ["algorithm", "lr_w", "seed"]
    names = [one.name for one in trackers.trainings(table)]
    assert "algorithm=alternating lr_w=0.1 seed=1" in names
    assert len(set(names)) == 8


def test_more_trainings_than_a_tracker_takes_are_said(table):
    sent = []
    tracker = trackers.Tracker("there", sent.append, lambda: None, 3)
    with pytest.warns(UserWarning, match="there: the first 3 trainings are there, a run each, the others are") as said:
        places = tracker(table) + tracker(table)
    assert len(said) == 1
    assert len({one.key for one in sent}) == 3
    assert len(sent) == 6
    assert sorted(places) == sorted([place for one in sent for place in one.places])
    with pytest.raises(ValueError, match="most=0: allowed: an integer from 1"):
        trackers.Tracker("there", sent.append, lambda: None, 0)


@pytest.mark.parametrize("name", trackers.TRACKERS)
def test_a_library_that_is_missing_is_a_line(monkeypatch, tmp_path, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"trackers.{name} needs {name}: pip install 'mtfl_jax\[{name}\]'"):
        getattr(trackers, name)(*[tmp_path] * (name == "tensorboard"))


def test_names_of_metrics_are_allowed_everywhere(table):
    """MLflow's letters are the fewest."""
    names = {name for one in trackers.trainings(table) for own in one.measured.values() for name in own}
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_/") for name in names)
    assert np.isfinite(
        [v for one in trackers.trainings(table) for m in one.measured.values() for v in m.values()]
    ).all()
