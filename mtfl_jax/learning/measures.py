"""What is measured of a network, one record a column; the order here is that of the columns.

Source: which measurements are the field's own and which are ours stands beside each.
"""

import builtins
import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Key, Num

from mtfl_jax.fields import ConfigError, Field, Rule, UndeclaredError, View, rule
from mtfl_jax.learning import data, keys, network, probe, recovery, representation, tasks, updates
from mtfl_jax.learning.arithmetic import Arithmetic
from mtfl_jax.learning.drawing import PART, draw_network, losses_of, read
from mtfl_jax.learning.losses import Pointwise
from mtfl_jax.learning.network import Params
from mtfl_jax.learning.program import Cell, Program
from mtfl_jax.learning.scalars import IntLike
from mtfl_jax.learning.tasks import FAMILIES, Tasks
from mtfl_jax.learning.updates import Batch, Samples
from mtfl_jax.records import Registry

SIMILARITY_SAMPLES = 256
"""How many of the test samples are compared pairwise, by cosines and kernels."""
ROUNDING = 16
"""A feature vector is rounding where its entries are below so many machine epsilons of the largest of all."""
MAX_KERNEL_R = 6
"""Largest r whose contrastive kernel of 4^r numbers is measured."""


def test_key(cell: Cell) -> Key[Array, ""]:
    """The key of the fresh inputs that networks are measured on."""
    return keys.stream(cell.seed, "test")


class Seen:
    """A network and what may be measured of it, each computed when it is first asked for.

    p, cell: what was trained; of: its tasks; params: the network; batch: the samples of its last update (None: none);
    x: fresh inputs, of which the first cell.n_test count; labels of fresh samples are clean. step, stopped: of a
    training that may stop, the number of updates that were due, and after which it stopped, 0 if it did not.
    """

    def __init__(
        self,
        p: Program,
        cell: Cell,
        of: Tasks,
        params: Params,
        batch: Samples | None,
        x: Float[Array, "max_test d"] | None,
        step: IntLike = 0,
        stopped: Int[Array, ""] | None = None,
    ) -> None:
        self.p, self.cell, self.of, self.params, self.batch, self._x = p, cell, of, params, batch, x
        self.step, self._stopped = step, stopped

    @functools.cached_property
    def how(self) -> Arithmetic:
        """Measurements are in float32 and plain, whatever the training was."""
        return Arithmetic(activation=self.p.arithmetic.activation)

    @functools.cached_property
    def recovery(self) -> recovery.Recovery:
        """How well W gives the directions."""
        return recovery.recovery(self.params["W"], self.cell.r, self.p.r, accelerator=self.p.accelerator)

    @property
    def x(self) -> Float[Array, "max_test d"]:
        """Fresh inputs."""
        if self._x is None:
            raise UndeclaredError("a measurement reads n_test, which does not bear on its rows")
        return self._x

    @property
    def stopped(self) -> Int[Array, ""]:
        """The number of updates after which the training stopped, 0 if it did not."""
        if self._stopped is None:
            raise UndeclaredError("a measurement reads when a training stopped that cannot")
        return self._stopped

    @functools.cached_property
    def inputs(self) -> data.Inputs:
        """Them, with what labels read."""
        return read(self.p, self.cell, test_key(self.cell), self.p.n_test, self.x)

    @functools.cached_property
    def z(self) -> Float[Array, "max_test max_r"]:
        """Their orthants."""
        return data.orthants(self.inputs.s, self.cell.r, self.p.r)

    @functools.cached_property
    def test(self) -> Batch:
        """The trained tasks on them."""
        p, cell = self.p, self.cell
        counted = (jnp.arange(p.n_test) < cell.n_test)[:, None] & (jnp.arange(p.num_tasks) < cell.num_tasks)
        y = jnp.where(counted, tasks.of_inputs(self.of, self.inputs, cell.r, p.r), 0)
        return Batch(self.x, y, cell.n_test, cell.num_tasks, counted)

    @functools.cached_property
    def few(self) -> tuple[Float[Array, "few width"], Float[Array, "few max_tasks"], Int[Array, ""]]:
        """Features, labels and number of the first SIMILARITY_SAMPLES of them."""
        few = min(SIMILARITY_SAMPLES, self.p.n_test)
        h = network.features(self.params, self.x[:few], self.how)
        return h, self.test.y[:few], jnp.minimum(few, self.cell.n_test)

    @functools.cached_property
    def initial(self) -> Params:
        """The network before any update."""
        return draw_network(self.p, self.cell)

    @functools.cached_property
    def singular_values(self) -> Float[Array, " side"]:
        """Of W, largest first."""
        return representation.singular_values(self.params["W"], accelerator=self.p.accelerator)

    @functools.cached_property
    def feature_spectrum(self) -> Float[Array, " side"]:
        """Eigenvalues of the covariance of the features of fresh samples."""
        h = network.features(self.params, self.x, self.how)
        return representation.feature_spectrum(h, self.cell.n_test)

    @functools.cached_property
    def target_kernel(self) -> Float[Array, "few few"]:
        """y yᵀ over the trained tasks, of the first SIMILARITY_SAMPLES test samples."""
        y = self.few[1]
        return y @ y.T

    def tangent_kernel(self, params: Params) -> Float[Array, "few few"]:
        """Of a network, on the first SIMILARITY_SAMPLES test samples."""
        x, trained = self.x[:SIMILARITY_SAMPLES], self.p.bias == "trained"
        return representation.tangent_kernel(params, x, self.cell.num_tasks, self.how, train_bias=trained)

    @functools.cached_property
    def ntk(self) -> Float[Array, "few few"]:
        """The tangent kernel of the network."""
        return self.tangent_kernel(self.params)

    @functools.cached_property
    def initial_ntk(self) -> Float[Array, "few few"]:
        """The tangent kernel before any update."""
        return self.tangent_kernel(self.initial)

    @functools.cached_property
    def outputs(self) -> Float[Array, "max_test max_tasks"]:
        """The network's outputs on them."""
        if self.p.accelerator:
            return jax.lax.map(lambda x: network.outputs(self.params, x[None], self.how)[0], self.x, batch_size=PART)
        return network.outputs(self.params, self.x, self.how)

    @functools.cached_property
    def losses(self) -> tuple[Pointwise, ...]:
        """The losses of the tasks in turn."""
        return losses_of(self.p, self.cell)


