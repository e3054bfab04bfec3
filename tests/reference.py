"""An independent NumPy float64 reference of the definitions: plain loops, gradients derived by hand, no autodiff.

A loss is a name, or a pair of a name and the value of its knob. A sample is a pair (x, y): x (n, d) shared by the tasks
or (T, n, d) of each task's own, y (n, T) in ±1 or real. Parameters are {"W": (width, d), "b": (width,),
"A": (T, width)}. M (d, r) has orthonormal columns.
"""

import itertools
import math

import numpy as np
import scipy.special

LOSS_NAMES = ("linear", "hinge", "logistic", "squared", "exponential")
"""Those that the margin gives."""

REAL_LOSSES = ("linear", "mse", ("huber", 0.7), "mae")
"""Those of any target, each with the value of its knob where it has one."""

SLOPE_AT_ZERO = {"linear": 1.0, "hinge": 1.0, "logistic": 0.5, "squared": 1.0, "exponential": 1.0}
"""−ℓ'(0): what the first head step of a loss is, over that of the linear one."""


def pointwise(name, F, y):
    """ℓ(F, y) of outputs and targets of one shape."""
    if name == "mse":
        return (F - y) ** 2 / 2
    if name == "mae":
        return np.where(y < F, F - y, y - F)
    if isinstance(name, tuple) and name[0] == "huber":
        delta = name[1]
        return np.where(abs(F - y) <= delta, (F - y) ** 2 / 2, delta * abs(F - y) - delta**2 / 2)
    return loss(name, y * F)


def by_output(name, F, y):
    """∂ℓ/∂F."""
    if name == "mse":
        return F - y
    if name == "mae":
        return np.sign(F - y)
    if isinstance(name, tuple) and name[0] == "huber":
        return np.clip(F - y, -name[1], name[1])
    return y * slope(name, y * F)


def loss(name, m):
    """ℓ(m) of margins m = y F."""
    if isinstance(name, tuple):
        name, knob = name
        assert name == "smoothed_hinge"
        return knob * np.logaddexp(0.0, (1.0 - m) / knob)
    if name == "linear":
        return -m
    if name == "hinge":
        return np.maximum(0.0, 1.0 - m)
    if name == "logistic":
        return np.logaddexp(0.0, -m)
    if name == "squared":
        return (1.0 - m) ** 2 / 2
    assert name == "exponential"
    return np.exp(-m)


def slope(name, m):
    """ℓ'(m)."""
    if isinstance(name, tuple):
        name, knob = name
        assert name == "smoothed_hinge"
        return -np.exp(-np.logaddexp(0.0, (m - 1.0) / knob))
    if name == "linear":
        return -np.ones_like(m)
    if name == "hinge":
        return np.where(m < 1.0, -1.0, 0.0)
    if name == "logistic":
        return -np.exp(-np.logaddexp(0.0, m))
    if name == "squared":
        return m - 1.0
    assert name == "exponential"
    return -np.exp(-m)


def float64(params):
    """A copy of a tree of arrays as NumPy float64."""
    return {name: np.array(leaf, np.float64) for name, leaf in params.items()}


def inputs_of(x, t):
    """The inputs of task t, (n, d)."""
    return x if x.ndim == 2 else x[t]


def _normal(t):
    """The density of N(0, 1)."""
    return np.exp(-(t**2) / 2) / math.sqrt(2 * math.pi)


def _hermite(k):
    """He_k/√k! by its coefficients, and its derivative √k He_{k−1}/√(k−1)!."""
    polynomial = np.polynomial.HermiteE.basis(k) / math.sqrt(math.factorial(k))
    return polynomial, polynomial.deriv()


ACTIVATIONS = {
    "relu": (lambda t: np.where(t > 0, t, 0.0), lambda t: np.where(t > 0, 1.0, 0.0)),
    "leaky_relu": (lambda t: np.maximum(t, t / 100), lambda t: np.where(t > 0, 1.0, 0.01)),
    "truncated_relu": (lambda t: np.clip(t, 0, 1), lambda t: np.where((t > 0) & (t < 1), 1.0, 0.0)),
    "tanh": (np.tanh, lambda t: 1.0 / np.cosh(t) ** 2),
    "arctan": (np.arctan, lambda t: 1.0 / (1 + t**2)),
    "erf": (scipy.special.erf, lambda t: 2 / math.sqrt(math.pi) * np.exp(-(t**2))),
    "gelu": (lambda t: t * scipy.special.ndtr(t), lambda t: scipy.special.ndtr(t) + t * _normal(t)),
    "silu": (
        lambda t: t * scipy.special.expit(t),
        lambda t: scipy.special.expit(t) + t * scipy.special.expit(t) * scipy.special.expit(-t),
    ),
    "quadratic": (np.square, lambda t: 2 * t),
    "he2": _hermite(2),
    "he3": _hermite(3),
    "he4": _hermite(4),
}
"""σ and σ'."""


