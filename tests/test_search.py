"""Searches by Optuna: batches that are sweeps, values that are means of rows, and going on."""

import math
import sys

import numpy as np
import optuna
import pandas as pd
import pytest

import mtfl_jax
from mtfl_jax import api
from mtfl_jax.fields import ConfigError

SMALL = {"d": 8, "r": 2, "width": 4, "num_tasks": 2, "n1": 16, "n2": 16, "n_test": 8, "n_down": 4, "probe": "none"}
STEPPED = {**SMALL, "algorithm": "alternating", "steps": 5, "measure": "recovery"}
RATES = {"lr_a": "tag(log,interval(1e-3,1))", "lr_w": "interval(0.1,3)"}


@pytest.fixture
def swept(monkeypatch):
    """The points of every sweep that a search makes."""
    found, real = [], api.sweep

    def sweep(**given):
        found.append(given)
        return real(**given)

    monkeypatch.setattr(api, "sweep", sweep)
    return found


def search(**given):
    return mtfl_jax.search(**{**STEPPED, "seed": range(2), "batch": 4, **given})


def values(folder, point, name="subspace_distance", step=5):
    """A measurement at a point and step, read again from the folder."""
    where = [("step", "==", step), *((key, "==", value) for key, value in point.items())]
    return mtfl_jax.load(folder, columns=[name], where=where)[name].to_numpy(float)


def test_a_trial_is_the_mean_of_its_rows_at_their_last_step(swept, tmp_path):
    found = search(**RATES, trials=10, folder=tmp_path, label_noise=[0, 0.1])
    assert [len(given["lr_a"]) for given in swept] == [4, 4, 2]
    assert sorted(found["trial"]) == list(range(10))
    assert found["subspace_distance"].is_monotonic_increasing
    for row in found.itertuples():
        own = values(tmp_path, {"lr_a": row.lr_a, "lr_w": row.lr_w})
        assert len(own) == row.rows == 4
        assert row.subspace_distance == own.mean()
    assert found["lr_a"].between(1e-3, 1).all()
    assert len(mtfl_jax.load(tmp_path, where=[("step", "==", 1)])) == 40


def test_the_sampler_learns_from_one_batch_for_the_next(swept):
    """Rates near the best of two bands are asked for more often than chance would."""
    found = search(**{**RATES, "lr_w": "tag(log,interval(1e-6,1e2))"}, trials=40, batch=8, seed=0)
    later = np.asarray([rate for given in swept[2:] for rate in given["lr_w"]])
    best = found["lr_w"].iloc[0]
    near = np.abs(np.log10(later / best)) < 1
    assert near.mean() > 0.4  # Of points by chance a quarter at most.


def test_a_search_that_was_stopped_goes_on_and_one_of_more_trials_begins_with_it(swept, tmp_path, monkeypatch):
    whole = search(**RATES, trials=9, folder=tmp_path / "whole")
    counted = api.sweep

    def stopping(**given):
        if len(given["lr_a"]) and len(swept) == 4:
            raise KeyboardInterrupt
        return counted(**given)

    monkeypatch.setattr(api, "sweep", stopping)
    with pytest.raises(KeyboardInterrupt):
        search(**RATES, trials=6, folder=tmp_path / "again")
    monkeypatch.setattr(api, "sweep", counted)
    parts = set((tmp_path / "again" / "parts").iterdir())
    assert len(parts) > 0
    again = search(**RATES, trials=9, folder=tmp_path / "again")
    assert again.equals(whole)
    new = set((tmp_path / "again" / "parts").iterdir()) - parts
    assert sum(len(mtfl_jax.load(path)) for path in new) == 5 * 2 * 4  # Trials, seeds, steps.


