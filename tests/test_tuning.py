"""Networks that are trained on the downstream samples, and what is left to probes by a regression on inputs: against
the reference in float64, and as cells of a sweep.
"""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
import reference
from trainings import CLOSE, PADDED, VALUES, draw_points, float64, learn, networks, quick_jit, training, whole

import mtfl_jax
from mtfl_jax import compose
from mtfl_jax.fields import ConfigError
from mtfl_jax.learning import data, drawing, draws, keys, probe, tuning
from mtfl_jax.learning.updates import Batch
from mtfl_jax.sweeps import cost
from mtfl_jax.sweeps.grid import Grid
from mtfl_jax.sweeps.plan import plan

RANDOM = {"algorithm": "random_features", "measure": "recovery", "data": "gaussian"}
JOINT = {"algorithm": "joint", "measure": "recovery", "loss": "squared", "optimizer": "sgd", "measure_at": [2, 4]}
ONE_STEP = {"algorithm": "one_step", "measure": "recovery", "loss": "mse", "data": "gaussian"}
HE2 = {**ONE_STEP, "network": "two_layer_he2"}
REAL = {"probe_tasks": "single_index"}
TUNED = {"tune_steps": 5, "tune_lr": 0.07, "tune_scale": 0.6, "label_noise": 0.0}
CASES = {
    "finetune": {**RANDOM, "probe": "finetune", "tune_norm": False, "bias": "random"},
    "finetune of unit norm": {**JOINT, "probe": "finetune", "tune_norm": True, "bias": "trained", **REAL},
    "scratch": {**JOINT, "probe": "scratch", "bias": "trained"},
    "head": {**RANDOM, "probe": "head", "bias": "random", "head_penalty": 0.2, "down_remove_degree": "linear"},
    "head of real labels": {**ONE_STEP, "probe": "head", "down_samples": "training", **REAL},
    "head of own inputs": {**ONE_STEP, "probe": "head", "down_samples": "training", "shared_inputs": False},
    "head of he2": {**HE2, "probe": "head", "down_remove_degree": "constant", "target_noise": 0.3, **REAL},
    "ridge of what is left": {**ONE_STEP, "probe": "ridge", "down_remove_degree": "linear", **REAL},
    "finetune of what is left": {**RANDOM, "probe": "finetune", "tune_norm": True, "down_remove_degree": "linear"},
    "multitask": {**JOINT, "probe": "multitask", "bias": "trained", "samples": "fixed"},
    "multitask of own inputs": {
        **JOINT,
        "probe": "multitask",
        "shared_inputs": False,
        "samples": "batches",
        "batch": 8,
        **REAL,
    },
    "scratch of tanh": {**RANDOM, "probe": "scratch", "bias": "random", "network": "two_layer_tanh", **REAL},
}


def hidden_layer(params, cell):
    """W and b, of true sizes, under a head of zeros."""
    width, d = int(cell.width), int(cell.d)
    W, b = np.asarray(params["W"])[:width, :d], np.asarray(params["b"])[:width]
    return {"W": W, "b": b, "A": np.zeros((1, width))}


def outputs(p, cell, entry, trained, x, y, batch):
    """What the reference fits to samples, and to a `batch` of the training's, as a function of inputs."""
    activation = p.arithmetic.activation
    if entry.probe == "ridge":
        c = np.asarray(probe.biases(keys.stream(cell.seed, "downstream/biases"), p.width))[: int(cell.width)]
        return lambda points: reference.ridge_probe(trained["W"], c, x, y, points, probe.PENALTIES, activation)
    if entry.probe == "head":
        penalty = float(cell.head_penalty[0]) * int(cell.width)
        tuned = trained | {"A": reference.ridge_head(trained, x, y, penalty, activation)[None]}
    else:
        new = quick_jit(fresh, static_argnums=0)(p, cell)
        start = trained if entry.probe == "finetune" else hidden_layer(new, cell)
        scale = float(cell.tune_scale[0])
        if dict(entry.own).get("tune_norm"):
            scale = scale / np.sqrt(np.mean(np.sum(start["W"] ** 2, axis=1)))
        start = start | {name: scale * start[name] for name in ("W", "b")}
        how = {"train_bias": p.bias == "trained", "activation": activation}
        samples = [(x, y[:, None])] * TUNED["tune_steps"]
        if entry.probe == "multitask":
            tuned = reference.multitask(start, batch, samples[0], len(samples), float(cell.tune_lr[0]), **how)
            return lambda points: reference.outputs(tuned, points, activation)[:, 0]
        tuned = reference.joint(start, samples, ["mse"], "sgd", float(cell.tune_lr[0]), **how)[-1]
    return lambda points: reference.outputs(tuned, points, activation)[:, 0]


