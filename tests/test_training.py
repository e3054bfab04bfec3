"""`mtfl_jax.train`: one row's network, tasks and data."""

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import reference
from differential import SAMPLES, Generator, _times, composed, examples, resolve

import mtfl_jax
from mtfl_jax.config import FIELDS
from mtfl_jax.learning.data import LAWS
from mtfl_jax.learning.losses import LOSSES
from mtfl_jax.learning.measures import MEASURES
from mtfl_jax.learning.tasks import FAMILIES
from mtfl_jax.sweeps import engine, identity, store, tables
from mtfl_jax.sweeps.grid import Grid

SMALL = {"d": 8, "r": 2, "width": 12, "num_tasks": 5, "n1": 48, "n2": 64, "n_test": 32, "n_down": 16, "steps": 5}


def alone(**given):
    """The rows of one cell, as a sweep without shared moments makes them."""
    sink = store.Memory()
    grid = Grid({name: [value] for name, value in given.items()}, composed)
    assert not engine.execute(grid, sink, moments="never").failures
    return tables.frame(identity.in_order(grid, sink.table()))


def plain(table):
    """The rows of a table as Python has them, to the bit."""
    return pa.Table.from_pandas(table, preserve_index=False).to_pylist()


def random_cells(count, **more):
    """Accepted cells over all settings, larger in samples than the examples say."""
    limits = {name: [_times(value, k) for value in examples(FIELDS[name])] for name, k in SAMPLES.items()}
    return [Generator(1000 + i, {**limits, **more}).cell() for i in range(count)]


