"""An activation: network=two_layer_arctan."""

import jax.numpy as jnp

from mtfl_jax.learning.activations import ACTIVATIONS, Activation

ACTIVATIONS.register(Activation("arctan", "arctan(t)", value=jnp.arctan, slope=lambda t: 1 / (1 + t**2)))
