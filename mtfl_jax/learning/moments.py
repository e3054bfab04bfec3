"""`one_step` by moments of the inputs: one pass over the samples serves every set of tasks and every smaller width.

With shared inputs, the linear loss, no label noise and the initial weights forgotten,
  W⁺_j = η_w η_a Σ_z (K h)_{zj} S_{zj},
  h_{zj} = (1/n1) Σ_{i: z_i = z} σ(w_j·x_i + b_j),  S_{zj} = (1/n2) Σ_{i: z_i = z} σ'(w_j·x_i + b_j) x_i,
so tasks enter only through their contrastive kernel K = (1/T) Σ_t f_t f_tᵀ.

Source: the pseudo-contrastive reading is that of arXiv 2307.06887 (final abstract); the formulas are ours.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Integer

from mtfl_jax.learning import network, updates
from mtfl_jax.learning.activations import ACTIVATIONS
from mtfl_jax.learning.arithmetic import EXACT, Arithmetic
from mtfl_jax.learning.network import Params
from mtfl_jax.learning.scalars import IntLike, RealLike

MAX_R = 6
"""Largest r of the moment path of a sweep: its tables hold 2^r numbers a weight."""

BLOCK = 128
"""Samples of a block, all of one orthant."""

PART = 64
"""Samples that are compared pairwise when samples are put into blocks."""

ROWS = 16
"""Rows of a sweep that one pass over the tables serves."""


class Moments(NamedTuple):
    """The two tables by orthant."""

    h: Float[Array, "orthants width"]
    S: Float[Array, "orthants width d"]


class Blocks(NamedTuple):
    """Samples sorted by orthant into blocks of BLOCK of one orthant: which sample, whether it is `counted` or fills a
    block up, the orthant, and how many of the blocks are `used`.
    """

    sample: Int[Array, "blocks size"]
    counted: Bool[Array, "blocks size"]
    orthant: Int[Array, " blocks"]
    used: Int[Array, ""]


def by_orthant(index: Int[Array, " max_n"], n: IntLike, orthants: int) -> Blocks:
    """Blocks of the first n samples; index is the orthant of each, in [0, orthants).

    A sample's place is how many of its orthant come before it: those of its part of PART samples by comparing, those of
    other parts by counting. Sorting takes four times as long on a core, and seconds to compile for a TPU.
    """
    max_n = index.shape[0]
    index = jnp.where(jnp.arange(max_n) < n, index, orthants)
    parts = jnp.pad(index, (0, -max_n % PART), constant_values=orthants).reshape(-1, PART)
    own = jnp.sum(parts[:, None, :] == jnp.arange(orthants)[:, None], axis=2)
    earlier = jnp.cumsum(own, axis=0) - own
    within = jnp.sum((parts[:, :, None] == parts[:, None, :]) & jnp.tri(PART, k=-1, dtype=bool), axis=2)
    count = jnp.sum(own, axis=0)
    last = jnp.cumsum(-(-count // BLOCK))
    first = last - -(-count // BLOCK)
    block = jnp.arange(-(-max_n // BLOCK) + orthants)
    # Samples that do not count have a place behind all blocks, where they are dropped.
    start = jnp.pad(first * BLOCK + earlier, ((0, 0), (0, 1)), constant_values=len(block) * BLOCK)
    place = (jnp.take_along_axis(start, parts, axis=1) + within).reshape(-1)[:max_n]
    sample = jnp.zeros(len(block) * BLOCK, int).at[place].set(jnp.arange(max_n), mode="drop")
    orthant = jnp.minimum(jnp.sum(block[:, None] >= last, axis=1), orthants - 1)
    filled = (block - first[orthant])[:, None] * BLOCK + jnp.arange(BLOCK)
    return Blocks(sample.reshape(-1, BLOCK), filled < count[orthant][:, None], orthant, last[-1])


def head_table(
    params: Params,
    x: Float[Array, "max_n d"],
    index: Int[Array, " max_n"],
    n: IntLike,
    orthants: int,
    how: Arithmetic = EXACT,
    part: int | None = None,
) -> Float[Array, "{orthants} width"]:
    """h of the first n of the samples x, whose orthants are index; by the features of `part` samples at a time."""
    member = (index == jnp.arange(orthants)[:, None]) & (jnp.arange(len(index)) < n)
    batch = updates.in_parts(updates.Batch(x, member.astype(x.dtype).T, n, orthants), part or len(x))
    return updates.summed(lambda some: some.y.T @ network.features(params, some.x, how), batch) / n


def feature_table(
    params: Params,
    x: Float[Array, "d {blocks.sample.size}"],
    blocks: Blocks,
    n: IntLike,
    orthants: int,
    how: Arithmetic = EXACT,
    *,
    batched: bool = False,
) -> Float[Array, "{orthants} width d"]:
    """S of n samples, x being the inputs of blocks.sample in its order.

    batched: whether it is one of a batch, in which a loop of each one's own length copies every table at every turn.
    """
    W, b, slope = params["W"], params["b"], ACTIVATIONS[how.activation].slope

    def add(i: Int[Array, ""], S: Float[Array, "orthants width d"]) -> Float[Array, "orthants width d"]:
        own = jax.lax.dynamic_slice_in_dim(x, i * BLOCK, BLOCK, axis=1)
        active = jnp.where(blocks.counted[i], slope(W @ own + b[:, None]), 0)
        return S.at[blocks.orthant[i]].add(active @ own.T)

    count = len(blocks.orthant) if batched else blocks.used
    return jax.lax.fori_loop(0, count, add, jnp.zeros((orthants, *W.shape), W.dtype)) / n


def one_step(
    table: Moments,
    tables: Float[Array, "*rows T orthants"],
    num_tasks: IntLike | Integer[Array, "*rows"],
    lr_a: RealLike = 1.0,
    lr_w: RealLike = 1.0,
) -> tuple[Float[Array, "*rows width d"], Float[Array, "*rows T width"]]:
    """W⁺ and A⁺ of tasks with truth tables, of which the first num_tasks count and the others are zero."""
    A = lr_a * tables @ table.h
    back = jnp.swapaxes(tables, -1, -2) @ A / jnp.asarray(num_tasks)[..., None, None]
    return lr_w * jnp.einsum("...zj,zjd->...jd", back, table.S), A


def kernel_step(table: Moments, K: Float[Array, "orthants orthants"]) -> Float[Array, "width d"]:
    """Σ_z (K h)_{zj} S_{zj}: the direction of W⁺ for the contrastive kernel K."""
    return jnp.einsum("zj,zjd->jd", K @ table.h, table.S)