def _cosines(h: Float[Array, "max_n width"], n: IntLike) -> Float[Array, "max_n max_n"]:
    """Cosine similarities of the first n features; 0 with a feature vector of zero, and with all beyond.

    One of rounding is zero: a sample that is orthogonal to a row of W would else have a direction by chance. One that
    is not finite leaves no number.
    """
    h = jnp.where((jnp.arange(len(h)) < n)[:, None], h, 0)
    size = jnp.max(jnp.abs(h), axis=1, keepdims=True)
    unit = probe.normalised(jnp.where(size < ROUNDING * jnp.finfo(h.dtype).eps * jnp.max(size), 0, h))
    return unit @ unit.T


def contrastive_loss(
    h: Float[Array, "max_n width"], y: Float[Array, "max_n max_tasks"], num_tasks: IntLike, n: IntLike | None = None
) -> Float[Array, ""]:
    """−mean of K_{zz'} cos(h, h') over pairs of distinct samples; the first n (default: all) rows count.

    In [−1, 1] for labels ±1.

    K_{zz'} = (1/T) Σ_t y_t y'_t over the first `num_tasks` tasks: low where features of samples align that share their
    labels. After a head step from A = 0 the linear loss is, up to a constant, −Σ K_{zz'} h·h'; the cosine frees it of
    scale.

    Source: that multi-task pretraining induces a pseudo-contrastive loss is the claim of arXiv 2307.06887 (final
    abstract); that a step of the heads does it is our reading, and the normalisation is ours.
    """
    max_n, max_tasks = y.shape
    n = max_n if n is None else n
    y = jnp.where((jnp.arange(max_n) < n)[:, None] & (jnp.arange(max_tasks) < num_tasks), y, 0)
    pairs = jnp.asarray(n, h.dtype) * (n - 1) / 2
    return -jnp.sum(jnp.triu((y @ y.T) * _cosines(h, n), 1)) / (num_tasks * pairs)


def feature_similarity(
    h: Float[Array, "max_n width"], z: Float[Array, "max_n max_r"], r: IntLike, n: IntLike | None = None
) -> Float[Array, " max_r+1"]:
    """Mean cosine similarity of features h over pairs of samples, by the Hamming distance of their orthants.

    z: in {±1}, zero in the columns from r on; the first n (default: all) samples count. Entry k is for distance k; NaN
    where no pair of distinct samples has that distance. A feature of zero, up to rounding, has cosine 0 with all.
    """
    max_n, max_r = z.shape
    n = max_n if n is None else n
    cosine, i = _cosines(h, n), jnp.arange(max_n)
    distance = jnp.round((r - z @ z.T) / 2).astype(int)
    pair = (i[:, None] < i) & (i < n)
    at = (distance == jnp.arange(max_r + 1)[:, None, None]) & pair
    return jnp.sum(jnp.where(at, cosine, 0), axis=(1, 2)) / jnp.sum(at, axis=(1, 2))


