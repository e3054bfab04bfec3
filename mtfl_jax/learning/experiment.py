"""One cell of a sweep as a pure function: draw the tasks, train, measure, probe.

`Program` is everything that fixes the compiled program (names and padded sizes), `Cell` everything that does not
(true sizes and knobs). `experiment` maps (Program, Cell) to measurements and composes with `jax.jit` and `jax.vmap`.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from mtfl_jax.learning import data, draws, keys, limits, measures, moments, network, probe, tasks, updates
from mtfl_jax.learning.network import EXACT, Arithmetic, Params
from mtfl_jax.learning.tasks import Tasks
from mtfl_jax.learning.updates import Batch

ALGORITHMS = ("one_step", "alternating", "joint", "random_features", "oracle", "population")
TRAINED_IN_STEPS = ("alternating", "joint")

MEASURES = ("all", "recovery", "contrastive")
"""What is measured of a network: everything; or how well its first layer recovers the directions, and the probe; or
everything and the tasks' contrastive kernel.
"""

MAX_KERNEL_R = 6
"""Largest r whose contrastive kernel of 4^r numbers is measured."""

SIMILARITY_SAMPLES = 256
"""How many of the test samples feature_similarity and contrastive_loss compare pairwise."""


class Program(NamedTuple):
    """What a compiled program depends on: names, and sizes of arrays (at least the true sizes of its cells).

    `probes` are pairs of a classifier and the family of its task; each is fitted on every n_down. `measure`: one of
    MEASURES. `groups`, where not empty, make it a program of the moment path: a training gives a row for each of
    several (task family, r, width, num_tasks); a group (width, k) says that the next k of them have at most that width,
    and their families are among `families`. `arithmetic` is that of the training; measurements are in float32.
    """

    data: str
    tasks: str
    algorithm: str
    losses: tuple[str, ...]
    probes: tuple[tuple[str, str], ...]
    d: int
    r: int
    width: int
    num_tasks: int
    n1: int
    n2: int
    n_down: tuple[int, ...]
    n_test: int
    bias: str = "zero"
    shared_inputs: bool = True
    noisy: bool = False
    rotated: bool = False
    head_steps: int = 1
    split_batch: bool = False
    fixed_samples: bool = False
    optimizer: str = "sgd"
    schedule: str = "constant"
    steps: int = 1
    record: tuple[int, ...] = (1,)
    measure: str = "all"
    families: tuple[str, ...] = ()
    groups: tuple[tuple[int, int], ...] = ()
    arithmetic: Arithmetic = EXACT


ROWED = ("r", "width", "num_tasks", "parity_size", "family")
"""What the rows of a training differ in on the moment path."""


@struct.dataclass
class Cell:
    """True sizes and knobs of one training; every leaf may be traced.

    Scalars, but n_down (k,) and probe_parity_size (probes,), and on the moment path those of ROWED (rows,),
    family being a place among the program's families.
    `shrink` is η_w λ_w; parity sizes of 0 mean any non-empty subset, a probe's of −1 all r coordinates.
    """

    seed: Any
    d: Any
    r: Any
    width: Any
    num_tasks: Any
    n1: Any
    n2: Any
    n_down: Any
    nuisance_scale: Any = 1.0
    label_noise: Any = 0.0
    parity_size: Any = 0
    bias_scale: Any = 1.0
    lr_a: Any = 1.0
    lr_w: Any = 1.0
    shrink: Any = 1.0
    lr: Any = 0.01
    momentum: Any = 0.9
    weight_decay: Any = 0.0
    probe_parity_size: Any = 0
    family: Any = 0


def draw_tasks(p: Program, cell: Cell) -> Tasks:
    """The cell's training tasks."""
    key = keys.stream(cell.seed, "tasks")
    return tasks.sample(key, p.tasks, p.num_tasks, r=cell.r, max_r=p.r, size=cell.parity_size)


def draw_network(p: Program, cell: Cell) -> Params:
    """The network at initialisation."""
    key = keys.stream(cell.seed, "network")
    return network.initialise(
        key, p.d, p.width, p.num_tasks, d=cell.d, width=cell.width, bias=p.bias, bias_scale=cell.bias_scale
    )


