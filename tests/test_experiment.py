"""Whole experiments against the reference on the same draws, in float64; what they cost; how they compose."""

import functools

import jax
import numpy as np
import pytest
import reference
from trainings import (
    CLOSE,
    PADDED,
    assert_measurements,
    assert_networks,
    assert_ridge_probe,
    draw_network,
    float64,
    learn,
    learned,
    networks,
    number,
    quick_jit,
    training,
    whole,
)

from mtfl_jax import compose
from mtfl_jax.config import FIELDS
from mtfl_jax.learning import data, drawing, experiment, measures, measuring, tasks, updates
from mtfl_jax.learning.algorithms import ALGORITHMS
from mtfl_jax.learning.losses import LOSSES
from mtfl_jax.learning.measures import MEASURES, SIMILARITY_SAMPLES, in_set
from mtfl_jax.learning.probe import PROBES
from mtfl_jax.learning.program import Probed

STEPPED = {"loss": "logistic", "bias": "random"}
ALTERNATING = {**STEPPED, "algorithm": "alternating", "lr_a": 0.4, "lr_w": 0.3, "weight_decay": 0.2}
JOINT = {**STEPPED, "algorithm": "joint", "weight_decay": 0.2}
VALUES = {
    "one_step": {"probe": "ridge", "probe_tasks": "parity", "probe_parity_size": 2},
    "one_step mixture, own noisy inputs, trained bias, keeps weights": {
        "loss": "mixture",
        "losses": ["squared", "hinge", "logistic"],
        "shared_inputs": False,
        "label_noise": 0.1,
        "bias": "trained",
        "weight_decay": 0.4 / 1.1,
    },
    "one_step of parities": {"tasks": "parity", "parity_size": 2, "bias": "random", "loss": "hinge"},
    "random_features": {"algorithm": "random_features", "loss": "logistic"},
    "oracle": {"algorithm": "oracle", "bias": "random", "data": "rademacher"},
    "alternating fresh": {**ALTERNATING, "label_noise": 0.1},
    "alternating fixed": {**ALTERNATING, "samples": "fixed", "head_steps": 2, "bias": "trained"},
    "alternating split": {
        **ALTERNATING,
        "split_batch": True,
        "head_steps": 3,
        "loss": "mixture",
        "losses": ["exponential", "squared"],
        "shared_inputs": False,
        "lr_a": 0.1,
        "lr_w": 0.1,
    },
    "alternating split, in batches": {**ALTERNATING, "split_batch": True, "samples": "batches", "batch": 9},
    "joint in batches": {**JOINT, "samples": "batches", "batch": 10, "optimizer": "sgd", "shared_inputs": False},
    "joint nesterov fixed": {
        **JOINT,
        "optimizer": "nesterov",
        "schedule": "cosine",
        "bias": "trained",
        "samples": "fixed",
    },
    "joint, a trained bias, what its representation is like": {
        **JOINT,
        "optimizer": "sgd",
        "bias": "trained",
        "measure": "representation",
        "num_tasks": 3,
    },
    "one_step from random heads, rates by powers, labels without their mean and line": {
        "loss": "mse",
        "remove_degree": "linear",
        "shared_inputs": False,
        "weight_decay": 0.2,
        "init_scale": 1.7,
        "head_init": "random",
        "head_scale": 0.6,
        "lr_n_power": -0.3,
        "lr_d_power": 0.2,
        "lr_width_power": 0.1,
    },
    "alternating in pairs, mean-field": {
        **ALTERNATING,
        "bias": "trained",
        "head_init": "symmetric",
        "parametrization": "mean_field",
    },
    "joint adamw, ntk": {
        **JOINT,
        "optimizer": "adamw",
        "head_init": "random",
        "parametrization": "ntk",
        "lr_width_power": 0.5,
    },
    "alternating, clipped, rows of their first norms": {
        **ALTERNATING,
        "bias": "trained",
        "head_steps": 2,
        "lr_a": 2.0,
        "clip": 0.2,
        "weight_norm": True,
    },
    "joint momentum, clipped, rows of their first norms": {
        **JOINT,
        "optimizer": "momentum",
        "lr": 0.3,
        "loss": "huber",
        "tasks": "staircase",
        "samples": "fixed",
        "remove_degree": "constant",
        "clip": 0.05,
        "weight_norm": True,
    },
    "joint adam, rotated": {**JOINT, "optimizer": "adam", "basis": "haar"},
    "joint adamw, axis": {**JOINT, "optimizer": "adamw", "schedule": "linear", "shared_inputs": False},
}
CASES = {case: training(**values) for case, values in VALUES.items()}