def agree(found, expected):
    """Rows as Python has them are the same, what is measured to rounding."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        measured = {name: value for name, value in other.items() if name in MEASURES and value is not None}
        np.testing.assert_equal(one, other | {name: one[name] for name in measured})
        for name, value in measured.items():
            np.testing.assert_allclose(one[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def check(given):
    """A training is that of its rows, bit for bit, and of one's step; its parts fit one another."""
    rows = alone(**given)
    row = rows.iloc[len(rows) // 2]
    found = mtfl_jax.train(**row)
    own = resolve(given)
    assert found.step == row["step"]
    assert set(found.networks) >= set(rows["step"])
    whole = mtfl_jax.train(**{**row, "step": None}, measure_at=given.get("measure_at", "log"))
    same = alone(**given | ({} if pd.isna(row["n_down"]) else {"n_down": row["n_down"]}))
    np.testing.assert_equal(plain(whole.table), plain(same))
    # A row knows of no other n_down and recorded steps: a program that has them too may round in other places.
    agree(plain(whole.table), plain(rows[(rows["n_down"] == row["n_down"]) | rows["n_down"].isna()]))
    agree(plain(found.table[found.table["step"] == row["step"]]), [plain(rows)[len(rows) // 2]])

    assert found.W.shape == (own.width, own.d)
    assert found.b.shape == (own.width,)
    assert found.A.shape == (own.num_tasks, own.width)
    if row["status"] == "ok" and np.linalg.matrix_rank(found.W) >= own.r:
        distance, _, energy, _ = reference.recovery(found.W.astype(float), found.M)
        np.testing.assert_allclose([row["subspace_distance"], row["feature_energy"]], [distance, energy], atol=1e-3)
    if found.x is not None and LAWS[own.data].hidden is not None:
        with pytest.raises(ValueError, match=f"^data={own.data}: "):
            found.labels(found.x)
    elif found.x is not None:
        per_task = [found.x] * own.num_tasks if found.x.ndim == 2 else found.x
        labels = np.stack([found.labels(x)[:, t] for t, x in enumerate(per_task)], axis=1)
        assert found.y.shape == labels.shape == (own.n2 if "n2" in own.used else own.n1, own.num_tasks)
        noise, error = own.label_noise, np.sqrt(own.label_noise * (1 - own.label_noise) / found.y.size)
        assert abs((found.y != labels).mean() - noise) <= 5 * error
    if found.x_test is not None:
        assert found.x_test.shape == (own.n_test, own.d)
    return found


@pytest.mark.parametrize("i", range(2))
@pytest.mark.slow
def test_a_row_again(i):
    check(random_cells(2, probe=["none"], measure=["recovery"])[i])


@pytest.mark.slow
def test_rows_again():
    for given in random_cells(8):
        check(given)


@pytest.mark.slow
def test_of_settings_and_of_a_row_of_a_sweep_that_pads():
    table = mtfl_jax.sweep(**{**SMALL, "d": [8, 11], "width": [12, 20]}, seed=[3, 4], data="gaussian")
    row = table.iloc[5]
    found = mtfl_jax.train(**row)
    for name in ("subspace_distance", "feature_energy", "train_loss", "test_loss"):
        np.testing.assert_allclose(found.table[name].iloc[0], row[name], rtol=1e-4, atol=1e-5)
    same = mtfl_jax.train(**{**SMALL, "d": 11, "width": 12, "data": "gaussian", "seed": 4})
    np.testing.assert_array_equal(found.W, same.W)
    np.testing.assert_array_equal(found.x, same.x)
    np.testing.assert_array_equal(found.M.T @ found.M, np.eye(2))
    # What is measured follows from what is given.
    energy = np.sum((found.W @ found.M) ** 2) / np.sum(found.W**2)
    np.testing.assert_allclose(energy, row["feature_energy"], rtol=1e-4)
    values = LOSSES["linear"].of(jnp.asarray(found.outputs(found.x_test)), jnp.asarray(found.labels(found.x_test)))
    np.testing.assert_allclose(values.mean(), row["test_loss"], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.outputs(found.x_test), found.features(found.x_test) @ found.A.T, atol=1e-5)


@pytest.mark.parametrize("name", sorted(name for name, family in FAMILIES.items() if not family.signs))
@pytest.mark.slow
def test_tasks_that_vary_within_an_orthant_have_no_truth_table(name):
    found = mtfl_jax.train(**SMALL, tasks=name, loss="mse", probe="none", algorithm="random_features")
    with pytest.raises(ValueError, match=f"^tasks={name}: labels that vary within an orthant have no table; allowed: "):
        _ = found.truth_table


@pytest.mark.parametrize("name", sorted(name for name, family in FAMILIES.items() if family.signs))
def test_the_truth_table_is_the_tasks(name):
    settings = {**SMALL, "tasks": name, "r": 3, "measure": "recovery", "probe": "none", "algorithm": "random_features"}
    found = mtfl_jax.train(**settings)
    table = found.truth_table
    assert table.shape == (5, 8)
    index = ((found.x[:, :3] > 0) * 2 ** np.arange(3)).sum(axis=1)
    np.testing.assert_array_equal(table[:, index].T, found.y)


def test_a_part_of_a_row_is_refused_and_one_of_an_earlier_version_is_not(tmp_path, repository):
    table = mtfl_jax.sweep(**SMALL, seed=[0, 1], folder=tmp_path / "a")
    tidy = mtfl_jax.load(tmp_path / "a", tidy=True)
    means = table[table["seed"] == 1].select_dtypes("number").drop(columns="id").astype(float).mean()
    for part in (tidy.iloc[0], means):
        with pytest.raises(ValueError, match=r"row=without .*allowed: all settings of a row"):
            mtfl_jax.train(**part)
    for folder in ("one_step", "stepped"):
        old = mtfl_jax.load(repository / "tests" / "old_folders" / folder)
        for row in (old.iloc[0], old.assign(schema=pd.NA).iloc[-1]):
            found = mtfl_jax.train(**row)
            same = found.table[found.table["step"] == row["step"]].iloc[0]
            np.testing.assert_allclose(same["subspace_distance"], row["subspace_distance"], rtol=1e-3, atol=1e-4)


def test_what_is_no_row_is_refused_in_a_line():
    row = mtfl_jax.run(**SMALL, algorithm="alternating", measure="recovery", probe="none").iloc[0]
    for more, said in (
        ({"step": 6}, "step=6: allowed: from 1 to steps=5"),
        ({"step": 2.5}, "step=2.5: allowed: an integer"),
        ({"step": "x"}, "step=x: allowed: an integer"),
        ({"d": 9}, "id="),
        ({"taks": 1}, "taks=1: unknown key (did you mean tasks"),
        ({"d": [8, 9]}, r"d=\[8, 9\]"),
        ({"extensions": "lab:0123456789abcdef"}, "extensions=lab:0123456789abcdef: not loaded here"),
    ):
        with pytest.raises(ValueError, match=said.replace("(", r"\(")) as error:
            mtfl_jax.train(**{**row, **more})
        assert "\n" not in str(error.value)
    assert mtfl_jax.train(**{**row, "step": 3}).step == 3