def draw_inputs(p: Program, cell: Cell, key: Array, n: int | Array) -> Array:
    """n inputs of the cell's law (of an array n, those samples), (n, p.d)."""
    return data.inputs(key, p.data, n, p.d, r=cell.r, d=cell.d, nuisance_scale=cell.nuisance_scale)


def draw_labels(p: Program, cell: Cell, of: Tasks, key: Array, x: Array, *, noisy: bool) -> Array:
    """Labels (n, T) of inputs (n, d), each flipped with probability label_noise where `noisy`."""
    y = tasks.labels(of, data.orthants(x, cell.r, p.r))
    if not noisy:
        return y
    n, num_tasks = y.shape
    u = draws.uniform(key, num_tasks, n).T
    return jnp.where(u < cell.label_noise, -y, y)


def _inputs_key(cell: Cell, purpose: str, step: int | Array) -> Array:
    return keys.at(keys.stream(cell.seed, f"{purpose}/inputs"), step)


def draw_batch(p: Program, cell: Cell, of: Tasks, purpose: str, step: int | Array) -> Batch:
    """Training samples of one step: n1 for the purpose "heads", n2 for "features"; y is zero where padded."""
    at = 0 if p.fixed_samples else step
    inputs_key = _inputs_key(cell, purpose, at)
    noise_key = keys.at(keys.stream(cell.seed, f"{purpose}/label_noise"), at)
    max_n, n = (p.n1, cell.n1) if purpose == "heads" else (p.n2, cell.n2)
    if p.shared_inputs:
        x = draw_inputs(p, cell, inputs_key, max_n)
        y = draw_labels(p, cell, of, noise_key, x, noisy=p.noisy)
    else:
        x = jax.vmap(lambda key: draw_inputs(p, cell, key, max_n))(keys.indexed(inputs_key, p.num_tasks))
        noise_keys = keys.indexed(noise_key, p.num_tasks)

        def own_labels(task: Array, key: Array, x: Array) -> Array:
            return draw_labels(p, cell, Tasks(of.family, task[None]), key, x, noisy=p.noisy)[:, 0]

        y = jax.vmap(own_labels, out_axes=1)(of.params, noise_keys, x)
    counted = (jnp.arange(max_n) < n)[:, None] & (jnp.arange(p.num_tasks) < cell.num_tasks)
    return Batch(x, jnp.where(counted, y, 0), n, cell.num_tasks)


def representations(p: Program, cell: Cell, of: Tasks) -> tuple[Params, Array]:
    """The network after each recorded step, `Params` whose leaves have a leading axis len(p.record); and the first
    step whose network is not finite, 0 if none.
    """
    if p.algorithm in TRAINED_IN_STEPS:
        return _train(p, cell, of)
    params, _ = _at_once(p, cell, of)
    return jax.tree.map(lambda leaf: leaf[None], params), jnp.where(updates.finite(params), 0, 1)


def _at_once(p: Program, cell: Cell, of: Tasks) -> tuple[Params, Batch | None]:
    """The network of an algorithm without training steps, and the samples it saw last (the population limit: none)."""
    params = draw_network(p, cell)
    if p.algorithm == "population":
        tables = tasks.truth_tables(of, cell.r, p.r)
        tables = jnp.where(jnp.arange(p.num_tasks)[:, None] < cell.num_tasks, tables, 0)
        params = limits.population_step(
            keys.stream(cell.seed, "population"),
            params,
            tables,
            r=cell.r,
            max_r=p.r,
            num_tasks=cell.num_tasks,
            nuisance_scale=cell.nuisance_scale,
            signal=1 - 2 * cell.label_noise,
            lr_a=cell.lr_a,
            lr_w=cell.lr_w,
        )
        return params, None
    heads = draw_batch(p, cell, of, "heads", 0)
    if p.algorithm == "one_step":
        features = draw_batch(p, cell, of, "features", 0)
        rates = {"lr_a": cell.lr_a, "lr_w": cell.lr_w, "shrink": cell.shrink}
        return updates.one_step(
            params, heads, features, p.losses, **rates, train_bias=p.bias == "trained", how=p.arithmetic
        ), features
    if p.algorithm == "oracle":
        params = network.inside_span(params, cell.r, cell.d)
    return updates.head_step(params, heads, p.losses, cell.lr_a, p.arithmetic), heads


