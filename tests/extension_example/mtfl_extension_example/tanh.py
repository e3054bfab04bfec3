"""An activation: network=two_layer_tanh."""

import jax.numpy as jnp

from mtfl_jax.learning.activations import ACTIVATIONS, Activation

ACTIVATIONS.register(Activation("tanh", "tanh(t)", value=jnp.tanh, slope=lambda t: 1 - jnp.tanh(t) ** 2))
