"""Real-valued targets: their functions, training on them and what is measured, against the NumPy reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from trainings import (
    CLOSE,
    assert_measurements,
    assert_networks,
    directions,
    draw_points,
    draw_sample,
    draw_tasks,
    float64,
    labels_of,
    learn,
    networks,
    training,
    whole,
)

import mtfl_jax
from mtfl_jax import compose
from mtfl_jax.fields import ConfigError
from mtfl_jax.learning import data, drawing, keys, losses, measuring, probe, targets, tasks
from mtfl_jax.learning.losses import LOSSES
from mtfl_jax.learning.tasks import FAMILIES

R, MAX_R, T = 3, 5, 7
HERMITE = {"hermite_1": 0.5, "hermite_2": -1.0, "hermite_3": 0.3, "hermite_4": 2.0}
SETTINGS = {
    "single_index": [HERMITE | {"directions": way} for way in (0, 1)],
    "multi_index": [HERMITE | {"directions": way, "hermite_product": 0.7, "indices": 2} for way in (0, 1)],
    "teacher": [
        {"teacher_units": 5, "teacher_shared": 2, "teacher_features": 0},
        {"teacher_units": 3, "teacher_shared": 2, "teacher_features": 1},
    ],
    "staircase": [{"degree": 2}, {"degree": -1}, {"degree": 0}],
    "monomial": [{"degree": 2}, {"degree": 0}],
    "polynomial": [{"degree": 2}, {"degree": 0}, {"degree": -1}],
}
"""Settings of every family of real labels, as a training has them."""
CASES = [(name, k) for name, every in SETTINGS.items() for k in range(len(every))]
REAL = [name for name, family in FAMILIES.items() if family.real]


@functools.cache
def drawn(name, k, count=T):
    """Tasks of r = R in padded arrays, float64."""
    sample = jax.jit(functools.partial(tasks.sample, family=name, num_tasks=count, max_r=MAX_R))
    return sample(keys.root(1), r=R, **SETTINGS[name][k])


@functools.cache
def of_points():
    return jax.jit(lambda of, x, r, max_r: tasks.of_inputs(of, data.Inputs(x, x), r, max_r), static_argnums=3)


@functools.cache
def tables_of():
    return jax.jit(lambda of: tasks.truth_tables(of, R, MAX_R))


def labels(of, x):
    return np.asarray(of_points()(of, jnp.asarray(np.pad(x, ((0, 0), (0, 2)))), R, MAX_R))


def by_definition(name, settings, params, u):
    """What the reference makes of one task, read off its params."""
    z = np.where(u >= 0, 1, -1)
    if name.endswith("_index"):
        count = settings.get("indices", 1)
        frame = params[5:].reshape(-1, MAX_R)
        assert not frame[:, R:].any()
        assert not frame[count:].any()
        frame = frame[:count, :R]
        np.testing.assert_allclose(frame @ frame.T, np.eye(count), atol=1e-14)
        assert set(np.unique(frame)) <= {0.0, 1.0} or not settings["directions"]
        return reference.index_target(u, frame, list(HERMITE.values()), settings.get("hermite_product", 0.0))
    if name == "teacher":
        a, V = params[: targets.MAX_UNITS], params[targets.MAX_UNITS :].reshape(-1, MAX_R)[:, :R]
        if settings["teacher_features"]:
            V = V[: settings["teacher_units"]]
            np.testing.assert_allclose(V @ V.T, np.eye(len(V)), atol=1e-14)
            np.testing.assert_allclose(np.abs(a[: len(V)]), 1 / np.sqrt(len(V)), rtol=1e-14)
        np.testing.assert_allclose(np.linalg.norm(V, axis=1), 1, rtol=1e-13)
        assert np.count_nonzero(a) == settings["teacher_units"]
        return reference.teacher_target(u, a[: len(V)], V)
    if name == "polynomial":
        return params[reference.orthant_indices(u, np.eye(R))]
    order = np.argsort(np.where(params > 0, params, np.inf), kind="stable")[: np.count_nonzero(params)]
    if name == "monomial":
        return z[:, order].prod(axis=1)
    return reference.staircase_target(z, order)


def test_every_real_family_is_tested_here():
    assert set(SETTINGS) == set(REAL)
    for name in REAL:
        for settings in SETTINGS[name]:
            assert set(settings) == {field.name for field in FAMILIES[name].settings}


@pytest.mark.parametrize(("name", "k"), CASES)
@float64
def test_labels_are_those_of_the_definition(name, k):
    u = np.random.default_rng(0).standard_normal((200, R))
    of, settings = drawn(name, k), SETTINGS[name][k]
    found = labels(of, u)
    for t, params in enumerate(np.asarray(of.params)):
        # Some ten operations of unit size; he_4 has a condition number of some hundred.
        np.testing.assert_allclose(found[:, t], by_definition(name, settings, params, u), rtol=1e-10, atol=1e-10)
    scaled = tasks.Tasks(name, of.params, jnp.asarray(2.5))
    np.testing.assert_allclose(labels(scaled, u), 2.5 * found, rtol=1e-14)


@pytest.mark.parametrize(("name", "k"), CASES)
@float64
def test_the_mean_square_is_one(name, k):
    """Over all orthants exactly; over normal u up to the error of a mean. But for teachers of orthonormal features,
    whose outputs are not scaled: there it is ½ and what the products of their units add.
    """
    of = drawn(name, k)
    if FAMILIES[name].signs:
        tables = np.asarray(tables_of()(of))[:, : 2**R]
        np.testing.assert_allclose((tables**2).mean(axis=1), 1, rtol=1e-12)
        return
    u = np.random.default_rng(1).standard_normal((100_000, R))
    square = labels(of, u) ** 2
    error = square.std(axis=0) / np.sqrt(len(u))
    expected = np.ones(T)
    if SETTINGS[name][k].get("teacher_features"):
        total = np.asarray(of.params)[:, : targets.MAX_UNITS].sum(axis=1)
        expected = 0.5 + (total**2 - 1) / (2 * np.pi)
    assert (abs(square.mean(axis=0) - expected) < 5 * error).all()
    assert (error < 0.1).all()


@float64
def test_degrees_of_polynomials():
    """The largest set with a coefficient is of the degree, which is uniform on 1 to r where any is allowed."""
    size = np.array([bin(S).count("1") for S in range(2**R)])

    def degrees(name, k, count):
        tables = np.asarray(tables_of()(drawn(name, k, count)))[:, : 2**R]
        c = np.array([reference.walsh(table) for table in tables])
        np.testing.assert_allclose((c**2).sum(axis=1), 1, rtol=1e-12)
        assert not c[:, 0].any() or abs(c[:, 0]).max() < 1e-14
        return np.where(abs(c) > 1e-13, size, 0).max(axis=1), c

    assert set(degrees("polynomial", 0, 50)[0]) == {2}
    assert set(degrees("polynomial", 2, 50)[0]) == {3}
    for name, k in (("polynomial", 1), ("staircase", 2)):
        found, _ = degrees(name, k, 600)
        # A count of 600 of probability 1/3 is 200 ± 11.5, five errors.
        assert abs(np.bincount(found, minlength=4)[1:] - 200).max() < 58
    # Every coefficient of degree at most 2 is normal before scaling: none of the six is larger than another.
    _, c = degrees("polynomial", 0, 600)
    shares = (c**2).mean(axis=0)[(size > 0) & (size < 3)]
    assert abs(shares - 1 / 6).max() < 5 * 0.2 / np.sqrt(600)


@float64
def test_teachers_share_the_features_that_they_are_told_to():
    """Tasks among each other, and with the downstream one of the same seed."""
    p, cell = training(tasks="teacher", loss="mse", teacher_units=4, teacher_shared=2)
    more = {"teacher_units": 4, "teacher_shared": 3, "teacher_features": 0}

    @jax.jit
    def both(cell):
        return drawing.draw_tasks(p, cell), drawing.sample_tasks(p, cell, "downstream/task", "teacher", 1, more)

    trained, down = both(cell)
    V, W = (np.asarray(of.params[:, targets.MAX_UNITS :]).reshape(len(of.params), -1, p.r) for of in (trained, down))
    assert (V[:, :2] == V[:1, :2]).all()
    assert (W[0, :2] == V[0, :2]).all()
    assert all((V[t, 2:] != V[0, 2:]).any() for t in range(1, len(V)))
    assert (W[0, 2] != V[0, 2]).any()
    other, _ = both(cell.replace(seed=cell.seed + 1))
    assert (np.asarray(other.params[0, targets.MAX_UNITS :]).reshape(-1, p.r)[:2] != V[0, :2]).any()


# Training and measuring

TRAININGS = {
    "one_step": {"tasks": "teacher", "teacher_shared": 1, "loss": "mse", "weight_decay": 0.2, "target_noise": 0.3},
    "one_step linear": {"tasks": "single_index", "loss": "linear", "shared_inputs": False},
    "alternating": {
        "algorithm": "alternating",
        "tasks": "staircase",
        "loss": "mixture",
        "losses": ["mse", "huber", "mae", "linear"],
        "huber_delta": 0.6,
        "lr_a": 0.05,
        "lr_w": 0.05,
        "weight_decay": 0.1,
        "target_scale": 1.7,
        "target_noise": 0.2,
        "bias": "random",
    },
    "joint": {"algorithm": "joint", "tasks": "multi_index", "loss": "huber", "optimizer": "sgd", "bias": "trained"},
}


@pytest.mark.parametrize(
    "which", [name if name == "alternating" else pytest.param(name, marks=pytest.mark.slow) for name in TRAININGS]
)
@float64
def test_training_on_real_labels(which):
    """Networks and all that is measured of them, of true sizes in padded arrays."""
    p, cell = training(data="gaussian", **{"algorithm": "one_step", **TRAININGS[which]})
    expected, trained_on = learn(p, cell)
    found = whole(p, cell)
    assert_networks(p, cell, networks(p, cell), expected)
    assert_measurements(p, cell, found, expected, trained_on, **CLOSE)
    assert "task_error" not in found


@float64
def test_noise_is_normal_of_its_size_and_on_no_test_sample():
    p, cell = training(
        padded={"n2": 4000, "n_test": 50},
        n2=4000,
        tasks="monomial",
        loss="mse",
        target_noise=0.5,
        target_scale=2.0,
    )
    x, y = draw_sample(p, cell, draw_tasks(p, cell), "features", 0)
    clean = labels_of(p, cell, x)
    assert set(np.unique(clean)) == {-2.0, 2.0}
    noise = y - clean
    # 16,000 normal numbers: mean and variance to five errors.
    assert abs(noise.mean()) < 5 * 0.5 / np.sqrt(noise.size)
    assert abs(noise.var() - 0.25) < 5 * 0.25 * np.sqrt(2 / noise.size)

    @jax.jit
    def tested(cell):
        of = drawing.draw_tasks(p, cell)
        return measuring.Seen(p, cell, of, {}, None, measuring.draw_fresh(p, cell).test).test.y

    assert set(np.unique(np.asarray(tested(cell))[: int(cell.n_test), : int(cell.num_tasks)])) == {-2.0, 2.0}


@float64
def test_the_ridge_probe_is_a_regression():
    """On real labels, by explicit leave-one-out, its penalty the same; and by the other way of solving."""
    settings = {"probe": "ridge", "probe_tasks": "single_index", "algorithm": "random_features", "measure": "recovery"}
    p, cell = training(data="gaussian", probe_hermite_3=0.5, probe_directions="axis", target_noise=0.1, **settings)
    found = whole(p, cell)
    assert "downstream_error" not in found
    x = draw_points(p, cell, keys.stream(cell.seed, "downstream/inputs"), max(p.n_down))
    x_test = draw_points(p, cell, keys.stream(cell.seed, "test"), p.n_test)[: int(cell.n_test)]
    W = np.asarray(networks(p, cell)["W"])[0, : int(cell.width), : int(cell.d)]
    c = np.asarray(probe.biases(keys.stream(cell.seed, "downstream/biases"), p.width))[: int(cell.width)]
    own = {field.name: getattr(cell, f"probe_{field.name}")[0] for field in FAMILIES["single_index"].settings}

    @jax.jit
    def drawn_task(cell, own, x):
        task = drawing.sample_tasks(p, cell, "downstream/task", "single_index", 1, own)
        noise_key = keys.stream(cell.seed, "downstream/label_noise")
        return task, drawing.draw_labels(p, cell, task, noise_key, data.Inputs(x, x), noisy=True)[:, 0]

    task, noisy = drawn_task(cell, own, jnp.pad(x, ((0, 0), (0, p.d - x.shape[1]))))
    v = np.asarray(task.params)[0, 5:].reshape(-1, p.r)[:, : int(cell.r)] @ directions(cell).T
    clean, y_test = (reference.index_target(points, v, [1.0, 1.0, 0.5, 0.0]) for points in (x, x_test))
    y = np.asarray(noisy)
    assert 0 < abs(y - clean).max() < 0.5
    for k, n in enumerate(cell.n_down):
        values = reference.ridge_probe(W, c, x[:n], y[:n], x_test, probe.PENALTIES)
        # As in tests/test_probe.py: coefficients to 1e-8 at condition numbers up to 1e7.
        assert found["downstream_r2"][0, 0, k] == pytest.approx(
            reference.r2(values[:, None], y_test[:, None]), abs=1e-6
        )


@pytest.mark.slow
def test_rows_have_the_measurements_that_mean_something():
    """Trained tasks and downstream ones of both kinds; what is not meant is missing."""
    sizes = {"d": 8, "r": 2, "width": 8, "num_tasks": 2, "n1": 32, "n2": 32, "n_down": 16, "n_test": 32, "seed": 0}
    both = ["parity", "teacher"]
    table = mtfl_jax.sweep(**sizes, data="gaussian", tasks=both, probe_tasks=both, loss="linear")
    real, down = table["tasks"] == "teacher", table["probe_tasks"] == "teacher"
    assert len(table) == 4
    assert (table["r2"].notna() == real).all()
    assert (table["task_error"].notna() == ~real).all()
    assert (table["downstream_r2"].notna() == down).all()
    assert (table["downstream_error"].notna() == ~down).all()
    assert (table["target_noise"].notna() == (real | down)).all()
    assert (table["teacher_units"].notna() == real).all()
    assert (table["probe_teacher_units"].notna() == down).all()
    row = table[real & down].iloc[0]
    found = mtfl_jax.train(**row)
    y, F = found.labels(found.x_test), found.outputs(found.x_test)
    # Float32 sums of 32 numbers.
    assert reference.r2(F.astype(float), y.astype(float)) == pytest.approx(row["r2"], rel=1e-3, abs=1e-5)
    with pytest.raises(ValueError, match="allowed: balanced"):
        _ = found.truth_table


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"loss": "hinge"}, "loss=hinge: hinge is of labels ±1; allowed with tasks=teacher: linear, mse, huber, mae"),
        (
            {"loss": "mixture", "losses": ["mse", "logistic"]},
            "losses=['mse', 'logistic']: logistic is of labels ±1; allowed with tasks=teacher: linear, mse, huber, mae",
        ),
        ({"label_noise": 0.1}, "label_noise=0.1: allowed with tasks=teacher: 0, or target_noise"),
        ({"algorithm": "population", "data": "gaussian"}, "tasks=teacher: allowed with algorithm=population: balanced"),
        ({"measure": "contrastive"}, "tasks=teacher: allowed with measure=contrastive: balanced"),
        ({"teacher_shared": 5}, "teacher_shared=5: allowed: from 0 to teacher_units=4"),
        (
            {"tasks": "parity", "probe_tasks": "teacher", "probe": "svm"},
            "probe=svm: a classifier; allowed with probe_tasks=teacher: ridge, finetune, scratch, multitask, head,",
        ),
        (
            {"teacher_features": "orthonormal", "teacher_units": 5},
            "teacher_units=5: allowed with teacher_features=orthonormal: from 1 to r=4",
        ),
        ({"tasks": "multi_index", "indices": 5}, "indices=5: allowed: from 1 to r=4"),
        (
            {"tasks": "multi_index", "indices": 1, "hermite_product": 1},
            "hermite_product=1.0: allowed with indices=1: 0",
        ),
        (
            {"tasks": "parity", "probe_tasks": "single_index", "probe_hermite_1": 0, "probe_hermite_2": 0},
            "probe_hermite_1=0.0: allowed: one of",
        ),
        ({"tasks": "staircase", "degree": 5}, "degree=5: allowed: any, all, or an integer from 1 to r=4"),
        ({"directions": "up"}, "directions=up: allowed: random, axis"),
        ({"hermite_1": "x"}, "hermite_1=x: allowed: a finite number"),
        ({"huber_delta": 0}, "huber_delta=0: allowed: a finite number from 1e-06"),
    ],
)
def test_what_means_nothing_is_refused(values, said):
    with pytest.raises(ConfigError) as refused:
        compose.from_keywords(**{"tasks": "teacher", **values})
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)


def test_shared_moments_are_of_labels_of_signs():
    with pytest.raises(ConfigError, match=r"^moments=always: tasks=staircase; allowed with algorithm=one_step: "):
        mtfl_jax.sweep(d=8, r=2, tasks="staircase", moments="always", seed=0)


def test_labels_of_signs_may_have_losses_of_any_target():
    for name, loss in LOSSES.items():
        if not loss.margin:
            compose.from_keywords(loss=name, tasks="parity", weight_decay=0.1)
    assert losses.LOSSES["squared"].margin