@pytest.mark.parametrize("case", CASES)
@float64
def test_representations(case):
    """W, b and A after every recorded update, of true sizes in padded arrays."""
    p, cell = CASES[case]
    found, start = networks(p, cell), draw_network(p, cell)
    assert_networks(p, cell, found, learn(p, cell)[0])
    width, d = int(cell.width), int(cell.d)
    W = found["W"][-1][:width, :d]
    if p.algorithm == "oracle":
        assert np.all(W[:, : int(cell.r)])
        assert not np.any(W[:, int(cell.r) :])
    else:
        assert np.allclose(W, start["W"]) == (p.algorithm == "random_features")
    assert np.array_equal(found["b"][-1][:width], start["b"]) == (p.bias != "trained")
    if p.bias == "random":
        assert 0 < np.abs(start["b"]).max() <= cell.bias_scale


@pytest.mark.parametrize(
    "case",
    [
        "random_features",
        "oracle",
        "alternating split",
        "joint, a trained bias, what its representation is like",
        "joint adam, rotated",
    ],
)
@float64
def test_experiment(case):
    """Every measurement of every recorded network."""
    p, cell = CASES[case]
    found = whole(p, cell)
    assert_measurements(p, cell, found, *learn(p, cell), **CLOSE)
    # Infinite by definition for `oracle`, and not a divergence.
    assert np.all(np.isinf(found["spectral_ratio"])) == (case == "oracle")


@float64
def test_experiment_with_a_probe():
    """`one_step`, and ridge by explicit leave-one-out."""
    p, cell = CASES["one_step"]
    found, (expected, trained_on) = whole(p, cell), learn(p, cell)
    assert_measurements(p, cell, found, expected, trained_on, **CLOSE)
    assert_ridge_probe(p, cell, found, expected[0])


@pytest.mark.parametrize(
    "case",
    [
        "one_step mixture, own noisy inputs, trained bias, keeps weights",
        "random_features",
        "alternating fixed",
        "alternating split",
        "alternating split, in batches",
        "one_step from random heads, rates by powers, labels without their mean and line",
        "joint adamw, axis",
    ],
)
@float64
def test_representations_of_an_accelerator(case, monkeypatch):
    """By parts of the samples, whose number the sizes of parts do not divide."""
    monkeypatch.setattr(drawing, "PART", 7)
    p, cell = CASES[case]
    p = p.replace(accelerator=True)
    assert isinstance(_last_batch(p, cell), updates.Parts)
    assert_networks(p, cell, networks(p, cell), learn(p, cell)[0])


def _last_batch(p, cell):
    of = drawing.draw_tasks(p, cell)
    return ALGORITHMS[p.algorithm].run(p, cell, of).batch(p.record[-1])


@pytest.mark.parametrize(
    "case", ["one_step of parities", "joint, a trained bias, what its representation is like", "joint adam, rotated"]
)
@float64
def test_experiment_of_an_accelerator(case, monkeypatch):
    """Measurements by parts of the samples too."""
    monkeypatch.setattr(drawing, "PART", 7)
    monkeypatch.setattr(measures, "PART", 7)
    p, cell = CASES[case]
    found = whole(p.replace(accelerator=True), cell)
    assert found.pop("mended").shape == (len(p.record),)
    assert_measurements(p, cell, found, *learn(p, cell), **CLOSE)


@float64
def test_parts_are_drawn_as_the_whole(monkeypatch):
    """Inputs and noisy labels of `once_batch`, shared or of each task's own, part by part."""
    monkeypatch.setattr(drawing, "PART", 7)
    for shared in (True, False):
        p, cell = training(label_noise=0.2, shared_inputs=shared)
        of = drawing.draw_tasks(p, cell)
        batch = drawing.draw_batch(p, cell, of, "heads", 0)
        parts = drawing.once_batch(p.replace(accelerator=True), cell, of, "heads")
        of_part = quick_jit(parts.of)
        found = [of_part(i) for i in range(parts.number)]
        assert parts.number == 4
        for part in found:
            assert (part.n, part.num_tasks) == (batch.n, batch.num_tasks)
        np.testing.assert_array_equal(np.concatenate([part.x for part in found], axis=-2), batch.x)
        np.testing.assert_array_equal(np.concatenate([part.y for part in found]), batch.y)


