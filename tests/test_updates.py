"""The objective, its steps and the training loops against the NumPy reference, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from checked import checked
from hypothesis import given, settings
from hypothesis import strategies as st

from mtfl_jax.learning import losses, network, optimizers, updates
from mtfl_jax.learning.optimizers import OPTIMIZERS, SCHEDULES
from mtfl_jax.learning.updates import Batch

# Both sides are float64 (eps 2.2e-16). A gradient sums at most 40 · 12 · 6 terms and eight updates of at most
# unit size follow one another, which together amplify rounding by less than 1e5: a thousandth of this is left.
CLOSE = {"rtol": 1e-9, "atol": 1e-11}

MAX_N, MAX_D, MAX_WIDTH, MAX_T = 40, 12, 12, 6
MIXTURE = ("logistic", "hinge", "squared", "exponential")
LOSSES = [(name,) for name in reference.LOSS_NAMES] + [("squared", "hinge"), MIXTURE]
HUBER = functools.partial(losses.LOSSES["huber"].of, huber_delta=0.7)
OURS = {("huber", 0.7): HUBER}
"""A loss with its knob, by what the reference calls it."""
REAL = [("linear",), ("mse",), (("huber", 0.7),), ("mae",), ("mse", ("huber", 0.7), "linear", "mae")]
"""Losses of any target, as the reference names them."""

# Compilation is most of what these tests cost.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
quick_jit = functools.partial(jax.jit, compiler_options=QUICK)

seeds = st.integers(0, 2**32 - 1)
rates = st.floats(0.01, 1.0)
tame = st.floats(0.01, 0.1)  # of loops, which else diverge in the exponential loss


def draw_params(rng, d, width, num_tasks, zero_heads=False):
    """Random parameters of the size they have at initialisation and after a few updates."""
    A = rng.standard_normal((num_tasks, width)) / np.sqrt(width)
    return {
        "W": rng.standard_normal((width, d)) / np.sqrt(d),
        "b": rng.uniform(-1, 1, width),
        "A": A * (not zero_heads),
    }


def draw_sample(rng, n, d, num_tasks, shared=True, real=False):
    """Gaussian inputs and random labels (x, y), ±1 or real, of which some are zero."""
    x = rng.standard_normal((n, d) if shared else (num_tasks, n, d))
    if real:
        return x, rng.choice([0.0, 0.6, 1.0, 2.0], (n, num_tasks)) * rng.standard_normal((n, num_tasks))
    return x, rng.choice([-1.0, 1.0], (n, num_tasks))


def ours(names):
    """Losses as the program takes them."""
    return tuple(OURS.get(name, name) for name in names)


def exact(sample):
    """The unpadded Batch of a sample."""
    x, y = sample
    return Batch(jnp.asarray(x), jnp.asarray(y), *y.shape)


def padded(rng, sample):
    """The Batch in arrays of the largest size: garbage in the padded inputs, zero in the padded labels."""
    x, y = sample
    n, num_tasks = y.shape
    shape = (MAX_N, MAX_D) if x.ndim == 2 else (MAX_T, MAX_N, MAX_D)
    # Coordinates from d on are zero, as the input laws leave them; rows from n on and padded tasks are not.
    garbage = 100 * rng.standard_normal(shape)
    garbage[..., x.shape[-1] :] = 0
    garbage[tuple(slice(size) for size in x.shape)] = x
    labels = np.zeros((MAX_N, MAX_T))
    labels[:n, :num_tasks] = y
    return Batch(jnp.asarray(garbage), jnp.asarray(labels), n, num_tasks)


def pad_params(params):
    """Parameters in arrays of the largest size, zero where padded."""
    shapes = {"W": (MAX_WIDTH, MAX_D), "b": (MAX_WIDTH,), "A": (MAX_T, MAX_WIDTH)}
    return {
        name: np.pad(leaf, [(0, most - size) for most, size in zip(shapes[name], leaf.shape, strict=True)])
        for name, leaf in params.items()
    }


def assert_params(found, expected, **tolerance):
    """Every leaf agrees; where `found` is padded, it is zero beyond."""
    assert set(found) == {"W", "b", "A"}
    if any(found[name].shape != expected[name].shape for name in found):
        expected = pad_params(expected)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], err_msg=name, **(tolerance or CLOSE))


def numeric(params):
    return {name: jnp.asarray(leaf) for name, leaf in params.items()}


def draw_sizes(rng):
    """True sizes (n, d, width, T) at most the padded ones."""
    return tuple(int(rng.integers(low, high + 1)) for low, high in ((1, 40), (1, 12), (1, 12), (1, 6)))


# The reference itself.


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
@given(seed=seeds, names=st.sampled_from([*LOSSES, (("smoothed_hinge", 0.5),), *REAL]), shared=st.booleans())
@settings(deadline=None, derandomize=True, max_examples=30, database=None)
def test_reference_gradients_are_finite_differences(activation, seed, names, shared):
    """The hand-derived gradients are those of the hand-written objective."""
    rng = np.random.default_rng(seed)
    params, sample = draw_params(rng, 4, 5, 3), draw_sample(rng, 9, 4, 3, shared, names in REAL)
    grads = reference.gradients(params, sample, names, activation)
    for name, leaf in params.items():
        towards = rng.standard_normal(leaf.shape)

        def at(t, name=name, leaf=leaf, towards=towards):
            return reference.objective(params | {name: leaf + t * towards}, sample, names, activation)

        # Central differences at h = 1e-6 err by h² from the curvature (1e-12, times third derivatives up to 1e2)
        # and by eps/h = 2e-10 from rounding. Kinks are farther than h from any of 9 · 5 + 9 · 3 points.
        assert (grads[name] * towards).sum() == pytest.approx((at(1e-6) - at(-1e-6)) / 2e-6, rel=1e-6, abs=1e-8)


# Losses.


@pytest.mark.parametrize("name", reference.LOSS_NAMES)
def test_loss_and_slope(name):
    """ℓ and ℓ′ on margins large and small; neither overflows where ℓ itself does not."""
    m = np.concatenate([np.linspace(-30, 30, 121) + 0.01, [0.0, 1e-9, -1e-9, 700.0, -700.0]])
    with jax.enable_x64(True):
        # Elementwise functions, one or two of them in a row: some units in the last place. 1 − m of a margin near 1
        # loses nothing. e^{-m} has a condition number of 700.
        tolerance = {"rtol": 1e-12, "atol": 1e-300}
        found = losses.LOSSES[name].of(jnp.asarray(m), jnp.ones(len(m)))
        np.testing.assert_allclose(found, reference.loss(name, m), **tolerance)
        derivative = jax.vmap(jax.grad(losses.LOSSES[name].of), in_axes=(0, None))(jnp.asarray(m), jnp.asarray(1.0))
        np.testing.assert_allclose(derivative, reference.slope(name, m), **tolerance)


def test_losses_of_any_target():
    """ℓ(F, y) and ∂ℓ/∂F at errors small, large and none; the squared error of ±1 targets is `squared`."""
    known = {name if isinstance(name, str) else name[0] for name in (*reference.LOSS_NAMES, *reference.REAL_LOSSES)}
    assert set(losses.LOSSES) == known
    rng = np.random.default_rng(0)
    y = np.concatenate([3 * rng.standard_normal(80), np.zeros(20), [1e6, -1e6, 1.0]])
    F = np.concatenate([3 * rng.standard_normal(100), [-1e6, -1e6, 1.0]])
    with jax.enable_x64(True):
        for name in reference.REAL_LOSSES:
            of = losses.LOSSES[name].of if isinstance(name, str) else HUBER
            # A few roundings of the two terms of each.
            np.testing.assert_allclose(of(jnp.asarray(F), jnp.asarray(y)), reference.pointwise(name, F, y), rtol=1e-13)
            found = jax.vmap(jax.grad(of))(jnp.asarray(F), jnp.asarray(y))
            np.testing.assert_allclose(found, reference.by_output(name, F, y), rtol=1e-13)
        signs = np.where(y >= 0, 1.0, -1.0)
        values = [losses.LOSSES[name].of(jnp.asarray(F), jnp.asarray(signs)) for name in ("mse", "squared")]
        np.testing.assert_allclose(*values, rtol=1e-13)


@given(seed=seeds, names=st.lists(st.sampled_from([*reference.LOSS_NAMES, "mse", "mae"]), min_size=1, max_size=7))
@checked(10)
def test_mixture_gives_task_t_the_loss_t_mod_k(seed, names):
    """Also where there are more losses than tasks, or a loss twice."""
    rng = np.random.default_rng(seed)
    F, y = rng.standard_normal((7, 5)), rng.choice([-1.0, 1.0], (7, 5))
    expected = [reference.pointwise(names[t % len(names)], F[:, t], y[:, t]) for t in range(5)]
    # Elementwise, as above.
    found = quick_jit(losses.pointwise, static_argnums=0)(tuple(names), F, y)
    np.testing.assert_allclose(found, np.stack(expected, 1), rtol=1e-13)


def test_a_loss_never_sees_margins_of_other_tasks():
    """e^{-m} overflows float32 at m = −200, where the logistic loss of that task has slope −1."""
    m = jnp.asarray([[1.0, -200.0]])
    gradient = jax.grad(lambda F: losses.pointwise(("exponential", "logistic"), F, jnp.ones_like(F)).sum())(m)
    # float32: one exponential, then one unit in the last place.
    np.testing.assert_allclose(gradient, [[-np.exp(-1), -1.0]], rtol=3e-7)


# Steps.


@functools.partial(quick_jit, static_argnames=("names",))
def every_step(params, batch, lr, shrink, names):
    """What one batch gives: losses, the head step and both representation steps."""
    return {
        "losses": updates.task_losses(params, batch, names),
        "objective": updates.objective(params, batch, names),
        "heads": updates.head_step(params, batch, names, lr),
        "fixed": updates.representation_step(params, batch, names, lr, shrink),
        "trained": updates.representation_step(params, batch, names, lr, shrink, train_bias=True),
    }


@pytest.mark.parametrize(
    ("names", "shared"), [*((names, True) for names in LOSSES), (("linear",), False), (MIXTURE, False)]
)
@given(seed=seeds, lr=rates, decay=st.floats(0, 1))
@checked(15)
def test_steps_in_padded_arrays(names, shared, seed, lr, decay):
    """Losses, head step and representation step of true sizes in padded arrays with garbage in the padding."""
    rng = np.random.default_rng(seed)
    n, d, width, num_tasks = draw_sizes(rng)
    params, sample = draw_params(rng, d, width, num_tasks), draw_sample(rng, n, d, num_tasks, shared)
    found = every_step(numeric(pad_params(params)), padded(rng, sample), lr, lr * decay, names)

    np.testing.assert_allclose(found["losses"][:num_tasks], reference.task_losses(params, sample, names), **CLOSE)
    assert not np.any(found["losses"][num_tasks:])
    np.testing.assert_allclose(found["objective"], reference.objective(params, sample, names), **CLOSE)
    assert_params(found["heads"], reference.head_step(params, sample, names, lr))
    assert_params(found["fixed"], reference.representation_step(params, sample, names, lr, decay))
    assert_params(found["trained"], reference.representation_step(params, sample, names, lr, decay, True))
    assert np.array_equal(found["fixed"]["b"], pad_params(params)["b"])


@given(seed=seeds, names=st.sampled_from([("logistic",), MIXTURE]), shared=st.booleans())
@checked(10)
def test_padding_changes_no_bit(seed, names, shared):
    """Other garbage, in inputs and in the heads of padded tasks, gives the same bits."""
    rng = np.random.default_rng(seed)
    n, num_tasks = 25, 4
    params, sample = draw_params(rng, MAX_D, MAX_WIDTH, num_tasks), draw_sample(rng, n, MAX_D, num_tasks, shared)
    clean = numeric(pad_params(params))
    garbage = clean | {"A": clean["A"].at[num_tasks:].set(rng.standard_normal((MAX_T - num_tasks, MAX_WIDTH)))}
    batch = padded(rng, sample)
    zeroed = Batch(jnp.asarray(np.where(np.abs(padded(rng, sample).x - batch.x) > 0, 0, batch.x)), *batch[1:])
    assert not np.array_equal(zeroed.x, batch.x)
    one, other = (every_step(p, b, 0.5, 0.1, names) for p, b in ((clean, zeroed), (garbage, batch)))
    for step in ("heads", "fixed", "trained"):
        assert np.array_equal(one[step]["W"], other[step]["W"])
        assert np.array_equal(one[step]["A"][:num_tasks], other[step]["A"][:num_tasks])
        assert np.array_equal(one[step]["b"], other[step]["b"])
    assert np.array_equal(one["losses"], other["losses"])


@functools.partial(quick_jit, static_argnames=("names",))
def steps_of_true_size(params, x, y, names):
    batch = Batch(x, y, *y.shape)
    return (
        updates.head_step(params, batch, names, 0.5),
        updates.representation_step(params, batch, names, 0.5, 0.1),
    )


@given(seed=seeds)
@checked(5)
def test_steps_in_arrays_of_the_true_size(seed):
    """With n and num_tasks the integers of an unpadded Batch, and inputs (T, n, d) equal to shared ones."""
    rng = np.random.default_rng(seed)
    n, d, width, num_tasks = 7, 4, 3, 5
    params, (x, y) = draw_params(rng, d, width, num_tasks), draw_sample(rng, n, d, num_tasks)
    for inputs in (x, np.repeat(x[None], num_tasks, axis=0)):
        heads, features = steps_of_true_size(numeric(params), inputs, y, MIXTURE)
        assert_params(heads, reference.head_step(params, (x, y), MIXTURE, 0.5))
        assert_params(features, reference.representation_step(params, (x, y), MIXTURE, 0.5, 0.2))


@pytest.mark.parametrize(("names", "shared"), [(("mse",), True), (REAL[-1], True), (REAL[-1], False)])
@given(seed=seeds, lr=rates, decay=st.floats(0, 1))
@checked(10)
def test_steps_of_real_targets_in_padded_arrays(names, shared, seed, lr, decay):
    """As above, of targets of which some are zero and count all the same; and in parts."""
    rng = np.random.default_rng(seed)
    n, d, width, num_tasks = draw_sizes(rng)
    params = draw_params(rng, d, width, num_tasks)
    sample = draw_sample(rng, n, d, num_tasks, shared, real=True)
    found = every_step(numeric(pad_params(params)), padded(rng, sample), lr, lr * decay, ours(names))
    np.testing.assert_allclose(found["losses"][:num_tasks], reference.task_losses(params, sample, names), **CLOSE)
    assert not np.any(found["losses"][num_tasks:])
    assert_params(found["heads"], reference.head_step(params, sample, names, lr))
    assert_params(found["fixed"], reference.representation_step(params, sample, names, lr, decay))
    parted = in_parts_of_seven(numeric(pad_params(params)), padded(rng, sample), lr, lr * decay, ours(names))
    for step in ("heads", "fixed"):
        assert_params(parted[step], found[step])


@functools.partial(quick_jit, static_argnames=("names",))
def in_parts_of_seven(params, batch, lr, shrink, names):
    parts = updates.in_parts(batch, 7)
    return {
        "heads": updates.head_step(params, parts, names, lr),
        "fixed": updates.representation_step(params, parts, names, lr, shrink),
    }


# One step.


@functools.partial(quick_jit, static_argnames=("names", "train_bias"))
def jitted_one_step(params, heads, features, names, lr_a, lr_w, shrink, train_bias):
    return updates.one_step(params, heads, features, names, lr_a=lr_a, lr_w=lr_w, shrink=shrink, train_bias=train_bias)


@pytest.mark.parametrize(
    ("names", "bias"),
    [(names, network.BIASES[k % 3]) for k, names in enumerate(LOSSES)]
    + [(MIXTURE, "random"), (MIXTURE, "trained"), (("linear",), "random"), (("linear",), "trained")],
)
@given(seed=seeds, lr_a=rates, lr_w=rates, shrink=st.sampled_from([1.0, 0.3, 0.0]))
@checked(10)
def test_one_step(names, bias, seed, lr_a, lr_w, shrink):
    """Every loss and bias option, n1 other than n2; the random-bias cases have inputs of each task's own."""
    rng = np.random.default_rng(seed)
    n, d, width, num_tasks = draw_sizes(rng)
    params = draw_params(rng, d, width, num_tasks, zero_heads=True)
    params["b"] *= bias == "random"
    heads, features = (draw_sample(rng, size, d, num_tasks, bias != "random") for size in (n, 41 - n))
    found = jitted_one_step(
        numeric(pad_params(params)),
        padded(rng, heads),
        padded(rng, features),
        *(names, lr_a, lr_w, shrink, bias == "trained"),
    )
    expected = reference.one_step(params, heads, features, names, lr_a, lr_w, shrink / lr_w, bias == "trained")
    assert_params(found, expected)
    assert np.any(found["b"][:width] != params["b"]) == (bias == "trained" and np.any(expected["b"] != params["b"]))


