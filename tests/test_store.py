"""The results folder: no row that can be read is lost, and parts of other schemas are read."""

import copy
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import mtfl_jax
from mtfl_jax import compose
from mtfl_jax.fields import ConfigError
from mtfl_jax.sweeps import engine, store, tables
from mtfl_jax.sweeps.grid import Grid

SMALL = {"d": 12, "r": 2, "width": 16, "n1": 128, "n2": 128, "n_down": 32, "n_test": 64, "probe": "none"}

EXTRA = pa.schema([pa.field("their_knob", pa.int32()), pa.field("their_measurement", pa.float32())])
"""Columns of an extension, which this version does not know."""


def value(kind, i):
    """What row i has in a column of a type; exact in 32 bits."""
    if kind == pa.string():
        return f"s{i % 5}"
    if kind == pa.bool_():
        return i % 2 == 0
    if pa.types.is_list(kind):
        return [i / 2, i / 4]
    return i if pa.types.is_integer(kind) else i / 8


def rows(ids, schema=None):
    """Rows of the schema with made-up values that their ids determine."""
    schema = store.schema() if schema is None else schema
    return pa.table([pa.array([value(field.type, i) for i in ids], field.type) for field in schema], schema=schema)


def narrow(table):
    """The same values in the types that other writers use."""
    other = {
        pa.int64(): pa.int32(),
        pa.float64(): pa.float32(),
        pa.bool_(): pa.bool_(),
        pa.uint64(): pa.uint64(),
    }
    strings = [pa.large_string(), pa.dictionary(pa.int8(), pa.string()), pa.string_view()]
    columns = {}
    for i, field in enumerate(table.schema):
        kind = pa.large_list(pa.float32()) if pa.types.is_list(field.type) else other.get(field.type, strings[i % 3])
        columns[field.name] = table.column(field.name).cast(kind, safe=False)
    return pa.table(columns)


def replaced(table, name, column):
    return table.set_column(table.column_names.index(name), name, column)


DROPPED = ("weight_decay", "losses", "feature_similarity", "seed")
SHAPES = {
    "as it is": lambda ids: rows(ids),
    "older": lambda ids: rows(ids).drop(list(DROPPED)),
    "newer": lambda ids: rows(ids, pa.schema([*store.schema(), *EXTRA])),
    "narrow": lambda ids: narrow(rows(ids)),
    "reordered": lambda ids: rows(ids).select(sorted(store.schema().names, reverse=True)),
    "floats": lambda ids: replaced(rows(ids), "d", pa.array([float(i) for i in ids])),
    "missing": lambda ids: replaced(rows(ids), "width", pa.nulls(len(ids))),
}
"""Parts with a column less, a column more, in other types and orders."""


def assert_rows(found, expected):
    """found: a frame or table; expected: {id: names of the columns that its file has}."""
    found = found.to_pandas() if isinstance(found, pa.Table) else found.copy(deep=False)
    found.attrs = {}  # pandas would copy them for every column that is taken
    ids = found["id"].tolist()
    assert sorted(ids) == sorted(expected)
    schema = pa.schema([*store.schema(), *EXTRA])
    for name in found.columns:
        kind = schema.field(name).type
        for i, got in zip(ids, found[name], strict=True):
            if name in expected[i]:
                assert np.array_equal(got, value(kind, i)), (name, i, got)
            else:
                assert np.ndim(got) == 0, (name, i, got)
                assert pd.isna(got), (name, i, got)


def columns_of(shape):
    names = set(SHAPES[shape]([0]).column_names)
    return names - {"width"} if shape == "missing" else names


def cut(path, size):
    """Take bytes off a file's end."""
    path.write_bytes(path.read_bytes()[: max(0, path.stat().st_size - size)])