def _train(p: Program, cell: Cell, of: Tasks) -> tuple[Params, Array]:
    params = draw_network(p, cell)
    train_bias = p.bias == "trained"
    if p.algorithm == "alternating":

        def update(state: updates.State, step: Array) -> updates.State:
            features = draw_batch(p, cell, of, "features", step)
            heads = draw_batch(p, cell, of, "heads", step) if p.split_batch else features
            moved = updates.alternating_round(
                state[0],
                heads,
                features,
                p.losses,
                lr_a=cell.lr_a,
                lr_w=cell.lr_w,
                shrink=cell.shrink,
                head_steps=p.head_steps,
                train_bias=train_bias,
                how=p.arithmetic,
            )
            return moved, state[1]

        return updates.train(update, (params, ()), p.steps, p.record)

    rotation = None
    if p.rotated:
        rotation = data.rotation(keys.stream(cell.seed, "rotation"), cell.d, p.d)
    rule = updates.optimizer(
        p.optimizer,
        cell.lr,
        schedule=p.schedule,
        steps=p.steps,
        momentum=cell.momentum,
        weight_decay=cell.weight_decay,
        train_bias=train_bias,
        rotation=rotation,
    )

    def update_all(state: updates.State, step: Array) -> updates.State:
        return updates.joint_update(*state, draw_batch(p, cell, of, "features", step), p.losses, rule, p.arithmetic)

    return updates.train(update_all, (params, rule.init(params)), p.steps, p.record)


class Fresh(NamedTuple):
    """Inputs to measure with: `test` (n_test, d), and for the probes to be fitted on `downstream` (max n_down, d)."""

    test: Array
    downstream: Array | None


def draw_fresh(p: Program, cell: Cell) -> Fresh:
    """Fresh inputs."""
    test = draw_inputs(p, cell, keys.stream(cell.seed, "test"), p.n_test)
    if not p.probes:
        return Fresh(test, None)
    return Fresh(test, draw_inputs(p, cell, keys.stream(cell.seed, "downstream/inputs"), max(p.n_down)))


def measure(
    p: Program, cell: Cell, of: Tasks, params: Params, batch: Batch | None, fresh: Fresh | None = None
) -> dict[str, Array]:
    """The measurements of a network: scalars, but downstream_error (probes, k), feature_similarity (p.r + 1,)
    and contrastive_kernel (2^p.r, 2^p.r), zero beyond the 2^r orthants there are.

    `batch`: the samples of its last update, for train_loss (NaN without). Labels of fresh samples are clean.
    """
    W = params["W"]
    out = dict(measures.recovery(W, cell.r, p.r)._asdict())
    if p.measure == "recovery" and not p.probes:
        return out
    fresh = draw_fresh(p, cell) if fresh is None else fresh
    x, z = fresh.test, data.orthants(fresh.test, cell.r, p.r)
    if p.measure != "recovery":
        test = Batch(x, tasks.labels(of, z), p.n_test, cell.num_tasks)
        outputs = network.outputs(params, x)
        out["train_loss"] = jnp.asarray(jnp.nan) if batch is None else updates.objective(params, batch, p.losses)
        out["test_loss"] = updates.objective(params, test, p.losses)
        out["task_error"] = measures.task_error(outputs, test.y, cell.num_tasks)
        few = min(SIMILARITY_SAMPLES, p.n_test)
        h = network.features(params, x[:few])
        out["feature_similarity"] = measures.feature_similarity(h, z[:few], cell.r)
        out["contrastive_loss"] = measures.contrastive_loss(h, test.y[:few], cell.num_tasks)
    if p.measure == "contrastive":
        tables = tasks.truth_tables(of, cell.r, p.r)
        tables = jnp.where(jnp.arange(p.num_tasks)[:, None] < cell.num_tasks, tables, 0)
        out["contrastive_kernel"] = tasks.contrastive_kernel(tables, cell.num_tasks)

    if p.probes:
        sizes = jnp.where(cell.probe_parity_size < 0, cell.r, cell.probe_parity_size)
        out["downstream_error"] = jnp.stack(
            [_probe(p, cell, W, fresh, z, *of_probe, sizes[i]) for i, of_probe in enumerate(p.probes)]
        )
    return out


