"""Whole experiments against the reference on the same draws, in float64; what they cost; how they compose."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import reference

from mtfl_jax.learning import data, experiment, keys, probe
from mtfl_jax.learning.experiment import Cell, Program

# Both sides are float64 (eps 2.2e-16), a few updates of about 30 · 7 · 8 operations each, and singular subspaces
# whose gaps are of order 0.1: rounding amplified by less than 1e6.
CLOSE = {"rtol": 1e-9, "atol": 1e-11}

PROGRAM = Program(
    data="gaussian",
    tasks="balanced",
    algorithm="one_step",
    losses=("linear",),
    probes=(),
    d=9,
    r=3,
    width=10,
    num_tasks=5,
    n1=24,
    n2=30,
    n_down=(12, 20),
    n_test=40,
)
"""Padded sizes; the true ones are the cell's."""

CELL = Cell(
    seed=np.int32(3),
    d=np.int32(7),
    r=np.int32(2),
    width=np.int32(8),
    num_tasks=np.int32(4),
    n1=np.int32(21),
    n2=np.int32(26),
    n_down=np.array([10, 16], np.int32),
    nuisance_scale=np.float64(0.8),
    label_noise=np.float64(0.1),
    parity_size=np.int32(0),
    bias_scale=np.float64(0.7),
    lr_a=np.float64(0.9),
    lr_w=np.float64(1.1),
    shrink=np.float64(1.0),
    lr=np.float64(0.03),
    momentum=np.float64(0.8),
    weight_decay=np.float64(0.2),
    probe_parity_size=np.array([], np.int32),
)


def variant(program=None, cell=None):
    """PROGRAM and CELL with other values."""
    return PROGRAM.replace(**(program or {})), CELL.replace(
        **{name: np.asarray(value, np.asarray(getattr(CELL, name)).dtype) for name, value in (cell or {}).items()}
    )


STEPPED = {"steps": 4, "record": (1, 2, 4), "losses": ("logistic",), "bias": "random"}
SLOW = {"lr_a": 0.4, "lr_w": 0.3, "shrink": 0.06}
CASES = {
    "one_step": variant({"probes": (("ridge", "parity"),)}, {"probe_parity_size": np.array([2], np.int32)}),
    "one_step mixture, own noisy inputs, trained bias, keeps weights": variant(
        {"losses": ("squared", "hinge", "logistic"), "shared_inputs": False, "noisy": True, "bias": "trained"},
        {"shrink": 0.4},
    ),
    "random_features": variant({"algorithm": "random_features", "losses": ("logistic",), "record": (0,)}),
    "oracle": variant({"algorithm": "oracle", "record": (0,), "bias": "random", "data": "rademacher"}),
    "alternating fresh": variant({**STEPPED, "algorithm": "alternating", "noisy": True}, SLOW),
    "alternating fixed": variant(
        {**STEPPED, "algorithm": "alternating", "fixed_samples": True, "head_steps": 2, "bias": "trained"}, SLOW
    ),
    "alternating split": variant(
        {
            **STEPPED,
            "algorithm": "alternating",
            "split_batch": True,
            "head_steps": 3,
            "losses": ("exponential", "squared"),
            "shared_inputs": False,
        },
        {"lr_a": 0.1, "lr_w": 0.1, "shrink": 0.02},
    ),
    "joint nesterov fixed": variant(
        {
            **STEPPED,
            "algorithm": "joint",
            "optimizer": "nesterov",
            "schedule": "cosine",
            "bias": "trained",
            "fixed_samples": True,
        }
    ),
    "joint adam, rotated": variant({**STEPPED, "algorithm": "joint", "optimizer": "adam", "rotated": True}),
    "joint adamw, axis": variant(
        {**STEPPED, "algorithm": "joint", "optimizer": "adamw", "schedule": "linear", "shared_inputs": False}
    ),
}