def test_cases_cover_the_algorithms():
    """`population` has a file of its own."""
    assert {p.algorithm for p, _ in CASES.values()} == set(ALGORITHMS) - {"population"}


# Composition.


def test_in_float32():
    """The precision that sweeps run in, against float64 on the same float32 draws."""
    p, cell = CASES["alternating fresh"]
    cell = jax.tree.map(lambda leaf: np.float32(leaf) if np.asarray(leaf).dtype == np.float64 else leaf, cell)
    found, (expected, _) = networks(p, cell), learn(p, cell)
    for name, leaf in found.items():
        assert leaf.dtype == np.float32
        used = [np.asarray(leaf)[(k, *map(slice, params[name].shape))] for k, params in enumerate(expected)]
        # eps = 1.2e-7 in sums of 30 terms of order 1, four rounds.
        np.testing.assert_allclose(used, [params[name] for params in expected], err_msg=name, rtol=1e-4, atol=5e-6)


@float64
def test_batches_of_seeds_and_sizes():
    """vmap over everything that a cell holds is the loop over cells, and the loop over programs without padding."""
    p, cell = training(label_noise=0.1, loss="hinge")
    sizes = {
        "d": [7, 9, 3],
        "r": [2, 3, 1],
        "width": [8, 4, 10],
        "num_tasks": [4, 5, 1],
        "n1": [21, 24, 10],
        "n2": [26, 11, 30],
        "n_test": [40, 47, 9],
    }
    varied = {name: np.array(values, np.int32) for name, values in sizes.items()} | {
        "seed": np.array([0, 1, 2**31 - 1], np.int32),
        "nuisance_scale": np.array([1.0, 0.5, 2.0]),
    }
    together = quick_jit(jax.vmap(lambda varied: experiment.experiment(p, cell.replace(**varied))))(varied)
    assert len({float(loss) for loss in together["train_loss"][:, 0]}) == 3
    for k in range(3):
        own = {name: values[k] for name, values in varied.items()}
        one = whole(p, cell.replace(**own))
        assert set(one) == set(together)
        for name, value in one.items():
            # Batched products and factorisations round differently.
            np.testing.assert_allclose(together[name][k], value, err_msg=name, rtol=1e-8, atol=1e-10)
        if k:
            continue
        exact = p.replace(**{name: int(own[name]) for name in sizes})
        for name, value in whole(exact, cell.replace(**own)).items():
            used = one[name]
            if name == "feature_similarity":
                assert np.all(np.isnan(used[:, own["r"] + 1 :]))
                used = used[:, : own["r"] + 1]
            np.testing.assert_allclose(used, value, err_msg=name, rtol=1e-8, atol=1e-10)


@float64
def test_a_batch_of_trainings():
    """Seeds and rates of a coordinate-wise optimiser in the runs' own bases: vmapped is looped."""
    p, cell = CASES["joint adam, rotated"]
    seeds, rates = np.arange(3, dtype=np.int32), np.array([0.01, 0.1, 0.03])
    together = quick_jit(jax.vmap(lambda seed, lr: learned(p, cell.replace(seed=seed, lr=lr))))(seeds, rates)
    for k in range(3):
        one = networks(p, cell.replace(seed=seeds[k], lr=rates[k]))
        for name, value in one.items():
            np.testing.assert_allclose(together[name][k], value, err_msg=name, rtol=1e-8, atol=1e-10)
    assert not np.allclose(together["W"][0], together["W"][1])


# Test samples.

OF_FEW = {name for name in MEASURES if name.startswith(("contrastive_loss", "feature_similarity", "kernel_", "ntk_"))}
"""What is measured on the first SIMILARITY_SAMPLES of them."""


@functools.partial(quick_jit, static_argnums=0)
def measured_of(p, cell, heads):
    """The measurements of a network with these heads, on samples of its own."""
    of, params = drawing.draw_tasks(p, cell), drawing.draw_network(p, cell)
    batch = drawing.draw_batch(p, cell, of, "features", 0)
    return measuring.measure(p, cell, of, params | {"A": heads}, batch)