def _probe(p: Program, cell: Cell, W: Array, fresh: Fresh, z_test: Array, name: str, family: str, size: Array) -> Array:
    """Downstream test error at every n_down, (k,)."""
    assert fresh.downstream is not None
    task = tasks.sample(keys.stream(cell.seed, "downstream/task"), family, 1, r=cell.r, max_r=p.r, size=size)
    x, x_test = fresh.downstream, fresh.test
    y = draw_labels(p, cell, task, keys.stream(cell.seed, "downstream/label_noise"), x, noisy=p.noisy)[:, 0]
    y_test = tasks.labels(task, z_test)[:, 0]
    c = probe.biases(keys.stream(cell.seed, "downstream/biases"), p.width)
    return probe.downstream_errors(name, W, c, x, y, cell.n_down, p.n_down, cell.width, x_test, y_test)


def experiment(p: Program, cell: Cell) -> dict[str, Array]:
    """The measurements of one training; each value has a leading axis over p.record (length 1 without training steps),
    or over the rows of the moment path.

    `diverged_step` is the first step whose network was not finite, 0 at records before it.
    """
    if p.groups:
        return _by_moments(p, cell)
    of = draw_tasks(p, cell)
    if p.algorithm not in TRAINED_IN_STEPS:
        params, batch = _at_once(p, cell, of)
        out = measure(p, cell, of, params, batch) | {"diverged_step": jnp.where(updates.finite(params), 0, 1)}
        return jax.tree.map(lambda leaf: leaf[None], out)

    def recorded(at: tuple[Params, Array]) -> dict[str, Array]:
        params, step = at
        return measure(p, cell, of, params, draw_batch(p, cell, of, "features", step - 1))

    params, diverged = representations(p, cell, of)
    record = jnp.asarray(p.record)
    out = jax.lax.map(recorded, (params, record))
    return out | {"diverged_step": jnp.where(record >= diverged, diverged, 0)}