def task_error(
    outputs: Float[Array, "max_n max_tasks"],
    y: Float[Array, "max_n max_tasks"],
    num_tasks: IntLike,
    n: IntLike | None = None,
) -> Float[Array, ""]:
    """Share of wrong signs (sign(0) = +1) over the first n (default: all) samples and the first `num_tasks` tasks."""
    max_n, max_tasks = y.shape
    n = max_n if n is None else n
    counted = (jnp.arange(max_n) < n)[:, None] & (jnp.arange(max_tasks) < num_tasks)
    wrong = ((outputs >= 0) != (y >= 0)) & counted
    return jnp.sum(wrong) / (jnp.asarray(n, outputs.dtype) * num_tasks)


def r2(
    outputs: Float[Array, "max_n max_tasks"],
    y: Float[Array, "max_n max_tasks"],
    num_tasks: IntLike,
    n: IntLike | None = None,
) -> Float[Array, ""]:
    """1 − Σ_t MSE_t/Σ_t Var_t over the first n (default: all) samples and the first `num_tasks` tasks; NaN where no
    label varies.

    Source: the coefficient of determination, tasks weighted by their variance.
    """
    max_n, max_tasks = y.shape
    n = max_n if n is None else n
    counted = (jnp.arange(max_n) < n)[:, None] & (jnp.arange(max_tasks) < num_tasks)
    error = jnp.where(counted, outputs - y, 0)
    centred = jnp.where(counted, y - jnp.sum(jnp.where(counted, y, 0), axis=0) / n, 0)
    total = jnp.sum(centred**2)
    return jnp.where(total > 0, 1 - jnp.sum(error**2) / jnp.where(total > 0, total, 1), jnp.nan)


@dataclasses.dataclass(frozen=True)
class Measure:
    """A measurement, and its column.

    type: of a number, or of each number of a list. compute(seen): a scalar, or an array that holds the true one at its
    beginning, whose shape is shape(r). of: what it is measured of: the network by `compute`, the probe, or the cost of
    the training. sets: the values of the setting `measure` with which it is measured. uses: settings that bear on it
    ("n_test" where it reads test samples), beside its own `settings`. targets: of which labels it means something, of
    the trained tasks or, of the probe's, of the downstream one; rows of others have none. needs: settings without which
    a row has none. stops: on which side of a threshold it may stop a training, as a value of `stop_when`. label: what
    figures call it, where that is not in `names.COLUMN_LABELS`.
    """

    name: str
    doc: str
    compute: Callable[[Seen], Num[Array, "*shape"]] | None = None
    of: Literal["network", "probe", "cost"] = "network"
    type: builtins.type = float
    shape: Callable[[int], tuple[int, ...]] | None = None
    sets: tuple[str, ...] = ("all", "contrastive", "representation")
    targets: Literal["any", "signs", "real"] = "any"
    needs: tuple[str, ...] = ()
    stops: Literal["", "below", "above"] = ""
    settings: tuple[Field, ...] = ()
    uses: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    label: str = ""

    def means(self, family: str) -> bool:
        """Whether it means something of the labels of a family."""
        return self.targets in ("any", "real" if FAMILIES[family].real else "signs")


_WHOLE: set[str] = set()
"""Of what nothing more can be measured: it is not computed by a record."""


def _check(measure: Measure) -> None:
    if measure.of in _WHOLE or (measure.of == "network") != (measure.compute is not None):
        raise ValueError(f"measurement {measure.name}: of={measure.of!r}; allowed: 'network', with a compute")


MEASURES: Registry[Measure] = Registry("measurement", _check)

ALL = ("all", "recovery", "contrastive", "representation")
"""The sets that a measurement of the first layer alone is in, and those of the probe and of costs."""


REPRESENTATION = ("representation",)
"""The set of what a representation is like beside its directions."""


def sets() -> tuple[str, ...]:
    """The values of the setting `measure`: every set that some measurement is in."""
    return tuple(dict.fromkeys(name for measure in MEASURES.values() for name in measure.sets))


def in_set(name: str) -> list[Measure]:
    """The measurements of a network in one set."""
    return [measure for measure in MEASURES.values() if measure.of == "network" and name in measure.sets]


def of_program(p: Program) -> list[Measure]:
    """The measurements of a network that a program makes; one of a shared pass has families beside `tasks`."""
    families = p.families if p.groups else (p.tasks,)
    found = (measure for measure in in_set(p.measure) if all(map(measure.means, families)))
    return [measure for measure in found if all(name in p for name in measure.needs)]


