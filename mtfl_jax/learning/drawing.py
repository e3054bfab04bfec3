"""What a training draws, each from the seed and the name of its purpose: tasks, network, inputs, labels, batches."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Integer, Key

from mtfl_jax.fields import Field, one_of
from mtfl_jax.learning import data, draws, keys, network, parametrizations, removal, tasks
from mtfl_jax.learning.data import Inputs
from mtfl_jax.learning.initial import HEAD_INITS
from mtfl_jax.learning.losses import LOSSES, Pointwise
from mtfl_jax.learning.network import Params
from mtfl_jax.learning.program import Cell, Program, own
from mtfl_jax.learning.scalars import IntLike
from mtfl_jax.learning.tasks import FAMILIES, Tasks
from mtfl_jax.learning.updates import Batch, Parts, Samples, in_parts, split

TRAINING = "training"
DOWN_SAMPLES = Field(
    "down_samples",
    "choice",
    one_of("fresh", TRAINING),
    "inputs of the downstream task: new ones, or those of the representation's first step (and beyond n2 new ones)",
    neutral="fresh",
)
FRESH, FIXED, BATCHES = SAMPLES = ("fresh", "fixed", "batches")
"""Where a training in steps has its samples from: new ones every step; one set; or `batch` of one set at a time, each
once an epoch in a random order of its own, the last batch of an epoch having what is left.
"""
PART = 256
"""Samples whose hidden layer an accelerator holds at a time, so that those of a batch of trainings stay on the chip."""


def losses_of(p: Program, cell: Cell) -> tuple[Pointwise, ...]:
    """The losses of the tasks in turn, with their settings."""
    return tuple(functools.partial(LOSSES[name].of, **own(p, cell, LOSSES[name].settings)) for name in p.losses)


def draw_tasks(p: Program, cell: Cell) -> Tasks:
    """The cell's training tasks."""
    settings = own(p, cell, FAMILIES[p.tasks].settings)
    return sample_tasks(p, cell, "tasks", p.tasks, p.num_tasks, settings)


def sample_tasks(
    p: Program, cell: Cell, purpose: str, family: str, num_tasks: int, settings: Mapping[str, Any]
) -> Tasks:
    """Tasks of a family for a purpose; what tasks have in common is the same for all purposes."""
    key, common = (keys.stream(cell.seed, name) for name in (purpose, "tasks/common"))
    more = {"scale": cell.target_scale} if FAMILIES[family].real else {}
    return tasks.sample(key, family, num_tasks, r=cell.r, max_r=p.r, common=common, **more, **settings)


def draw_network(p: Program, cell: Cell) -> Params:
    """The network before any update, its neurons shared among devices where the program is spread."""
    params = _without_heads(p, cell, "network", p.num_tasks)
    if "head_init" in p:
        make, deviation = HEAD_INITS[p.head_init].make, parametrizations.deviation(p, cell)
        params = make(params, keys.named(keys.stream(cell.seed, "network"), "heads"), cell.width, deviation)
        params |= {"A": jnp.where((jnp.arange(p.num_tasks) < cell.num_tasks)[:, None], params["A"], 0)}
    return network.spread(params) if p.spread else params


def draw_other_network(p: Program, cell: Cell, purpose: str) -> Params:
    """A network of one head, which is zero, its hidden layer drawn anew for a purpose from the law of the trained
    network's.
    """
    params = _without_heads(p, cell, purpose, 1)
    return network.spread(params) if p.spread else params


def _without_heads(p: Program, cell: Cell, purpose: str, num_tasks: int) -> Params:
    key = keys.stream(cell.seed, purpose)
    scale = cell.bias_scale if p.bias == "random" else 0.0
    params = network.initialise(key, p.d, p.width, num_tasks, d=cell.d, width=cell.width, bias=p.bias, bias_scale=scale)
    return params | {"W": cell.init_scale * params["W"]} if "init_scale" in cell else params


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


def read(p: Program, cell: Cell, key: Key[Array, ""], n: int | Integer[Array, " n"], x: Float[Array, "n d"]) -> Inputs:
    """The inputs x that `draw_inputs` draws from the same key, with what labels read of them."""
    return Inputs(x, draw_read(p, cell, key, n, x))