def hidden(params, x, activation="relu"):
    """The preactivations W x + b and the features σ(W x + b), each (n, width), of inputs (n, d)."""
    pre = x @ params["W"].T + params["b"]
    return pre, ACTIVATIONS[activation][0](pre)


def outputs(params, x, activation="relu"):
    """F_t(x) = a_tᵀ σ(W x + b), (n, T)."""
    return np.stack([hidden(params, inputs_of(x, t), activation)[1] @ a for t, a in enumerate(params["A"])], axis=1)


def task_losses(params, sample, names, activation="relu"):
    """L_t, (T,): the mean over samples of ℓ_t(F_t, y_t), where ℓ_t is names[t mod k]."""
    x, y = sample
    F = outputs(params, x, activation)
    return np.array([pointwise(names[t % len(names)], F[:, t], y[:, t]).mean() for t in range(y.shape[1])])


def objective(params, sample, names, activation="relu"):
    """L = (1/T) Σ_t L_t."""
    return task_losses(params, sample, names, activation).mean()


def task_gradients(params, sample, names, t, activation="relu"):
    """The gradients of L_t in a_t, W and b.

    L_t = (1/n) Σ_i ℓ(F_i, y_i), so ∂L_t/∂F_i = ∂ℓ/∂F / n; F_i = Σ_j a_j σ(p_ij) and p_ij = w_j·x_i + b_j.
    """
    x, y = inputs_of(sample[0], t), sample[1][:, t]
    pre, h = hidden(params, x, activation)
    a = params["A"][t]
    slopes = by_output(names[t % len(names)], h @ a, y) / len(y)
    by_pre = slopes[:, None] * a * ACTIVATIONS[activation][1](pre)
    return slopes @ h, by_pre.T @ x, by_pre.sum(axis=0)


def gradients(params, sample, names, activation="relu"):
    """The gradient of L in all parameters."""
    num_tasks = sample[1].shape[1]
    by_task = [task_gradients(params, sample, names, t, activation) for t in range(num_tasks)]
    return {
        "A": np.stack([a for a, _, _ in by_task]) / num_tasks,
        "W": sum(w for _, w, _ in by_task) / num_tasks,
        "b": sum(b for _, _, b in by_task) / num_tasks,
    }


def clipped(grads, clip):
    """The gradient of what moves, shortened to the length `clip` where it is longer."""
    length = np.sqrt(sum((leaf**2).sum() for leaf in grads.values()))
    return grads if clip is None or length < clip else {name: leaf * clip / length for name, leaf in grads.items()}


def renormed(params, start):
    """Rows of W with the lengths of those of `start`."""
    lengths = [np.linalg.norm(W, axis=1, keepdims=True) for W in (start["W"], params["W"])]
    return params | {"W": params["W"] * lengths[0] / lengths[1]}


def without_low_degrees(sample, degree):
    """Samples whose labels lack their mean, and where degree is `linear` what the mean of y x predicts of them."""
    x, y = sample
    left = y - y.mean(axis=0)
    for t in range(y.shape[1] if degree == "linear" else 0):
        own = inputs_of(x, t)
        left[:, t] -= own @ (own * y[:, t : t + 1]).mean(axis=0)
    return x, left


def head_step(params, sample, names, lr_a, activation="relu", clip=None):
    """Every a_t by ∇_{a_t} L_t (not of L, which is 1/T of it)."""
    steps = [task_gradients(params, sample, names, t, activation)[0] for t in range(sample[1].shape[1])]
    return params | {"A": params["A"] - lr_a * clipped({"A": np.stack(steps)}, clip)["A"]}