# One table


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ours_first", [True, False])
def test_parts_of_other_schemas_are_read_resumed_and_merged(tmp_path, shape, ours_first):
    folder = store.Folder(tmp_path)
    for i, ids in enumerate([[0, 1, 2], [3, 4]]):
        tables.append(tmp_path / "parts" / f"{i}.parquet", SHAPES[shape if (i == 0) != ours_first else "as it is"](ids))
    other, ours = ([3, 4], [0, 1, 2]) if ours_first else ([0, 1, 2], [3, 4])
    expected = dict.fromkeys(ours, columns_of("as it is")) | dict.fromkeys(other, columns_of(shape))
    assert folder.finished().tolist() == [0, 1, 2, 3, 4]
    assert_rows(mtfl_jax.load(tmp_path), expected)
    assert_rows(folder.table(), expected)
    assert_rows(pq.read_table(folder.merge()), expected)
    assert_rows(mtfl_jax.load(tmp_path), expected)
    shutil.rmtree(tmp_path / "parts")
    assert_rows(mtfl_jax.load(tmp_path), expected)
    folder.append(rows([7]))
    assert_rows(pq.read_table(folder.merge()), expected | {7: columns_of("as it is")})
    merged = pq.read_schema(tmp_path / tables.RESULTS)
    known = [name for name in store.schema().names if name != "id"]
    assert merged.names == [*known, *(EXTRA.names if shape == "newer" else ()), "id"]
    for field in [*store.schema(), *(EXTRA if shape == "newer" else ())]:
        assert merged.field(field.name).type == field.type


def test_a_part_alone_has_the_types_of_results(tmp_path):
    tables.append(tmp_path / "a.parquet", narrow(rows([0, 1])))
    assert mtfl_jax.load(tmp_path / "a.parquet").dtypes.tolist() == tables.frame(rows([0, 1])).dtypes.tolist()


BAD = {
    "column d is string, elsewhere int64": lambda part: replaced(part, "d", pa.array(["abc"])),
    "column d is bool, elsewhere int64": lambda part: replaced(part, "d", pa.array([True])),
    "column seed is double, elsewhere int64 (Float value": lambda part: replaced(part, "seed", pa.array([64.5])),
    "column lr is int64, elsewhere double (Integer value": lambda part: replaced(part, "lr", pa.array([2**60 + 1])),
    "column d is list<element: int64>, elsewhere int64": lambda part: replaced(part, "d", pa.array([[1]])),
    "it has no column id": lambda part: part.drop("id"),
    "it has no column step": lambda part: part.drop("step"),
    "it has no column status": lambda part: part.drop("status"),
    "column id is int64, in a table of results uint64": lambda part: replaced(part, "id", pa.array([1])),
    "column id has missing values": lambda part: replaced(part, "id", pa.nulls(1, pa.uint64())),
    "column seed is there 2 times": lambda part: part.append_column("seed", part.column("seed")),
    "column their_knob is string, elsewhere int": lambda part: part.append_column("their_knob", pa.array(["abc"])),
}


@pytest.mark.parametrize("problem", BAD)
def test_what_cannot_be_one_table_is_refused_in_a_line_before_anything_runs(tmp_path, problem):
    folder = store.Folder(tmp_path)
    folder.append(SHAPES["newer"]([5, 6]))
    bad = tmp_path / "parts" / "zz.parquet"
    pq.write_table(BAD[problem](rows([1])), bad)

    def finish():
        return store.Folder(tmp_path).finished()

    uses = [finish, folder.finished, folder.table, folder.merge]
    # Without a run, nothing says that a column must be of whole numbers.
    uses += [] if "Float value" in problem else [lambda: mtfl_jax.load(tmp_path)]
    for use in uses:
        with pytest.raises(ValueError, match=r"zz\.parquet") as refused:
            use()
        text = str(refused.value)
        assert f"{bad}: {problem}" in text
        assert "\n" not in text
    with pytest.raises(ConfigError) as refused:
        finish()
    assert (refused.value.key, refused.value.value) == ("folder", tmp_path)
    assert "allowed: " in str(refused.value)
    assert not (tmp_path / tables.RESULTS).exists()