def sample_keys(p, cell):
    """Of the inputs that a probe is fitted on, and of their labels' noise."""
    if "down_samples" not in p:
        return [keys.stream(cell.seed, f"downstream/{of}") for of in ("inputs", "label_noise")]
    found = [keys.at(keys.stream(cell.seed, f"features/{of}"), 0) for of in ("inputs", "label_noise")]
    return found if p.shared_inputs else [keys.indexed(key, p.num_tasks)[0] for key in found]


SLOW = ("head", "head of own inputs", "multitask")


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES])
@float64
def test_what_is_fitted_to_the_downstream_samples(case):
    """Its error, or R², by the reference on the same samples, at every recorded step: after gradient descent, of a new
    head, and on what is left of labels without their components of low degree.
    """
    values = {**TUNED, "probe_tasks": "halfspace", **CASES[case]}
    wide = {**PADDED, "width": VALUES["width"]} if "he2" in case else PADDED
    p, cell = training(wide, **values)
    found, (entry,), own = whole(p, cell), p.probes, {}
    if entry.family == "single_index":
        names = [name for name in cell._values if name.startswith("probe_")]
        own = {name.removeprefix("probe_"): getattr(cell, name)[0] for name in names}

    def labels(cell, own, x):
        task = drawing.sample_tasks(p, cell, "downstream/task", entry.family, 1, own)
        return drawing.draw_labels(p, cell, task, keys.stream(0, "unused"), data.Inputs(x, x), noisy=False)[:, 0]

    labelled = quick_jit(labels)
    inputs, noise = sample_keys(p, cell)
    x = draw_points(p, cell, inputs, max(p.n_down))
    x_test = draw_points(p, cell, keys.stream(cell.seed, "test"), p.n_test)[: int(cell.n_test)]
    y, y_test = (
        np.asarray(labelled(cell, own, jnp.pad(points, ((0, 0), (0, p.d - points.shape[1]))))) for points in (x, x_test)
    )
    if own and p.target_noisy:
        y = y + float(cell.target_noise) * np.asarray(draws.normal(noise, 1, len(y)))[0]
    every, batches = networks(p, cell), learn(p, cell)[1] if entry.probe == "multitask" else [None] * len(p.record)
    degree = p.down_remove_degree if "down_remove_degree" in p else "none"
    for k in range(len(p.record)):
        trained = hidden_layer({name: leaf[k] for name, leaf in every.items()}, cell)
        for i, n in enumerate(cell.n_down):
            low = reference.low_degrees(x[:n], y[:n], degree)
            fitted = outputs(p, cell, entry, trained, x[:n], y[:n] - low(x[:n]), batches[k])
            F = (fitted(x_test) + low(x_test))[:, None]
            real = entry.family == "single_index"
            score = reference.r2(F, y_test[:, None]) if real else reference.task_error(F, y_test[:, None])
            column = "downstream_r2" if real else "downstream_error"
            # An error is a count over n_test: equal unless an output is within rounding of 0.
            np.testing.assert_allclose(found[column][k, 0, i], score, rtol=1e-9, atol=1e-9)