def representation_step(params, sample, names, lr_w, decay, train_bias=False, activation="relu", clip=None):
    """W by ∇_W L and weight decay λ_w; a trained bias by ∇_b L alone."""
    grads = gradients(params, sample, names, activation)
    grads = clipped({name: grads[name] for name in (("W", "b") if train_bias else ("W",))}, clip)
    W = (1 - lr_w * decay) * params["W"] - lr_w * grads["W"]
    b = params["b"] - lr_w * grads["b"] if train_bias else params["b"]
    return params | {"W": W, "b": b}


def one_step(
    params, heads, features, names=("linear",), lr_a=1.0, lr_w=1.0, decay=None, train_bias=False, activation="relu"
):
    """A⁺ = −η_a ∇_{a_t} L_t(A = 0) on `heads`, then the representation step; λ_w = 1/η_w by default."""
    start = params | {"A": np.zeros_like(params["A"])}
    decay = 1 / lr_w if decay is None else decay
    stepped = head_step(start, heads, names, lr_a, activation)
    return representation_step(stepped, features, names, lr_w, decay, train_bias, activation)


def alternating(
    params,
    samples,
    names,
    lr_a,
    lr_w,
    decay,
    head_steps=1,
    train_bias=False,
    activation="relu",
    clip=None,
    weight_norm=False,
):
    """The parameters after each round, of which `samples` lists (heads, features)."""
    history, start = [], params
    for heads, features in samples:
        for _ in range(head_steps):
            params = head_step(params, heads, names, lr_a, activation, clip)
        params = representation_step(params, features, names, lr_w, decay, train_bias, activation, clip)
        params = renormed(params, start) if weight_norm else params
        history.append(params)
    return history


def schedule(name, k, steps):
    """Learning rate of update k = 0 … steps − 1 over its peak."""
    if name == "constant":
        return 1.0
    if name == "linear":
        return 1 - k / steps
    if name == "cosine":
        return (1 + math.cos(math.pi * k / steps)) / 2
    assert name == "warmup_cosine"
    warm = math.ceil(steps / 10)
    if k < warm:
        return 1 / warm + (1 - 1 / warm) * k / warm
    return (1 + math.cos(math.pi * (k - warm) / (steps + 1 - warm))) / 2


COUPLED = ("sgd", "momentum", "nesterov", "adam", "nadam", "radam", "amsgrad", "adagrad", "rmsprop", "sign_sgd")
DECOUPLED = ("adamw", "lion")
ROTATION_FREE = ("sgd", "momentum", "nesterov")
"""Optimisers that commute with rotations of the inputs."""


def direction(name, g, state, t, momentum):
    """What update t = 1, 2, … of one leaf subtracts, over the learning rate; `state` is the leaf's, changed in place.

    Hyperparameters are optax's defaults.
    """
    zero = np.zeros_like(g)
    if name == "sgd":
        return g
    if name == "sign_sgd":
        return np.sign(g)
    if name in ("momentum", "nesterov"):
        state["m"] = g + momentum * state.get("m", zero)
        return state["m"] if name == "momentum" else g + momentum * state["m"]
    if name == "adagrad":
        state["v"] = state.get("v", zero + 0.1) + g**2
        return g / np.sqrt(state["v"] + 1e-7)
    if name == "rmsprop":
        state["v"] = 0.9 * state.get("v", zero) + 0.1 * g**2
        return g / np.sqrt(state["v"] + 1e-8)
    if name == "lion":
        before = state.get("m", zero)
        state["m"] = 0.99 * before + 0.01 * g
        return np.sign(0.9 * before + 0.1 * g)
    b1, b2, eps = 0.9, 0.999, 1e-8
    state["m"] = b1 * state.get("m", zero) + (1 - b1) * g
    state["v"] = b2 * state.get("v", zero) + (1 - b2) * g**2
    m, v = state["m"] / (1 - b1**t), state["v"] / (1 - b2**t)
    if name in ("adam", "adamw"):
        return m / (np.sqrt(v) + eps)
    if name == "nadam":
        return (b1 * state["m"] / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)) / (np.sqrt(v) + eps)
    if name == "amsgrad":
        state["top"] = np.maximum(state.get("top", zero), v)
        return m / (np.sqrt(state["top"]) + eps)
    assert name == "radam"
    longest = 2 / (1 - b2) - 1
    length = longest - 2 * t * b2**t / (1 - b2**t)
    if length < 5:
        return m
    top, bottom = (length - 4) * (length - 2) * longest, (longest - 4) * (longest - 2) * length
    return math.sqrt(top / bottom) * m / (np.sqrt(v) + eps)


