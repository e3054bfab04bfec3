"""Hypothesis with float64 JAX."""

import functools

import jax
from hypothesis import Phase, settings


def checked(examples):
    """Run a property on this many examples in float64; the same ones every time, without shrinking."""

    def decorate(test):
        @functools.wraps(test)
        def run(*args, **kwargs):
            with jax.enable_x64(True):
                return test(*args, **kwargs)

        phases = [Phase.explicit, Phase.generate]
        return settings(deadline=None, derandomize=True, max_examples=examples, database=None, phases=phases)(run)

    return decorate