def draw_labels(
    p: Program,
    cell: Cell,
    of: Tasks,
    key: Key[Array, ""],
    inputs: Inputs,
    *,
    noisy: bool,
    which: Integer[Array, " n"] | None = None,
) -> Float[Array, "n T"]:
    """Labels of inputs, of the samples `which` (default: the first); where `noisy`, with noise: each flipped with
    probability label_noise, or a real one with a normal number of standard deviation target_noise added.
    """
    y = tasks.of_inputs(of, inputs, cell.r, p.r)
    if not noisy:
        return y
    n, num_tasks = y.shape
    columns = n if which is None else which
    if FAMILIES[of.family].real:
        return y + cell.target_noise * draws.normal(key, num_tasks, columns).T
    u = draws.uniform(key, num_tasks, columns).T
    return jnp.where(u < cell.label_noise, -y, y)


def noise(p: Program, of: Tasks) -> bool:
    """Whether labels of a family are drawn with noise where they are trained or fitted on."""
    return bool(p.target_noisy if FAMILIES[of.family].real else p.noisy)


def inputs_key(cell: Cell, purpose: str, step: IntLike) -> Key[Array, ""]:
    """The key of the inputs of a training step."""
    return keys.at(keys.stream(cell.seed, f"{purpose}/inputs"), step)


def downstream_keys(p: Program, cell: Cell) -> tuple[Key[Array, ""], Key[Array, ""]]:
    """The keys of the inputs that probes are fitted on, and of their labels' noise: where those are of the training,
    the representation's at its first step; of tasks whose inputs are their own, the first task's.
    """
    if "down_samples" not in p:
        return keys.stream(cell.seed, "downstream/inputs"), keys.stream(cell.seed, "downstream/label_noise")
    found = inputs_key(cell, "features", 0), keys.at(keys.stream(cell.seed, "features/label_noise"), 0)
    if "shared_inputs" in p and not p.shared_inputs:
        return keys.indexed(found[0], 1)[0], keys.indexed(found[1], 1)[0]
    return found


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
        y = draw_labels(p, cell, of, noise_key, read(p, cell, key, at, x), noisy=noise(p, of), which=which)
    else:
        own_keys, noise_keys = keys.indexed(key, p.num_tasks), keys.indexed(noise_key, p.num_tasks)
        x = jax.vmap(lambda key: draw_inputs(p, cell, key, at))(own_keys)
        inputs = jax.vmap(lambda key, x: read(p, cell, key, at, x))(own_keys, x)

        def own_labels(task: Float[Array, " _"], key: Key[Array, ""], inputs: Inputs) -> Float[Array, " max_n"]:
            return draw_labels(
                p, cell, Tasks(of.family, task[None], of.scale), key, inputs, noisy=noise(p, of), which=which
            )[:, 0]

        y = jax.vmap(own_labels, out_axes=1)(of.params, noise_keys, inputs)
    counted = ((jnp.arange(max_n) if which is None else which) < n)[:, None] & (
        jnp.arange(p.num_tasks) < cell.num_tasks
    )
    return Batch(x, jnp.where(counted, y, 0), n, cell.num_tasks, counted)


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
        return _removed(p, draw_batch(p, cell, of, purpose, 0))

    def part(i: IntLike) -> Batch:
        return draw_batch(p, cell, of, purpose, 0, i * size + jnp.arange(size))

    return _removed(p, Parts(part, count, cell.num_tasks))


def _removed(p: Program, batch: Samples) -> Samples:
    """Samples as they are trained on."""
    return removal.without(p.remove_degree, batch) if "remove_degree" in p else batch


def step_batch(p: Program, cell: Cell, of: Tasks, purpose: str, step: IntLike) -> Samples:
    """The samples of a step of a training in steps, as `SAMPLES` has them."""
    if p.samples == BATCHES:
        which, count = _in_epochs(p, cell, purpose, step)
        batch = draw_batch(p, cell, of, purpose, 0, which)._replace(n=count)
    else:
        batch = draw_batch(p, cell, of, purpose, 0 if p.samples == FIXED else step)
    return _removed(p, batch if _whole(p) else in_parts(batch, PART))


def _in_epochs(
    p: Program, cell: Cell, purpose: str, step: IntLike
) -> tuple[Integer[Array, " {p.batch}"], Integer[Array, ""]]:
    """Which samples of the set a step takes, and how many they are; the others are none of the set's."""
    max_n, n = _sizes(p, cell, purpose)
    epoch, i = jnp.divmod(jnp.asarray(step), -(-jnp.asarray(n) // p.batch))
    place = i * p.batch + jnp.arange(p.batch)
    order = keys.at(keys.stream(cell.seed, f"{purpose}/order"), epoch)
    which = jnp.where(place < n, draws.shuffled(order, n, place), max_n)
    return which, jnp.minimum(p.batch, n - i * p.batch)