by_default = quick_jit(updates.one_step)


@given(seed=seeds)
@checked(5)
def test_one_step_by_default_is_linear_and_forgets(seed):
    """Linear loss, unit rates, λ_w = 1/η_w; and then only K enters: W⁺_j = Σ_z (K h)_zj S_zj."""
    rng = np.random.default_rng(seed)
    d, width, r, num_tasks = 6, 5, 3, 4
    params = draw_params(rng, d, width, num_tasks, zero_heads=True)
    M = np.linalg.qr(rng.standard_normal((d, r)))[0]
    tables = rng.choice([-1.0, 1.0], (num_tasks, 2**r))
    heads, features = rng.standard_normal((30, d)), rng.standard_normal((20, d))
    samples = [(x, tables[:, reference.orthant_indices(x, M)].T) for x in (heads, features)]
    found = by_default(numeric(params), *map(exact, samples))
    assert_params(found, reference.one_step(params, *samples))
    np.testing.assert_allclose(found["W"], reference.kernel_step(params, tables, heads, features, M), **CLOSE)


@quick_jit
def of_every_loss(params, heads, features, lr_a):
    """The first head step and W⁺ by loss."""
    return {
        name: (
            updates.head_step(params, heads, (name,), lr_a)["A"],
            updates.one_step(params, heads, features, (name,), lr_a=lr_a)["W"],
        )
        for name in reference.LOSS_NAMES
    }