def joint(
    params,
    samples,
    names,
    optimizer,
    lr,
    shape="constant",
    momentum=0.9,
    decay=0.0,
    train_bias=False,
    Q=None,
    activation="relu",
    factors=(1, 1),
    clip=None,
    weight_norm=False,
):
    """The parameters after each update of W, A and a trained b on one of `samples`.

    Weight decay acts on W, through the gradient or (DECOUPLED) directly. factors: of the rates of W and b, and of A.
    With Q (d, d) the inputs are x Qᵀ and the
    weights W Qᵀ, as in the run's own basis; what is returned is turned back.
    """
    if Q is not None:
        turned = joint(
            params | {"W": params["W"] @ Q.T},
            [(x @ Q.T, y) for x, y in samples],
            *(names, optimizer, lr, shape, momentum, decay, train_bias),
            activation=activation,
            factors=factors,
            clip=clip,
            weight_norm=weight_norm,
        )
        return [p | {"W": p["W"] @ Q} for p in turned]
    state = {name: {} for name in params}
    history, start = [], params
    trained = ("W", "A", "b") if train_bias else ("W", "A")
    for k, sample in enumerate(samples):
        grads = gradients(params, sample, names, activation)
        grads = clipped({name: grads[name] for name in trained}, clip)
        rate = lr * schedule(shape, k, len(samples))
        moved = dict(params)
        for name in trained:
            pull = decay * params[name] if name == "W" else np.zeros_like(params[name])
            if optimizer in DECOUPLED:
                step = direction(optimizer, grads[name], state[name], k + 1, momentum) + pull
            else:
                step = direction(optimizer, grads[name] + pull, state[name], k + 1, momentum)
            moved[name] = params[name] - rate * factors[name == "A"] * step
        params = renormed(moved, start) if weight_norm else moved
        history.append(params)
    return history


def multitask(params, sample, own, steps, lr, train_bias=False, activation="relu"):
    """The network of one head that gradient descent fits to `own` together with the tasks of `sample`: on the mean of
    ½ (F − y)² over the samples of all tasks, every head from zero.
    """
    n, num_tasks = sample[1].shape
    params = params | {"A": np.zeros((num_tasks + 1, params["A"].shape[1]))}
    parts = ((sample, slice(0, -1), n * num_tasks), (own, slice(-1, None), len(own[1])))
    count = sum(size for *_, size in parts)
    for _ in range(steps):
        found = [gradients(params | {"A": params["A"][of]}, data, ["mse"], activation) for data, of, _ in parts]
        shares = [size / count for *_, size in parts]
        moved = {"A": np.concatenate([share * own["A"] for share, own in zip(shares, found, strict=True)])}
        for name in ("W", "b") if train_bias else ("W",):
            moved[name] = sum(share * own[name] for share, own in zip(shares, found, strict=True))
        params = params | {name: params[name] - lr * leaf for name, leaf in moved.items()}
    return params | {"A": params["A"][-1:]}


def input_moments(law, d, r, **settings):
    """The mean (d,) and the covariance (d, d) of a law's inputs; 0 and I of a law that is not named here."""
    k, mean, covariance = np.arange(d), np.zeros(d), np.eye(d)
    if law == "biased" and not settings["centred"]:
        p = settings["bias_probability"]
        return mean + p - (1 - p), 4 * p * (1 - p) * covariance
    if law == "spiked":
        c = settings["spike_overlap"]
        v = c * (k == 0) + math.sqrt(1 - c**2) * (k == r)
        return mean, covariance + settings["spike_strength"] * np.outer(v, v)
    if law == "power_law":
        eigenvalues = (k + 1.0) ** -settings["power_law_exponent"]
        return mean, np.diag(eigenvalues) * d / eigenvalues.sum()
    if law == "dictionary":
        there = k < settings["num_patterns"]
        read = (k < r) & there
        together = settings["pattern_agreement"] * np.outer(read, read)
        return mean, np.where(np.eye(d, dtype=bool), np.diag(there), together)
    if law == "clusters":
        return mean, np.diag(k < r) + settings["cluster_spread"] ** 2 * covariance
    return mean, covariance


def oracle(params, M):
    """The network with each row projected on span(M), rescaled from variance 1/d to 1/r a direction."""
    d, r = M.shape
    return params | {"W": params["W"] @ M @ M.T * math.sqrt(d / r)}


