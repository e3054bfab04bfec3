"""Weights that are kept beside a table: of every row, once, found by its identity, and never at the cost of a row."""

import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

import mtfl_jax
from mtfl_jax import compose
from mtfl_jax.analysis import clean
from mtfl_jax.fields import ConfigError
from mtfl_jax.names import WEIGHTS
from mtfl_jax.sweeps import forecasts, kept, rows, store
from mtfl_jax.sweeps.grid import Grid
from mtfl_jax.sweeps.plan import plan

SMALL = {"d": 6, "r": 2, "n1": 32, "n2": 32, "n_test": 16, "n_down": [4, 8], "measure": "recovery", "page": False}
STEPPED = {**SMALL, "algorithm": "alternating", "steps": 2, "width": [4, 6], "num_tasks": 3, "measure_at": [1, 2]}


def grid_of(**axes):
    return Grid({key: value if isinstance(value, list) else [value] for key, value in axes.items()}, compose.composed)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A folder with weights, its table, and the table of a sweep that keeps none."""
    folder = tmp_path_factory.mktemp("kept")
    table = mtfl_jax.sweep(**STEPPED, folder=folder, keep=["W", "A", "b"])
    return folder, table, mtfl_jax.sweep(**{key: value for key, value in STEPPED.items() if key != "page"})


def test_rows_are_those_of_a_sweep_that_keeps_nothing(swept):
    folder, table, plain = swept
    assert table.equals(plain)
    assert not (folder / "parts" / kept.FOLDER).exists()
    assert set(mtfl_jax.load(folder).columns) == set(table.columns)


def test_weights_are_those_of_the_row(swept):
    """Each network once, for both n_down; found by a row of `load` too, and those that `train` computes anew."""
    folder, table, _ = swept
    stored = [pa.parquet.read_table(path) for path in kept.files_of(folder)]
    assert sum(map(len, stored)) == 4
    assert sum(len(ids) for own in stored for ids in own.column("ids").to_pylist()) == len(table) == 8
    # By a folder's own table, by a row that knows no folder, and by one whose numbers are plain.
    for _, row in mtfl_jax.load(folder).iterrows():
        found = mtfl_jax.weights(row)
        shapes = {"W": (row["width"], 6), "b": (row["width"],), "A": (3, row["width"])}
        assert {name: leaf.shape for name, leaf in found.items()} == shapes
        again = mtfl_jax.weights(dict(row), folder)
        assert all(np.array_equal(found[name], again[name]) for name in found)
    row = table[(table["width"] == 4) & (table["step"] == 1)].iloc[0]
    found, own = mtfl_jax.weights(row), mtfl_jax.train(**row)
    for name in WEIGHTS:
        # A program of other sizes: float32 sums in another order, over one round.
        np.testing.assert_allclose(found[name], getattr(own, name), rtol=1e-4, atol=1e-6, err_msg=name)
    assert np.abs(found["A"]).max() > 0


@pytest.mark.slow
def test_weights_of_a_shared_pass(tmp_path):
    """Of groups of several widths, whose networks are padded to the widest."""
    axes = {**SMALL, "width": [4, 40], "num_tasks": [1, 3], "tasks": ["balanced", "parity"], "moments": "always"}
    table = mtfl_jax.sweep(**axes, folder=tmp_path, keep=WEIGHTS)
    assert table.equals(mtfl_jax.sweep(**axes))
    for _, row in table[table["n_down"] == 4].iterrows():
        found, own = mtfl_jax.weights(row), mtfl_jax.train(**row)
        for name in WEIGHTS:
            size = np.abs(getattr(own, name)).max()
            # The same sums by moments, in float32 and another order.
            np.testing.assert_allclose(found[name], getattr(own, name), rtol=1e-3, atol=1e-4 * size, err_msg=name)


def test_it_is_said_where_nothing_was_kept(swept, tmp_path):
    folder, table, _ = swept
    row = dict(table.iloc[0])
    with pytest.raises(ConfigError, match=r"^id=1: nothing of it was kept in .*; mtfl_jax.train\(\*\*row\) computes"):
        mtfl_jax.weights({**row, "id": 1}, folder)
    with pytest.raises(ConfigError, match=r"^id=.*: nothing of it was kept in"):
        mtfl_jax.weights(row, tmp_path)
    with pytest.raises(ConfigError, match=r"^row=without an id .*: allowed: a row of mtfl_jax.load"):
        mtfl_jax.weights({**row, "id": float(row["id"])}, folder)
    with pytest.raises(ConfigError, match=r"^folder=None: allowed: the folder that the row is from"):
        mtfl_jax.weights(row)
    for value, said in ((["V"], "V"), (["W", "W"], "W,W")):
        with pytest.raises(ConfigError, match=rf"^keep=\[{said}\]: allowed: a list of W, b, A"):
            mtfl_jax.sweep(d=6, keep=value, folder=tmp_path)
    with pytest.raises(ConfigError, match=r"^keep=\[W\]: allowed with folder=FOLDER"):
        mtfl_jax.sweep(d=6, keep="W")


def test_what_is_kept_is_known_before(swept):
    """Two widths, two steps each; the two n_down are of one network. More than there is room for is refused."""
    axes = {key: value for key, value in STEPPED.items() if key != "page"}
    grid, bytes_ = grid_of(**axes), 4 * 2 * sum(w * 6 + w + 3 * w for w in (4, 6))
    assert sum(rows.kept_bytes(grid, bucket, WEIGHTS) for bucket in plan(grid)) == bytes_
    nothing = np.empty(0, np.uint64)
    assert forecasts.forecast(grid, nothing, keep=WEIGHTS).kept == bytes_
    assert forecasts.forecast(grid, nothing).kept == 0


def test_more_than_there_is_room_for_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(store.Folder, "room", lambda self: 100)
    with pytest.raises(ConfigError, match=r"^keep=\[W\]: .* GiB of weights, and there is room for .*; allowed: fewer"):
        mtfl_jax.sweep(**STEPPED, folder=tmp_path, keep="W")


# The files, without trainings.


def part(ids):
    """Rows of these identities, as the store has them."""
    schema = rows.schema()
    columns = {"id": np.asarray(ids, np.uint64), "step": np.zeros(len(ids), int), "status": ["ok"] * len(ids)}
    columns |= {"schema": np.full(len(ids), 3)}
    return pa.table([pa.array(columns.get(f.name, [None] * len(ids)), f.type) for f in schema], schema=schema)


def networks(ids, names=WEIGHTS):
    """A network of two rows each: identities 2 k and 2 k + 1."""
    made = [{"W": np.full((2, 3), own), "b": np.full(2, own), "A": np.full((1, 2), own)} for own in ids]
    made = [{name: leaf.astype(np.float32) for name, leaf in own.items()} for own in made]
    return kept.table([np.asarray([2 * own, 2 * own + 1], np.uint64) for own in ids], made, names)


def of(ids):
    return [row for own in ids for row in (2 * own, 2 * own + 1)]


def counts(folder):
    """How often each identity is in a file of networks, and of rows."""
    own = [i for path in kept.files_of(folder) for ids in pa.parquet.read_table(path)["ids"].to_pylist() for i in ids]
    parts = [i for path in (folder / "parts").glob("*.parquet") for i in pa.parquet.read_table(path)["id"].to_pylist()]
    return sorted(own), sorted(parts)


def test_a_sweep_that_goes_on_writes_nothing_twice(tmp_path):
    """Also one that was killed between the networks and their rows; rows without networks are made again, but those
    are not written.
    """
    first = store.Folder(tmp_path, keep=WEIGHTS)
    assert len(first.finished()) == 0
    first.append(part(of([1, 2])), networks([1, 2]))
    store.Folder(tmp_path).append(part(of([3])))
    killed = store.Folder(tmp_path, keep=WEIGHTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.tables, "append", lambda *_: None)
        killed.append(part(of([4])), networks([4]))
    again = store.Folder(tmp_path, keep=WEIGHTS)
    assert again.finished().tolist() == of([1, 2])
    again.append(part(of([1, 3, 4])), networks([1, 3, 4]))
    assert counts(tmp_path) == (of([1, 2, 3, 4]), of([1, 2, 3, 4]))
    assert store.Folder(tmp_path, keep=WEIGHTS).finished().tolist() == of([1, 2, 3, 4])
    # Of rows that have W alone more is kept where it is asked for.
    assert store.Folder(tmp_path).finished().tolist() == of([1, 2, 3, 4])


def test_more_of_a_row_may_be_kept_later(tmp_path):
    store.Folder(tmp_path, keep=["W"]).append(part(of([1])), networks([1], ["W"]))
    assert set(kept.find(tmp_path, 2)) == {"W"}
    more = store.Folder(tmp_path, keep=WEIGHTS)
    assert more.finished().tolist() == []
    more.append(part(of([1])), networks([1]))
    assert more.finished().tolist() == of([1])
    assert set(kept.find(tmp_path, 3)) == set(WEIGHTS)


def test_a_network_among_many(tmp_path):
    """Beyond one group of a file, and of two files."""
    many = range(2 * kept.GROUP_NETWORKS + 3)
    sink = store.Folder(tmp_path, keep=WEIGHTS)
    sink.append(part(of(many)), networks(many))
    sink.append(part(of([90])), networks([90]))
    for own in (0, kept.GROUP_NETWORKS, many[-1], 90):
        for row in of([own]):
            assert kept.find(tmp_path, row)["W"].tolist() == [[own] * 3] * 2
    assert kept.find(tmp_path, 999) == {}


def test_clean_takes_weights_out_with_their_rows(tmp_path):
    sink = store.Folder(tmp_path, keep=WEIGHTS)
    sink.append(part(of([1, 2])), networks([1, 2]))
    sink.append(part(of([3])), networks([3]))
    kept.remove(tmp_path, np.asarray([2, 3, 4, 6, 7], np.uint64))
    assert counts(tmp_path)[0] == [5]
    assert kept.find(tmp_path, 4) == {}
    assert kept.find(tmp_path, 5)["b"].tolist() == [2, 2]
    assert len(kept.files_of(tmp_path)) == 1
    said = list(clean.clean(tmp_path, ["status=ok"], yes=True))
    assert said[0].startswith("removed 6 of 6 rows")
    assert kept.files_of(tmp_path) == []


def test_a_damaged_file_is_left_out_and_moved_aside(tmp_path):
    sink = store.Folder(tmp_path, keep=WEIGHTS)
    sink.append(part(of([1])), networks([1]))
    sink.append(part(of([2])), networks([2]))
    path = kept.files_of(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.warns(UserWarning, match="left out, it cannot be read"):
        assert sink.finished().tolist() == of([2])
    with pytest.warns(UserWarning, match="moved to"):
        assert next(iter(clean.mend(tmp_path))).startswith("1 file moved aside")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kept.ids(tmp_path, ["W"]).tolist() == of([2])


def test_a_folder_of_weights_is_no_sweep(tmp_path):
    sink = store.Folder(tmp_path / "one", keep=WEIGHTS)
    sink.append(part(of([1])), networks([1]))
    assert mtfl_jax.load(tmp_path)["folder"].tolist() == [str(tmp_path / "one")]