@given(seed=seeds)
@checked(10)
def test_first_steps_tend_to_those_of_the_linear_loss(seed):
    """At A = 0 the heads' gradient is −ℓ′(0) times the linear loss's; as η_a → 0, W⁺ is ℓ′(0)² times the linear W⁺
    of the same η_a, with a relative error of order η_a.
    """
    rng = np.random.default_rng(seed)
    params = numeric(draw_params(rng, 6, 5, 3, zero_heads=True))
    heads, features = exact(draw_sample(rng, 20, 6, 3)), exact(draw_sample(rng, 30, 6, 3))
    found = {lr_a: of_every_loss(params, heads, features, lr_a) for lr_a in (1e-3, 1e-4)}
    linear = {lr_a: found[lr_a]["linear"] for lr_a in found}
    assert np.abs(linear[1e-3][0]).max() > 1e-6
    for name, constant in reference.SLOPE_AT_ZERO.items():
        # The same sum of 20 terms, each scaled by a constant.
        np.testing.assert_allclose(found[1e-3][name][0], constant * linear[1e-3][0], rtol=1e-11, atol=1e-17)

        small, smaller = (
            np.linalg.norm(found[lr_a][name][1] - constant**2 * linear[lr_a][1])
            / np.linalg.norm(constant**2 * linear[lr_a][1])
            for lr_a in (1e-3, 1e-4)
        )
        # Margins are at most η_a ‖h‖², ‖h‖² < 20 here, and ℓ′ differs from ℓ′(0) by about as much; the sum of y x
        # may be small beside the terms, by a factor of up to 10.
        assert small < 200 * 1e-3
        if name in ("linear", "hinge"):
            assert small < 1e-9  # the same function inside the hinge's margin, up to rounding
        else:
            # The error is e₁η_a + e₂η_a², the second term at most a hundredth of the first.
            assert small > 1e-6
            assert smaller == pytest.approx(small / 10, rel=0.02)


