"""Trainings of configs in padded arrays, and what the reference makes of the same draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from mtfl_jax import compose
from mtfl_jax.config import FIELDS
from mtfl_jax.kinds import PROBED
from mtfl_jax.learning import data, drawing, experiment, keys, probe, tasks
from mtfl_jax.learning.algorithms import ALGORITHMS
from mtfl_jax.learning.losses import LOSSES
from mtfl_jax.learning.measures import MEASURES, SIMILARITY_SAMPLES
from mtfl_jax.learning.program import Cell

# Both sides are float64 (eps 2.2e-16), a few updates of about 30 · 7 · 8 operations each, and singular subspaces
# whose gaps are of order 0.1: rounding amplified by less than 1e6.
CLOSE = {"rtol": 1e-9, "atol": 1e-11}

VALUES = {
    "seed": 3,
    "d": 7,
    "r": 2,
    "width": 8,
    "num_tasks": 4,
    "n1": 21,
    "n2": 26,
    "n_down": [10, 16],
    "n_test": 40,
    "steps": 4,
    "measure_at": [1, 2, 4],
    "nuisance_scale": 0.8,
    "bias_scale": 0.7,
    "lr_a": 0.9,
    "lr_w": 1.1,
    "lr": 0.03,
    "momentum": 0.8,
    "basis": "axis",
    "probe": "none",
}
PADDED = {
    "d": 9,
    "r": 3,
    "width": 10,
    "num_tasks": 5,
    "n1": 24,
    "n2": 30,
    "n_down": (12, 20),
    "n_test": 47,
}
"""Sizes of arrays; the true ones are those of VALUES."""


def number(name, value):
    """A setting as a program has it traced, in float64."""
    of = FIELDS[name].type
    return np.int32(of.number(value)) if of.whole else np.float64(of.number(value))


def training(padded=PADDED, **values):
    """The program and the cell of a config's settings, VALUES by default, in arrays of `padded` sizes."""
    c = compose.from_keywords(**{**VALUES, **values})
    p = c.program()
    p = p.replace(**{name: size for name, size in padded.items() if name in p and (name != "n_down" or p.probes)})
    numbers = {name: number(name, c.values[name]) for name in c.traced}
    if p.probes:
        numbers["n_down"] = np.array(c.n_down, np.int32)
        own = [PROBED + field.name for field in tasks.FAMILIES[c.probe_tasks].settings]
        own += _own(probe.PROBES[c.probe])
        numbers |= {name: number(name, c.values[name])[None] for name in own}
    return p, Cell(**numbers)


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
    return ALGORITHMS[p.algorithm].run(p, cell, drawing.draw_tasks(p, cell)).params


networks = quick_jit(learned, static_argnums=0)
whole = quick_jit(experiment.experiment, static_argnums=0)
_tasks = quick_jit(drawing.draw_tasks, static_argnums=0)
_batch = quick_jit(drawing.draw_batch, static_argnums=(0, 3))
_step_batch = quick_jit(drawing.step_batch, static_argnums=(0, 3))
_network = quick_jit(drawing.draw_network, static_argnums=0)
_inputs = quick_jit(drawing.draw_inputs, static_argnums=(0, 3))


def _of(whole, names):
    """A program or a cell with some of its values; the others would compile the same again."""
    return type(whole)(**{name: getattr(whole, name) for name in names})


def _own(record, kind="knob"):
    return [field.name for field in record.settings if (field.kind == "knob") == (kind == "knob")]


def draw_tasks(p, cell):
    """The training tasks."""
    own = [*_own(tasks.FAMILIES[p.tasks]), *(["target_scale"] if tasks.FAMILIES[p.tasks].real else [])]
    return _tasks(_of(p, ("tasks", "num_tasks", "r")), _of(cell, ("seed", "r", *own)))