FOREIGN = {
    "text": lambda path: path.write_text("my notes, which are nobody else's"),
    "table": lambda path: pq.write_table(pa.table({"name": ["a"], "age": [3]}), path),
    "table with an id": lambda path: pq.write_table(pa.table({"id": [1, 1], "age": [3, 4]}), path),
    "folder": lambda path: (path.mkdir(), (path / "a").write_text("a")),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_results_file_is_refused_and_kept(tmp_path, kind):
    path = tmp_path / "out" / tables.RESULTS
    path.parent.mkdir()
    FOREIGN[kind](path)
    before = path.read_bytes() if path.is_file() else (path / "a").read_bytes()
    with pytest.raises(ConfigError) as refused:
        store.Folder(tmp_path / "out")
    assert refused.value.key == "folder"
    assert f"{path}: " in str(refused.value)
    assert "\n" not in str(refused.value)
    assert [found.name for found in path.parent.iterdir()] == [tables.RESULTS]
    path.rename(tmp_path / "kept")
    folder = store.Folder(tmp_path / "out")
    folder.append(rows([1]))
    (tmp_path / "kept").rename(path)
    for use in (folder.merge, folder.table, lambda: mtfl_jax.load(tmp_path / "out")):
        with pytest.raises(ValueError, match=r"results\.parquet: "):
            use()
    assert (path.read_bytes() if path.is_file() else (path / "a").read_bytes()) == before


def test_the_commands_refuse_in_one_line(here, tmp_path, monkeypatch, capsys):
    from mtfl_jax.analysis import fit_command, page

    (tmp_path / "a").mkdir()
    pq.write_table(pa.table({"name": ["a"]}), tmp_path / "a" / tables.RESULTS)
    status, out, err = here("hydra.run.dir=a", "seed=0")
    assert (status, out) == (2, "")
    line = "a/results.parquet: it has no column id and so is not a table of results"
    assert (
        err == f"mtfl: hydra.run.dir={tmp_path}/a: {tmp_path}/{line}; allowed: a new folder, or one with results only\n"
    )
    assert not (tmp_path / "a" / "parts").exists()
    with pytest.raises(ConfigError, match=r"folder=a: a/results\.parquet"):
        mtfl_jax.sweep(folder="a", seed=0)
    for command, arguments in ((page.main, ["a"]), (fit_command.main, ["a", "--x", "d", "--y", "lr"])):
        monkeypatch.setattr(sys, "argv", ["it", *arguments])
        with pytest.raises(SystemExit, match="2"):
            command()
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert line in err


def test_load_reads_what_is_asked_for_once(tmp_path):
    one, two = store.Folder(tmp_path), store.Folder(tmp_path)
    one.append(rows([0, 1, 2]))
    two.append(SHAPES["older"]([3]))
    two.append(rows([2, 4]))
    assert len(mtfl_jax.load(tmp_path)) == 5
    for _ in range(2):
        some = mtfl_jax.load(tmp_path, columns=["status", "d"], where=[("seed", ">", 1), ("d", "in", [2, 3, 4])])
        assert list(some.columns) == ["status", "d"]
        assert sorted(some["d"]) == [2, 4]
        assert mtfl_jax.load(tmp_path, columns=["d"], where=[("d", ">", 9)]).empty
        with pytest.raises(ValueError, match="column 'sede'"):
            mtfl_jax.load(tmp_path, columns=["sede"])
        assert pq.read_table(one.merge()).num_rows == tables.count(tables.files_of(tmp_path)) == 5
        assert len(mtfl_jax.load(tmp_path / "results.parquet")) == 5
    with pytest.raises(FileNotFoundError, match="no results there"):
        mtfl_jax.load(tmp_path / "parts")


def test_a_row_of_a_part_goes_before_that_of_the_merged_file(tmp_path):
    folder = store.Folder(tmp_path)
    folder.append(replaced(rows([0]), "task_error", pa.array([9.0])))
    folder.merge()
    shutil.rmtree(tmp_path / "parts")
    folder.append(rows([0]))
    assert_rows(mtfl_jax.load(tmp_path), {0: columns_of("as it is")})
    assert_rows(pq.read_table(folder.merge()), {0: columns_of("as it is")})


def test_labels_go_with_their_columns(tmp_path):
    label = {b"label": "|‹ŵ, w›|".encode()}
    bare = pa.schema([field.remove_metadata() for field in store.schema()])
    schema = pa.schema([field.with_metadata(label) if field.name == "lr" else field for field in bare])
    folder = store.Folder(tmp_path)
    tables.append(tmp_path / "parts" / "a.parquet", rows([0], bare))
    tables.append(tmp_path / "parts" / "b.parquet", rows([1], schema))
    assert mtfl_jax.load(tmp_path).attrs["labels"] == {"lr": "|‹ŵ, w›|"}
    assert mtfl_jax.load(tmp_path, columns=["d"]).attrs["labels"] == {}
    tables.merge(tmp_path, schema)
    for path in (tmp_path / tables.RESULTS, tmp_path / "parts" / "b.parquet"):
        assert pq.read_schema(path).field("lr").metadata == label
    shutil.rmtree(tmp_path / "parts")
    assert mtfl_jax.load(tmp_path).attrs["labels"] == {"lr": "|‹ŵ, w›|"}
    # A run's own label goes before an older file's.
    newer = pa.schema([field.with_metadata({b"label": b"rate"}) if field.name == "lr" else field for field in schema])
    tables.merge(tmp_path, newer)
    assert mtfl_jax.load(tmp_path).attrs["labels"] == {"lr": "rate"}
    # A column that this version does not know keeps its own.
    extra = EXTRA.field("their_knob").with_metadata(label)
    folder.append(rows([2], pa.schema([*store.schema(), extra])))
    folder.merge()
    assert pq.read_schema(tmp_path / tables.RESULTS).field("their_knob").metadata == label


# Damage


def test_torn_parts_are_named_and_left_out(tmp_path):
    folder = store.Folder(tmp_path)
    for ids in ([0, 1], [2]):
        folder.append(rows(ids))
    torn = sorted((tmp_path / "parts").iterdir())[1]
    cut(torn, 100)
    for use in (lambda: mtfl_jax.load(tmp_path), folder.table):
        with pytest.warns(UserWarning, match=torn.name) as warned:
            assert_rows(use(), dict.fromkeys([0, 1], columns_of("as it is")))
        assert len(warned) == 1
    with pytest.warns(UserWarning, match=torn.name):
        assert folder.finished().tolist() == [0, 1]
    shutil.rmtree(tmp_path / "parts")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "a.parquet").write_bytes(b"PAR1")
    with pytest.warns(UserWarning, match="left out"), pytest.raises(FileNotFoundError, match="cannot be read"):
        mtfl_jax.load(tmp_path)