@pytest.mark.parametrize("lr_a", [1.0, 2.0**-12, 2.0**-24])
def test_one_step_forgets_the_initial_weights_in_float32(lr_a):
    """With λ_w = 1/η_w nothing of W is in W⁺, not even its rounding, however small the step."""
    rng = np.random.default_rng(0)
    params = draw_params(rng, 6, 5, 3, zero_heads=True)
    heads, features = draw_sample(rng, 20, 6, 3), draw_sample(rng, 30, 6, 3)
    single = {name: np.float32(leaf) for name, leaf in params.items()}
    batches = [Batch(np.float32(x), np.float32(y), *y.shape) for x, y in (heads, features)]
    found = by_default(single, *batches, lr_a=lr_a)["W"]
    expected = reference.one_step(params, heads, features, lr_a=lr_a)["W"]
    # float32 (6e-8) in sums of 30 terms that cancel to a tenth of their size: relative to the largest weight.
    np.testing.assert_allclose(found / lr_a, expected / lr_a, rtol=0, atol=5e-6 * np.abs(expected).max() / lr_a)


@functools.partial(quick_jit, static_argnames=("names", "train_bias"))
def both_ways(params, heads, features, names, train_bias):
    knobs = {"lr_a": 0.3, "lr_w": 0.7, "shrink": 0.9, "train_bias": train_bias}
    one = updates.one_step(params, heads, features, names, **knobs)
    return one, updates.alternating_round(params, heads, features, names, head_steps=1, **knobs)