def fresh(p, cell):
    return drawing.draw_other_network(p, cell, "downstream/network")


@float64
def test_every_weight_after_descent():
    """W, A and a trained b, of some samples that count."""
    draw = np.random.default_rng(0)
    start = {"W": draw.normal(size=(6, 4)), "b": draw.normal(size=6), "A": np.zeros((1, 6))}
    x, y = draw.normal(size=(9, 4)), draw.normal(size=9)
    for train_bias in (False, True):
        descend = functools.partial(tuning.descend, steps=4, lr=0.05, activation="relu", train_bias=train_bias)
        found = quick_jit(descend)(start, Batch(x, y[:, None], 7, 1))
        samples = [(x[:7], y[:7, None])] * 4
        expected = reference.joint(start, samples, ["mse"], "sgd", 0.05, train_bias=train_bias)[-1]
        for name, leaf in expected.items():
            np.testing.assert_allclose(found[name], leaf, **CLOSE, err_msg=name)
        assert np.array_equal(found["b"], start["b"]) != train_bias


def test_unit_norm_of_weights_of_any_size():
    W = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    exact = W / np.sqrt(np.mean(np.sum(W**2, axis=1)))
    for factor in (1e-30, 1.0, 1e30):
        params = {"W": jnp.asarray(np.pad(W * np.float32(factor), ((0, 2), (0, 0)))), "b": jnp.zeros(5)}
        found = tuning.of_unit_norm(params, 3)["W"]
        # Float32: some roundings of each entry.
        np.testing.assert_allclose(found, np.pad(exact, ((0, 2), (0, 0))), rtol=1e-6)
    assert not tuning.of_unit_norm({"W": jnp.zeros((2, 3)), "b": jnp.zeros(2)}, 2)["W"].any()


SMALL = {"d": 8, "r": 2, "width": 8, "n1": 64, "n2": 64, "n_test": 64, "measure": "recovery", "data": "gaussian"}
SMALL |= {"algorithm": "alternating", "steps": 2, "measure_at": "last", "tune_steps": 3}


def grid_of(**axes):
    return Grid({key: value if isinstance(value, list) else [value] for key, value in axes.items()}, compose.composed)


def test_all_probes_of_one_sweep_share_its_trainings():
    """Real labels and ±1, with axes of the settings; which belong to those cells alone that use them."""
    axes = {"probe": ["ridge", "finetune", "scratch"], "probe_tasks": ["parity", "teacher"], "num_tasks": [1, 4]}
    axes |= {"n_down": [8, 16], "tune_lr": [0.02, 0.1], "tune_norm": [False, True]}
    grid = grid_of(**{**SMALL, **axes})
    # Of each family, number of tasks and n_down a ridge cell; two for the rates; and two of those for the norms.
    assert len(grid) == 8 * (1 + 4 + 2)
    # By number of tasks, and, as only real labels have a scale, by their kind.
    assert sum(len(bucket) for bucket in plan(grid)) == 4


def test_rows_of_all_probes():
    """Pretrained networks are those of the training, a new one is not, and where one diverges there is no R²."""
    fixed, huge = {**SMALL, "probe_tasks": "teacher", "n_down": 8}, 1e15
    axes = {"probe": ["ridge", "finetune", "scratch"], "num_tasks": [1, 4], "tune_lr": [0.02, 0.1, huge]}
    table = mtfl_jax.sweep(**fixed, **axes)
    assert len(table) == 2 * (1 + 3 + 3)
    assert (table["status"] == "ok").all()
    assert (table["tune_lr"].isna() == (table["probe"] == "ridge")).all()
    assert (table["tune_norm"].notna() == (table["probe"] == "finetune")).all()
    assert (table["downstream_r2"].isna() == (table["tune_lr"] == huge)).all()
    known = table[table["tune_lr"] != huge]
    for name, values in (("ridge", 2), ("finetune", 2), ("scratch", 1)):
        own = known[known["probe"] == name].groupby("tune_lr", dropna=False)["downstream_r2"]
        assert (own.nunique() == values).all(), name


