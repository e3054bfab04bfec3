"""Reduced precision and the Pallas kernels against NumPy; lowering for platforms that are not here."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import export
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

import mtfl_jax
from mtfl_jax import compose
from mtfl_jax.fields import ConfigError
from mtfl_jax.learning import experiment, kernels, keys, network
from mtfl_jax.learning.activations import ACTIVATIONS
from mtfl_jax.learning.arithmetic import PRECISIONS, Arithmetic
from mtfl_jax.sweeps import compiling
from mtfl_jax.sweeps.grid import Grid
from mtfl_jax.sweeps.machine import MATMUL_PRECISION
from mtfl_jax.sweeps.plan import plan

SIZES = [(100, 20, 70, 5), (64, 16, 64, 16), (130, 33, 65, 1)]
"""n, d, width, T: tiles that are full, or not."""


TARGET = {"cuda": AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu"), "tpu": None}
CUSTOM = {"cuda": "__gpu$xla.gpu.triton", "tpu": "tpu_custom_call"}
"""Of the platforms that are not here, and what a kernel of ours is called there."""


def draws(n, d, width, num_tasks, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(width, d), (width,), (num_tasks, width), (n, d), (n, num_tasks)]
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def rounded(a, precision):
    """To the nearest number of the precision, ties to even, by NumPy and its extension types."""
    if precision == "bfloat16":
        return a.astype(ml_dtypes.bfloat16).astype(np.float64)
    if precision == "tensorfloat32":
        mantissa, exponent = np.frexp(a.astype(np.float64))
        return np.ldexp(np.rint(mantissa * 2**11), exponent - 11)
    return a.astype(np.float64)


def by_numpy(W, b, A, x, g, precision):
    """Outputs, and the gradients of Σ g ∘ outputs in W, b and A: factors rounded, sums in float64."""

    def product(a, b):
        return rounded(a, precision) @ rounded(b, precision)

    before = np.float32(product(x, W.T) + b)
    h = np.maximum(before, 0)
    back = np.where(before > 0, np.float32(product(g, A)), 0)
    return product(h, A.T), product(back.T, x), back.sum(axis=0), product(g.T, h)


def by_jax(outputs, *arrays):
    W, b, A, x, g = map(jnp.asarray, arrays)
    values, pull = jax.vjp(lambda W, b, A: outputs(W, b, A, x), W, b, A)
    return values, *pull(g)


def plain(W, b, A, x, *, precision):
    return network.outputs({"W": W, "b": b, "A": A}, x, Arithmetic(precision))


VARIANTS = {
    "plain": plain,
    "kernel": functools.partial(kernels.outputs, interpret=True),
    "fallback": functools.partial(kernels.outputs, interpret=False),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("sizes", SIZES)
def test_outputs_and_gradients_in_every_precision(sizes, variant, precision):
    """Sums of at most 130 float32 terms agree to 2e-5 of their size. A few may have a factor that falls to the other of
    two neighbours in the reduced precision, being the float32 sum of other terms: they differ by that of one term.
    """
    W, b, A, x, g = draws(*sizes)
    found = by_jax(functools.partial(VARIANTS[variant], precision=precision), W, b, A, x, g)
    apart = {"float32": 0, "tensorfloat32": 2**-10, "bfloat16": 2**-7}[precision]
    for one, other in zip(found, by_numpy(W, b, A, x, g, precision), strict=True):
        assert one.dtype == np.float32
        error, size = np.abs(one - other), np.sqrt(np.mean(other**2))
        assert np.mean(error > 2e-5 * size) <= (0.02 if apart else 0)
        assert np.max(error) <= (2e-5 + 2 * apart) * size


def test_precisions_differ_by_their_rounding():
    """Errors of one product beside float64: 2^-24 to 2^-9 a factor, and each worse than the one before."""
    W, b, A, x, g = draws(*SIZES[0])
    exact = by_numpy(W, b, A, x, g, "float32")[0]
    errors = [
        np.sqrt(np.mean((np.asarray(plain(*map(jnp.asarray, (W, b, A, x)), precision=name)) - exact) ** 2))
        / np.sqrt(np.mean(exact**2))
        for name in PRECISIONS
    ]
    assert errors[0] < 1e-6
    assert 2**-14 < errors[1] < 2**-10
    assert 2**-11 < errors[2] < 2**-7


@pytest.mark.parametrize("wrt", [(0,), (1,), (2,), (0, 2)])
def test_kernels_compute_only_the_gradients_asked_for(wrt):
    W, b, A, x, g = draws(*SIZES[0])
    calls = {(0,): 2, (1,): 2, (2,): 2, (0, 2): 3}[wrt]

    def total(*args):
        return jnp.sum(g * kernels.outputs(*args, jnp.asarray(x), "float32", True))

    gradient = jax.grad(total, wrt)
    for one, place in zip(gradient(*map(jnp.asarray, (W, b, A))), wrt, strict=True):
        expected = by_numpy(W, b, A, x, g, "float32")[1 + place]
        np.testing.assert_allclose(one, expected, rtol=0, atol=2e-5 * np.sqrt(np.mean(expected**2)))
    assert str(jax.make_jaxpr(gradient)(*map(jnp.asarray, (W, b, A)))).count("pallas_call[") == calls


def test_kernels_batch_and_refuse_the_gradient_they_lack():
    first, second = draws(*SIZES[0]), draws(*SIZES[0], seed=1)
    both = [np.stack(pair) for pair in zip(first, second, strict=True)]

    def found(W, b, A, x, g):
        return by_jax(functools.partial(kernels.outputs, interpret=True), W, b, A, x, g)

    batched = jax.vmap(found)(*both)
    for i, alone in enumerate((found(*first), found(*second))):
        for one, other in zip(batched, alone, strict=True):
            # The same kernel: a batch is one more axis of its grid.
            assert np.array_equal(one[i], other)
    W, b, A, x, _ = map(jnp.asarray, first)
    with pytest.raises(ValueError, match="no gradient in x"):
        jax.grad(lambda x: jnp.sum(kernels.outputs(W, b, A, x)))(x)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_kernels_of_every_activation_that_they_have_lower_for_a_gpu_and_a_tpu(name):
    """Outputs and all gradients; the others are refused before they are asked for."""
    if not ACTIVATIONS[name].in_kernels:
        for kernel in ("pallas", "auto"):
            with pytest.raises(ConfigError, match=f"^kernel={kernel}: allowed with network=two_layer_{name}: plain$"):
                compose.from_keywords(network=f"two_layer_{name}", kernel=kernel)
        return

    @jax.jit
    def run(W, b, A, x):
        return jax.value_and_grad(
            lambda W, b, A: jnp.sum(kernels.outputs(W, b, A, x, "float32", False, name)), (0, 1, 2)
        )(W, b, A)

    arrays = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in draws(*SIZES[0])[:4]]
    checks = [export.DisabledSafetyCheck.custom_call(call) for call in CUSTOM.values()]
    for on, call in CUSTOM.items():
        with use_abstract_mesh(AbstractMesh((), (), abstract_device=TARGET[on])):
            lowered = export.export(run, platforms=[on], disabled_checks=checks)(*arrays)
        assert call in lowered.mlir_module()


# In a sweep

SMALL = {"d": 8, "r": 2, "width": 16, "n1": 64, "n2": 64, "n_test": 64, "n_down": 16, "num_tasks": 4, "steps": 3}


@pytest.mark.parametrize("algorithm", ["one_step", "alternating", "joint", "oracle"])
@pytest.mark.slow
def test_the_kernels_rows_are_those_of_the_plain_path(algorithm):
    table = mtfl_jax.sweep(**SMALL, algorithm=algorithm, kernel=["plain", "pallas"], seed=range(2))
    assert set(table["kernel"]) == {"plain", "pallas"}
    rows = [table[table["kernel"] == name].reset_index(drop=True) for name in ("plain", "pallas")]
    for name in ("feature_energy", "train_loss", "test_loss"):
        np.testing.assert_allclose(rows[0][name].astype(float), rows[1][name].astype(float), rtol=1e-4, err_msg=name)


@pytest.mark.slow
def test_precision_is_recorded_and_changes_the_training_only():
    table = mtfl_jax.sweep(**SMALL, algorithm=["one_step", "population"], precision=PRECISIONS, seed=0)
    trained = table[table["algorithm"] == "one_step"]
    assert list(trained["precision"]) == list(PRECISIONS)
    assert set(table["draws"]) == {keys.SCHEMA}
    assert trained["subspace_distance"].nunique() == 3
    # Nothing of the population limit is trained.
    assert table[table["algorithm"] == "population"]["precision"].isna().all()
    exact, tensor, brain = trained["feature_energy"]
    assert 0 < abs(tensor - exact) < abs(brain - exact) < 2**-6


@pytest.mark.parametrize(("key", "value"), [("precision", "bfloat16"), ("kernel", "pallas")])
def test_what_reduced_precision_and_kernels_do_not_do_is_refused(key, value):
    with pytest.raises(ConfigError, match=f"^{key}={value}: allowed with shared_inputs=false: "):
        compose.from_keywords(**{key: value}, shared_inputs=False)
    assert compose.from_keywords(**{key: value}).shared is None


# Platforms that are not here

PROGRAMS = [
    {"moments": "always"},
    {"moments": "never"},
    {"moments": "never", "kernel": "pallas"},
    {"algorithm": "alternating"},
    {"algorithm": "alternating", "kernel": "pallas", "precision": "tensorfloat32"},
    {"algorithm": "alternating", "kernel": "pallas", "precision": "bfloat16"},
    {"algorithm": "joint", "data": "rademacher"},
    {"algorithm": "population"},
    {"algorithm": "oracle", "probe": "logistic"},
    {"algorithm": "random_features", "measure": "contrastive"},
    {"d": 128, "width": 128, "measure": "recovery"},
]
# A program without our kernels is traced once for both: it asks nobody which device it is for.
ON = [
    pytest.param(values, on, id=" ".join(map(str, [*values.values(), *on])))
    for values in PROGRAMS
    for on in ([["cuda"], ["tpu"]] if "kernel" in values else [["cuda", "tpu"]])
]


# JAX 0.12 announces the end of the backend that our kernels for a GPU are for.
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("values", "on"), ON)
def test_programs_lower_for_gpu_and_tpu(values, on):
    """A batch of trainings, as the engine runs it there. The kernels are in it where they were asked for."""
    values = {**SMALL, "num_tasks": [1, 4], "seed": range(2), **values}
    grid = Grid(values, compose.composed) if (moments := values.pop("moments", "auto")) else None
    for bucket in plan(grid, moments):
        cells = compiling.cells_of(grid, bucket, np.arange(len(bucket)))
        run = jax.jit(jax.vmap(functools.partial(experiment.experiment, bucket.program)))
        checks = [export.DisabledSafetyCheck.custom_call(name) for name in CUSTOM.values()]
        target = AbstractMesh((), (), abstract_device=TARGET[on[0]] if len(on) == 1 else None)
        with jax.default_matmul_precision(MATMUL_PRECISION), use_abstract_mesh(target):
            lowered = export.export(run, platforms=on, disabled_checks=checks)(cells)
        assert lowered.platforms == tuple(on)
        for platform in on:
            kernel = "kernel" in values and (platform, values.get("precision")) != ("tpu", "tensorfloat32")
            assert (CUSTOM[platform] in lowered.mlir_module()) == kernel