@pytest.mark.parametrize(("names", "train_bias"), [(("linear",), False), (MIXTURE, True)])
@given(seed=seeds)
@checked(5)
def test_one_step_is_one_round(names, train_bias, seed):
    """Of `alternating` with one head step, from A = 0."""
    rng = np.random.default_rng(seed)
    params = numeric(draw_params(rng, 6, 5, 3, zero_heads=True))
    heads, features = exact(draw_sample(rng, 20, 6, 3)), exact(draw_sample(rng, 30, 6, 3))
    one, a_round = both_ways(params, heads, features, names, train_bias)
    assert all(np.array_equal(one[name], a_round[name]) for name in one)
    assert not np.array_equal(one["W"], params["W"])


# Loops.

STEPS = 8


def stack(samples):
    """One Batch whose leaves have a leading axis over the samples of all steps."""
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *samples)


def at(batches, step):
    return jax.tree.map(lambda leaf: leaf[step], batches)


@functools.partial(quick_jit, static_argnames=("names", "head_steps", "train_bias", "record"))
def alternate(params, heads, features, lr_a, lr_w, shrink, names, head_steps, train_bias, record):
    def update(state, step):
        moved = updates.alternating_round(
            state[0],
            at(heads, step),
            at(features, step),
            names,
            lr_a=lr_a,
            lr_w=lr_w,
            shrink=shrink,
            head_steps=head_steps,
            train_bias=train_bias,
        )
        return moved, state[1]

    return updates.train(update, (params, ()), STEPS, record)[0]