@pytest.mark.parametrize("measure", ["contrastive", "representation"])
@pytest.mark.parametrize(
    ("n_test", "padded"),
    [pytest.param(40, 300, marks=pytest.mark.slow), (SIMILARITY_SAMPLES + 4, SIMILARITY_SAMPLES + 50)],
)
@float64
def test_test_samples_beyond_the_true_number_count_for_nothing(n_test, padded, measure):
    """Every measurement of a network, and where they are few every probe."""
    few = n_test < SIMILARITY_SAMPLES
    probes = {"probe": "scratch", "probe_tasks": "halfspace", "tune_steps": 2} if few else {"probe": "none"}
    p, cell = training({}, n_test=n_test, measure=measure, bias="random", data="gaussian", **probes)
    if few:
        compiled = {"tune_steps": 2, "tune_norm": True}
        own = {name: {field.name for field in record.settings} for name, record in PROBES.items()}
        p = p.replace(
            probes=tuple(
                Probed(name, "halfspace", tuple((key, value) for key, value in compiled.items() if key in own[name]))
                for name in PROBES
            )
        )
        traced = {field.name: field for record in PROBES.values() for field in record.settings if field.kind == "knob"}
        own = {name: np.repeat(field.type.examples()[1], len(PROBES)) for name, field in traced.items()}
        cell = cell.replace(**own)
    both = {record.name for name in ("contrastive", "representation") for record in in_set(name)}
    assert both == {name for name, record in MEASURES.items() if record.of == "network"}
    heads = np.random.default_rng(0).standard_normal((p.num_tasks, p.width))
    exact = measured_of(p, cell, heads)
    assert not few or exact["downstream_error"].shape == (len(PROBES), 2)
    wide = p.replace(n_test=padded)
    found, others = measured_of(wide, cell, heads), measured_of(wide, cell.replace(n_test=np.int32(padded)), heads)
    assert set(found) == set(exact)
    for name, value in exact.items():
        # Sums of the same terms and zeros, in another order.
        np.testing.assert_allclose(found[name], value, err_msg=name, rtol=1e-12, atol=1e-14)
        reads = name == "downstream_error" or "n_test" in MEASURES[name].uses
        if reads and not (name in OF_FEW and n_test > SIMILARITY_SAMPLES):
            assert not np.array_equal(others[name], value), name


# Costs.