def float64(test):
    """Run a test with float64 JAX."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        with jax.enable_x64(True):
            return test(*args, **kwargs)

    return run


# Compilation is nearly all that these tests cost.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
quick_jit = functools.partial(jax.jit, compiler_options=QUICK)


def learned(p, cell):
    """The recorded networks."""
    return experiment.representations(p, cell, experiment.draw_tasks(p, cell))[0]


networks = quick_jit(learned, static_argnums=0)
whole = quick_jit(experiment.experiment, static_argnums=0)
draw_tasks = quick_jit(experiment.draw_tasks, static_argnums=0)
draw_batch = quick_jit(experiment.draw_batch, static_argnums=(0, 3))
draw_initial = quick_jit(experiment.draw_network, static_argnums=0)
draw_inputs = quick_jit(experiment.draw_inputs, static_argnums=(0, 3))


def drawing(p, *fields):
    """PROGRAM with the fields of p that bear on a draw; the others would compile the same again."""
    return PROGRAM.replace(**{name: getattr(p, name) for name in fields})


def draw_sample(p, cell, of, purpose, step):
    """The samples of one step, of true size, as the reference takes them."""
    batch = draw_batch(drawing(p, "data", "shared_inputs", "noisy", "fixed_samples"), cell, of, purpose, step)
    n, d, num_tasks = int(batch.n), int(cell.d), int(cell.num_tasks)
    x = np.asarray(batch.x)[..., :n, :d]
    assert not np.any(np.asarray(batch.y)[n:])
    assert not np.any(np.asarray(batch.y)[:, num_tasks:])
    return x if x.ndim == 2 else x[:num_tasks], np.asarray(batch.y)[:n, :num_tasks]


def draw_network(p, cell):
    """The network at initialisation, of true size."""
    params = draw_initial(drawing(p, "bias"), cell)
    width, d, num_tasks = int(cell.width), int(cell.d), int(cell.num_tasks)
    return reference.float64(
        {"W": params["W"][:width, :d], "b": params["b"][:width], "A": params["A"][:num_tasks, :width]}
    )


def draw_points(p, cell, key, n):
    """Inputs for a measurement, of true size."""
    return np.asarray(draw_inputs(drawing(p, "data"), cell, key, n))[:, : int(cell.d)]


def directions(cell):
    """M = I[:, :r]."""
    return np.eye(int(cell.d))[:, : int(cell.r)]


def learn(p, cell):
    """What the reference learns from the same draws: the recorded networks, and the samples of train_loss."""
    of, params = draw_tasks(drawing(p), cell), draw_network(p, cell)
    sample = functools.partial(draw_sample, p, cell, of)
    lr_a, lr_w = float(cell.lr_a), float(cell.lr_w)
    decay, train_bias = float(cell.shrink) / lr_w, p.bias == "trained"
    if p.algorithm == "one_step":
        heads, features = sample("heads", 0), sample("features", 0)
        return [reference.one_step(params, heads, features, p.losses, lr_a, lr_w, decay, train_bias)], [features]
    if p.algorithm in ("random_features", "oracle"):
        # The representation is not trained; its heads take the first head step, so that outputs mean something.
        if p.algorithm == "oracle":
            params = reference.oracle(params, directions(cell))
        heads = sample("heads", 0)
        return [reference.head_step(params, heads, p.losses, lr_a)], [heads]
    features = [sample("features", step) for step in range(p.steps)]
    assert np.array_equal(features[0][0], features[1][0]) == p.fixed_samples
    if p.algorithm == "alternating":
        heads = [sample("heads", step) for step in range(p.steps)] if p.split_batch else features
        rounds = zip(heads, features, strict=True)
        history = reference.alternating(params, rounds, p.losses, lr_a, lr_w, decay, p.head_steps, train_bias)
    else:
        Q = None
        if p.rotated:
            key = keys.stream(cell.seed, "rotation")
            Q = np.asarray(data.rotation(key, cell.d, p.d))[: int(cell.d), : int(cell.d)]
        history = reference.joint(
            params,
            features,
            p.losses,
            p.optimizer,
            float(cell.lr),
            p.schedule,
            float(cell.momentum),
            float(cell.weight_decay),
            train_bias,
            Q,
        )
    return [history[k - 1] for k in p.record], [features[k - 1] for k in p.record]


def measured(p, cell, params, trained_on):
    """The reference's measurements of one network; labels looked up in the tasks' tables."""
    M = directions(cell)
    x = draw_points(p, cell, keys.stream(cell.seed, "test"), p.n_test)
    tables = np.asarray(draw_tasks(drawing(p), cell).params)[: int(cell.num_tasks)]
    y = tables[:, reference.orthant_indices(x, M)].T
    F = reference.outputs(params, x)
    values = dict(
        zip(
            ("subspace_distance", "directions_recovered", "feature_energy", "spectral_ratio"),
            reference.recovery(params["W"], M),
            strict=True,
        )
    )
    few = x[: experiment.SIMILARITY_SAMPLES]
    h = reference.hidden(params, few)[1]
    similarity = reference.feature_similarity(h, np.where(few @ M >= 0, 1, -1))
    return values | {
        "train_loss": reference.objective(params, trained_on, p.losses),
        "test_loss": reference.objective(params, (x, y), p.losses),
        "task_error": reference.task_error(F, y),
        "contrastive_loss": reference.contrastive_loss(h, y[: len(h)]),
        "feature_similarity": np.concatenate([similarity, np.full(p.r - int(cell.r), np.nan)]),
    }


def assert_measurements(p, cell, found, expected, trained_on, **tolerance):
    """Every recorded network's measurements; `expected` are the networks."""
    assert all(len(value) == len(p.record) for value in found.values())
    for k, params in enumerate(expected):
        values = measured(p, cell, params, trained_on[k])
        assert set(found) - {"downstream_error", "diverged_step"} == set(values)
        for name, value in values.items():
            np.testing.assert_allclose(found[name][k], value, err_msg=name, **tolerance)