@pytest.mark.parametrize(
    ("names", "head_steps", "train_bias", "shared", "split"),
    [
        (("logistic",), 1, False, True, False),
        (("hinge",), 2, True, True, True),
        (MIXTURE, 3, True, False, False),
        (("linear",), 2, False, False, True),
    ],
)
@given(seed=seeds, lr_a=tame, lr_w=tame, decay=st.floats(0, 0.5))
@checked(10)
def test_alternating(names, head_steps, train_bias, shared, split, seed, lr_a, lr_w, decay):
    """k head steps and one representation step a round, recorded at chosen rounds, in padded arrays."""
    rng = np.random.default_rng(seed)
    n, d, width, num_tasks = draw_sizes(rng)
    params = draw_params(rng, d, width, num_tasks, zero_heads=True)
    features = [draw_sample(rng, n, d, num_tasks, shared) for _ in range(STEPS)]
    heads = [draw_sample(rng, 41 - n, d, num_tasks, shared) for _ in range(STEPS)] if split else features
    record = (1, 3, 4, 8)
    found = alternate(
        numeric(pad_params(params)),
        *(stack([padded(rng, sample) for sample in samples]) for samples in (heads, features)),
        *(lr_a, lr_w, lr_w * decay, names, head_steps, train_bias, record),
    )
    rounds = zip(heads, features, strict=True)
    expected = reference.alternating(params, rounds, names, lr_a, lr_w, decay, head_steps, train_bias)
    for k, step in enumerate(record):
        assert_params(at(found, k), expected[step - 1])