@pytest.mark.parametrize("column", ["d", "lr", "id"])
@pytest.mark.parametrize("spoil", ["page", "bit"])
def test_a_part_spoilt_in_the_middle_gives_way_to_the_merged_file(tmp_path, column, spoil):
    """Its end, which says where the columns are, is whole; a page of one column is not."""
    folder = store.Folder(tmp_path)
    folder.append(rows(range(50)))
    folder.append(rows(range(50, 60)))
    folder.merge()
    spoilt = sorted((tmp_path / "parts").iterdir())[0]
    group = pq.read_metadata(spoilt).row_group(0)
    chunks = {chunk.path_in_schema: chunk for chunk in map(group.column, range(group.num_columns))}
    start = chunks[column].data_page_offset
    end = (chunks[column].dictionary_page_offset or start) + chunks[column].total_compressed_size
    data = bytearray(spoilt.read_bytes())
    if spoil == "page":
        data[start : start + 40] = bytes(40)
    else:
        data[end - 1] ^= 1
    spoilt.write_bytes(data)
    expected = dict.fromkeys(range(60), columns_of("as it is"))
    for use in (lambda: mtfl_jax.load(tmp_path), lambda: pq.read_table(folder.merge()), folder.table):
        with pytest.warns(UserWarning, match=spoilt.name):
            assert_rows(use(), expected)
    (tmp_path / tables.RESULTS).unlink()
    with pytest.warns(UserWarning, match=spoilt.name):
        assert_rows(mtfl_jax.load(tmp_path), {i: expected[i] for i in range(50, 60)})


