"""Networks whose weights are all trained on the downstream samples, from pretrained ones or from a new draw, alone or
with the training tasks.

F(x) = aᵀ σ(W x + b) starts at a = 0 and takes full-batch steps of gradient descent on ½ (F − y)², averaged over the
samples, in W, a and a trained b together. Labels ±1 are regressed on too, as by the ridge probe.

Source: fine-tuning after rescaling the pretrained weights, beside multi-task and single-task training, is that of Lippl
and Lindsey 2024, *Inductive biases of multi-task learning and finetuning*. The head at zero and the norm of the weights
that are not merely multiplied are ours. Its multi-task loss is the mean over all samples of all tasks, as here, but of
128 of them at a time, where ours is of all.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from mtfl_jax.fields import Field, flag, integer, number
from mtfl_jax.learning import updates
from mtfl_jax.learning.arithmetic import Arithmetic
from mtfl_jax.learning.network import Params
from mtfl_jax.learning.scalars import IntLike, RealLike
from mtfl_jax.learning.updates import Batch, Samples

LOSS = "mse"


class Beginning(NamedTuple):
    """What a network may begin from. trained: W and b as pretrained; fresh: drawn anew, from the law of an initialised
    network; of both A is (1, max_width) and zero. width: the true one. train_bias: whether b is trained. batch: the
    samples of the training tasks at the last update.
    """

    trained: Params
    fresh: Params
    width: IntLike
    activation: str
    train_bias: bool
    batch: Samples | None = None


Tune = Callable[..., Params]
"""tune(beginning, x, y, n, **settings): the network that is fitted on the first n samples, A being (1, max_width)."""


def multiplied(params: Params, factor: RealLike) -> Params:
    """The hidden layer multiplied: W and b."""
    return params | {name: factor * params[name] for name in ("W", "b")}


def of_unit_norm(params: Params, width: IntLike) -> Params:
    """W and b divided by the root mean square norm of the `width` rows of W, which is then 1 as in expectation at
    initialisation; as they are where W is zero.
    """
    # In two steps, so that squares of tiny or huge weights stay representable.
    largest = jnp.max(jnp.abs(params["W"]))
    params = multiplied(params, 1 / jnp.where(largest > 0, largest, 1))
    norm = jnp.sqrt(jnp.sum(params["W"] ** 2) / width)
    return multiplied(params, 1 / jnp.where(norm > 0, norm, 1))


def descended(
    start: Params, gradient: Callable[[Params], Params], *, steps: int, lr: RealLike, train_bias: bool
) -> Params:
    """`steps` steps at the rate `lr` against gradient(weights) of W, A and a trained b, of which weights are."""
    moved = ("W", "A", "b") if train_bias else ("W", "A")

    def step(_: Int[Array, ""], weights: Params) -> Params:
        grads = gradient(weights)
        return {name: weights[name] - lr * grads[name] for name in moved}

    return start | jax.lax.fori_loop(0, steps, step, {name: start[name] for name in moved})


def descend(
    params: Params,
    batch: Batch,
    *,
    steps: int,
    lr: RealLike,
    activation: str,
    train_bias: bool,
) -> Params:
    """`steps` steps of full-batch gradient descent at the rate `lr` on W, A and a trained b of the network."""
    how = Arithmetic(activation=activation)

    def loss(weights: Params) -> Float[Array, ""]:
        return updates.objective(params | weights, batch, (LOSS,), how)

    return descended(params, jax.grad(loss), steps=steps, lr=lr, train_bias=train_bias)


def _fitted(
    of: Beginning,
    start: Params,
    x: Float[Array, "max_n d"],
    y: Float[Array, " max_n"],
    n: IntLike,
    steps: int,
    lr: RealLike,
) -> Params:
    batch = Batch(x, y[:, None], n, 1)
    return descend(start, batch, steps=steps, lr=lr, activation=of.activation, train_bias=of.train_bias)


def finetune(
    of: Beginning,
    x: Float[Array, "max_n d"],
    y: Float[Array, " max_n"],
    n: IntLike,
    *,
    tune_steps: int,
    tune_lr: RealLike,
    tune_scale: RealLike,
    tune_norm: bool,
) -> Params:
    """From the pretrained weights times `tune_scale`, divided by their norm first where `tune_norm`."""
    start = of_unit_norm(of.trained, of.width) if tune_norm else of.trained
    return _fitted(of, multiplied(start, tune_scale), x, y, n, tune_steps, tune_lr)


def scratch(
    of: Beginning,
    x: Float[Array, "max_n d"],
    y: Float[Array, " max_n"],
    n: IntLike,
    *,
    tune_steps: int,
    tune_lr: RealLike,
    tune_scale: RealLike,
) -> Params:
    """From a new draw of an initialised network times `tune_scale`."""
    return _fitted(of, multiplied(of.fresh, tune_scale), x, y, n, tune_steps, tune_lr)


def multitask(
    of: Beginning,
    x: Float[Array, "max_n d"],
    y: Float[Array, " max_n"],
    n: IntLike,
    *,
    tune_steps: int,
    tune_lr: RealLike,
    tune_scale: RealLike,
) -> Params:
    """From a new draw of an initialised network times `tune_scale`, on the training tasks' samples and these together,
    each task with a head: the mean over all of ½ (F − y)². The training's labels are those it was trained on.
    """
    assert of.batch is not None
    batch, own = of.batch, Batch(x, y[:, None], n, 1)
    first = batch if isinstance(batch, Batch) else batch.of(0)
    count, how = first.n * first.num_tasks + n, Arithmetic(activation=of.activation)
    start = multiplied(of.fresh, tune_scale)
    # The heads of the training tasks, then that of the downstream one.
    start |= {"A": jnp.zeros((first.y.shape[1] + 1, start["A"].shape[1]), start["A"].dtype)}

    def total(weights: Params, part: Batch, heads: slice) -> Float[Array, ""]:
        params = start | weights
        return part.n * jnp.sum(updates.task_losses(params | {"A": params["A"][heads]}, part, (LOSS,), how))

    def gradient(weights: Params) -> Params:
        both = (
            updates.summed(lambda part: jax.grad(total)(weights, part, slice(-1)), batch),
            jax.grad(total)(weights, own, slice(-1, None)),
        )
        return jax.tree.map(lambda *grads: sum(grads) / count, *both)

    found = descended(start, gradient, steps=tune_steps, lr=tune_lr, train_bias=of.train_bias)
    return found | {"A": found["A"][-1:]}


SETTINGS = (
    Field("tune_steps", "shape", integer(1, examples=(1, 2, 4)), "steps of gradient descent on the downstream samples"),
    Field(
        "tune_lr",
        "knob",
        number(0, examples=(0.0, 0.1, 0.3)),
        "learning rate of all weights on the downstream samples",
    ),
    Field(
        "tune_scale",
        "knob",
        number(0, examples=(0.3, 1.0, 2.0)),
        "what first-layer weights are multiplied by before training on the downstream samples",
    ),
)
"""Of every network that is trained on the downstream samples."""

NORM = Field(
    "tune_norm",
    "choice",
    flag(),
    "whether pretrained weights are first divided by the root mean square norm of a neuron's",
)