@functools.partial(quick_jit, static_argnames=("names", "optimizer", "schedule", "train_bias"))
def jointly(params, batches, rotation, lr, momentum, decay, names, optimizer, schedule, train_bias):
    rule = optimizers.optimizer(
        optimizer,
        lr,
        schedule=schedule,
        steps=STEPS,
        momentum=momentum,
        weight_decay=decay,
        train_bias=train_bias,
        rotation=rotation,
    )

    def update(state, step):
        return updates.joint_update(*state, at(batches, step), names, rule)

    return updates.train(update, (params, rule.init(params)), STEPS, tuple(range(1, STEPS + 1)))[0]


def check_joint(seed, shared, optimizer, schedule, train_bias, rotate, names, decay, momentum=0.9, **tolerance):
    """Eight updates of random sizes in padded arrays, each compared."""
    rng = np.random.default_rng(seed)
    n, d, width, num_tasks = draw_sizes(rng)
    params = draw_params(rng, d, width, num_tasks)
    samples = [draw_sample(rng, n, d, num_tasks, shared) for _ in range(STEPS)]
    lr = float(rng.uniform(0.01, 0.05))
    Q = np.linalg.qr(rng.standard_normal((d, d)))[0] if rotate else np.eye(d)
    rotation = np.eye(MAX_D)
    rotation[:d, :d] = Q
    found = jointly(
        numeric(pad_params(params)),
        stack([padded(rng, sample) for sample in samples]),
        rotation,
        # float64 scalars: of a Python number and optax's float32 schedule, JAX makes a float32 rate.
        *(np.float64(lr), momentum, decay, names, optimizer, schedule, train_bias),
    )
    free = optimizer in reference.ROTATION_FREE
    expected = reference.joint(
        params, samples, names, optimizer, lr, schedule, momentum, decay, train_bias, None if free else Q
    )
    for k, step in enumerate(expected):
        assert_params(at(found, k), step, **(tolerance or CLOSE))
    if not train_bias:
        assert np.array_equal(found["b"][-1], pad_params(params)["b"])


SHAPES = ("constant", "linear", "cosine", "warmup_cosine")