@pytest.mark.parametrize("left", ["cut", "empty", "zeros"])
def test_a_damaged_results_file_is_moved_aside(tmp_path, left):
    folder = store.Folder(tmp_path)
    folder.append(rows([0, 1]))
    path = folder.merge()
    for number in (1, 2):
        size = path.stat().st_size
        path.write_bytes({"cut": path.read_bytes()[:-8], "empty": b"", "zeros": bytes(size)}[left])
        before = path.read_bytes()
        with pytest.warns(UserWarning, match=r"results\.parquet: "):
            assert store.Folder(tmp_path).finished().tolist() == [0, 1]
        assert path.read_bytes() == before
        aside = f"results.parquet.unreadable-{number}"
        with pytest.warns(UserWarning, match=r"results\.parquet: ") as warned:
            assert pq.read_table(folder.merge()).num_rows == 2
        assert [f"moved to {aside}" in str(warning.message) for warning in warned] == [False, True]
        assert (tmp_path / aside).read_bytes() == before
    assert len(mtfl_jax.load(tmp_path)) == 2


def test_a_results_file_spoilt_in_the_middle_is_kept_aside_and_its_other_rows_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "GROUP_ROWS", 10)
    folder = store.Folder(tmp_path)
    for start in (0, 10, 20):
        folder.append(rows(range(start, start + 10)))
    path = folder.merge()
    shutil.rmtree(tmp_path / "parts")
    # Rows of a process are in the order in which it wrote them.
    assert pq.read_table(path).column("id").to_pylist() == list(range(30))
    data = bytearray(path.read_bytes())
    offset = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    data[offset : offset + 20] = bytes(20)
    path.write_bytes(data)
    folder.append(rows([40]))
    with pytest.warns(UserWarning, match=r"results\.parquet: ") as warned:
        folder.merge()
    assert "moved to results.parquet.unreadable-1" in str(warned[-1].message)
    assert (tmp_path / "results.parquet.unreadable-1").read_bytes() == data
    assert_rows(mtfl_jax.load(tmp_path), dict.fromkeys([*range(10), *range(20, 30), 40], columns_of("as it is")))


def execute(folder, seeds):
    return engine.execute(Grid({**SMALL, "seed": seeds}, compose.composed), folder)


def test_a_sweep_goes_on_from_what_is_left_of_its_folder(tmp_path):
    """Without its parts; with its only part cut; with its part in other types, less a column."""
    folder = store.Folder(tmp_path)
    assert execute(folder, [0, 1]).done == 2
    folder.merge()
    first = mtfl_jax.load(tmp_path).sort_values("id", ignore_index=True)

    def assert_there(seeds):
        found = mtfl_jax.load(tmp_path).sort_values("id", ignore_index=True)
        assert sorted(found["seed"]) == seeds
        pd.testing.assert_frame_equal(found[found["id"].isin(first["id"])].reset_index(drop=True), first)

    shutil.rmtree(tmp_path / "parts")
    progress = execute(store.Folder(tmp_path), [0, 1, 2])
    assert (progress.skipped, progress.done) == (2, 1)
    assert_there([0, 1, 2])
    folder.merge()
    assert_there([0, 1, 2])
    (part,) = (tmp_path / "parts").iterdir()
    cut(part, 8)
    with pytest.warns(UserWarning, match=part.name):
        assert_there([0, 1, 2])
    with pytest.warns(UserWarning, match=part.name):
        progress = execute(store.Folder(tmp_path), [0, 1, 2, 3])
    assert (progress.skipped, progress.done) == (3, 1)
    with pytest.warns(UserWarning, match=part.name):
        folder.merge()
    part.unlink()
    assert_there([0, 1, 2, 3])
    # float32 has not the rows' digits: here only what is counted matters.
    shutil.rmtree(tmp_path / "parts")
    (tmp_path / "parts").mkdir()
    pq.write_table(narrow(pq.read_table(tmp_path / tables.RESULTS)).drop("losses"), tmp_path / "parts" / "a.parquet")
    (tmp_path / tables.RESULTS).unlink()
    progress = execute(store.Folder(tmp_path), [0, 1, 2, 3, 4])
    assert (progress.skipped, progress.done) == (4, 1)
    assert sorted(pq.read_table(folder.merge()).column("seed").to_pylist()) == [0, 1, 2, 3, 4]


