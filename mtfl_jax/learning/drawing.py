"""What a training draws, each from the seed and the name of its purpose: tasks, network, inputs, labels, batches."""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Integer, Key

from mtfl_jax.learning import data, draws, keys, network, tasks
from mtfl_jax.learning.losses import LOSSES, Margins
from mtfl_jax.learning.network import Params
from mtfl_jax.learning.program import Cell, Program, own
from mtfl_jax.learning.scalars import IntLike
from mtfl_jax.learning.tasks import FAMILIES, Tasks
from mtfl_jax.learning.updates import Batch, Parts, Samples, in_parts, split

PART = 256
"""Samples whose hidden layer an accelerator holds at a time, so that those of a batch of trainings stay on the chip."""


def losses_of(p: Program, cell: Cell) -> tuple[Margins, ...]:
    """The losses of the tasks in turn, with their settings."""
    return tuple(functools.partial(LOSSES[name].value, **own(p, cell, LOSSES[name].settings)) for name in p.losses)


def draw_tasks(p: Program, cell: Cell) -> Tasks:
    """The cell's training tasks."""
    key, settings = keys.stream(cell.seed, "tasks"), own(p, cell, FAMILIES[p.tasks].settings)
    return tasks.sample(key, p.tasks, p.num_tasks, r=cell.r, max_r=p.r, **settings)


def draw_network(p: Program, cell: Cell) -> Params:
    """The network at initialisation, its neurons shared among devices where the program is spread."""
    key = keys.stream(cell.seed, "network")
    scale = cell.bias_scale if p.bias == "random" else 0.0
    params = network.initialise(
        key, p.d, p.width, p.num_tasks, d=cell.d, width=cell.width, bias=p.bias, bias_scale=scale
    )
    return network.spread(params) if p.spread else params


def draw_inputs(p: Program, cell: Cell, key: Key[Array, ""], n: int | Integer[Array, " n"]) -> Float[Array, "n {p.d}"]:
    """n inputs of the cell's law; of an array n, those samples."""
    settings = own(p, cell, data.LAWS[p.data].settings)
    return data.inputs(key, p.data, n, p.d, r=cell.r, d=cell.d, nuisance_scale=cell.nuisance_scale, settings=settings)


def draw_read(
    p: Program,
    cell: Cell,
    key: Key[Array, ""],
    n: int | Integer[Array, " n"],
    x: Float[Array, "n d"] | None = None,
) -> Float[Array, "n _"]:
    """The coordinates whose signs labels read, p.r or more, of the inputs that `draw_inputs` draws: x, where that is
    given.
    """
    law = data.LAWS[p.data]
    hidden = data.hidden(key, p.data, n, p.r, r=cell.r, d=cell.d, settings=own(p, cell, law.settings))
    if hidden is not None:
        return hidden
    return draw_inputs(p.replace(d=p.r) if law.prefix else p, cell, key, n) if x is None else x


def draw_orthants(
    p: Program, cell: Cell, key: Key[Array, ""], n: int | Integer[Array, " n"], x: Float[Array, "n d"]
) -> Float[Array, "n {p.r}"]:
    """The orthants z of the inputs x that `draw_inputs` draws from the same key."""
    return data.orthants(draw_read(p, cell, key, n, x), cell.r, p.r)


def draw_labels(
    p: Program,
    cell: Cell,
    of: Tasks,
    key: Key[Array, ""],
    z: Float[Array, "n {p.r}"],
    *,
    noisy: bool,
    which: Integer[Array, " n"] | None = None,
) -> Float[Array, "n T"]:
    """Labels of orthants, of the samples `which` (default: the first), each flipped with probability label_noise where
    `noisy`.
    """
    y = tasks.labels(of, z)
    if not noisy:
        return y
    n, num_tasks = y.shape
    u = draws.uniform(key, num_tasks, n if which is None else which).T
    return jnp.where(u < cell.label_noise, -y, y)


def inputs_key(cell: Cell, purpose: str, step: IntLike) -> Key[Array, ""]:
    """The key of the inputs of a training step."""
    return keys.at(keys.stream(cell.seed, f"{purpose}/inputs"), step)


def draw_batch(
    p: Program, cell: Cell, of: Tasks, purpose: str, step: IntLike, which: Integer[Array, " n"] | None = None
) -> Batch:
    """Training samples of one step: n1 for the purpose "heads", n2 for "features", or those `which`; y is zero where
    padded.
    """
    key = inputs_key(cell, purpose, step)
    noise_key = keys.at(keys.stream(cell.seed, f"{purpose}/label_noise"), step)
    max_n, n = _sizes(p, cell, purpose)
    at = max_n if which is None else which
    if p.shared_inputs:
        x = draw_inputs(p, cell, key, at)
        z = draw_orthants(p, cell, key, at, x)
        y = draw_labels(p, cell, of, noise_key, z, noisy=p.noisy, which=which)
    else:
        own_keys, noise_keys = keys.indexed(key, p.num_tasks), keys.indexed(noise_key, p.num_tasks)
        x = jax.vmap(lambda key: draw_inputs(p, cell, key, at))(own_keys)
        z = jax.vmap(lambda key, x: draw_orthants(p, cell, key, at, x))(own_keys, x)

        def own_labels(
            task: Float[Array, " _"], key: Key[Array, ""], z: Float[Array, "max_n max_r"]
        ) -> Float[Array, " max_n"]:
            return draw_labels(p, cell, Tasks(of.family, task[None]), key, z, noisy=p.noisy, which=which)[:, 0]

        y = jax.vmap(own_labels, out_axes=1)(of.params, noise_keys, z)
    counted = ((jnp.arange(max_n) if which is None else which) < n)[:, None] & (
        jnp.arange(p.num_tasks) < cell.num_tasks
    )
    return Batch(x, jnp.where(counted, y, 0), n, cell.num_tasks)


def _sizes(p: Program, cell: Cell, purpose: str) -> tuple[int, IntLike]:
    """The padded and the true number of samples of a purpose; a program need not have that of the other."""
    return {"heads": lambda: (p.n1, cell.n1), "features": lambda: (p.n2, cell.n2)}[purpose]()


def _whole(p: Program) -> bool:
    """Whether the hidden layer of a batch is one array: on a core, and where kernels take it in tiles."""
    return not p.accelerator or p.arithmetic.kernel == "pallas"


def once_batch(p: Program, cell: Cell, of: Tasks, purpose: str) -> Samples:
    """The samples of the only step, on an accelerator drawn a part at a time."""
    max_n, _ = _sizes(p, cell, purpose)
    count, size = split(max_n, max_n if _whole(p) else PART)
    if count == 1:
        return draw_batch(p, cell, of, purpose, 0)
    return Parts(lambda i: draw_batch(p, cell, of, purpose, 0, i * size + jnp.arange(size)), count, cell.num_tasks)


def step_batch(p: Program, cell: Cell, of: Tasks, purpose: str, step: IntLike) -> Samples:
    """The samples of a step of a training in steps: new ones each, or those of the first where they are fixed."""
    batch = draw_batch(p, cell, of, purpose, 0 if p.fixed_samples else step)
    return batch if _whole(p) else in_parts(batch, PART)