def orthant_indices(x, M):
    """Little-endian index of z = sign(Mᵀx), sign(0) = +1: x (n, d) -> (n,)."""
    return ((x @ M >= 0) * 2 ** np.arange(M.shape[1])).sum(axis=1)


def kernel_step(params, tables, heads_x, features_x, M, activation="relu"):
    """Σ_z (K h)_{zj} S_{zj}, (width, d): `one_step` with the linear loss over η_a η_w. tables (T, 2^r) hold f_t(z)."""
    num_tasks, cells = tables.shape
    K = tables.T @ tables / num_tasks
    pre, _ = hidden(params, features_x, activation)
    h = np.stack(
        [hidden(params, heads_x[orthant_indices(heads_x, M) == z], activation)[1].sum(axis=0) for z in range(cells)]
    )
    back = K @ h / len(heads_x)
    out = np.zeros_like(params["W"])
    for i, z in enumerate(orthant_indices(features_x, M)):
        out += np.outer(back[z] * ACTIVATIONS[activation][1](pre[i]), features_x[i]) / len(features_x)
    return out


def recovery(W, M):
    """(subspace_distance, directions_recovered, feature_energy, spectral_ratio) of W (width, d) for M (d, r)."""
    (width, d), r = W.shape, M.shape[1]
    if not W.any():
        return 1.0, 0, 0.0, 0.0
    W = W / np.abs(W).max()
    off = np.eye(d) - M @ M.T
    _, sigma, Vt = np.linalg.svd(W)
    rank = int((sigma > sigma[0] * max(W.shape) * np.finfo(float).eps).sum())
    V = Vt[: min(rank, r)].T
    sines = np.concatenate([np.linalg.svd(off @ V, compute_uv=False)[: V.shape[1]], np.ones(r - V.shape[1])])
    parallel = np.linalg.svd(W @ M, compute_uv=False)
    across = np.linalg.norm(W @ off, 2)
    sigma_r = parallel[r - 1] if width >= r else 0.0
    # Rounding in I − MMᵀ leaves some 1e-16 of a W that lies in span(M).
    ratio = math.inf if across < 1e-14 else sigma_r / across
    return sines.max(), int((sines < 0.5).sum()), (W @ M).ravel() @ (W @ M).ravel() / (W**2).sum(), ratio


def cosine(h, i, j):
    """Of the i-th and the j-th feature; 0 where one of them is zero or rounding beside the largest."""
    least = min(abs(h[i]).max(), abs(h[j]).max())
    if least == 0 or least < 16 * np.finfo(h.dtype).eps * abs(h).max():
        return 0.0
    return h[i] @ h[j] / math.sqrt((h[i] @ h[i]) * (h[j] @ h[j]))


def feature_similarity(h, z):
    """Mean cosine of pairs of distinct samples by Hamming distance 0 … r of z (n, r); NaN where there is no pair."""
    found = [[] for _ in range(z.shape[1] + 1)]
    for i, j in itertools.combinations(range(len(h)), 2):
        found[int((z[i] != z[j]).sum())].append(cosine(h, i, j))
    return np.array([np.mean(values) if values else math.nan for values in found])


def contrastive_loss(h, y):
    """−mean over pairs of distinct samples of (1/T) Σ_t y_t y'_t times the cosine of their features."""
    found = []
    for i, j in itertools.combinations(range(len(h)), 2):
        found.append(-np.mean(y[i] * y[j]) * cosine(h, i, j))
    return np.mean(found)


def participation_ratio(values):
    """(Σλ)²/Σλ²."""
    return np.sum(values) ** 2 / np.sum(np.square(values))


def effective_rank(sigma):
    """The exponential of the entropy of σ/Σσ (Roy & Vetterli 2007)."""
    p = [value / np.sum(sigma) for value in sigma if value > 0]
    return math.exp(-sum(value * math.log(value) for value in p))


def neuron_alignment(W, M, bins=10):
    """Shares of the neurons by the cosine with span(M)."""
    cosines = [np.linalg.norm(w @ M) / np.linalg.norm(w) for w in W if np.any(w)]
    return np.histogram(np.minimum(cosines, 1), np.linspace(0, 1, bins + 1))[0] / len(cosines)