@pytest.mark.parametrize(
    ("k", "optimizer"), list(enumerate(reference.COUPLED + reference.DECOUPLED)), ids=lambda value: str(value)
)
@given(seed=seeds, rotate=st.booleans(), decay=st.sampled_from([0.0, 0.3]), momentum=st.floats(0, 0.95))
@checked(20)
def test_joint(k, optimizer, rotate, seed, decay, momentum):
    """Every optimiser after every update; schedules, losses, trained bias and own inputs take turns."""
    names = [("logistic",), MIXTURE, ("squared",)][k % 3]
    # Of eight updates the linear schedule's rates are exact in the float32 that optax computes them in.
    check_joint(seed, k % 4 != 2, optimizer, SHAPES[k // 3 % 3], k % 2 == 0, rotate, names, decay, momentum)


@given(seed=seeds)
@checked(5)
def test_joint_with_warmup(seed):
    """The schedule whose rates optax rounds to float32: six digits of 1e-7 a rate, times rates and gradients."""
    check_joint(seed, True, "adamw", "warmup_cosine", False, True, ("logistic",), 0.3, rtol=1e-6, atol=1e-8)


def test_registries_are_covered():
    """What is in the registries is compared above."""
    assert set(OPTIMIZERS) == set(reference.COUPLED + reference.DECOUPLED)
    assert set(SCHEDULES) == set(SHAPES)
    assert {name for name, kind in OPTIMIZERS.items() if kind.equivariant} == set(reference.ROTATION_FREE)


@pytest.mark.parametrize("steps", [1, 2, 10, 11, 95])
@pytest.mark.parametrize("name", SHAPES)
def test_schedule(name, steps):
    """The rate of every update over its peak, never above it and never zero."""
    rates = np.array([SCHEDULES[name].shape(steps)(jnp.asarray(k)) for k in range(steps)], np.float64)
    expected = [reference.schedule(name, k, steps) for k in range(steps)]
    # float32: the cosine is off by 1e-7, its sum with 1 likewise, absolutely.
    np.testing.assert_allclose(rates, expected, atol=5e-7)
    assert rates.max() <= 1 + 1e-7
    assert rates.min() > 0


@given(seed=seeds)
@checked(5)
def test_gradient_descent_commutes_with_rotations(seed):
    """Training on x Qᵀ from W Qᵀ is training on x from W, so these optimisers need no `rotation`."""
    rng = np.random.default_rng(seed)
    params = draw_params(rng, MAX_D, MAX_WIDTH, MAX_T)
    samples = [draw_sample(rng, 10, MAX_D, MAX_T) for _ in range(STEPS)]
    Q = np.linalg.qr(rng.standard_normal((MAX_D, MAX_D)))[0]

    def run(params, samples):
        batches = stack([padded(rng, sample) for sample in samples])
        return jointly(numeric(params), batches, None, np.float64(0.05), 0.8, 0.1, MIXTURE, "nesterov", "cosine", True)

    plain = run(params, samples)
    turned = run(params | {"W": params["W"] @ Q.T}, [(x @ Q.T, y) for x, y in samples])
    np.testing.assert_allclose(turned["W"] @ Q, plain["W"], **CLOSE)
    np.testing.assert_allclose(turned["A"], plain["A"], **CLOSE)
    assert np.all(np.abs(plain["W"][-1] - plain["W"][0]).max(axis=1) > 1e-3)


@pytest.mark.parametrize("record", [(8,), (1,), (2, 3, 7), (1, 2, 3, 4, 5, 6, 7, 8)])
def test_record_keeps_the_chosen_updates(record):
    """What is recorded after k updates is what a run that stops at k gives, for updates that know their number."""
    start = {"W": jnp.ones((2, 3)), "b": jnp.zeros(2), "A": jnp.ones((4, 2))}

    def update(state, step):
        params, total = state
        return jax.tree.map(lambda leaf: 2 * leaf + step, params), total + step

    found = updates.train(update, (start, jnp.asarray(0)), 8, record)[0]
    assert jax.tree.map(jnp.shape, found) == {
        "W": (len(record), 2, 3),
        "b": (len(record), 2),
        "A": (len(record), 4, 2),
    }
    for k, stop in enumerate(record):
        state = (start, jnp.asarray(0))
        for step in range(stop):
            state = update(state, step)
        # Integers below 2^24: exact.
        assert all(np.array_equal(found[name][k], state[0][name]) for name in start)


def test_record_equals_shorter_runs():
    """Of `joint` with a schedule of 8 updates, stopped at each recorded one: Adam's state goes on unrecorded."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        params = numeric(draw_params(rng, MAX_D, MAX_WIDTH, MAX_T))
        batches = stack([padded(rng, draw_sample(rng, 20, MAX_D, MAX_T)) for _ in range(STEPS)])
        rule = optimizers.optimizer("adam", np.float64(0.03), schedule="cosine", steps=STEPS)

        @jax.jit
        def update(state, step):
            return updates.joint_update(*state, at(batches, step), ("logistic",), rule)

        found = updates.train(update, (params, rule.init(params)), STEPS, (2, 5, 8))[0]
        state = (params, rule.init(params))
        for step in range(STEPS):
            state = update(state, step)
            if step + 1 in (2, 5, 8):
                # The same operations in another compiled program.
                assert_params(at(found, (2, 5, 8).index(step + 1)), state[0])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_bias_that_is_not_trained_stays(optimizer):
    """And weight decay acts on W alone: where the gradient is zero, A and b do not move."""
    params = {"W": jnp.ones((2, 3)), "b": jnp.full(2, 0.5), "A": jnp.ones((4, 2))}
    grads = {"W": jnp.zeros((2, 3)), "b": jnp.ones(2), "A": jnp.zeros((4, 2))}
    rule = optimizers.optimizer(optimizer, 0.1, weight_decay=0.5)
    state = rule.init(params)
    moved = params
    update = quick_jit(rule.update)
    for _ in range(3):
        change, state = update(grads, state, moved)
        moved = {name: moved[name] + change[name] for name in moved}
    assert np.array_equal(moved["b"], params["b"])
    assert np.array_equal(moved["A"], params["A"])
    assert np.all(moved["W"] < params["W"])