def draw_sample(p, cell, of, purpose, step):
    """The samples of one step, of true size, as the reference takes them."""
    size = {"heads": "n1", "features": "n2"}[purpose]
    sizes, law = ("d", "r", "num_tasks", size), _own(data.LAWS[p.data])
    noisy, noise = ("target_noisy", "target_noise") if tasks.FAMILIES[p.tasks].real else ("noisy", "label_noise")
    stepped = ALGORITHMS[p.algorithm].stepped
    kind = ("samples", *(("batch",) * ("batch" in p))) if stepped else ()
    some = _of(p, (*sizes, "data", *_own(data.LAWS[p.data], "choice"), "shared_inputs", noisy, *kind))
    numbers = _of(cell, (*sizes, "seed", "nuisance_scale", noise, *law))
    batch = (_step_batch if stepped else _batch)(some, numbers, of, purpose, step)
    n, d, num_tasks = int(batch.n), int(cell.d), int(cell.num_tasks)
    whole = int(getattr(cell, size))
    if "batch" in p:
        starts = range(0, whole, p.batch)
        whole = min(p.batch, whole - starts[step % len(starts)])
    assert (n, int(batch.num_tasks)) == (whole, num_tasks)
    x = np.asarray(batch.x)[..., :n, :d]
    assert not np.any(np.asarray(batch.y)[n:])
    assert not np.any(np.asarray(batch.y)[:, num_tasks:])
    return x if x.ndim == 2 else x[:num_tasks], np.asarray(batch.y)[:n, :num_tasks]


def draw_network(p, cell):
    """The network at initialisation, of true size."""
    kind = [name for name in ("head_init", "parametrization") if name in p]
    scale = [name for name in ("bias_scale", "init_scale", "head_scale") if name in cell]
    scale += ["num_tasks"] * ("head_init" in p)
    some = _of(p, ("d", "width", "num_tasks", "bias", *kind))
    params = _network(some, _of(cell, ("seed", "d", "width", *scale)))
    width, d, num_tasks = int(cell.width), int(cell.d), int(cell.num_tasks)
    return reference.float64(
        {"W": params["W"][:width, :d], "b": params["b"][:width], "A": params["A"][:num_tasks, :width]}
    )


def draw_points(p, cell, key, n):
    """Inputs for a measurement, of true dimension."""
    numbers = _of(cell, ("r", "d", "nuisance_scale", *_own(data.LAWS[p.data])))
    return np.asarray(_inputs(_of(p, ("data", "d", *_own(data.LAWS[p.data], "choice"))), numbers, key, n))[
        :, : int(cell.d)
    ]


def directions(cell):
    """M = I[:, :r]."""
    return np.eye(int(cell.d))[:, : int(cell.r)]


def losses_of(p, cell):
    """The losses in turn as the reference names them: with the value of their knob where they have one."""
    own = {name: _own(LOSSES[name]) for name in p.losses}
    return tuple((name, float(getattr(cell, *own[name]))) if own[name] else name for name in p.losses)


EXPONENTS = {"standard": (0, 0), "ntk": (0, -1), "mean_field": (1, -1), "mup": (1, -1)}
"""Of the width in the rates of the first layer and of the heads, by gradient descent."""
UNIT_EXPONENTS = {"standard": (0, 0), "ntk": (-0.5, -1), "mean_field": (0, -1), "mup": (0, -1)}
"""Those by Adam and its kin."""


def factors_of(p, cell):
    """What the rates of the first layer and of the heads are multiplied by."""
    unit = p.algorithm == "joint" and p.optimizer not in reference.ROTATION_FREE
    own = (UNIT_EXPONENTS if unit else EXPONENTS)[p.parametrization if "parametrization" in p else "standard"]
    return [float(cell.width) ** power for power in own]


def powers_of(cell):
    """What lr_w or lr is multiplied by."""
    sizes = {"lr_d_power": "d", "lr_n_power": "n2", "lr_width_power": "width"}
    return np.prod([float(getattr(cell, size)) ** getattr(cell, name) for name, size in sizes.items() if name in cell])