def tangent_kernel(params, x, activation="relu", train_bias=False):
    """The mean over tasks of inner products of the gradients of F_t in W, A and a trained b, written out."""
    pre, h = hidden(params, x, activation)
    slopes, K = ACTIVATIONS[activation][1](pre), np.zeros((len(x), len(x)))
    for t, a in enumerate(params["A"]):
        gradients = []
        for i in range(len(x)):
            by_A = np.zeros_like(params["A"])
            by_A[t] = h[i]
            by_b = a * slopes[i]
            by_W = by_b[:, None] * x[i]
            gradients.append(np.concatenate([by_A.ravel(), by_W.ravel(), by_b if train_bias else []]))
        K += np.array(gradients) @ np.array(gradients).T
    return K / len(params["A"])


def kernel_alignment(K, L, centred=True):
    """⟨K, L⟩/(‖K‖ ‖L‖) of kernels, H K H with H = I − 11ᵀ/n where centred."""
    if centred:
        H = np.eye(len(K)) - 1 / len(K)
        K, L = H @ K @ H, H @ L @ H
    return np.trace(K @ L) / math.sqrt(np.trace(K @ K) * np.trace(L @ L))


def representation(params, start, x, y, M, few, activation="relu", train_bias=False):
    """Every measurement of the set `representation` that is in no other; kernels on the first `few` samples."""
    W, h = params["W"], hidden(params, x, activation)[1]
    sigma = np.linalg.svd(W, compute_uv=False)
    spectrum = np.maximum(np.linalg.eigvalsh(np.cov(h.T, bias=True)), 0)
    x, h, targets = x[:few], h[:few], y[:few] @ y[:few].T
    ntk, initial = (tangent_kernel(each, x, activation, train_bias) for each in (params, start))
    first = 2 * M.shape[1]
    return {
        "singular_values": np.pad(sigma, (0, first))[:first],
        "weight_participation": participation_ratio(sigma**2),
        "weight_rank": effective_rank(sigma),
        "feature_participation": participation_ratio(spectrum),
        "feature_rank": effective_rank(np.sqrt(spectrum)),
        "neuron_alignment": neuron_alignment(W, M),
        "kernel_alignment": kernel_alignment(h @ h.T, targets),
        "distance_moved": np.linalg.norm(W - start["W"]) / np.linalg.norm(start["W"]),
        "ntk_alignment_initial": kernel_alignment(initial, targets),
        "ntk_alignment": kernel_alignment(ntk, targets),
        "ntk_change": np.linalg.norm(ntk - initial) / np.linalg.norm(initial),
        "ntk_distance": 1 - kernel_alignment(ntk, initial, centred=False),
    }


def task_error(F, y):
    """Share of wrong signs, sign(0) = +1."""
    return float(np.mean(np.where(F >= 0, 1, -1) != y))


def r2(F, y):
    """1 − Σ_t MSE_t/Σ_t Var_t of outputs and labels (n, T)."""
    return 1 - np.mean((F - y) ** 2, axis=0).sum() / np.var(y, axis=0).sum()


def ridge_probe_error(W, c, x, y, x_test, y_test, penalties, activation="relu"):
    """Test error of `ridge_probe`."""
    return task_error(ridge_probe(W, c, x, y, x_test, penalties, activation), y_test)


def ridge_probe(W, c, x, y, x_test, penalties, activation="relu"):
    """Ridge regression with intercept on σ(V x + c), λ by leave-one-out, each fit done explicitly: values at x_test.

    V: rows of W normalised, 0 for a zero row, scaled so that V x has unit mean square on the sample (x, y).
    Minimises Σ_i (y_i − φ_i·β − β₀)² + λ n ‖β‖² on the n samples that are left, with the full sample's penalty λ n.
    """
    norms = np.linalg.norm(W, axis=1, keepdims=True)
    V = np.where(norms > 0, W / np.where(norms > 0, norms, 1), 0)
    mean_square = np.mean((x @ V.T) ** 2)
    V = V / math.sqrt(mean_square) if mean_square > 0 else V

    def design(points):
        return np.hstack([ACTIVATIONS[activation][0](points @ V.T + c), np.ones((len(points), 1))])

    def fit(rows, penalty):
        phi = design(x)[rows]
        ridge = penalty * len(y) * np.diag([1.0] * len(c) + [0.0])
        return np.linalg.solve(phi.T @ phi + ridge, phi.T @ y[rows])

    everything = np.arange(len(y))
    errors = [
        sum((y[i] - design(x)[i] @ fit(everything != i, penalty)) ** 2 for i in everything) for penalty in penalties
    ]
    theta = fit(everything >= 0, penalties[int(np.argmin(errors))])
    return design(x_test) @ theta