@pytest.mark.parametrize("case", CASES)
@float64
def test_representations(case):
    """W, b and A after every recorded update, of true sizes in padded arrays."""
    p, cell = CASES[case]
    found, start = networks(p, cell), draw_network(p, cell)
    expected, _ = learn(p, cell)
    width, d, num_tasks = int(cell.width), int(cell.d), int(cell.num_tasks)
    shapes = {"W": (width, d), "b": (width,), "A": (num_tasks, width)}
    assert set(found) == set(shapes)
    for name, shape in shapes.items():
        leaf = np.asarray(found[name])
        used = leaf[(slice(None), *map(slice, shape))]
        assert len(leaf) == len(p.record)
        np.testing.assert_allclose(used, [params[name] for params in expected], err_msg=name, **CLOSE)
        assert np.count_nonzero(leaf) == np.count_nonzero(used)
    W = found["W"][-1][:width, :d]
    if p.algorithm == "oracle":
        assert np.all(W[:, : int(cell.r)])
        assert not np.any(W[:, int(cell.r) :])
    else:
        assert np.allclose(W, start["W"]) == (p.algorithm == "random_features")
    assert np.array_equal(found["b"][-1][:width], start["b"]) == (p.bias != "trained")
    if p.bias == "random":
        assert 0 < np.abs(start["b"]).max() <= cell.bias_scale


@pytest.mark.parametrize("case", ["random_features", "oracle", "alternating split", "joint adam, rotated"])
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
    """`one_step`, and ridge by explicit leave-one-out; a smaller n_down is a prefix of the largest sample."""
    p, cell = CASES["one_step"]
    found, (expected, trained_on) = whole(p, cell), learn(p, cell)
    assert_measurements(p, cell, found, expected, trained_on, **CLOSE)

    width, M = int(cell.width), directions(cell)

    def parity(x):
        return np.prod(np.where(x @ M >= 0, 1, -1), axis=1)

    x = draw_points(p, cell, keys.stream(cell.seed, "downstream/inputs"), max(p.n_down))
    c = np.asarray(probe.biases(keys.stream(cell.seed, "downstream/biases"), p.width))[:width]
    test = draw_points(p, cell, keys.stream(cell.seed, "test"), p.n_test)
    W = expected[0]["W"]
    assert found["downstream_error"].shape == (1, 1, 2)
    for k, n in enumerate(cell.n_down):
        error = reference.ridge_probe_error(W, c, x[:n], parity(x[:n]), test, parity(test), probe.PENALTIES)
        # A count over n_test: equal unless a decision is within rounding of 0.
        assert found["downstream_error"][0, 0, k] == pytest.approx(error, abs=1e-6)


def test_cases_cover_the_algorithms():
    """`population` has a file of its own."""
    assert {p.algorithm for p, _ in CASES.values()} == set(experiment.ALGORITHMS) - {"population"}


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
    p, cell = variant({"noisy": True, "losses": ("hinge",)})
    sizes = {
        "d": [7, 9, 3],
        "r": [2, 3, 1],
        "width": [8, 4, 10],
        "num_tasks": [4, 5, 1],
        "n1": [21, 24, 10],
        "n2": [26, 11, 30],
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
        n, step = (p.n1 if purpose == "heads" else p.n2), 0 if p.fixed_samples else step
        if (purpose, step) not in seen:
            x = rng.standard_normal((n, d) if p.shared_inputs else (T, n, d))
            seen[purpose, step] = x, rng.choice([-1.0, 1.0], (n, T))
        return seen[purpose, step]

    def first_heads():
        # At A = 0 the slopes are known: one product with the heads.
        x, y = draw("heads", 0)
        pre = counter.hidden(params, x)
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
    p = PROGRAM.replace(algorithm=algorithm, losses=("logistic", "squared"), split_batch=True, head_steps=2)
    if algorithm == "one_step":
        p = p.replace(losses=("logistic",))
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
    p = PROGRAM.replace(algorithm="population")
    assert experiment.costs(p, 1) == {"num_params": 10 * (9 + 5), "train_samples": 0, "train_flops": 0}
    assert experiment.costs(p.replace(bias="random"), 1)["num_params"] == 10 * (9 + 5 + 1)


def test_cell_has_a_value_for_every_field():
    """CELL above sets all of them, so that no knob is left at a default that hides it."""
    defaults = {field.name: field.default for field in dataclasses.fields(Cell)}
    hidden = {name for name, value in defaults.items() if np.array_equal(getattr(CELL, name), value)}
    assert hidden <= {"parity_size", "shrink", "family"}