def test_more_values_of_a_rate_are_one_entry_more_and_no_loop_more():
    """So they compile nothing: a probe's traced settings are numbers of one program's."""

    def size(rates):
        (bucket,) = plan(grid_of(**{**SMALL, "probe": "finetune", "tune_lr": rates}))
        assert len(set(bucket.program.probes)) == 1
        np.testing.assert_array_equal(bucket.probe_settings["tune_lr"], [rates])
        return len(bucket.program.probes)

    assert [size([0.1]), size([0.1, 0.2, 0.3])] == [1, 3]


def test_steps_are_priced():
    """A product of the first layer and its gradient's, and three of the head, a step and sample."""
    flops = []
    for steps in (10, 30):
        (bucket,) = plan(grid_of(**{**SMALL, "probe": "finetune", "n_down": 16, "tune_steps": steps}))
        flops.append(cost.lane_flops(bucket.program))
    assert flops[1] - flops[0] == 20 * 16 * 2 * 8 * (2 * 8 + 3)


def test_a_bad_setting_is_refused():
    with pytest.raises(ConfigError, match="tune_steps=0: allowed: an integer from 1"):
        compose.from_keywords(probe="finetune", tune_steps=0)
    with pytest.raises(ConfigError, match=r"tune_lr=-1.*: allowed: a finite number from 0"):
        compose.from_keywords(probe="scratch", tune_lr=-1.0)


def test_a_head_of_badly_conditioned_features_in_float32():
    """Features nearly all alike, as after a giant step: their Gram matrix is rounded by more than λ width."""
    draw, n, d, width = np.random.default_rng(0), 400, 12, 60
    W = (20 * draw.normal(size=(width, 1)) * np.ones(d) + draw.normal(size=(width, d))).astype(np.float32)
    x, y = (draw.normal(size=size).astype(np.float32) for size in ((n, d), n))
    params = {"W": jnp.asarray(W), "b": jnp.zeros(width), "A": jnp.zeros((1, width))}
    head = functools.partial(probe.head, tuning.Beginning(params, params, width, "relu", False), head_penalty=0.05)
    for few, close in ((30, 0.01), (n, 1e-3)):
        found = quick_jit(head)(jnp.asarray(x[:few]), jnp.asarray(y[:few]), few)["A"]
        network, points = {"W": W.astype(float), "b": np.zeros(width)}, x[:few].astype(float)
        h = reference.hidden(network, points)[1]
        assert few < n or np.linalg.norm(h.T @ h) * np.finfo(np.float32).eps > 0.05 * width
        exact = h @ reference.ridge_head(network, points, y[:few], 0.05 * width)
        # The factor alone is 0.3 off; in the dual a residual's rounding is over the penalty once more.
        np.testing.assert_allclose(h @ np.asarray(found, float)[0], exact, atol=close)


def test_classifiers_keep_their_labels():
    for name in ("svm", "logistic"):
        with pytest.raises(
            ConfigError, match=f"down_remove_degree=linear: allowed with probe={name}, a classifier: none"
        ):
            compose.from_keywords(probe=name, down_remove_degree="linear")
    assert "down_remove_degree" not in compose.from_keywords(probe="ridge").used
    assert "down_samples" not in compose.from_keywords(probe="none", down_samples="training").used


def test_samples_of_the_training_are_those_it_saw():
    """As many as n2 and fewer."""
    values = {**ONE_STEP, "probe": "head", "down_samples": "training", "n2": 26, "n_down": [10, 26]}
    p, cell = training(PADDED | {"n_down": (12, 30)}, **values)
    seen = drawing.draw_batch(p, cell, drawing.draw_tasks(p, cell), "features", 0)
    x = drawing.draw_inputs(p, cell, drawing.downstream_keys(p, cell)[0], max(p.n_down))
    np.testing.assert_array_equal(x[:26], seen.x[:26])