def ridge_head(params, x, y, penalty, activation="relu"):
    """The head (width,) that minimises Σ_i (y_i − a·h_i)² + penalty ‖a‖² on the features of (x, y)."""
    h = hidden(params, x, activation)[1]
    return np.linalg.solve(h.T @ h + penalty * np.eye(h.shape[1]), h.T @ y)


def low_degrees(x, y, degree):
    """What `without_low_degrees` takes from the labels (n,), as a function of inputs."""
    if degree == "none":
        return lambda points: np.zeros(len(points))
    constant, linear = y.mean(), (x * y[:, None]).mean(axis=0) * (degree == "linear")
    return lambda points: constant + points @ linear


def index_target(u, frame, coefficients, product=0.0):
    """Σ_k c_k (1/√I) Σ_i he_k(u·v_i) + c Π_i u·v_i over √(Σ c_k² + c²), v_i the rows of frame; he_k = He_k/√k!."""
    s = u @ frame.T
    total = product * s.prod(axis=1)
    for k, c in enumerate(coefficients, start=1):
        series = [0.0] * k + [1.0]
        he = np.polynomial.hermite_e.hermeval(s, series) / math.sqrt(math.factorial(k))
        total = total + c * he.sum(axis=1) / math.sqrt(len(frame))
    return total / math.sqrt(sum(c**2 for c in coefficients) + product**2)


def teacher_target(u, a, V):
    """Σ_k a_k max(0, u·v_k)."""
    return sum(a_k * np.maximum(u @ v, 0) for a_k, v in zip(a, V, strict=True))


def staircase_target(z, order):
    """(z_1 + z_1 z_2 + …)/√D, D = len(order), the coordinates in that order."""
    return sum(z[:, list(order[: j + 1])].prod(axis=1) for j in range(len(order))) / math.sqrt(len(order))


def walsh(table):
    """The coefficients c_S of f(z) = Σ_S c_S Π_{k∈S} z_k of its values at the orthants, S and z little-endian."""
    r = int(math.log2(len(table)))
    z = np.array([[1 if z >> k & 1 else -1 for k in range(r)] for z in range(2**r)])
    members = [[k for k in range(r) if S >> k & 1] for S in range(2**r)]
    return np.array([np.mean(table * z[:, own].prod(axis=1)) for own in members])


class Counter:
    """Counts the floating-point operations of matrix products, two a multiply-add."""

    def __init__(self):
        self.flops = 0

    def product(self, a, b):
        """The product of a (m, k) and b (k, n), counted."""
        self.flops += 2 * a.shape[0] * a.shape[1] * b.shape[1]
        return a @ b

    def hidden(self, params, x):
        """Preactivations of each task's inputs: one product if shared."""
        if x.ndim == 2:
            pre = self.product(x, params["W"].T) + params["b"]
            return [pre] * len(params["A"])
        return [self.product(own, params["W"].T) + params["b"] for own in x]

    def slopes(self, params, pre, y, names):
        """∂L_t/∂F (n, T), which needs the outputs: one product with the heads, a column each."""
        F = [self.product(np.maximum(p, 0), a[:, None])[:, 0] for p, a in zip(pre, params["A"], strict=True)]
        by_task = [slope(names[t % len(names)], y[:, t] * F[t]) * y[:, t] / len(y) for t in range(y.shape[1])]
        return np.stack(by_task, axis=1)

    def head_gradients(self, pre, slopes):
        """∇_{a_t} L_t (T, width)."""
        return np.stack([self.product(s[None], np.maximum(p, 0))[0] for s, p in zip(slopes.T, pre, strict=True)])

    def weight_gradient(self, params, x, pre, slopes):
        """∇_W L (width, d)."""
        num_tasks = slopes.shape[1]
        if x.ndim == 2:
            by_pre = self.product(slopes, params["A"]) * (pre[0] > 0)
            return self.product(by_pre.T, x) / num_tasks
        own = [
            self.product((self.product(slopes[:, [t]], params["A"][[t]]) * (pre[t] > 0)).T, x[t])
            for t in range(num_tasks)
        ]
        return sum(own) / num_tasks
