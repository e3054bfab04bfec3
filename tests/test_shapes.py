"""The annotations of learning are checked in the tests and only there."""

import importlib
import inspect
import pkgutil
import subprocess
import sys

import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from mtfl_jax import learning
from mtfl_jax.learning import draws, keys, measures, probe, tasks, updates

MODULES = [module.name for module in pkgutil.walk_packages(learning.__path__, f"{learning.__name__}.")]
KEY = keys.root(0)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: probe.normalised(jnp.ones(3)),
        lambda: probe.ridge(jnp.ones((4, 2)), jnp.ones((4, 1)), 4),
        lambda: measures.contrastive_loss(jnp.ones((3, 2)), jnp.ones((4, 2)), 2),
        lambda: draws.normal(jnp.zeros(2, jnp.uint32), 3, 4),
        lambda: draws.normal(KEY, 3, jnp.ones(4)),
        lambda: tasks.Tasks("parity", jnp.ones(3)),
        lambda: updates.finite({"W": jnp.ones(3, int)}),
    ],
)
def test_a_wrong_shape_or_type_is_refused(wrong):
    with pytest.raises(TypeCheckError):
        wrong()


@pytest.mark.parametrize("name", MODULES)
def test_every_function_of_learning_is_checked(name):
    module = importlib.import_module(name)
    own = [each for each in vars(module).values() if inspect.isfunction(each) and each.__module__ == name]
    # What jaxtyping wraps keeps the function it is of; lambdas have no annotations.
    assert all(hasattr(each, "__wrapped__") for each in own if each.__name__ != "<lambda>")


def test_users_never_import_the_checker(repository):
    code = f"import sys, mtfl_jax, {', '.join(MODULES)}; assert 'beartype' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=repository, check=True, timeout=240)
