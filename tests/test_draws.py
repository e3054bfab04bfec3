"""Random draws: prefix stability and compilation bit for bit, and their laws to within 5 standard errors.

Every seed is fixed, so a test that passes once passes always; 5 standard errors are what a wrong law would exceed.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32

from mtfl_jax.learning import data, drawing, draws, keys, measuring, network, probe, tasks
from mtfl_jax.learning.arithmetic import EXACT
from mtfl_jax.learning.program import Cell, Probed, Program

KEY = keys.named(keys.root(7), "test_draws")
LAWS = tuple(name for name, law in data.LAWS.items() if law.prefix and not law.settings)
"""Those of independent coordinates of one law; of the others, test_inputs.py and test_records.py."""
N, D, R, WIDTH, TASKS = 33, 7, 2, 5, 3
SEED = 11


def same(found, expected):
    """Equal bit for bit, leaf by leaf."""
    found, expected = jax.tree.leaves(found), jax.tree.leaves(expected)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)


def assert_mean(values, expected, error):
    """Means lie within 5 standard errors of what they estimate."""
    assert np.all(np.abs(np.asarray(values) - expected) < 5 * error)


# Inputs


inputs = jax.jit(data.inputs, static_argnames=("law", "n", "max_d"))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("nuisance_scale", [1.0, 0.3])
def test_inputs_of_smaller_sizes_are_the_first_of_larger(law, nuisance_scale):
    """In n, d, and the padded size of d."""
    sizes = {"r": R, "nuisance_scale": nuisance_scale}
    large = np.asarray(inputs(KEY, law, 70, 12, d=12, **sizes))
    assert np.all(large != 0)
    for n, max_d, d in ((N, 12, D), (N, D, D), (70, 12, R), (70, 12, 11)):
        small = np.asarray(inputs(KEY, law, n, max_d, d=d, **sizes))
        assert small.shape == (n, max_d)
        same(small[:, :d], large[:n, :d])
        assert np.all(small[:, d:] == 0)


@pytest.mark.parametrize("law", LAWS)
def test_nuisance_scale_multiplies_the_other_coordinates(law):
    whole = np.asarray(inputs(KEY, law, N, D, r=R, d=D, nuisance_scale=1.0))
    scaled = np.asarray(inputs(KEY, law, N, D, r=R, d=D, nuisance_scale=0.3))
    same(scaled[:, :R], whole[:, :R])
    # A product of three float32 factors rounds at most three times (eps 1.2e-7).
    np.testing.assert_allclose(scaled[:, R:], whole[:, R:] * np.float32(0.3), rtol=3 * 1.2e-7)
    removed = np.asarray(inputs(KEY, law, N, D, r=R, d=D, nuisance_scale=0.0))
    assert np.all(removed[:, R:] == 0)


MANY = 65_536


@functools.cache
def many(law):
    return np.asarray(inputs(KEY, law, MANY, 12, r=R, d=12, nuisance_scale=1.0), np.float64)


MOMENTS = {"gaussian": (0, 1, 0, 3), "rademacher": (0, 1, 0, 1)}
# Variance of x^k: E x^2k − (E x^k)².
VARIANCES = {"gaussian": (1, 2, 15, 96), "rademacher": (1, 0, 1, 0)}


@pytest.mark.parametrize("law", LAWS)
def test_moments_of_inputs(law):
    """The first four, coordinate by coordinate and of all coordinates together; those of ±1 that are even are exact."""
    x = many(law)
    for k in range(1, 5):
        error = np.sqrt(VARIANCES[law][k - 1] / MANY) + 1e-12
        assert_mean(np.mean(x**k, axis=0), MOMENTS[law][k - 1], error)
        assert_mean(np.mean(x**k), MOMENTS[law][k - 1], error / np.sqrt(12))


@pytest.mark.parametrize("law", LAWS)
def test_signs_of_inputs_are_independent(law):
    """Products of signs at different coordinates, or at samples next to or 32 apart, have mean 0."""
    s = np.sign(many(law))
    pairs = s.T @ s / MANY
    assert_mean(pairs[~np.eye(12, dtype=bool)], 0, 1 / np.sqrt(MANY))
    triples = [np.mean(np.prod(s[:, list(c)], axis=1)) for c in itertools.combinations(range(12), 3)]
    assert_mean(triples, 0, 1 / np.sqrt(MANY))
    for lag in (1, 2, 32):
        assert_mean(np.mean(s[lag:] * s[:-lag], axis=0), 0, 1 / np.sqrt(MANY - lag))


def test_sizes_of_gaussian_inputs_are_independent():
    """E x_i² x_j² = 1, with variance E x⁴ E x⁴ − 1 = 8."""
    squares = many("gaussian") ** 2
    products = squares.T @ squares / MANY
    assert_mean(products[~np.eye(12, dtype=bool)], 1, np.sqrt(8 / MANY))


# Networks and biases


initialise = jax.jit(network.initialise, static_argnames=("max_d", "max_width", "max_tasks", "bias"))


def initial(bias, max_d=D, max_width=WIDTH, max_tasks=TASKS, d=D, width=WIDTH):
    return initialise(KEY, max_d, max_width, max_tasks, d=d, width=width, bias=bias, bias_scale=0.7)


@pytest.mark.parametrize("bias", network.BIASES)
def test_padding_a_network_changes_nothing(bias):
    small = initial(bias)
    large = jax.tree.map(np.asarray, initial(bias, 16, 8, 6))
    assert large["W"].shape == (8, 16)
    same({"W": large["W"][:WIDTH, :D], "b": large["b"][:WIDTH], "A": large["A"][:TASKS, :WIDTH]}, small)
    assert np.all(large["W"][WIDTH:] == 0)
    assert np.all(large["W"][:, D:] == 0)
    assert np.all(large["b"][WIDTH:] == 0)
    assert np.all(large["A"] == 0)
    assert np.all(large["W"][:WIDTH, :D] != 0)
    if bias == "random":
        assert np.all(large["b"][:WIDTH] != 0)
        assert np.all(np.abs(large["b"]) <= 0.7)
    else:
        assert np.all(large["b"] == 0)


@pytest.mark.parametrize("bias", network.BIASES)
def test_a_smaller_network_is_the_first_of_a_larger(bias):
    """In d too: √d is exact at d = 4 and 16, so rescaling by it changes no bit."""
    large = jax.tree.map(np.asarray, initial(bias, 16, 8, 6, d=16, width=8))
    small = jax.tree.map(np.asarray, initial(bias, 16, 8, 6, d=4))
    same(small["W"][:WIDTH, :4] * 2, large["W"][:WIDTH, :4] * 4)
    same(small["b"][:WIDTH], large["b"][:WIDTH])
    assert np.all(large["W"] != 0)


NEURONS = 4096


def test_moments_of_initial_weights():
    """w_j ~ N(0, I_d/d): the first four moments of √d w, and the variance 1/d."""
    width, d = NEURONS, D
    W = np.asarray(initialise(KEY, d, width, 1, d=d)["W"], np.float64)
    assert_mean(W.var(), 1 / d, np.sqrt(2 / W.size) / d)
    w = W * np.sqrt(d)
    for k in range(1, 5):
        error = np.sqrt(VARIANCES["gaussian"][k - 1] / width)
        assert_mean(np.mean(w**k, axis=0), MOMENTS["gaussian"][k - 1], error)
    s = np.sign(w)
    assert_mean((s.T @ s / width)[~np.eye(d, dtype=bool)], 0, 1 / np.sqrt(width))
    assert_mean(np.mean(s[1:] * s[:-1], axis=0), 0, 1 / np.sqrt(width - 1))


def assert_uniform(values, bound):
    """Uniform on [−bound, bound]: E c^k = bound^k/(k + 1) for even k, 0 for odd k."""
    assert np.all(np.abs(values) <= bound)
    scaled = np.asarray(values, np.float64) / bound
    for k in range(1, 5):
        mean = 0 if k % 2 else 1 / (k + 1)
        assert_mean(np.mean(scaled**k), mean, np.sqrt((1 / (2 * k + 1) - mean**2) / len(scaled)))
    s = np.sign(scaled)
    assert_mean(np.mean(s[1:] * s[:-1]), 0, 1 / np.sqrt(len(s) - 1))


def test_random_biases_are_uniform():
    b = np.asarray(initialise(KEY, 1, 65_536, 1, bias="random", bias_scale=0.7)["b"])
    assert_uniform(b, np.float32(0.7))


def test_probe_biases_are_uniform_and_prefix_stable():
    c = np.asarray(probe.biases(KEY, 65_536))
    assert_uniform(c, 1.5)
    for width in (1, WIDTH, 100):
        same(probe.biases(KEY, width), c[:width])


# Batches


def program(**changes):
    """What draws read."""
    sizes = {"d": D, "r": R, "width": WIDTH, "num_tasks": TASKS, "n1": N, "n2": N}
    names = {"data": "gaussian", "tasks": "balanced", "bias": "zero", "shared_inputs": True, "noisy": True}
    return Program(**{**names, **sizes, **changes})


MEASURED = {"losses": ("squared",), "arithmetic": EXACT, "measure": "all", "probes": (), "n_test": 64}
"""What measurements read beside that."""


LARGE = {"d": 12, "r": 3, "width": 8, "num_tasks": 6, "n1": 70, "n2": 50}


def cell(**changes):
    sizes = {"d": D, "r": R, "width": WIDTH, "num_tasks": TASKS, "n1": N, "n2": N}
    return Cell(**{"seed": SEED, "nuisance_scale": 0.5, "label_noise": 0.2, **sizes, **changes})


@functools.partial(jax.jit, static_argnums=(0, 2))
def batch(p, c, purpose, step):
    return drawing.draw_batch(p, c, drawing.draw_tasks(p, c), purpose, step)


@functools.partial(jax.jit, static_argnums=(0, 2))
def step_batch(p, c, purpose, step):
    return drawing.step_batch(p, c, drawing.draw_tasks(p, c), purpose, step)


@pytest.mark.parametrize(
    ("law", "shared", "purpose"),
    [
        ("gaussian", True, "features"),
        ("gaussian", False, "heads"),
        ("rademacher", True, "heads"),
    ],
)
def test_padding_a_batch_changes_nothing(law, shared, purpose):
    """Every axis padded at once: the inputs and the (noisy) labels of the true sizes stay, bit for bit."""
    p = program(data=law, shared_inputs=shared)
    exact = batch(p, cell(), purpose, 3)
    padded = batch(p.replace(**LARGE), cell(), purpose, 3)
    x, y = np.asarray(padded.x), np.asarray(padded.y)
    mine = x[:N] if shared else x[:TASKS, :N]
    same(mine[..., :D], exact.x)
    assert np.all(mine[..., D:] == 0)
    assert np.all(mine[..., :D] != 0)
    same(y[:N, :TASKS], exact.y)
    assert set(np.unique(exact.y)) == {-1.0, 1.0}
    assert np.all(y[N:] == 0)
    assert np.all(y[:, TASKS:] == 0)
    assert (int(padded.n), int(padded.num_tasks)) == (N, TASKS)


@pytest.mark.parametrize("shared", [True, False])
def test_batches_of_smaller_sizes_are_the_first_of_larger(shared):
    """In n, d and num_tasks: cells that differ in a true size share their draws."""
    purpose = "features" if shared else "heads"
    p = program(shared_inputs=shared).replace(**LARGE)
    large = jax.tree.map(np.asarray, batch(p, cell(n1=70, n2=50, d=12, num_tasks=6), purpose, 0))
    small = jax.tree.map(np.asarray, batch(p, cell(), purpose, 0))
    same(small.x[..., :D], large.x[..., :D])
    same(small.y[:N, :TASKS], large.y[:N, :TASKS])
    assert np.all(large.y != 0)
    if not shared:
        assert len(np.unique(large.x[:, 0, 0])) == 6


def test_labels_are_those_of_the_inputs_but_for_noise():
    p, c = program(), cell(label_noise=0.0)
    of = drawing.draw_tasks(p, c)
    drawn = batch(p, c, "heads", 0)
    same(drawn.y, tasks.labels(of, data.orthants(drawn.x, R, R)))
    own = batch(p.replace(shared_inputs=False), c, "heads", 0)
    for t in range(TASKS):
        expected = np.asarray(tasks.labels(of, data.orthants(own.x[t], R, R)))[:, t]
        same(own.y[:, t], expected)


def test_distinct_draws_differ():
    """Other purposes, steps, seeds and tasks give other numbers; fixed samples are the same at every step."""
    p = program()
    base = np.asarray(batch(p, cell(), "heads", 0).x)
    others = {
        "purpose": batch(p, cell(), "features", 0).x,
        "step": batch(p, cell(), "heads", 1).x,
        "seed": batch(p, cell(seed=SEED + 1), "heads", 0).x,
        "own": batch(p.replace(shared_inputs=False), cell(), "heads", 0).x[0],
        "own next": batch(p.replace(shared_inputs=False), cell(), "heads", 0).x[1],
    }
    drawn = [base, *(np.asarray(x) for x in others.values())]
    # cell() scales the columns from R on, alike in all.
    for one, other in itertools.combinations(drawn, 2):
        assert not np.any(one == other)
    for kind, step in (("fresh", 5), ("fixed", 0)):
        same(step_batch(p.replace(samples=kind), cell(), "heads", 5), batch(p, cell(), "heads", step))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("size", "padded"), [(1, 12), (3, 7), (3, 12), (7, 12)])
def test_batches_of_an_epoch_are_the_set_in_an_order_of_its_own(size, padded, shared):
    n = 7
    p = program(n1=padded, samples="batches", batch=size, shared_inputs=shared)
    whole = batch(program(n1=padded, shared_inputs=shared), cell(n1=n), "heads", 0)
    inputs = np.asarray(whole.x)[..., :n, :]
    orders = []
    for epoch in range(3):
        order = []
        for i, start in enumerate(range(0, n, size)):
            own = step_batch(p, cell(n1=n), "heads", epoch * -(-n // size) + i)
            count = int(own.n)
            assert count == min(size, n - start)
            assert not np.any(np.asarray(own.counted)[count:])
            assert not np.any(np.asarray(own.y)[count:])
            for k in range(count):
                at = [j for j in range(n) if np.array_equal(inputs[..., j, :], np.asarray(own.x)[..., k, :])]
                assert len(at) == 1
                np.testing.assert_array_equal(own.y[k], whole.y[at[0]])
                order += at
        assert sorted(order) == list(range(n))
        orders.append(tuple(order))
    assert len(set(orders)) == 3


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 63, 64, 65, 1000, 4097])
def test_a_shuffle_is_of_all_and_of_any_alone(n):
    shuffled = jax.jit(draws.shuffled)
    every = np.asarray(shuffled(keys.root(SEED), n, jnp.arange(n + 3)))
    assert sorted(every) == list(range(n + 3))
    assert list(every[n:]) == [n, n + 1, n + 2]
    few = np.asarray([0, n // 2, n - 1])
    np.testing.assert_array_equal(shuffled(keys.root(SEED), n, jnp.asarray(few)), every[few])


@pytest.mark.parametrize(("n", "seen"), [(3, 3), (5, 3), (11, 2), (100, 1)])
def test_orders_of_a_shuffle_are_equally_likely(n, seen):
    """By χ² over the first `seen` entries of 20,000 orders."""
    shuffled = jax.jit(jax.vmap(lambda key: draws.shuffled(key, n, jnp.arange(seen))))
    orders = shuffled(keys.indexed(keys.root(SEED), 20_000))
    _, counts = np.unique(np.asarray(orders), axis=0, return_counts=True)
    assert len(counts) == math.perm(n, seen)
    expected = 20_000 / len(counts)
    chi2 = float(np.sum((counts - expected) ** 2) / expected)
    assert abs(chi2 - (len(counts) - 1)) < 4 * math.sqrt(2 * (len(counts) - 1))


MANY_SAMPLES = {"n1": NEURONS, "n2": NEURONS, "num_tasks": 6}


def test_purposes_are_independent():
    """Inputs of heads, features, network and test draws, of a seed and the next, are uncorrelated with one another."""
    n = NEURONS
    p, c = program(**MANY_SAMPLES), cell(**MANY_SAMPLES, nuisance_scale=1.0)
    drawn = {
        "heads": batch(p, c, "heads", 0).x,
        "heads, next step": batch(p, c, "heads", 1).x,
        "heads, next seed": batch(p, c.replace(seed=SEED + 1), "heads", 0).x,
        "features": batch(p, c, "features", 0).x,
        "test": inputs(keys.stream(SEED, "test"), "gaussian", n, D, r=R, d=D, nuisance_scale=1.0),
        "network": initialise(keys.stream(SEED, "network"), D, n, 1, d=D)["W"] * np.sqrt(D),
    }
    for one, other in itertools.combinations(drawn.values(), 2):
        products = np.asarray(one, np.float64).T @ np.asarray(other, np.float64) / n
        assert_mean(products, 0, 1 / np.sqrt(n))


@pytest.mark.parametrize("shared", [True, False])
def test_label_noise_flips_at_its_rate(shared):
    n, num_tasks, rate = 4096, 6, 0.2
    p, c = program(**MANY_SAMPLES, shared_inputs=shared), cell(**MANY_SAMPLES, label_noise=rate)
    noisy, clean = batch(p, c, "heads", 0), batch(p, c.replace(label_noise=0.0), "heads", 0)
    same(noisy.x, clean.x)
    flipped = np.asarray(noisy.y) != np.asarray(clean.y)
    same(np.where(flipped, -noisy.y, noisy.y), clean.y)
    assert_mean(flipped.mean(axis=0), rate, np.sqrt(rate * (1 - rate) / n))
    assert_mean(flipped.mean(), rate, np.sqrt(rate * (1 - rate) / flipped.size))
    # Flips are independent: of one another across tasks and samples, and of the labels.
    centred = flipped - rate
    error = rate * (1 - rate) / np.sqrt(n)
    assert_mean((centred.T @ centred / n)[~np.eye(num_tasks, dtype=bool)], 0, error)
    assert_mean(np.mean(centred[1:] * centred[:-1], axis=0), 0, error * np.sqrt(n / (n - 1)))
    assert_mean(np.mean(centred * np.asarray(clean.y), axis=0), 0, np.sqrt(rate * (1 - rate) / n))


def test_label_noise_spares_the_test_labels():
    """The same network is measured the same on fresh samples whatever the noise; only train_loss sees it."""
    p = program(**MEASURED)
    c = cell(label_noise=0.0, n_test=64)
    of = drawing.draw_tasks(p, c)
    A = np.random.default_rng(0).standard_normal((TASKS, WIDTH)).astype(np.float32)
    params = drawing.draw_network(p, c) | {"A": jnp.asarray(A)}
    measured = jax.jit(functools.partial(measuring.measure, p))

    def batch_of(rate):
        return batch(program(), c.replace(label_noise=rate), "heads", 0)

    clean, noisy = (measured(c.replace(label_noise=rate), of, params, batch_of(rate)) for rate in (0.0, 0.4))
    for name in ("test_loss", "task_error", "feature_energy", "feature_similarity"):
        same(clean[name], noisy[name])
    assert clean["train_loss"] != noisy["train_loss"]


def test_label_noise_spares_the_test_labels_of_the_probe():
    """With as many neurons as the inputs show, a task that is learned without error from clean labels is tested on
    clean labels: noise at its greatest rate leaves a coin's error, not the 1/2 of flipped test labels on top of it.
    """
    probed = {"probes": (Probed("ridge", "halfspace"),), "n_test": 2048, "n_down": (4096,)}
    p = program(**{**MEASURED, **probed}, width=64, d=4, r=1)
    c = cell(d=4, r=1, width=64, n_down=jnp.asarray([4096]), n_test=2048, nuisance_scale=0.1)
    params = drawing.draw_network(p, c)
    measured = jax.jit(lambda noise: measuring.measure(p, c.replace(label_noise=noise), of, params, None))
    of = drawing.draw_tasks(p, c)
    clean, noisy = (float(measured(noise)["downstream_error"][0, 0]) for noise in (0.0, 0.2))
    # A fifth of flipped test labels would show as an error of 0.2.
    assert clean < 0.02
    assert noisy < 0.1


def test_label_noise_reaches_the_training_labels_of_the_probe():
    """draw_labels at the probe's noise key flips, and the noise-free labels are the task's."""
    p, c = program(), cell(label_noise=0.2)
    of = drawing.draw_tasks(p, c)
    x = inputs(KEY, "gaussian", 256, D, r=R, d=D, nuisance_scale=1.0)
    drawn = data.Inputs(x, x)
    clean = drawing.draw_labels(p, c, of, KEY, drawn, noisy=False)
    same(clean, tasks.labels(of, data.orthants(x, R, R)))
    assert np.any(np.asarray(drawing.draw_labels(p, c, of, KEY, drawn, noisy=True)) != np.asarray(clean))


# Compilation: the same bits however a draw is compiled or batched


def everything(seed, d=D):
    """Every kind of draw of one seed, with d traced or not."""
    p = program(bias="random", tasks="halfspace")
    c = cell(seed=seed, d=d, nuisance_scale=0.3, bias_scale=0.7)
    of = drawing.draw_tasks(p, c)
    return {
        "tasks": of,
        "network": drawing.draw_network(p, c),
        "batch": drawing.draw_batch(p, c, of, "heads", 2)[:2],
        "biases": probe.biases(keys.root(seed), WIDTH),
    }


DRAWN = ("tasks", "network", "batch", "biases")


@functools.cache
def compiled():
    """Each seed alone, compiled with traced d."""
    one = jax.jit(everything)
    return [one(seed, D) for seed in (SEED, SEED + 1)]


@functools.cache
def batched():
    return jax.jit(jax.vmap(everything))(jnp.array([SEED, SEED + 1]), jnp.array([D, D]))


@pytest.mark.parametrize("name", DRAWN)
def test_batching_changes_no_bit(name):
    for i, alone in enumerate(compiled()):
        same(jax.tree.map(lambda leaf, i=i: leaf[i], batched()[name]), alone[name])


def test_batching_changes_no_bit_of_rademacher_inputs():
    draw = functools.partial(data.inputs, law="rademacher", n=N, max_d=D, r=R, d=D, nuisance_scale=0.3)
    both = jax.jit(jax.vmap(lambda key: draw(key)))(keys.indexed(KEY, 2))
    for i in range(2):
        same(both[i], inputs(keys.indexed(KEY, 2)[i], "rademacher", N, D, r=R, d=D, nuisance_scale=0.3))
        same(both[i], draw(keys.indexed(KEY, 2)[i]))


@functools.cache
def with_constants():
    """As `compiled`, with every size and knob a constant of the program."""
    return jax.jit(lambda: everything(SEED))()


@functools.cache
def uncompiled():
    return everything(SEED)


ROUNDING = 2.0**-24
"""What one rounding to float32 changes at most, relative to the number."""


def same_to_rounding(found, expected):
    """Signs bit for bit; numbers to 13 roundings.

    Compilers may make one rounding of a product and a sum, as LLVM does in the steps 1 − (t²/6)·(…) of a normal's sine
    and cosine, and may fold products of factors. So two programs differ, at most, by each one's own rounding of every
    operation after the first that may differ, 2 an operation, and by what a left-out rounding of a product was:
      5 of the sine: its last step 2 and 0.2 for the product and 0.2 of the steps inside, times t 2 (the cosine 3.4);
      2 of its product with the radius, 2 of that with the scale;
      4 of a scale 1/√d, which is a root and a quotient or one reciprocal root.
    Programs of sweeps always trace sizes and scales, and are the same to the bit: the tests above.
    """
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=13 * ROUNDING, atol=0)
        assert np.array_equal(np.sign(one), np.sign(other))


@pytest.mark.parametrize("name", DRAWN)
def test_constant_sizes_change_rounding_at_most(name):
    same_to_rounding(with_constants()[name], compiled()[0][name])


@pytest.mark.parametrize("name", DRAWN)
def test_compiling_changes_rounding_at_most(name):
    same_to_rounding(compiled()[0][name], uncompiled()[name])


# Rotations


ROTATED, PADDED, ROTATIONS = 4, 6, 4000


@functools.cache
def rotations():
    draw = jax.jit(jax.vmap(lambda key: data.rotation(key, ROTATED, PADDED)))
    return np.asarray(draw(keys.indexed(KEY, ROTATIONS)), np.float64)


def test_rotations_are_orthogonal():
    """To 20 float32 roundings (eps 1.2e-7): each entry of QQᵀ sums products of entries that are a few eps off."""
    Q = rotations()
    assert np.abs(Q @ Q.transpose(0, 2, 1) - np.eye(PADDED)).max() < 20 * 1.2e-7


def test_rotations_leave_padding_alone():
    Q = rotations()
    assert np.array_equal(Q[:, ROTATED:, ROTATED:], np.broadcast_to(np.eye(PADDED - ROTATED), (ROTATIONS, 2, 2)))
    assert np.all(Q[:, :ROTATED, ROTATED:] == 0)
    assert np.all(Q[:, ROTATED:, :ROTATED] == 0)


def test_padding_a_rotation_changes_nothing():
    """QR is not bit for bit the same in another shape: float32 rounding of a 4 × 4 factorisation (eps 1.2e-7)."""
    exact = data.rotation(keys.indexed(KEY, ROTATIONS)[0], ROTATED, ROTATED)
    np.testing.assert_allclose(exact, rotations()[0, :ROTATED, :ROTATED], rtol=0, atol=20 * 1.2e-7)


def test_rotations_are_haar_to_fourth_moments():
    Q, d = rotations()[:, :ROTATED, :ROTATED], ROTATED

    def check(values, expected):
        assert_mean(values.mean(axis=0), expected, values.std(axis=0) / np.sqrt(ROTATIONS))

    check(Q, 0)
    check(Q**2, 1 / d)
    check(Q[:, 0, 0] ** 4, 3 / (d * (d + 2)))
    check(Q**4, 3 / (d * (d + 2)))
    check(Q[:, :1] ** 2 * Q[:, 1:] ** 2, 1 / (d * (d + 2)))
    check(Q[:, 0, 0] ** 2 * Q[:, 1, 1] ** 2, (d + 1) / (d * (d - 1) * (d + 2)))
    # Two rows are orthogonal, but a row is uncorrelated with the next; both orientations are as likely.
    check(Q[:, :-1, :] * Q[:, 1:, :], 0)
    check(np.linalg.det(Q), 0)


# Keys


def test_keys_by_name_and_index():
    root, purposes = keys.root(SEED), ("heads", "features", "tasks", "network")
    bits = [jax.random.key_data(keys.named(root, name)) for name in purposes]
    bits += [jax.random.key_data(keys.stream(seed, name)) for name in purposes for seed in (SEED, SEED + 1)]
    bits += [jax.random.key_data(key) for key in keys.indexed(root, 3)]
    bits += [jax.random.key_data(keys.root(SEED + 1))]
    assert len({tuple(np.asarray(words).tolist()) for words in bits}) == len(bits)
    same(jax.random.key_data(keys.indexed(root, 3)), jax.random.key_data(keys.indexed(root, 9))[:3])
    same(jax.random.key_data(jax.jit(keys.root)(SEED)), jax.random.key_data(root))
    traced = jax.jit(lambda seed: keys.stream(seed, "heads"))(SEED)
    same(jax.random.key_data(traced), jax.random.key_data(keys.stream(SEED, "heads")))


def test_threefry_is_that_of_jax():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 2**32, (2, 100), dtype=np.uint32)
    for key in (KEY, keys.stream(SEED, "heads")):
        expected = threefry_2x32(jax.random.key_data(key), jnp.concatenate([jnp.asarray(x), jnp.asarray(y)]))
        same(jnp.concatenate(jax.jit(keys.threefry)(key, x, y)), expected)


# Normals


def test_normals_agree_with_a_float64_reference():
    """The transform of Box and Muller, word by word: to 8 float32 roundings (eps 1.2e-7) of the radius, at most 5.4."""
    rows, columns = 7, 1000
    first, second = (np.asarray(word) for word in draws.words(KEY, 2, columns))
    expected = []
    for word in (first[0], second[0], first[1], second[1]):
        radius = np.sqrt(-2 * np.log(((word >> 12) + 0.5) / 2**20))
        angle = ((word & 1023) + 0.5) / 1024 * np.pi / 2 - np.pi / 4
        mirrored, opposite = (word >> 10) & 1 == 1, (word >> 11) & 1 == 1
        angle = np.where(mirrored, np.pi / 2 - angle, angle) + np.pi * opposite
        expected += [radius * np.cos(angle), radius * np.sin(angle)]
    found = draws.normal(KEY, rows, columns)
    np.testing.assert_allclose(found, np.stack(expected)[:rows], rtol=0, atol=8 * 1.2e-7 * 5.4)


def test_angles_of_normals_cover_the_circle():
    """The 4096 angles are those of a regular polygon, so that every trigonometric moment below 4096 is exact."""
    word = jnp.arange(4096, dtype=jnp.uint32)
    angle = np.sort(np.arctan2(*(np.asarray(part, np.float64) for part in draws._pair(word))))
    np.testing.assert_allclose(np.diff(angle), 2 * np.pi / 4096, rtol=1e-3)


@pytest.mark.parametrize("kind", ["normal", "sign", "uniform", "bits"])
def test_columns_may_be_asked_for_in_any_order(kind):
    draw = jax.jit(getattr(draws, kind), static_argnums=(1, 2))
    some = jnp.asarray([5, 0, 31, 5])
    same(jax.jit(getattr(draws, kind), static_argnums=1)(KEY, 70, some), np.asarray(draw(KEY, 70, 40))[:, some])