def test_a_study_of_the_users_own_has_so_many_trials_in_the_end(swept):
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))
    first = search(**RATES, trials=3, study=study, objective="feature_energy")
    more = search(**RATES, trials=5, study=study, objective="feature_energy")
    assert [len(given["lr_a"]) for given in swept] == [3, 2]
    assert more["feature_energy"].is_monotonic_decreasing
    assert set(first["trial"]) == {0, 1, 2}
    assert study.best_params == more.loc[0, ["lr_a", "lr_w"]].to_dict()
    assert study.best_value == more["feature_energy"].iloc[0]


@pytest.mark.parametrize(("direction", "worst"), [("minimize", math.inf), ("maximize", -math.inf)])
def test_a_trial_that_diverged_is_the_worst(direction, worst):
    found = search(lr_a="tag(log,interval(1e-4,1e4))", direction=direction, trials=8, steps=40)
    bad = found["diverged"] > 0
    assert 0 < bad.sum() < 8
    assert (found.loc[bad, "subspace_distance"] == worst).all()
    assert np.isfinite(found.loc[~bad, "subspace_distance"]).all()
    assert bad.tolist() == sorted(bad.tolist())


def test_integers_and_one_point_twice():
    found = search(n2="interval(15,16)", trials=4, seed=0)
    assert set(found["n2"]) <= {15, 16}
    assert found.groupby("n2")["subspace_distance"].nunique().eq(1).all()
    assert len(found) == 4


def test_a_trial_that_failed_leaves_none_that_seem_to_run(monkeypatch):
    study = optuna.create_study()
    with pytest.raises(ConfigError, match="r=9: allowed: at most d=8"):
        search(lr_a="interval(0,1)", r=9, trials=4, study=study)
    assert {trial.state.name for trial in study.trials} == {"FAIL"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {},
            "measure, seed: allowed: an axis interval(LOW,HIGH) at least",
        ),
        ({"lr_a": "interval(1,0)"}, "lr_a=interval(1,0): allowed: interval(LOW,HIGH) with LOW < HIGH"),
        ({"lr_a": "interval(0,1)", "trials": 0}, "trials=0: allowed: an integer from 1"),
        ({"lr_a": "interval(0,1)", "batch": 1.5}, "batch=1.5: allowed: an integer from 1"),
        ({"lr_a": "interval(0,1)", "direction": "down"}, "direction=down: allowed: minimize, maximize"),
        ({"lr_a": "interval(0,1)", "objective": "distance"}, "objective=distance: allowed: subspace_distance, "),
        ({"lr_a": "interval(0,1)", "objective": "downstream_error"}, "it is not measured there"),
        ({"lr": "interval(0,1)"}, "lr=interval(0,1): it has no effect on these cells"),
        ({"lr_a": "interval(0,1)", "lr_b": 1}, "lr_b=1: unknown key"),
        ({"lr_a": "interval(0,1)", "sample": 3}, "sweep.sample=3: allowed where an axis is an interval"),
    ],
)
def test_what_cannot_be_is_a_line(given, said):
    with pytest.raises(ConfigError) as raised:
        search(**{"trials": 2, **given})
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_without_optuna_it_says_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"needs Optuna: pip install 'mtfl_jax\[search\]'"):
        search(**RATES, trials=1)


def test_an_objective_that_is_censored_is_the_worst(monkeypatch):
    def sweep(lr_a, **given):
        rows = pd.DataFrame({"lr_a": np.repeat(lr_a, 2), "seed": [0, 1] * len(lr_a), "step": 1, "status": "ok"})
        unknown = (rows["lr_a"] > 0.5) & (rows["seed"] == 1)
        return rows.assign(subspace_distance=rows["lr_a"], subspace_distance_censored=unknown)

    monkeypatch.setattr(api, "sweep", sweep)
    found = mtfl_jax.search(lr_a="interval(0.1,1)", seed=range(2), trials=8)
    over = found["lr_a"] > 0.5
    assert 0 < over.sum() < 8
    assert np.isinf(found["subspace_distance"][over]).all()
    np.testing.assert_allclose(found["subspace_distance"][~over], found["lr_a"][~over])