def stoppable() -> list[str]:
    """The measurements that may stop a training."""
    return [name for name, measure in MEASURES.items() if measure.stops]


def of_probe(family: str) -> Measure:
    """What is measured of a probe on a family's task."""
    (found,) = (measure for measure in MEASURES.values() if measure.of == "probe" and measure.means(family))
    return found


def _train_loss(seen: Seen) -> Float[Array, ""]:
    if seen.batch is None:
        return jnp.asarray(jnp.nan)
    return updates.objective(seen.params, seen.batch, seen.losses, seen.how)


def _test_loss(seen: Seen) -> Float[Array, ""]:
    return jnp.sum(updates.losses_of(seen.outputs, seen.test, seen.losses)) / seen.cell.num_tasks


def _similarity(seen: Seen) -> Float[Array, " distances"]:
    h, _, n = seen.few
    return feature_similarity(h, seen.z[: len(h)], seen.cell.r, n)


def _kernel(seen: Seen) -> Float[Array, "orthants orthants"]:
    p, cell = seen.p, seen.cell
    tables = tasks.truth_tables(seen.of, cell.r, p.r)
    tables = jnp.where(jnp.arange(p.num_tasks)[:, None] < cell.num_tasks, tables, 0)
    return tasks.contrastive_kernel(tables, cell.num_tasks)


def _feature_alignment(seen: Seen) -> Float[Array, ""]:
    h, _, n = seen.few
    return representation.alignment(h @ h.T, seen.target_kernel, n)


@rule("measure", "r", "tasks")
def _kernel_is_small(c: View) -> None:
    if not FAMILIES[c.tasks].signs:
        known = ", ".join(name for name, family in FAMILIES.items() if family.signs)
        raise ConfigError("tasks", c.tasks, f"allowed with measure={c.measure}: {known}")
    if c.r > MAX_KERNEL_R:
        raise ConfigError("r", c.r, f"allowed with measure={c.measure}: r <= {MAX_KERNEL_R}")


_of_stops = functools.partial(Measure, sets=ALL, needs=("stop_when",))
_of_weights = functools.partial(Measure, sets=REPRESENTATION)
_on_fresh = functools.partial(_of_weights, uses=("n_test",))

