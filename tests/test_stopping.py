"""Trainings that stop at a threshold, against the NumPy reference in float64; and the fits of when they did."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trainings import CLOSE, float64, learn, looked_at, measured, quick_jit, training

import mtfl_jax
from mtfl_jax.analysis import fits
from mtfl_jax.fields import ConfigError
from mtfl_jax.learning import experiment
from mtfl_jax.learning.measures import MEASURES, stoppable
from mtfl_jax.learning.stopping import NEVER

STEPS = 9
STEPPED = {"bias": "random", "weight_decay": 0.2, "steps": STEPS, "measure_at": [*range(1, STEPS + 1)]}
ALTERNATING = {**STEPPED, "algorithm": "alternating", "loss": "logistic", "lr_a": 0.4, "lr_w": 0.3}
CASES = {
    "alternating, a loss on batches": {
        **ALTERNATING,
        "samples": "batches",
        "batch": 10,
        "measure": "recovery",
        "stop_when": "train_loss",
        "stop_every": 1,
    },
    "joint, an R² of real labels": {
        **STEPPED,
        "algorithm": "joint",
        "optimizer": "momentum",
        "lr": 0.1,
        "loss": "mse",
        "tasks": "staircase",
        "degree": 2,
        "measure": "recovery",
        "stop_when": "r2",
        "stop_every": 1,
    },
}


@pytest.mark.parametrize("case", CASES)
@float64
def test_a_training_stops_where_the_reference_is_at_the_threshold(case):
    """Three thresholds in one batch, of which one is never met: each lane is what its own cell makes of it."""
    p, cell = training(**CASES[case], stop_at=0.5)
    sign = 1 if MEASURES[p.stop_when].stops == "below" else -1
    never = cell.replace(stop_at=np.float64(-sign * 1e9))
    networks, samples = learn(p, never)
    looks = range(p.stop_every, STEPS + 1, p.stop_every)
    values = [sign * looked_at(p, cell, networks[k - 1], samples[k - 1]) for k in looks]
    # Thresholds between what two looks see, so that no rounding decides.
    best = np.minimum.accumulate(values)
    (later, *_) = np.flatnonzero(best[1:] < best[:-1] - 1e-6) + 1
    thresholds = [1e9, (best[later - 1] + best[later]) / 2, -1e9]
    lanes = [cell.replace(stop_at=np.float64(sign * value)) for value in thresholds]
    run = quick_jit(jax.vmap(functools.partial(experiment.experiment, p.replace(keep=True))))
    found = run(jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *lanes))
    for lane, own, stop in zip(range(3), lanes, (looks[0], looks[later], 0), strict=True):
        expected, trained_on = learn(p, own)
        steps = np.arange(1, STEPS + 1)
        reached = (stop > 0) & (steps >= stop)
        np.testing.assert_array_equal(found["steps_to"][lane], np.where(reached, stop, steps))
        np.testing.assert_array_equal(found["steps_to_censored"][lane], ~reached)
        np.testing.assert_array_equal(found["taken"][lane], found["steps_to"][lane])
        assert not found["diverged_step"][lane].any()
        for k, params in enumerate(expected):
            for name, leaf in params.items():
                inside = found["network"][name][lane, k][tuple(map(slice, leaf.shape))]
                np.testing.assert_allclose(inside, leaf, err_msg=name, **CLOSE)
        for k in (0, STEPS - 1) if "n_test" in p else ():
            values = measured(p, own, expected[k], trained_on[k])
            for name in values.keys() & found.keys():
                np.testing.assert_allclose(found[name][lane, k], values[name], err_msg=name, **CLOSE)
        # From the stop on the network is the same to the bit.
        W = np.asarray(found["network"]["W"][lane])
        np.testing.assert_array_equal((W[1:] == W[:-1]).all(axis=(1, 2)), reached[:-1])


def test_fits_know_which_never_got_there():
    """Rows of a sweep as `mtfl-fit` takes them; a training that stopped costs what it took."""
    sizes = {"d": 6, "r": 2, "width": 8, "num_tasks": 2, "n2": 24, "n_test": 16, "steps": 24, "measure_at": "last"}
    how = {"algorithm": "joint", "optimizer": "sgd", "samples": "fixed", "measure": "recovery", "probe": "none"}
    stop = {"stop_when": "train_loss", "stop_at": 0.55, "seed": range(4)}
    table = mtfl_jax.sweep(**sizes, **how, **stop, lr=[0.03, 0.1, 0.3, 1.0])
    censored = table["steps_to_censored"].astype(bool)
    assert 0 < censored.sum() < len(table)
    assert (table["steps_to"][censored] == 24).all()
    fit = fits.fit(table, "lr", "steps_to")
    assert fit.censored == censored.sum()
    assert fit.parameters["exponent"] < 0
    per_step = table["train_flops"] / table["steps_to"]
    np.testing.assert_allclose(per_step, per_step.iloc[0])


def test_what_cannot_stop_a_training_is_refused_in_a_line():
    for given, said in (
        ({"stop_when": "r2"}, r"^stop_when=r2: tasks=balanced has labels ±1; allowed: never, .*task_error"),
        ({"stop_when": "task_error", "tasks": "monomial", "loss": "mse"}, "^stop_when=task_error: .*real labels.*r2"),
        ({"stop_when": "num_params"}, "^stop_when=num_params: allowed: never, subspace_distance"),
    ):
        with pytest.raises(ConfigError, match=said) as refused:
            mtfl_jax.run(algorithm="joint", **given)
        assert "\n" not in str(refused.value)
    assert NEVER not in stoppable()
    # Where nothing takes steps there is nothing to stop, and a training that is not stopped has the identity it had.
    from mtfl_jax.compose import from_keywords

    assert not {"stop_when", "stop_at", "stop_every"} & from_keywords(algorithm="one_step", stop_when="test_loss").used
    assert not {"stop_when", "stop_at", "stop_every"} & from_keywords(algorithm="joint").used
    assert {"stop_when", "stop_at", "n_test"} <= from_keywords(
        algorithm="joint", measure="recovery", probe="none", stop_when="test_loss"
    ).used
