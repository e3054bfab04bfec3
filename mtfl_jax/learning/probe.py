"""The downstream probe: a linear classifier with intercept on frozen features σ(V x + c) of a representation W; of a
task with real labels, a linear regression. Or a network that is trained: all of its weights (`tuning`), or a head.

V holds the rows of W normalised (0 for a zero row), scaled so that V x has unit mean square on the probe's
sample; c_j is uniform on [−1.5, 1.5]. The penalty λ n is chosen on one fixed grid the same way for every feature
type: by leave-one-out for ridge, on a held-out quarter for logistic regression and the linear SVM.

Source: that a linear classifier on learned features suffices is the claim of arXiv 2307.06887; this probe, its
biases and its grid are ours.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Bool, Float, Int, Integer, Key

from mtfl_jax.fields import Field, Rule, number
from mtfl_jax.learning import draws, network, removal, tuning, updates
from mtfl_jax.learning.activations import ACTIVATIONS, Activation
from mtfl_jax.learning.arithmetic import Arithmetic
from mtfl_jax.learning.drawing import DOWN_SAMPLES
from mtfl_jax.learning.losses import Margins
from mtfl_jax.learning.scalars import IntLike, RealLike
from mtfl_jax.learning.tuning import Beginning, Tune
from mtfl_jax.records import Registry

BIAS_RANGE = 1.5
PENALTIES = np.logspace(2, -4, 7)
"""The grid of λ, strongest first, so that ties take the stronger penalty."""

MAX_ITERATIONS = 300

ROUNDING = 4
"""Errors of a Gram matrix's eigenvalues, in units of the largest times the machine's epsilon."""

REFINEMENTS = 16
"""Most steps of conjugate gradients after the factor of a Gram matrix."""

TEST_BLOCK = 128
"""Test samples that are classified at a time."""

PANEL = 32
"""Columns of a Cholesky factor that are found at a time on an accelerator."""


Classifier = tuple[Float[Array, " m"], Float[Array, ""]]
"""β and β₀."""
Fit = Callable[[Float[Array, "max_n m"], Float[Array, " max_n"], IntLike], Classifier]


def normalised(W: Float[Array, "width d"]) -> Float[Array, "width d"]:
    """The rows of W at length one; a zero row stays zero."""
    # In two steps, so that squares of tiny or huge weights stay representable.
    largest = jnp.max(jnp.abs(W), axis=1, keepdims=True)
    W = W / jnp.where(largest > 0, largest, 1)
    norm = jnp.linalg.norm(W, axis=1, keepdims=True)
    return W / jnp.where(norm > 0, norm, 1)


def mean_square(v: Float[Array, "max_n max_width"], n: IntLike, width: IntLike) -> Float[Array, ""]:
    """Mean square of v over its first n rows and `width` columns (padded columns are zero)."""
    return jnp.sum(jnp.where(jnp.arange(v.shape[0]) < n, jnp.sum(v**2, axis=1), 0)) / (n * width)


def biases(key: Key[Array, ""], width: int) -> Float[Array, " {width}"]:
    """c, uniform on [−1.5, 1.5], prefix-stable in width."""
    return BIAS_RANGE * (2 * draws.uniform(key, 1, width)[0] - 1)


def ridge(phi: Float[Array, "max_n m"], y: Float[Array, " max_n"], n: IntLike) -> Classifier:
    """Ridge regression of y on phi with a free intercept, λ by leave-one-out squared error.

    The first n rows of phi and y count. Minimises Σ_i (y_i − φ_i·β − β₀)² + λ n ‖β‖². Solved in the smaller of primal
    and dual. A λ n below the rounding of the features' Gram matrix is raised to it.
    """
    C, target, mean, offset = _centred(phi, y, n)
    counted, dual = (jnp.arange(len(C)) < n)[:, None], _dual(C)
    gram, constant = _gram(C, n)
    s, U = jnp.linalg.eigh(gram)
    s = jnp.maximum(s, 0)
    penalties = _penalties(C, n, s[-1])
    # A sample's residual without it is its residual over one less its leverage.
    if dual:
        coefficients = U.T @ target
        weight = 1 / (s[:, None] + penalties)
        residual = U @ (weight * coefficients[:, None])
        kept = U**2 @ weight - 1 / n / (constant + penalties)
    else:
        Z = C @ U
        coefficients = Z.T @ target
        weight = 1 / (s[:, None] + penalties)
        residual = target[:, None] - Z @ (weight * coefficients[:, None])
        kept = 1 - (Z**2 @ weight + 1 / n)
    left_out = jnp.where(counted, residual / jnp.where(kept > 0, kept, 1), 0)
    best = penalties[jnp.argmin(jnp.sum(left_out**2, axis=0))]
    beta = U @ (coefficients / (s + best))
    beta = C.T @ beta if dual else beta
    return beta, offset - mean @ beta


def ridge_by_factors(phi: Float[Array, "max_n m"], y: Float[Array, " max_n"], n: IntLike) -> Classifier:
    """`ridge` by a Cholesky factor for every λ, which accelerators have for a batch at once, where they take a batch's
    eigenvectors one after the other.
    """
    C, target, mean, offset = _centred(phi, y, n)
    counted, dual = jnp.arange(len(C)) < n, _dual(C)
    gram, constant = _gram(C, n)
    total = jnp.trace(gram)
    total = jnp.where(total > 0, total, 1)
    # At least the largest eigenvalue, and at most (side)^¼ times as much.
    largest = total * jnp.sqrt(jnp.linalg.norm((gram / total) @ (gram / total)))
    eye = jnp.eye(len(gram), dtype=C.dtype)

    def fit(penalty: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, " side"]]:
        inverse = _inverse_factor(gram + penalty * eye)
        if dual:
            beta = residual = inverse.T @ (inverse @ target)
            kept = jnp.sum(inverse**2, axis=0) - 1 / n / (constant + penalty)
        else:
            Z = inverse @ C.T
            beta = inverse.T @ (Z @ target)
            residual = target - C @ beta
            kept = 1 - (jnp.sum(Z**2, axis=0) + 1 / n)
        left_out = jnp.sum(jnp.where(counted, residual / jnp.where(kept > 0, kept, 1), 0) ** 2)
        # Rounding may leave a penalty without a factor.
        return jnp.where(jnp.isfinite(left_out), left_out, jnp.inf), beta

    left_out, betas = jax.lax.map(fit, _penalties(C, n, largest))
    beta = betas[jnp.argmin(left_out)]
    beta = C.T @ beta if dual else beta
    return beta, offset - mean @ beta


def _inverse_factor(K: Float[Array, "side side"]) -> Float[Array, "side side"]:
    """The inverse of the lower Cholesky factor of K, by panels of PANEL columns: NaN where rounding leaves none.

    One loop whose library calls are of a panel's side: factors of all of K take a TPU's compiler ten seconds.
    """
    side = len(K)
    size = min(PANEL, side)
    count = -(-side // size)
    pad = size * count - side
    rows = jnp.arange(size * count)

    def panel(
        i: IntLike, carry: tuple[Float[Array, "m m"], Float[Array, "m m"]]
    ) -> tuple[Float[Array, "m m"], Float[Array, "m m"]]:
        left, inverse = carry
        at = i * size
        columns = jax.lax.dynamic_slice_in_dim(left, at, size, axis=1)
        own = jnp.linalg.cholesky(jax.lax.dynamic_slice_in_dim(columns, at, size))
        solved = jax.scipy.linalg.solve_triangular(own, jnp.eye(size, dtype=K.dtype), lower=True)
        below = jnp.where((rows >= at + size)[:, None], columns @ solved.T, 0)
        done = solved @ jax.lax.dynamic_slice_in_dim(inverse, at, size)
        return left - below @ below.T, jax.lax.dynamic_update_slice_in_dim(inverse - below @ done, done, at, axis=0)

    padded = jnp.pad(K, (0, pad)) + jnp.diag((rows >= side).astype(K.dtype))
    _, inverse = jax.lax.fori_loop(0, count, panel, (padded, jnp.eye(len(rows), dtype=K.dtype)))
    return inverse[:side, :side]


def _dual(C: Float[Array, "max_n m"]) -> bool:
    """Whether ridge is solved in the samples and not in the features."""
    return C.shape[0] <= C.shape[1]


def _gram(C: Float[Array, "max_n m"], n: IntLike) -> tuple[Float[Array, "side side"], Float[Array, ""]]:
    """The smaller Gram matrix of centred features, and in the dual its eigenvalue in the constant direction.

    Centred features lack that direction. With an eigenvalue of the others' size there, its rounding is small beside
    the weakest penalties; the target has no part in it.
    """
    if not _dual(C):
        return C.T @ C, jnp.zeros((), C.dtype)
    gram = C @ C.T
    constant = jnp.trace(gram) / n
    counted = (jnp.arange(len(C)) < n).astype(C.dtype)
    return gram + (constant / n) * counted[:, None] * counted, constant


def _penalties(C: Float[Array, "max_n m"], n: IntLike, largest: Float[Array, ""]) -> Float[Array, " 7"]:
    """λ n, none below the rounding of a Gram matrix with this largest eigenvalue."""
    return jnp.maximum(jnp.asarray(PENALTIES, C.dtype) * n, ROUNDING * jnp.finfo(C.dtype).eps * largest)


def head(
    of: Beginning, x: Float[Array, "max_n d"], y: Float[Array, " max_n"], n: IntLike, *, head_penalty: RealLike
) -> network.Params:
    """The pretrained network with a new head a, by ridge regression on its own features h = σ(W x + b): minimises
    Σ_i (y_i − a·h_i)² + λ width ‖a‖² over the first n samples, λ being `head_penalty`. There is no intercept.

    Solved in the smaller of primal and dual by a few steps of conjugate gradients, whose preconditioner is the factor
    of the Gram matrix at a penalty above its rounding. Where λ width is far below that rounding, ε‖G‖, the dual is
    solved to about ε‖G‖ / (λ width) of the labels, and the primal may lack steps. Source: Dandi et al. 2023, *How
    Two-Layer Neural Networks Learn, One (Giant) Step at a Time*, whose features are over √width.
    """
    counted = (jnp.arange(len(y)) < n)[:, None] & (jnp.arange(len(of.trained["b"])) < of.width)
    h = jnp.where(counted, network.features(of.trained, x, Arithmetic(activation=of.activation)), 0)
    target, penalty, dual = jnp.where(jnp.arange(len(y)) < n, y, 0), head_penalty * of.width, _dual(h)
    gram = h @ h.T if dual else h.T @ h
    above = penalty + ROUNDING * jnp.finfo(h.dtype).eps * jnp.linalg.norm(gram)
    inverse = _inverse_factor(gram + above * jnp.eye(len(gram), dtype=h.dtype))

    def precondition(v: Float[Array, " side"]) -> Float[Array, " side"]:
        return inverse.T @ (inverse @ v)

    def multiply(v: Float[Array, " side"]) -> Float[Array, " side"]:
        return (h @ (h.T @ v) if dual else h.T @ (h @ v)) + penalty * v

    right = target if dual else h.T @ target
    solved = _refined(multiply, precondition, right)
    return of.trained | {"A": (h.T @ solved if dual else solved)[None]}


Product = Callable[[Float[Array, " side"]], Float[Array, " side"]]


def _refined(multiply: Product, precondition: Product, right: Float[Array, " side"]) -> Float[Array, " side"]:
    """The solution v of multiply(v) = right by conjugate gradients from precondition(right) on."""
    Carry = tuple[Float[Array, " side"], Float[Array, " side"], Float[Array, " side"], Float[Array, ""], Int[Array, ""]]

    def step(carry: Carry) -> Carry:
        found, residual, along, size, count = carry
        product = multiply(along)
        length = size / (along @ product)
        found, residual = found + length * along, residual - length * product
        solved = precondition(residual)
        left = residual @ solved
        return found, residual, solved + left / size * along, left, count + 1

    start = precondition(right)
    residual = right - multiply(start)
    along = precondition(residual)
    small = jnp.finfo(right.dtype).eps ** 1.5 * (right @ start)

    def unfinished(carry: Carry) -> Bool[Array, ""]:
        *_, size, count = carry
        return (count < REFINEMENTS) & (size > small)

    found, *_ = jax.lax.while_loop(unfinished, step, (start, residual, along, residual @ along, jnp.zeros((), int)))
    return found


def logistic(phi: Float[Array, "max_n m"], y: Float[Array, " max_n"], n: IntLike) -> Classifier:
    """Logistic regression, λ by the held-out quarter: minimises Σ_i log(1 + e^{−m_i}) + (λ n/2) ‖β‖² with a free
    intercept.
    """
    return _held_out(lambda m: jax.nn.softplus(-m), phi, y, n)


def svm(phi: Float[Array, "max_n m"], y: Float[Array, " max_n"], n: IntLike) -> Classifier:
    """Linear SVM, λ by the held-out quarter: minimises Σ_i max(0, 1 − m_i)² + (λ n/2) ‖β‖² (squared hinge, as
    LinearSVC's default, with a free intercept).
    """
    return _held_out(lambda m: jax.nn.relu(1 - m) ** 2, phi, y, n)


def fit_margin(
    loss: Margins, phi: Float[Array, "n m"], y: Float[Array, " n"], counted: Float[Array, " n"], strength: RealLike
) -> Classifier:
    """Minimise Σ_i counted_i ℓ(y_i (φ_i·β + β₀)) + (strength/2) ‖β‖² by L-BFGS, y in ±1, counted in {0, 1}."""
    n = jnp.sum(counted)
    mean = jnp.sum(jnp.where(counted[:, None] > 0, phi, 0), axis=0) / jnp.maximum(n, 1)
    # Centring changes nothing but the intercept, and conditions the problem.
    C = (phi - mean) * counted[:, None]

    def objective(theta: Classifier) -> Float[Array, ""]:
        beta, intercept = theta
        value = jnp.sum(counted * loss(y * (C @ beta + intercept))) + strength / 2 * jnp.sum(beta**2)
        return value / jnp.maximum(n, 1)

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)
    start = (jnp.zeros(phi.shape[1], phi.dtype), jnp.zeros((), phi.dtype))
    tolerance = 10 * jnp.finfo(phi.dtype).eps

    def step(carry: tuple) -> tuple:
        theta, state, _, count = carry
        value, grad = value_and_grad(theta, state=state)
        updates, state = solver.update(grad, state, theta, value=value, grad=grad, value_fn=objective)
        moved = optax.apply_updates(theta, updates)
        return moved, state, optax.tree.norm(grad), count + 1

    def unfinished(carry: tuple) -> Bool[Array, ""]:
        _, _, slope, count = carry
        return (count < MAX_ITERATIONS) & (slope > tolerance)

    first = (start, solver.init(start), jnp.asarray(jnp.inf, phi.dtype), 0)
    (beta, intercept), *_ = jax.lax.while_loop(unfinished, step, first)
    return beta, intercept - mean @ beta


def _held_out(loss: Margins, phi: Float[Array, "max_n m"], y: Float[Array, " max_n"], n: IntLike) -> Classifier:
    """Fit on the first three quarters for every λ, take the λ of least loss on the last quarter, fit on all."""
    i = jnp.arange(phi.shape[0])
    quarter = n // 4
    fitted, held = (i < n - quarter).astype(phi.dtype), (i >= n - quarter) & (i < n)
    penalties = jnp.asarray(PENALTIES, phi.dtype)

    def held_out_loss(penalty: Float[Array, ""]) -> Float[Array, ""]:
        beta, intercept = fit_margin(loss, phi, y, fitted, penalty * (n - quarter))
        return jnp.sum(jnp.where(held, loss(y * (phi @ beta + intercept)), 0))

    best = penalties[jnp.argmin(jax.vmap(held_out_loss)(penalties))]
    return fit_margin(loss, phi, y, (i < n).astype(phi.dtype), best * n)


def _centred(
    phi: Float[Array, "max_n m"], y: Float[Array, " max_n"], n: IntLike
) -> tuple[Float[Array, "max_n m"], Float[Array, " max_n"], Float[Array, " m"], Float[Array, ""]]:
    """phi and y less their means over the first n rows and zero beyond; and the means."""
    counted = (jnp.arange(phi.shape[0]) < n).astype(phi.dtype)
    mean, offset = counted @ phi / n, counted @ y / n
    return (phi - mean) * counted[:, None], (y - offset) * counted, mean, offset


@dataclasses.dataclass(frozen=True)
class Probe:
    """A linear classifier with intercept on frozen features, by `fit`; or a network that is trained, by `tune`.

    real: it fits real labels too, and is then a regression.

    fit(phi, y, n): of features and labels, of which the first n rows count, to (β, β₀). Rows beyond are any finite
    numbers, and columns of zeros get the weight 0. fit_on_accelerator: the same where a batch of them is fitted at once
    (default: fit). tune(beginning, x, y, n, **settings): of inputs and labels, of which the first n count, to the
    parameters of a network of one head; neurons that are not used must keep weights of zero. settings: its own, which
    `tune` is given by name. passes: how many passes over its samples, each a product with the first layer and its
    gradient, a `tune` with these settings takes, as far as they are compiled in; factors: whether it takes a matrix of
    the smaller of its samples and its neurons apart, as every `fit` does; what planning prices. trains: whether it
    passes over the training tasks' samples too.
    """

    name: str
    doc: str
    fit: Fit | None = None
    rules: tuple[Rule, ...] = ()
    fit_on_accelerator: Fit | None = None
    real: bool = False
    tune: Tune | None = None
    settings: tuple[Field, ...] = ()
    passes: Callable[..., int] = lambda **settings: 1
    factors: bool = False
    trains: bool = False

    @property
    def uses(self) -> tuple[str, ...]:
        """The settings that bear on every probe."""
        return ("n_down", "n_test", "probe_tasks", DOWN_SAMPLES.name, removal.DOWN_REMOVE_DEGREE.name)


def _require_one_way(record: Probe) -> None:
    if (record.fit is None) == (record.tune is None):
        raise ValueError(f"probe {record.name}: allowed: either fit or tune")
    if record.fit is not None and record.settings:
        raise ValueError(f"probe {record.name}: settings with fit; allowed: with tune, which is given them")


NONE = "none"
PROBES: Registry[Probe] = Registry("probe", _require_one_way, reserved=(NONE,))
"""The choice of `probe` that measures no downstream error."""

PROBES.register(
    Probe(
        "ridge",
        "ridge regression on the labels, penalty by leave-one-out",
        ridge,
        fit_on_accelerator=ridge_by_factors,
        real=True,
    )
)
PROBES.register(Probe("logistic", "logistic regression, penalty by a held-out quarter", logistic))
PROBES.register(Probe("svm", "linear SVM (squared hinge), penalty by a held-out quarter", svm))
for _name, _doc, _tune, _settings in (
    (
        "finetune",
        "all weights, from the pretrained ones, by gradient descent on the squared error",
        tuning.finetune,
        (*tuning.SETTINGS, tuning.NORM),
    ),
    (
        "scratch",
        "all weights, from a new draw, by gradient descent on the squared error",
        tuning.scratch,
        tuning.SETTINGS,
    ),
    (
        "multitask",
        "all weights, from a new draw, on the training tasks' samples of the last update too",
        tuning.multitask,
        tuning.SETTINGS,
    ),
):
    PROBES.register(
        Probe(
            _name,
            _doc,
            real=True,
            tune=_tune,
            settings=_settings,
            passes=lambda tune_steps, **settings: tune_steps,
            trains=_tune is tuning.multitask,
        )
    )
PROBES.register(
    Probe(
        "head",
        "a new head of the network as it is, by ridge regression of a given penalty",
        real=True,
        tune=head,
        settings=(
            Field(
                "head_penalty",
                "knob",
                number(1e-9, examples=(0.1, 1.0, 10.0)),
                "λ of a head fitted on the network's own features h, which minimises Σ (y − a·h)² + λ width ‖a‖²",
            ),
        ),
        passes=lambda **settings: 0,
        factors=True,
    )
)


def downstream(
    probe: str,
    W: Float[Array, "max_width d"],
    c: Float[Array, " max_width"],
    x: Float[Array, "max_n d"],
    y: Float[Array, " max_n"],
    n: Integer[Array, " k"],
    sizes: Sequence[int],
    width: IntLike,
    x_test: Float[Array, "max_test d"],
    y_test: Float[Array, " max_test"],
    n_test: IntLike | None = None,
    activation: Activation = ACTIVATIONS["relu"],
    *,
    accelerator: bool = False,
    real: bool = False,
    remove: str = removal.NONE,
) -> Float[Array, " k"]:
    """Test errors of the probe fitted on the first n_k rows of (x, y), for every k; of `real` labels R²,
    1 − MSE/variance, NaN where no test label varies.

    Each n_k is at most sizes[k] <= max_n; the first n_test (default: all) test samples count. accelerator: by
    `fit_on_accelerator`. remove: the probe is fitted on y − α − β·x, and α + β·x is added to its decisions, by the
    moments of its own samples up to this degree (`removal`).
    """
    own = PROBES[probe]
    fitted = (own.fit_on_accelerator if accelerator else None) or own.fit
    if fitted is None:
        raise ValueError(f"probe={probe}: allowed: one that fits frozen features")
    V = normalised(W)
    v, sigma, used = x @ V.T, activation.value, jnp.arange(len(c)) < width
    # A neuron that is not used has neither weights nor bias, and so the feature σ(0).
    c = jnp.where(used, c, 0)

    lows = _lows(remove, x, y, n, sizes)

    def fit(
        k: int, size: int, n: Integer[Array, ""]
    ) -> tuple[Float[Array, ""], Float[Array, " max_width"], Float[Array, ""]]:
        square = mean_square(v[:size], n, width)
        scale = jnp.sqrt(jnp.where(square > 0, square, 1))
        beta, intercept = fitted(sigma(v[:size] / scale + c), lows.left(k, size), n)
        return scale, beta, intercept

    scale, beta, intercept = (
        jnp.stack(parts) for parts in zip(*(fit(k, size, n[k]) for k, size in enumerate(sizes)), strict=True)
    )
    if activation.homogeneous:
        # σ(v/s + c)·β = σ(v + s c)·(β/s)
        shift, beta = scale[:, None] * c, beta / scale[:, None]

    def decisions(x: Float[Array, " d"]) -> Float[Array, " k"]:
        v = V @ x
        if activation.homogeneous:
            features = [sigma(v + shift[k]) for k in range(len(sizes))]
        else:
            features = [sigma(v / scale[k] + c) for k in range(len(sizes))]
        return jnp.stack([feature @ beta[k] for k, feature in enumerate(features)]) + intercept

    # Few samples at a time, whose V x stays in a core's cache while every classifier reads it.
    decided = jax.lax.map(decisions, x_test, batch_size=TEST_BLOCK)
    return _scores(lows.added(decided, x_test), y_test, n_test, real=real)


class _Lows(NamedTuple):
    """Components of low degree that a probe is not fitted on, for every k: moments of the first n_k samples, where
    there are any.
    """

    x: Float[Array, "max_n d"]
    y: Float[Array, " max_n"]
    moments: tuple[tuple[Float[Array, ""], Float[Array, " d"]], ...]

    def left(self, k: int, size: int) -> Float[Array, " size"]:
        """The first labels without them, as many as the k-th fit may take."""
        if not self.moments:
            return self.y[:size]
        constant, linear = self.moments[k]
        return self.y[:size] - constant - self.x[:size] @ linear

    def added(self, decided: Float[Array, "max_test k"], x: Float[Array, "max_test d"]) -> Float[Array, "max_test k"]:
        """Decisions with them."""
        if not self.moments:
            return decided
        constant, linear = (jnp.stack(parts) for parts in zip(*self.moments, strict=True))
        return decided + constant + x @ linear.T


def _lows(
    degree: str, x: Float[Array, "max_n d"], y: Float[Array, " max_n"], n: Integer[Array, " k"], sizes: Sequence[int]
) -> _Lows:
    if degree == removal.NONE:
        return _Lows(x, y, ())
    return _Lows(x, y, tuple(removal.moments(degree, x[:size], y[:size], n[k]) for k, size in enumerate(sizes)))


def _scores(
    decided: Float[Array, "max_test k"], y_test: Float[Array, " max_test"], n_test: IntLike | None, *, real: bool
) -> Float[Array, " k"]:
    """Errors of the signs of decisions on the first n_test samples (default: all), or R² of `real` labels."""
    max_test = len(decided)
    n_test = jnp.asarray(max_test if n_test is None else n_test, decided.dtype)
    counted = (jnp.arange(max_test) < n_test)[:, None]
    if real:
        target = jnp.where(counted, y_test[:, None], 0)
        error = jnp.sum(jnp.where(counted, decided - target, 0) ** 2, axis=0)
        total = jnp.sum(jnp.where(counted, target - jnp.sum(target) / n_test, 0) ** 2)
        return jnp.where(total > 0, 1 - error / jnp.where(total > 0, total, 1), jnp.nan)
    wrong = ((decided >= 0) != (y_test >= 0)[:, None]) & counted
    return jnp.sum(wrong, axis=0) / n_test


def tuned(
    probe: str,
    of: Beginning,
    x: Float[Array, "max_n d"],
    y: Float[Array, " max_n"],
    n: Integer[Array, " k"],
    sizes: Sequence[int],
    x_test: Float[Array, "max_test d"],
    y_test: Float[Array, " max_test"],
    n_test: IntLike | None = None,
    *,
    settings: Mapping[str, Any],
    real: bool = False,
    remove: str = removal.NONE,
) -> Float[Array, " k"]:
    """As `downstream`, of a probe that trains a network on the first n_k rows of (x, y); NaN where it diverges."""
    own, how = PROBES[probe], Arithmetic(activation=of.activation)
    if own.tune is None:
        raise ValueError(f"probe={probe}: allowed: one that trains a network")
    lows = _lows(remove, x, y, n, sizes)
    networks = [own.tune(of, x[:size], lows.left(k, size), n[k], **settings) for k, size in enumerate(sizes)]

    def decisions(x: Float[Array, " d"]) -> Float[Array, " k"]:
        return jnp.stack([network.outputs(params, x[None], how)[0, 0] for params in networks])

    decided = lows.added(jax.lax.map(decisions, x_test, batch_size=TEST_BLOCK), x_test)
    scores = _scores(decided, y_test, n_test, real=real)
    return jnp.where(jnp.stack([updates.finite(params) for params in networks]), scores, jnp.nan)