# Any sequence of events


@settings(
    max_examples=12,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
class Events(RuleBasedStateMachine):
    """A folder, and what each of its files would give a reader: {path: {id: columns}}, None where it is damaged."""

    def __init__(self):
        super().__init__()
        self.path = Path(tempfile.mkdtemp())
        self.results = self.path / tables.RESULTS
        self.copy = self.path / "copy.parquet"
        self.writers = [store.Folder(self.path), store.Folder(self.path)]
        for name, writer in zip("ab", self.writers, strict=True):
            writer._name = name
        self.files = {}
        self.moved = {}

    def teardown(self):
        shutil.rmtree(self.path)

    def readable(self):
        """{id: columns} of the rows that some file gives: parts first."""
        parts = sorted(path for path in self.files if path.parent.name == "parts")
        found = {}
        for path in [*parts, self.results]:
            found = {**(self.files.get(path) or {}), **found}
        return found

    @rule(writer=st.integers(0, 1), shape=st.sampled_from(list(SHAPES)), ids=st.sets(st.integers(0, 30), max_size=6))
    def append(self, writer, shape, ids):
        before = set((self.path / "parts").glob("*"))
        self.writers[writer].append(SHAPES[shape](sorted(ids)))
        (new,) = set((self.path / "parts").glob("*")) - before
        self.files[new] = dict.fromkeys(ids, columns_of(shape))

    @rule(writer=st.integers(0, 1))
    def merge(self, writer):
        merged = self.readable()
        torn = self.files.get(self.results, {}) is None
        content = self.results.read_bytes() if torn else None
        self.writers[writer].merge()
        if torn:
            self.moved[self.path / f"{tables.RESULTS}.unreadable-{len(self.moved) + 1}"] = content
        self.files[self.results] = merged
        assert_rows(pq.read_table(self.results), merged)

    @rule()
    def delete_parts(self):
        shutil.rmtree(self.path / "parts", ignore_errors=True)
        self.files = {path: held for path, held in self.files.items() if path.parent.name != "parts"}

    @precondition(lambda self: self.files)
    @rule(which=st.integers(0, 1000), share=st.floats(0, 1))
    def truncate(self, which, share):
        path = list(self.files)[which % len(self.files)]
        cut(path, 1 + int(share * (path.stat().st_size - 1)))
        self.files[path] = None

    @precondition(lambda self: self.results in self.files)
    @rule()
    def copy_aside(self):
        shutil.copy(self.results, self.copy)
        self.files[self.copy] = self.files[self.results]

    @precondition(lambda self: self.copy in self.files)
    @rule()
    def copy_back(self):
        shutil.copy(self.copy, self.results)
        self.files[self.results] = self.files[self.copy]

    @rule(kind=st.sampled_from(list(FOREIGN)))
    def foreign(self, kind):
        """Somebody's own results.parquet: refused, kept, and taken away again."""
        away = self.path / "away"
        if self.results.exists():
            self.results.rename(away)
        FOREIGN[kind](self.results)
        for use in (lambda: store.Folder(self.path), self.writers[0].merge, lambda: mtfl_jax.load(self.path)):
            with pytest.raises(ValueError, match=r"results\.parquet: "):
                use()
        self.results.rename(self.path / "theirs")
        shutil.rmtree(self.path / "theirs") if kind == "folder" else (self.path / "theirs").unlink()
        if away.exists():
            away.rename(self.results)

    @rule(name=st.sampled_from([".results.parquet.17.partial", "parts/.a-000000.parquet.host-17-5eed.partial"]))
    def leftover(self, name):
        """What a killed writer leaves behind."""
        (self.path / "parts").mkdir(exist_ok=True)
        pq.write_table(rows([100]), self.path / name)

    @invariant()
    def every_readable_row_is_there(self):
        expected = self.readable()
        assert self.writers[1].finished().tolist() == sorted(expected)
        assert store.Folder(self.path).finished().tolist() == sorted(expected)
        assert_rows(self.writers[0].table(), expected)
        places = [path for path in self.files if path != self.copy]
        if any(self.files[path] is not None for path in places):
            assert_rows(mtfl_jax.load(self.path), expected)
        else:
            with pytest.raises(FileNotFoundError):
                mtfl_jax.load(self.path)
        for path, content in self.moved.items():
            assert path.read_bytes() == content


@pytest.mark.filterwarnings("ignore:.*cannot be read:UserWarning")
class TestEvents(Events.TestCase):
    """Appends, merges, damage, copies and deletions in any order lose no row that some file gives."""


# Several writers

MERGERS = """
import multiprocessing, os, shutil, sys
from pathlib import Path

WRITERS, ROUNDS = 8, 40
folder = Path("out")

def work(k, barrier, done):
    import pyarrow as pa, pyarrow.parquet as pq
    from mtfl_jax.sweeps import tables
    schema = pa.schema([pa.field("d", pa.int64()), pa.field("id", pa.uint64())])
    if k == WRITERS:  # A reader, at all times.
        path, reads = folder / tables.RESULTS, 0
        while not done.is_set():
            if path.exists():
                tables.load(path)
                reads += 1
        assert reads > ROUNDS
        return
    for i in range(ROUNDS):
        part = folder / "parts" / f"{k}-{i}.parquet"
        own = {"d": [i], "step": [1], "status": ["ok"], "id": pa.array([i * WRITERS + k], pa.uint64())}
        tables.append(part, pa.table(own))
        tables.merge(folder, schema)
        barrier.wait()
        if k == 0:
            found = sorted(pq.read_table(folder / tables.RESULTS).column("id").to_pylist())
            assert found == list(range((i + 1) * WRITERS)), (i, found)
            if i % 3 == 2:
                shutil.rmtree(folder / "parts")
                (folder / "parts").mkdir()
        barrier.wait()

if __name__ == "__main__":
    (folder / "parts").mkdir(parents=True)
    context = multiprocessing.get_context("fork")
    barrier, done = context.Barrier(WRITERS, timeout=300), context.Event()
    workers = [context.Process(target=work, args=(k, barrier, done)) for k in range(WRITERS + 1)]
    for worker in workers:
        worker.start()
    for worker in workers[:-1]:
        worker.join()
    done.set()
    workers[-1].join()
    assert [worker.exitcode for worker in workers] == [0] * (WRITERS + 1)
    left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    print(len([name for name in left if name.startswith("parts/")]), [name for name in left if "/" not in name])
"""


@pytest.mark.slow
def test_eight_processes_that_merge_at_once_leave_a_whole_file_every_time(tmp_path):
    done = subprocess.run([sys.executable, "-c", MERGERS], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "8 ['.results.parquet.lock', 'results.parquet']\n"


DIES = """
import time
from pathlib import Path
import pyarrow.parquet as pq
from mtfl_jax.sweeps import tables

real = tables._gathered
def slow(parts):
    yield from real(parts)
    Path("writing").write_text("")
    time.sleep(600)
tables._gathered = slow
tables.merge(Path("out"), pq.read_schema(next(Path("out/parts").iterdir())))
"""


def test_a_writer_that_dies_while_it_merges_holds_nobody_up(tmp_path):
    folder = store.Folder(tmp_path / "out")
    folder.append(rows([0, 1]))
    dies = subprocess.Popen([sys.executable, "-c", DIES], cwd=tmp_path)
    while not (tmp_path / "writing").exists():
        assert dies.poll() is None
        time.sleep(0.01)
    dies.send_signal(signal.SIGKILL)
    dies.wait()
    folder.append(rows([2]))
    assert pq.read_table(folder.merge()).num_rows == 3
    leftovers = [path.name for path in (tmp_path / "out").glob(".*.partial")]
    assert len(leftovers) == 1
    assert len(mtfl_jax.load(tmp_path / "out")) == 3


def test_a_reader_sees_the_file_that_it_opened(tmp_path):
    """Merged anew by another process between the reading of ids and of rows."""
    folder = store.Folder(tmp_path)
    folder.append(rows([5, 6, 7]))
    folder.merge()
    shutil.rmtree(tmp_path / "parts")
    (tmp_path / "parts").mkdir()
    found = tables.stored(tables.files_of(tmp_path))
    folder.append(rows([0, 1]))
    folder.merge()
    assert sorted(pa.concat_tables(tables.distinct(found)).column("id").to_pylist()) == [5, 6, 7]


def test_without_locks_a_merge_goes_on(tmp_path, monkeypatch):
    import errno

    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(tables.fcntl, "flock", flock)
    folder = store.Folder(tmp_path)
    folder.append(rows([0]))
    assert pq.read_table(folder.merge()).num_rows == 1


def test_temporary_names_are_nobody_elses(tmp_path, monkeypatch):
    names, hosts = [], (socket.gethostname(), "other")

    def write_to(partial):
        names.append(partial.name)
        partial.write_text("half")
        if len(names) < 3:
            # Another process of the same number, on another host or on this one, writes the same file meanwhile.
            monkeypatch.setattr(tables.socket, "gethostname", lambda: hosts[len(names) % 2])
            tables.whole(tmp_path / "a.parquet", write_to)

    tables.whole(tmp_path / "a.parquet", write_to)
    assert len(set(names)) == 3
    assert all(name.startswith(".a.parquet.") and name.endswith(".partial") for name in names)
    assert f"other-{os.getpid()}-" in names[1]
    with pytest.raises(ZeroDivisionError):
        tables.whole(tmp_path / "a.parquet", lambda partial: (partial.write_text("half"), 1 // 0))
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_a_sweep_outlives_its_parts_and_its_fork(tmp_path, monkeypatch):
    folder = store.Folder(tmp_path)
    folder.append(rows([0]))
    folder.merge()
    shutil.rmtree(tmp_path / "parts")
    folder.append(rows([1]))
    fork = copy.deepcopy(folder)
    folder.append(rows([2]))
    monkeypatch.setattr(store.os, "getpid", lambda: 17)
    fork.append(rows([3]))
    assert folder.finished().tolist() == [0, 1, 2, 3]


def test_notes_are_of_their_process(tmp_path):
    one, two = store.Folder(tmp_path), store.Folder(tmp_path)
    one.note({"state": "running"})
    two.note({"state": "running"})
    one.note({"state": "finished"})
    assert sorted(json.loads(path.read_text())["state"] for path in (tmp_path / "runs").iterdir()) == [
        "finished",
        "running",
    ]


# Size

HUGE = """
import resource, shutil, sys
import numpy as np
import pyarrow as pa
import mtfl_jax
from mtfl_jax.sweeps import store
from mtfl_jax.sweeps.grid import SCHEMA

sink, parts = store.Folder("huge"), int(sys.argv[1])
makes = {
    pa.int64(): lambda index: index,
    pa.float64(): lambda index: index / 7,
    pa.string(): lambda index: index.astype(str),
    pa.bool_(): lambda index: index % 2 == 0,
    pa.list_(pa.float64()): lambda index: [[i / 3] * 5 for i in index.tolist()],
    pa.uint64(): lambda index: index,
}
for at in range(parts):
    index = np.arange(at * 2000, at * 2000 + 2000)
    columns = [pa.array(makes[field.type](index), field.type) for field in store.schema()]
    columns[store.schema().names.index("schema")] = pa.array(np.full(2000, SCHEMA))
    sink.append(pa.table(columns, schema=store.schema()))
assert len(sink.finished()) == 2000 * parts
sink.merge()
shutil.rmtree("huge/parts")
sink.append(pa.table(columns, schema=store.schema()))
sink.merge()
some = mtfl_jax.load("huge", columns=["seed"], where=[("seed", "<", 100)])
assert len(some) == 100
assert len(sink.finished()) == 2000 * parts
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_memory_stays_flat_however_many_rows(tmp_path):
    """Ten times the rows: 180,000 more of 600 bytes each (100 MiB) may cost some of their 8-byte identities, and a row
    group of results.parquet where there was less than one, only.
    """
    peaks = []
    for parts in (10, 100):
        (tmp_path / str(parts)).mkdir()
        command = [sys.executable, "-c", HUGE, str(parts)]
        done = subprocess.run(command, cwd=tmp_path / str(parts), capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout))
    assert peaks[1] - peaks[0] < 40
