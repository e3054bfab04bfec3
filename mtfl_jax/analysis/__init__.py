"""Tables in, figures and words out; imports no jax."""
