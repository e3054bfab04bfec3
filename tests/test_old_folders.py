"""Folders that an earlier version wrote load, resume, merge and report (tests/old_folders/make.sh)."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import mtfl_jax
from mtfl_jax import compose
from mtfl_jax.analysis import page
from mtfl_jax.config import FIELDS
from mtfl_jax.fields import NONE_NEUTRAL
from mtfl_jax.learning.measures import MEASURES
from mtfl_jax.sweeps import engine, identity, store, tables
from mtfl_jax.sweeps.grid import SCHEMA, Grid

OLD = Path(__file__).parent / "old_folders"
BASE = {"d": 16, "r": 2, "width": 16, "num_tasks": 4, "n1": 128, "n2": 128, "n_test": 64, "n_down": [16, 32]}
BASE |= {"seed": [0, 1], "data": "gaussian"}
STEPPED = {"algorithm": "joint", "steps": 6, "measure_at": [[2, 6]], "measure": "contrastive", "optimizer": "momentum"}
GRIDS = [
    (
        "one_step",
        {
            "d": [16, 24],
            "num_tasks": [1, 4],
            "tasks": ["balanced", "parity"],
            "parity_size": ["any", "all", 2],
        },
    ),
    ("stepped", {"algorithm": "alternating", "steps": 4, "loss": "mixture", "lr_a": [0.01, 0.1]}),
    ("stepped", STEPPED),
    ("references", {"algorithm": "random_features", "probe": "none"}),
    ("references", {"algorithm": "oracle", "probe": "svm"}),
    ("references", {"algorithm": "population", "measure": "recovery"}),
]
WRONG = [
    ("wrong_decay", {"weight_decay": [None, 0.5], "num_tasks": [1, 4]}, lambda old: old["weight_decay"].notna()),
    ("wrong_n_test", {"n_test": [100, 128]}, lambda old: old["n_test"] == 100),
    (
        "wrong_precision",
        {"precision": ["float32", "bfloat16"], "num_tasks": [1, 64]},
        lambda old: old["precision"] != "float32",
    ),
]


@pytest.fixture
def copied(tmp_path):
    """Copy an old folder to where it may be written."""

    def copy(name):
        shutil.copytree(OLD / name, tmp_path / name)
        return tmp_path / name

    return copy


def resumed(folder, axes):
    """The grid, and how a sweep of it into the folder went."""
    grid = Grid({**BASE, **axes}, compose.composed)
    progress = engine.execute(grid, store.Folder(folder))
    assert not progress.failures
    return grid, progress


@pytest.mark.parametrize("name", sorted(path.name for path in OLD.iterdir() if path.is_dir()))
def test_an_old_folder_loads_merges_and_reports(copied, name):
    folder = copied(name)
    before = mtfl_jax.load(folder)
    assert len(before) == len(before["id"].unique()) > 3
    store.Folder(folder).merge()
    pd.testing.assert_frame_equal(mtfl_jax.load(folder)[before.columns], before)
    assert "schema" in pq.read_schema(folder / "results.parquet").names
    made = page.write(folder)
    assert made.problem is None
    assert (folder / "report" / "index.html").stat().st_size > 1000


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        pytest.param(name, axes, id=f"{name}-{k}", marks=[pytest.mark.slow] * (k in (2, 4, 5)))
        for k, (name, axes) in enumerate(GRIDS)
    ],
)
def test_finished_cells_of_an_old_folder_count_and_are_what_is_computed_now(copied, name, axes):
    folder = copied(name)
    grid, progress = resumed(folder, axes)
    assert (progress.done, progress.skipped) == (0, len(grid))
    old = tables.frame(identity.in_order(grid, store.Folder(folder).table()))
    new = mtfl_jax.sweep(**{**BASE, **axes})
    assert len(old) == len(new)
    # Trainings in steps amplify rounding; these take six at most.
    for column in new.columns:
        measure = MEASURES.get(column)
        if column in ("id", "schema"):
            continue
        if column in ("task_error", "downstream_error"):
            np.testing.assert_allclose(old[column].astype(float), new[column].astype(float), atol=3 / 64)
        elif measure is not None and measure.shape is not None:
            assert (old[column].notna() == new[column].notna()).all()
            for a, b in zip(old[column].dropna(), new[column].dropna(), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
        elif column in FIELDS and FIELDS[column].neutral is not NONE_NEUTRAL and old[column].isna().all():
            # A setting that came later, and changed nothing.
            assert (new[column].isna() | (new[column] == FIELDS[column].neutral)).all()
        elif measure is not None:
            np.testing.assert_allclose(old[column].astype(float), new[column].astype(float), rtol=1e-4, atol=1e-6)
        else:
            pd.testing.assert_series_equal(old[column], new[column])


def test_an_interrupted_old_folder_goes_on(copied):
    folder = copied("interrupted")
    before = len(mtfl_jax.load(folder))
    grid, progress = resumed(folder, {"num_tasks": [1, 4, 16], "seed": [0, 1, 2, 3]})
    assert (progress.skipped, progress.done) == (before, len(grid) - before)
    store.Folder(folder).merge()
    after = mtfl_jax.load(folder)
    assert len(after) == len(grid)
    assert after["schema"].isna().sum() == before
    assert set(after["schema"].dropna()) == {SCHEMA}


@pytest.mark.parametrize(("name", "axes", "wrong"), WRONG, ids=[name for name, *_ in WRONG])
def test_rows_that_an_earlier_version_measured_as_others_are_run_again(copied, name, axes, wrong):
    folder = copied(name)
    old = mtfl_jax.load(folder)
    grid, progress = resumed(folder, axes)
    assert progress.done == wrong(old).sum() > 0
    assert progress.skipped == len(grid) - progress.done
    found = tables.frame(identity.in_order(grid, store.Folder(folder).table()))
    assert (found["schema"].notna() == wrong(found)).all()
    # The old rows are still there, told apart by their schema.
    assert len(mtfl_jax.load(folder)) == len(old) + progress.done


def test_a_value_that_is_not_there_is_not_guessed():
    """A column that an old table lacks and that bears leaves the row's identity as it was."""
    table = pq.read_table(OLD / "one_step" / "results.parquet")
    known = identity.current(table)
    assert (known != table.column("id").to_numpy()).any()
    assert (identity.current(table.drop_columns("n1")) == table.column("id").to_numpy()).all()
    assert (identity.current(table.drop_columns("lr")) == known).all()