for _measure in (
    Measure(
        "subspace_distance",
        "sine of the largest principal angle between the top-r right singular vectors of W and the directions",
        lambda seen: seen.recovery.subspace_distance,
        sets=ALL,
        stops="below",
    ),
    Measure(
        "directions_recovered",
        "how many principal angles have a sine below ½",
        lambda seen: seen.recovery.directions_recovered,
        type=int,
        sets=ALL,
        stops="above",
    ),
    Measure(
        "feature_energy",
        "‖WM‖²/‖W‖² in Frobenius norms",
        lambda seen: seen.recovery.feature_energy,
        sets=ALL,
        stops="above",
    ),
    Measure(
        "spectral_ratio",
        "σ_r(WM)/‖W(I − MMᵀ)‖₂",
        lambda seen: seen.recovery.spectral_ratio,
        sets=ALL,
    ),
    Measure("train_loss", "the objective on the samples of the last update", _train_loss, stops="below"),
    Measure(
        "test_loss",
        "the objective on fresh samples with clean labels",
        _test_loss,
        uses=("n_test",),
        stops="below",
    ),
    Measure(
        "task_error",
        "share of wrong signs of the trained tasks on fresh samples",
        lambda seen: task_error(seen.outputs, seen.test.y, seen.cell.num_tasks, seen.cell.n_test),
        uses=("n_test",),
        targets="signs",
        stops="below",
    ),
    Measure(
        "r2",
        "1 − MSE/variance of the trained tasks on fresh samples, of real labels",
        lambda seen: r2(seen.outputs, seen.test.y, seen.cell.num_tasks, seen.cell.n_test),
        uses=("n_test",),
        targets="real",
        stops="above",
        label="R² of trained tasks",
    ),
    _of_stops(
        "steps_to",
        "updates until stop_when was at stop_at, as looked at every stop_every; where it was not, those there were",
        lambda seen: updates.taken(seen.stopped, seen.step),
        type=int,
        label="updates to the threshold",
    ),
    _of_stops(
        "steps_to_censored",
        "whether stop_when was not at stop_at yet, so that steps_to is a bound from below",
        lambda seen: (seen.stopped == 0) | (seen.stopped > seen.step),
        type=bool,
        label="threshold not reached",
    ),
    Measure("downstream_error", "test error of the probe on a new task", of="probe", sets=ALL, targets="signs"),
    Measure(
        "downstream_r2",
        "1 − MSE/variance of the probe on a new task of real labels",
        of="probe",
        sets=ALL,
        targets="real",
        label="downstream R²",
    ),
    Measure("num_params", "numbers that the learner holds", of="cost", type=int, sets=ALL),
    Measure("train_samples", "distinct inputs seen", of="cost", type=int, sets=ALL),
    Measure("train_flops", "operations of the updates' matrix products", of="cost", sets=ALL),
    Measure(
        "contrastive_loss",
        "−mean of K cos(h, h') over pairs of fresh samples",
        lambda seen: contrastive_loss(seen.few[0], seen.few[1], seen.cell.num_tasks, seen.few[2]),
        uses=("n_test",),
    ),
    Measure(
        "feature_similarity",
        "mean cosine similarity of features by Hamming distance of their orthants",
        _similarity,
        shape=lambda r: (r + 1,),
        uses=("n_test",),
    ),
    Measure(
        "contrastive_kernel",
        "the tasks' kernel K = (1/T) Σ_t f_t f_tᵀ",
        _kernel,
        shape=lambda r: (2**r, 2**r),
        sets=("contrastive",),
        rules=(_kernel_is_small,),
    ),
    _of_weights(
        "singular_values",
        "the largest 2r singular values of W; zero where it has fewer",
        lambda seen: recovery.first(seen.singular_values, 2 * seen.p.r),
        shape=lambda r: (2 * r,),
        label="singular values of W",
    ),
    _of_weights(
        "weight_participation",
        "participation ratio (Σσ²)²/Σσ⁴ of the singular values of W",
        lambda seen: representation.participation_ratio(seen.singular_values**2),
        label="participation ratio of W",
    ),
    _of_weights(
        "weight_rank",
        "effective rank of W: exp of the entropy of its singular values over their sum",
        lambda seen: representation.effective_rank(seen.singular_values),
        label="effective rank of W",
    ),
    _on_fresh(
        "feature_participation",
        "participation ratio of the eigenvalues of the features' covariance on fresh samples",
        lambda seen: representation.participation_ratio(seen.feature_spectrum),
        label="participation ratio of features",
    ),
    _on_fresh(
        "feature_rank",
        "effective rank of the features: exp of the entropy of their covariance's √λ over their sum",
        lambda seen: representation.effective_rank(jnp.sqrt(seen.feature_spectrum)),
        label="effective rank of features",
    ),
    _of_weights(
        "neuron_alignment",
        "shares of the neurons whose ‖Mᵀw‖/‖w‖ falls into each tenth of [0, 1]",
        lambda seen: representation.neuron_alignment(seen.params["W"], seen.cell.r),
        shape=lambda r: (representation.ALIGNMENT_BINS,),
        label="neurons by alignment (shares)",
    ),
    _on_fresh(
        "kernel_alignment",
        "centred alignment of the features' kernel with y yᵀ over the trained tasks, on fresh samples",
        _feature_alignment,
        label="alignment of features with labels",
    ),
    _of_weights(
        "distance_moved",
        "‖W − W₀‖/‖W₀‖ in Frobenius norms, W₀ as initialised",
        lambda seen: representation.moved(seen.params["W"], seen.initial["W"]),
        label="distance moved (of initial norm)",
    ),
    _on_fresh(
        "ntk_alignment_initial",
        "centred alignment of the tangent kernel as initialised with y yᵀ, on fresh samples",
        lambda seen: representation.alignment(seen.initial_ntk, seen.target_kernel, seen.few[2]),
        label="alignment of the initial NTK with labels",
    ),
    _on_fresh(
        "ntk_alignment",
        "centred alignment of the tangent kernel with y yᵀ over the trained tasks, on fresh samples",
        lambda seen: representation.alignment(seen.ntk, seen.target_kernel, seen.few[2]),
        label="alignment of the NTK with labels",
    ),
    _on_fresh(
        "ntk_change",
        "‖Θ − Θ₀‖/‖Θ₀‖ in Frobenius norms, of the tangent kernel on fresh samples",
        lambda seen: representation.change(seen.ntk, seen.initial_ntk, seen.few[2]),
        label="change of the NTK (of its initial norm)",
    ),
    _on_fresh(
        "ntk_distance",
        "1 − ⟨Θ, Θ₀⟩/(‖Θ‖ ‖Θ₀‖): the change of the tangent kernel but for its size",
        lambda seen: 1 - representation.alignment(seen.ntk, seen.initial_ntk, seen.few[2], centred=False),
        label="distance of the NTK from its initial one",
    ),
):
    MEASURES.register(_measure)
_WHOLE.update(("probe", "cost"))
