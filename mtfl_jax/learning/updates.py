"""The multitask objective and the algorithms that decrease it.

L = (1/T) Σ_t L_t with L_t the mean over samples of ℓ_t(y F_t). `how` is how its matrix products are computed.

Source: arXiv 2307.06887v1: a simple gradient-based multitask algorithm on a two-layer ReLU network. That the heads are
updated first is our reading; so are the formulas.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Bool, Float, Int

from mtfl_jax.learning import network
from mtfl_jax.learning.arithmetic import EXACT, Arithmetic
from mtfl_jax.learning.losses import Margins, margin_losses
from mtfl_jax.learning.network import Params
from mtfl_jax.learning.scalars import IntLike, RealLike

Losses = Sequence[str | Margins]
"""The losses of the tasks in turn: names, or functions of the margin."""


class Batch(NamedTuple):
    """Samples of all tasks.

    x: inputs shared by the tasks, or of each task's own; y: labels ±1. Where sizes are padded, `n` and `num_tasks` are
    the true ones and y is zero beyond them, which keeps padding out of every gradient.
    """

    x: Float[Array, "max_n d"] | Float[Array, "max_tasks max_n d"]
    y: Float[Array, "max_n max_tasks"]
    n: IntLike
    num_tasks: IntLike


def task_losses(params: Params, batch: Batch, names: Losses, how: Arithmetic = EXACT) -> Float[Array, " max_tasks"]:
    """L_t of every task; zero for padded tasks."""
    values = margin_losses(names, batch.y * network.outputs(params, batch.x, how))
    n, num_tasks = values.shape
    counted = (jnp.arange(n) < batch.n)[:, None] & (jnp.arange(num_tasks) < batch.num_tasks)
    return jnp.sum(jnp.where(counted, values, 0), axis=0) / batch.n


def objective(params: Params, batch: Batch, names: Losses, how: Arithmetic = EXACT) -> Float[Array, ""]:
    """L = (1/T) Σ_t L_t."""
    return jnp.sum(task_losses(params, batch, names, how)) / batch.num_tasks


def head_step(params: Params, batch: Batch, names: Losses, lr_a: RealLike, how: Arithmetic = EXACT) -> Params:
    """a_t ← a_t − η_a ∇_{a_t} L_t for every task."""

    def total(A: Float[Array, "max_tasks width"]) -> Float[Array, ""]:
        # L_t depends on no other head, so the gradient of the sum holds each task's own.
        return jnp.sum(task_losses(params | {"A": A}, batch, names, how))

    return params | {"A": params["A"] - lr_a * jax.grad(total)(params["A"])}


def representation_step(
    params: Params,
    batch: Batch,
    names: Losses,
    lr_w: RealLike,
    shrink: RealLike,
    *,
    train_bias: bool = False,
    how: Arithmetic = EXACT,
) -> Params:
    """W ← (1 − shrink) W − η_w ∇_W L, where shrink = η_w λ_w; a trained bias takes b ← b − η_w ∇_b L."""

    def loss(moved: Params) -> Float[Array, ""]:
        return objective(params | moved, batch, names, how)

    moved = {name: params[name] for name in (("W", "b") if train_bias else ("W",))}
    grads = jax.grad(loss)(moved)
    step = {name: moved[name] - lr_w * grads[name] for name in moved}
    # Not step["W"] − shrink W: where shrink is 1, what is forgotten must leave no rounding behind.
    return params | step | {"W": (1 - shrink) * params["W"] - lr_w * grads["W"]}


def alternating_round(
    params: Params,
    heads: Batch,
    features: Batch,
    names: Losses,
    *,
    lr_a: RealLike,
    lr_w: RealLike,
    shrink: RealLike,
    head_steps: int = 1,
    train_bias: bool = False,
    how: Arithmetic = EXACT,
) -> Params:
    """`head_steps` head steps on `heads`, then one representation step on `features` with shrink = η_w λ_w."""
    for _ in range(head_steps):
        params = head_step(params, heads, names, lr_a, how)
    return representation_step(params, features, names, lr_w, shrink, train_bias=train_bias, how=how)


def one_step(
    params: Params,
    heads: Batch,
    features: Batch,
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
    batch: Batch,
    names: Losses,
    rule: optax.GradientTransformation,
    how: Arithmetic = EXACT,
) -> tuple[Params, optax.OptState]:
    """One update of W, A and a trained b together by `rule` on the gradient of L."""
    grads = jax.grad(objective)(params, batch, names, how)
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
    slots = jnp.searchsorted(jnp.asarray(record), jnp.arange(1, steps + 1))
    kept = jax.tree.map(lambda leaf: jnp.zeros((len(record), *leaf.shape), leaf.dtype), state[0])
    Carry = tuple[State, Params, Int[Array, ""]]

    def body(carry: Carry, at: tuple[Int[Array, ""], Int[Array, ""]]) -> tuple[Carry, None]:
        state, kept, diverged = carry
        step, slot = at
        state = update(state, step)
        # Every update writes to the slot of the next recorded count, so what stays there is the recorded one.
        kept = jax.tree.map(lambda all_, leaf: all_.at[slot].set(leaf, mode="drop"), kept, state[0])
        diverged = jnp.where((diverged == 0) & ~finite(state[0]), step + 1, diverged)
        return (state, kept, diverged), None

    start = (state, kept, jnp.zeros((), jnp.int32))
    (_, kept, diverged), _ = jax.lax.scan(body, start, (jnp.arange(steps, dtype=jnp.int32), slots))
    return kept, diverged