def learn(p, cell):
    """What the reference learns from the same draws: the recorded networks, and the samples of train_loss."""
    of, params, losses = draw_tasks(p, cell), draw_network(p, cell), losses_of(p, cell)

    def sample(purpose, step):
        drawn = draw_sample(p, cell, of, purpose, step)
        return reference.without_low_degrees(drawn, p.remove_degree) if "remove_degree" in p else drawn

    how = {"activation": p.arithmetic.activation}
    train_bias = p.bias == "trained"
    if p.algorithm in ("random_features", "oracle"):
        # The representation is not trained; its heads take the first head step, so that outputs mean something.
        if p.algorithm == "oracle":
            params = reference.oracle(params, directions(cell))
        heads = sample("heads", 0)
        return [reference.head_step(params, heads, losses, float(cell.lr_a), **how)], [heads]
    decay = None if np.isnan(cell.weight_decay) else float(cell.weight_decay)
    first, own_heads = factors_of(p, cell)
    if p.algorithm != "joint":
        rates = (float(cell.lr_a) * own_heads, float(cell.lr_w) * powers_of(cell) * first)
    if p.algorithm == "one_step":
        heads, features = sample("heads", 0), sample("features", 0)
        if "head_init" in p:
            decay = 1 / rates[1] if decay is None else decay
            return reference.alternating(params, [(heads, features)], losses, *rates, decay, 1, train_bias, **how), [
                features
            ]
        return [reference.one_step(params, heads, features, losses, *rates, decay, train_bias, **how)], [features]
    features = [sample("features", step) for step in range(p.steps)]
    assert np.array_equal(features[0][0], features[1][0]) == (p.samples == "fixed")
    bounds = {"clip": float(cell.clip) if "clip" in cell else None, "weight_norm": "weight_norm" in p}
    if p.algorithm == "alternating":
        heads = [sample("heads", step) for step in range(p.steps)] if p.split_batch else features
        rounds = zip(heads, features, strict=True)
        history = reference.alternating(
            params, rounds, losses, *rates, decay, p.head_steps, train_bias, **how, **bounds
        )
    else:
        assert p.algorithm == "joint"
        Q = None
        if p.optimizer not in reference.ROTATION_FREE and p.rotated:
            key = keys.stream(cell.seed, "rotation")
            Q = np.asarray(data.rotation(key, cell.d, p.d))[: int(cell.d), : int(cell.d)]
        momentum = float(cell.momentum) if p.optimizer in ("momentum", "nesterov") else None
        history = reference.joint(
            params,
            features,
            losses,
            p.optimizer,
            float(cell.lr) * powers_of(cell),
            p.schedule,
            momentum,
            decay,
            train_bias,
            Q,
            **how,
            factors=(first, own_heads),
            **bounds,
        )
    if "stop_when" in p:
        history, features = stopped(p, cell, history, features)
    return [history[k - 1] for k in p.record], [features[k - 1] for k in p.record]


def stopped(p, cell, history, features):
    """Networks after each update, and the samples of each, of which those after a stop are those at it."""
    at = stop(p, cell, history, features)
    return ([*own[:at], *[own[at - 1]] * (len(own) - at)] if at else own for own in (history, features))


def looked_at(p, cell, params, trained_on):
    """What `stop_when` is of a network."""
    if p.stop_when == "train_loss":
        return reference.objective(params, trained_on, losses_of(p, cell), p.arithmetic.activation)
    return measured(p, cell, params, trained_on)[p.stop_when]


def stop(p, cell, history, features):
    """The number of updates after which the threshold is seen to be met, 0 if it is not."""
    for k in range(p.stop_every, len(history) + 1, p.stop_every):
        value = looked_at(p, cell, history[k - 1], features[k - 1])
        if (value <= cell.stop_at) if MEASURES[p.stop_when].stops == "below" else (value >= cell.stop_at):
            return k
    return 0


def tables_of(p, cell):
    """Truth tables of the training tasks, of true size."""
    of = draw_tasks(p, cell)
    tables = of.params * of.scale if tasks.FAMILIES[p.tasks].table else tasks.truth_tables(of, int(cell.r), p.r)
    return np.asarray(tables)[: int(cell.num_tasks), : 2 ** int(cell.r)]


def labels_of(p, cell, x):
    """Labels of inputs without noise, looked up in the tasks' tables where they have some."""
    if tasks.FAMILIES[p.tasks].signs:
        return tables_of(p, cell)[:, reference.orthant_indices(x, directions(cell))].T
    r, num_tasks = int(cell.r), int(cell.num_tasks)
    u = np.pad(x @ directions(cell), ((0, 0), (0, p.r - r)))
    return np.asarray(tasks.labels(draw_tasks(p, cell), jnp.asarray(u)))[:, :num_tasks]


