"""Heads at the start: head_init=uniform_heads."""

import math

import jax.numpy as jnp
from jax import Array

from mtfl_jax.learning import draws
from mtfl_jax.learning.initial import HEAD_INITS, HeadInit
from mtfl_jax.learning.network import Params


def _make(params: Params, key: Array, width: int | Array, deviation: float | Array) -> Params:
    A = params["A"]
    drawn = deviation * math.sqrt(3) * (2 * draws.uniform(key, *A.shape) - 1)
    return params | {"A": jnp.where(jnp.arange(A.shape[1]) < width, drawn, 0).astype(A.dtype)}


HEAD_INITS.register(HeadInit("uniform_heads", "heads uniform about zero", _make))