def counted_costs(p, steps):
    """num_params, train_samples and train_flops of loops that count: every product through `Counter`."""
    rng = np.random.default_rng(0)
    d, width, T = p.d, p.width, p.num_tasks
    held = {"W": np.zeros((width, d)), "A": np.zeros((T, width))}
    if p.bias != "zero":
        held["b"] = np.zeros(width)
    params = {"b": np.zeros(width), **held, "W": rng.standard_normal((width, d))}
    counter, seen = reference.Counter(), {}

    def draw(purpose, step):
        n = p.n1 if purpose == "heads" else p.n2
        if (kind := p.samples if "samples" in p else "fresh") == "batches":
            starts = range(0, n, p.batch)
            start = starts[step % len(starts)]
            n, step = min(p.batch, n - start), start
        step = 0 if kind == "fixed" else step
        if (purpose, step) not in seen:
            x = rng.standard_normal((n, d) if p.shared_inputs else (T, n, d))
            seen[purpose, step] = x, rng.choice([-1.0, 1.0], (n, T))
        return seen[purpose, step]

    def first_heads():
        # At A = 0 the slopes are known: one product with the heads.
        x, y = draw("heads", 0)
        pre = counter.hidden(params, x)
        if "head_init" in p:
            return -counter.head_gradients(pre, counter.slopes(params, pre, y, p.losses))
        slopes = np.stack([reference.slope(p.losses[0], 0 * y[:, t]) * y[:, t] / len(y) for t in range(T)], axis=1)
        return -counter.head_gradients(pre, slopes)

    def representation(x, y, pre):
        return counter.weight_gradient(params, x, pre, counter.slopes(params, pre, y, p.losses))

    if p.algorithm in ("one_step", "random_features", "oracle"):
        params["A"] = first_heads()
        if p.algorithm == "one_step":
            x, y = draw("features", 0)
            params["W"] = -representation(x, y, counter.hidden(params, x))
    for step in range(steps if p.algorithm in ("alternating", "joint") else 0):
        x, y = draw("features", step)
        pre = counter.hidden(params, x)
        if p.algorithm == "joint":
            slopes = counter.slopes(params, pre, y, p.losses)
            grads = counter.head_gradients(pre, slopes), counter.weight_gradient(params, x, pre, slopes)
            params["A"], params["W"] = params["A"] - grads[0] / T, params["W"] - grads[1]
            continue
        heads_y, heads_pre = y, pre
        if p.split_batch:
            heads_x, heads_y = draw("heads", step)
            heads_pre = counter.hidden(params, heads_x)
        for _ in range(p.head_steps):
            slopes = counter.slopes(params, heads_pre, heads_y, p.losses)
            params["A"] = params["A"] - counter.head_gradients(heads_pre, slopes)
        params["W"] = params["W"] - representation(x, y, pre)
    return {
        "num_params": sum(leaf.size for leaf in held.values()),
        "train_samples": sum(x.size // d for x, _ in seen.values()),
        "train_flops": float(counter.flops),
    }, (params, seen)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_costs(case, shared):
    """Parameters held, distinct inputs seen and matrix-product operations, counted in hand-written loops."""
    p = CASES[case][0].replace(shared_inputs=shared, losses=("logistic",))
    for steps in p.record:
        expected, _ = counted_costs(p, steps)
        assert experiment.costs(p, steps) == expected


@pytest.mark.parametrize("algorithm", ["one_step", "alternating", "joint"])
def test_counted_loops_are_the_algorithms(algorithm):
    """The loops that count compute what the reference does, so no product is missing from them."""
    losses = {"loss": "mixture", "losses": ["logistic", "squared"]}
    if algorithm == "one_step":
        losses = {"loss": "logistic"}
    p, _ = training(algorithm=algorithm, **losses, split_batch=True, head_steps=2, bias="zero", samples="fresh")
    _, (found, seen) = counted_costs(p, 2)
    start = {
        "W": np.random.default_rng(0).standard_normal((p.width, p.d)),
        "b": np.zeros(p.width),
        "A": np.zeros((p.num_tasks, p.width)),
    }
    features = [seen["features", k] for k in range(1 if algorithm == "one_step" else 2)]
    if algorithm == "joint":
        expected = reference.joint(start, features, p.losses, "sgd", 1.0)[-1]
    else:
        rounds = [(seen["heads", k], sample) for k, sample in enumerate(features)]
        one = algorithm == "one_step"
        expected = reference.alternating(start, rounds, p.losses, 1, 1, float(one), 1 if one else 2)[-1]
    # float64, two steps.
    np.testing.assert_allclose(found["W"], expected["W"], rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(found["A"], expected["A"], rtol=1e-9, atol=1e-11)


def test_costs_of_the_population_limit():
    """No sample and no training product; a random bias counts, a zero one does not."""
    p, _ = training(algorithm="population")
    assert experiment.costs(p, 1) == {"num_params": 10 * (9 + 5), "train_samples": 0, "train_flops": 0}
    assert experiment.costs(training(algorithm="population", bias="random")[0], 1)["num_params"] == 10 * (9 + 5 + 1)


def test_cases_show_every_number_that_a_program_has_traced():
    """Each bears on some case, at another value than its default, which would hide it; sizes are padded in all.

    Those of laws are shown in test_inputs.py, those of real labels and their losses in test_targets.py, those of probes
    in test_tuning.py, that of a stop in test_stopping.py.
    """
    real = [family for family in tasks.FAMILIES.values() if family.real]
    records = [*data.LAWS.values(), *real, *(loss for loss in LOSSES.values() if not loss.margin), *PROBES.values()]
    own = {field.name for record in records for field in record.settings} | {"target_scale", "target_noise", "stop_at"}
    elsewhere = own | {f"probe_{name}" for name in own}
    traced = {name for name, field in FIELDS.items() if field.padded or field.kind == "knob"} - elsewhere
    defaults, shown = compose.composed({}), set()
    for p, cell in CASES.values():
        held = {name for name in traced if name in cell}
        for name in {name for name in PADDED if name in cell}:
            assert np.all(np.asarray(getattr(p, name)) > getattr(cell, name))
        shown |= {name for name in held if np.all(getattr(cell, name) != number(name, defaults[name]))}
    assert shown - elsewhere == traced