def measured(p, cell, params, trained_on):
    """The reference's measurements of one network; labels looked up in the tasks' tables."""
    M, losses, activation = directions(cell), losses_of(p, cell), p.arithmetic.activation
    x = draw_points(p, cell, keys.stream(cell.seed, "test"), p.n_test)[: int(cell.n_test)]
    y = labels_of(p, cell, x)
    F = reference.outputs(params, x, activation)
    values = dict(
        zip(
            ("subspace_distance", "directions_recovered", "feature_energy", "spectral_ratio"),
            reference.recovery(params["W"], M),
            strict=True,
        )
    )
    few = x[:SIMILARITY_SAMPLES]
    h = reference.hidden(params, few, activation)[1]
    similarity = reference.feature_similarity(h, np.where(few @ M >= 0, 1, -1))
    if p.measure == "representation":
        start = draw_network(p, cell)
        bias = p.bias == "trained"
        own = reference.representation(params, start, x, y, M, SIMILARITY_SAMPLES, activation, bias)
        # Values beyond the true r's are of a padded one.
        sigma = np.linalg.svd(params["W"], compute_uv=False)
        values |= own | {"singular_values": np.pad(sigma, (0, 2 * p.r))[: 2 * p.r]}
    return values | {
        "train_loss": reference.objective(params, trained_on, losses, activation),
        "test_loss": reference.objective(params, (x, y), losses, activation),
        **({"r2": reference.r2(F, y)} if tasks.FAMILIES[p.tasks].real else {"task_error": reference.task_error(F, y)}),
        "contrastive_loss": reference.contrastive_loss(h, y[: len(h)]),
        "feature_similarity": np.concatenate([similarity, np.full(p.r - int(cell.r), np.nan)]),
    }


def assert_networks(p, cell, found, expected):
    """W, b and A after every recorded update, of true sizes in padded arrays."""
    width, d, num_tasks = int(cell.width), int(cell.d), int(cell.num_tasks)
    shapes = {"W": (width, d), "b": (width,), "A": (num_tasks, width)}
    assert set(found) == set(shapes)
    for name, shape in shapes.items():
        leaf = np.asarray(found[name])
        used = leaf[(slice(None), *map(slice, shape))]
        assert len(leaf) == len(p.record)
        np.testing.assert_allclose(used, [params[name] for params in expected], err_msg=name, **CLOSE)
        assert np.count_nonzero(leaf) == np.count_nonzero(used)


def assert_measurements(p, cell, found, expected, trained_on, **tolerance):
    """Every recorded network's measurements; `expected` are the networks."""
    assert all(len(value) == len(p.record) for value in found.values())
    for k, params in enumerate(expected):
        values = measured(p, cell, params, trained_on[k])
        assert set(found) - {"downstream_error", "downstream_r2", "diverged_step"} == set(values)
        for name, value in values.items():
            np.testing.assert_allclose(found[name][k], value, err_msg=name, **tolerance)


def assert_ridge_probe(p, cell, found, params):
    """The ridge probe's error on a parity of all directions, by explicit leave-one-out; a smaller n_down is a prefix
    of the largest sample.
    """
    width, M = int(cell.width), directions(cell)

    def parity(x):
        return np.prod(np.where(x @ M >= 0, 1, -1), axis=1)

    x = draw_points(p, cell, keys.stream(cell.seed, "downstream/inputs"), max(p.n_down))
    c = np.asarray(probe.biases(keys.stream(cell.seed, "downstream/biases"), p.width))[:width]
    test = draw_points(p, cell, keys.stream(cell.seed, "test"), p.n_test)[: int(cell.n_test)]
    assert found["downstream_error"].shape == (1, 1, 2)
    for k, n in enumerate(cell.n_down):
        labelled = x[:n], parity(x[:n]), test, parity(test)
        error = reference.ridge_probe_error(params["W"], c, *labelled, probe.PENALTIES, p.arithmetic.activation)
        # A count over n_test: equal unless a decision is within rounding of 0.
        assert found["downstream_error"][0, 0, k] == pytest.approx(error, abs=1e-6)
