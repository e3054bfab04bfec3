"""The multitask objective and the algorithms that decrease it.

L = (1/T) Σ_t L_t with L_t the mean over samples of ℓ_t(F_t, y_t). `how` is how its matrix products are computed.

Source: arXiv 2307.06887v1: a simple gradient-based multitask algorithm on a two-layer ReLU network. That the heads are
updated first is our reading; so are the formulas.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Bool, Float, Int

from mtfl_jax.learning import network
from mtfl_jax.learning.arithmetic import EXACT, Arithmetic
from mtfl_jax.learning.bounds import clipped
from mtfl_jax.learning.losses import Pointwise, pointwise
from mtfl_jax.learning.network import Params
from mtfl_jax.learning.scalars import IntLike, RealLike

Losses = Sequence[str | Pointwise]
"""The losses of the tasks in turn: names, or functions of outputs and targets."""


class Batch(NamedTuple):
    """Samples of all tasks.

    x: inputs shared by the tasks, or of each task's own; y: labels, ±1 or real. Where sizes are padded, `n` and
    `num_tasks` are the true ones and y is zero beyond them. counted: which entries of y count; None: the first n rows
    and num_tasks columns.
    """

    x: Float[Array, "max_n d"] | Float[Array, "max_tasks max_n d"]
    y: Float[Array, "max_n max_tasks"]
    n: IntLike
    num_tasks: IntLike
    counted: Bool[Array, "max_n max_tasks"] | None = None


def counted(batch: Batch) -> Bool[Array, "max_n max_tasks"]:
    """Which labels of a batch count."""
    if batch.counted is not None:
        return batch.counted
    max_n, max_tasks = batch.y.shape
    return (jnp.arange(max_n) < batch.n)[:, None] & (jnp.arange(max_tasks) < batch.num_tasks)


class Parts(NamedTuple):
    """A batch in `number` parts, of which of(i) makes the i-th: its samples, with the n and num_tasks of all."""

    of: Callable[[IntLike], Batch]
    number: int
    num_tasks: IntLike


Samples = Batch | Parts
"""A batch whose hidden layer is one array, or parts whose hidden layers are made one after the other."""


def split(max_n: int, most: int) -> tuple[int, int]:
    """Into how many parts of which equal size, at most `most`, max_n samples fall; the last may lack some."""
    count = -(-max_n // most)
    return count, -(-max_n // count)


def in_parts(batch: Batch, size: int) -> Samples:
    """A batch in parts of at most `size` samples."""
    max_n = len(batch.y)
    count, size = split(max_n, size)
    if count == 1:
        return batch
    more = [(0, size * count - max_n), (0, 0)]
    x, y = jnp.pad(batch.x, [(0, 0)] * (batch.x.ndim - 2) + more), jnp.pad(batch.y, more)
    used = jnp.pad(counted(batch), more)

    def of(i: IntLike) -> Batch:
        own = jax.lax.dynamic_slice_in_dim(x, i * size, size, axis=x.ndim - 2)
        labels, rows = (jax.lax.dynamic_slice_in_dim(of_all, i * size, size) for of_all in (y, used))
        return Batch(own, labels, batch.n, batch.num_tasks, rows)

    return Parts(of, count, batch.num_tasks)


Sum = TypeVar("Sum")


def summed(f: Callable[[Batch], Sum], batch: Samples) -> Sum:
    """f of a batch; of one in parts, the sum of f over them."""
    if isinstance(batch, Batch):
        return f(batch)

    def add(i: Int[Array, ""], total: Sum) -> Sum:
        return jax.tree.map(jnp.add, total, f(batch.of(i)))

    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(lambda: f(batch.of(0))))
    return cast(Sum, jax.lax.fori_loop(0, batch.number, add, start))


def task_losses(params: Params, batch: Samples, names: Losses, how: Arithmetic = EXACT) -> Float[Array, " max_tasks"]:
    """L_t of every task; zero for padded tasks."""
    return summed(lambda part: losses_of(network.outputs(params, part.x, how), part, names), batch)


def losses_of(F: Float[Array, "max_n max_tasks"], batch: Batch, names: Losses) -> Float[Array, " max_tasks"]:
    """L_t of every task for outputs F; zero for padded tasks."""
    return jnp.sum(jnp.where(counted(batch), pointwise(names, F, batch.y), 0), axis=0) / batch.n


def objective(params: Params, batch: Samples, names: Losses, how: Arithmetic = EXACT) -> Float[Array, ""]:
    """L = (1/T) Σ_t L_t."""
    return jnp.sum(task_losses(params, batch, names, how)) / batch.num_tasks


def head_step(
    params: Params,
    batch: Samples,
    names: Losses,
    lr_a: RealLike,
    how: Arithmetic = EXACT,
    clip: RealLike | None = None,
) -> Params:
    """a_t ← a_t − η_a ∇_{a_t} L_t for every task. clip: most of the norm of all their gradients together."""

    def total(A: Float[Array, "max_tasks width"], part: Batch) -> Float[Array, ""]:
        # L_t depends on no other head, so the gradient of the sum holds each task's own.
        return jnp.sum(task_losses(params | {"A": A}, part, names, how))

    gradient = clipped({"A": summed(functools.partial(jax.grad(total), params["A"]), batch)}, clip)
    return params | {"A": params["A"] - lr_a * gradient["A"]}


def representation_step(
    params: Params,
    batch: Samples,
    names: Losses,
    lr_w: RealLike,
    shrink: RealLike,
    *,
    train_bias: bool = False,
    how: Arithmetic = EXACT,
    clip: RealLike | None = None,
) -> Params:
    """W ← (1 − shrink) W − η_w ∇_W L, where shrink = η_w λ_w; a trained bias takes b ← b − η_w ∇_b L.

    clip: most of the norm of the gradient, of a trained bias too.
    """

    def loss(moved: Params, part: Batch) -> Float[Array, ""]:
        return objective(params | moved, part, names, how)

    moved = {name: params[name] for name in (("W", "b") if train_bias else ("W",))}
    grads = clipped(summed(functools.partial(jax.grad(loss), moved), batch), clip)
    step = {name: moved[name] - lr_w * grads[name] for name in moved}
    # Not step["W"] − shrink W: where shrink is 1, what is forgotten must leave no rounding behind.
    return params | step | {"W": (1 - shrink) * params["W"] - lr_w * grads["W"]}


def alternating_round(
    params: Params,
    heads: Samples,
    features: Samples,
    names: Losses,
    *,
    lr_a: RealLike,
    lr_w: RealLike,
    shrink: RealLike,
    head_steps: int = 1,
    train_bias: bool = False,
    how: Arithmetic = EXACT,
    clip: RealLike | None = None,
) -> Params:
    """`head_steps` head steps on `heads`, then one representation step on `features` with shrink = η_w λ_w; `clip` is
    of the gradient of each.
    """
    for _ in range(head_steps):
        params = head_step(params, heads, names, lr_a, how, clip)
    return representation_step(params, features, names, lr_w, shrink, train_bias=train_bias, how=how, clip=clip)


def one_step(
    params: Params,
    heads: Samples,
    features: Samples,
    names: Losses = ("linear",),
    *,
    lr_a: RealLike = 1.0,
    lr_w: RealLike = 1.0,
    shrink: RealLike = 1.0,
    train_bias: bool = False,
    how: Arithmetic = EXACT,
) -> Params:
    """A⁺ = −η_a ∇_A L(A = 0) on `heads`, then W⁺ = (1 − η_w λ_w) W − η_w ∇_W L(A⁺) on `features`.

    One round from `params` with A = 0; `shrink` is η_w λ_w, and 1 (the default) forgets the initial weights.
    """
    return alternating_round(
        params, heads, features, names, lr_a=lr_a, lr_w=lr_w, shrink=shrink, train_bias=train_bias, how=how
    )


def joint_update(
    params: Params,
    state: optax.OptState,
    batch: Samples,
    names: Losses,
    rule: optax.GradientTransformation,
    how: Arithmetic = EXACT,
) -> tuple[Params, optax.OptState]:
    """One update of W, A and a trained b together by `rule` on the gradient of L."""
    grads = summed(lambda part: jax.grad(objective)(params, part, names, how), batch)
    updates, state = rule.update(grads, state, params)
    return optax.apply_updates(params, updates), state


State = tuple[Params, optax.OptState]


def finite(params: Params) -> Bool[Array, ""]:
    """Whether every weight is finite."""
    return jnp.all(jnp.asarray([jnp.all(jnp.isfinite(leaf)) for leaf in params.values()]))


def train(
    update: Callable[[State, Int[Array, ""]], State], state: State, steps: int, record: Sequence[int]
) -> tuple[Params, Int[Array, ""]]:
    """Run update(state, step) for step = 0 … steps − 1 in one scan.

    `record`: increasing update counts in [1, steps]. Returns the parameters after each of them, `Params` whose leaves
    have a leading axis len(record), and the first count whose parameters are not finite, 0 if none.
    """
    return run(update, state, steps, record)[1:]


def taken(stopped: Int[Array, ""], step: IntLike | Int[Array, " n"]) -> Int[Array, "*n"]:
    """How many of `step` updates a training took that stopped after `stopped`, 0 for one that did not."""
    return jnp.where(stopped > 0, jnp.minimum(stopped, step), step)


AnyState = TypeVar("AnyState", bound=tuple[Params, Any])


def run(
    update: Callable[[AnyState, Int[Array, ""]], AnyState], state: AnyState, steps: int, record: Sequence[int]
) -> tuple[AnyState, Params, Int[Array, ""]]:
    """`train`, with the last state before what it returns."""
    slots = jnp.searchsorted(jnp.asarray(record), jnp.arange(1, steps + 1))
    kept = jax.tree.map(lambda leaf: jnp.zeros((len(record), *leaf.shape), leaf.dtype), state[0])

    def body(
        carry: tuple[AnyState, Params, Int[Array, ""]], at: tuple[Int[Array, ""], Int[Array, ""]]
    ) -> tuple[tuple[AnyState, Params, Int[Array, ""]], None]:
        state, kept, diverged = carry
        step, slot = at
        state = update(state, step)
        # Every update writes to the slot of the next recorded count, so what stays there is the recorded one.
        kept = jax.tree.map(lambda all_, leaf: all_.at[slot].set(leaf, mode="drop"), kept, state[0])
        diverged = jnp.where((diverged == 0) & ~finite(state[0]), step + 1, diverged)
        return (state, kept, diverged), None

    start = (state, kept, jnp.zeros((), jnp.int32))
    (last, kept, diverged), _ = jax.lax.scan(body, start, (jnp.arange(steps, dtype=jnp.int32), slots))
    return last, kept, diverged