def _by_moments(p: Program, cell: Cell) -> dict[str, Array]:
    """`one_step` for every row of a training by one pass over its samples, which do not depend on the row."""
    first = dataclasses.replace(cell, r=cell.r[0], width=p.width, num_tasks=p.num_tasks)
    params, orthants = draw_network(p, first), 2**p.r

    def index(key: Array, n: int) -> Array:
        x = draw_inputs(p._replace(d=p.r), first, key, n)
        return tasks.orthant_index(data.orthants(x, p.r, p.r))

    key = _inputs_key(cell, "heads", 0)
    h = moments.head_table(params, draw_inputs(p, first, key, p.n1), index(key, p.n1), cell.n1, orthants)
    key = _inputs_key(cell, "features", 0)
    index_x = index(key, p.n2)
    blocks = moments.by_orthant(index_x, cell.n2, orthants)
    sorted_x = draw_inputs(p, first, key, blocks.sample.reshape(-1)).T
    table = moments.Moments(h, moments.feature_table(params, sorted_x, blocks, cell.n2, orthants))
    fresh = draw_fresh(p, first)
    x = draw_inputs(p, first, key, p.n2) if p.measure != "recovery" else None

    def tables(own: Cell, family: str) -> Array:
        # Of every orthant of p.r coordinates, by the first own.r of them.
        return tasks.labels(draw_tasks(p._replace(tasks=family), own), tasks.all_orthants(own.r, p.r)).T

    def tables_of(own: Cell) -> Array:
        return jax.lax.switch(own.family, [functools.partial(tables, own, name) for name in p.families])

    def row(q: Program, own: Cell, truth: Array, W: Array, A: Array) -> dict[str, Array]:
        used = jnp.arange(q.width) < own.width
        stepped = jax.tree.map(lambda leaf: jnp.where(used, leaf, 0), {"W": W.T, "b": params["b"][: q.width], "A": A})
        stepped["W"] = stepped["W"].T
        of = Tasks("uniform", truth)
        out = measure(q, own, of, stepped, None, fresh) | {"diverged_step": jnp.where(updates.finite(stepped), 0, 1)}
        if x is not None:
            # The mean of −y F, orthant by orthant: labels and heads are the same all over an orthant.
            after = moments.head_table(stepped, x, index_x, cell.n2, orthants)
            counted = jnp.where(jnp.arange(p.num_tasks)[:, None] < own.num_tasks, truth, 0)
            out["train_loss"] = -jnp.sum((counted.T @ A) * after) / own.num_tasks
        return out

    def rows(q: Program, own: dict[str, Array]) -> dict[str, Array]:
        def cell_of(own: dict[str, Array]) -> Cell:
            return dataclasses.replace(cell, **own)

        truth = jax.lax.map(lambda own: tables_of(cell_of(own)), own)
        counted = jnp.where(jnp.arange(p.num_tasks)[:, None] < own["num_tasks"][:, None, None], truth, 0)
        narrow = jax.tree.map(lambda leaf: leaf[:, : q.width], table)
        W, A = moments.one_step(narrow, counted, own["num_tasks"], cell.lr_a, cell.lr_w)
        return jax.lax.map(lambda each: row(q, cell_of(each[0]), *each[1:]), (own, truth, W, A))

    parts, at = [], 0
    for width, count in p.groups:
        q = p._replace(width=width)
        # In passes of equal length, the last filled up with copies of the last row.
        passes = -(-count // moments.ROWS)
        place = at + jnp.minimum(jnp.arange(passes * -(-count // passes)), count - 1).reshape(passes, -1)
        found = jax.lax.map(functools.partial(rows, q), {name: getattr(cell, name)[place] for name in ROWED})
        parts.append(jax.tree.map(lambda leaf, count=count: leaf.reshape(-1, *leaf.shape[2:])[:count], found))
        at += count
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def costs(p: Program, step: int) -> dict[str, float]:
    """num_params, train_samples and train_flops after `step` updates, for a program of true sizes.

    num_params counts what the learner holds: W, A and a bias that is random or trained. train_samples counts the
    distinct inputs seen. train_flops counts the matrix products of the updates, two a multiply-add: 2 n d width for
    the hidden layer, as much for ∇_W, and 2 n width T for each product with the heads. The hidden layer counts once
    where heads and representation share their samples.
    """
    num_params = p.width * (p.d + p.num_tasks + (p.bias != "zero"))
    copies = 1 if p.shared_inputs else p.num_tasks
    hidden, head = 2 * p.d * p.width * copies, 2 * p.width * p.num_tasks

    def head_steps(n: int, known: bool) -> int:
        first = 0 if known else hidden
        return n * (first + 2 * head * p.head_steps)

    representation = p.n2 * (2 * hidden + 2 * head)
    if p.algorithm == "one_step":
        # At A = 0 the outputs are known, so the head step takes one product with the heads.
        samples, flops = p.n1 + p.n2, p.n1 * (hidden + head) + representation
    elif p.algorithm in ("random_features", "oracle"):
        samples, flops = p.n1, p.n1 * (hidden + head)
    elif p.algorithm == "population":
        samples, flops = 0, 0
    else:
        own = p.algorithm == "alternating" and p.split_batch
        a_round = p.n2 + (p.n1 if own else 0)
        samples = a_round if p.fixed_samples else a_round * step
        if p.algorithm == "alternating":
            flops = step * (representation + head_steps(p.n1 if own else p.n2, known=not own))
        else:
            flops = step * p.n2 * (2 * hidden + 3 * head)
    return {"num_params": num_params, "train_samples": samples * copies, "train_flops": float(flops)}
