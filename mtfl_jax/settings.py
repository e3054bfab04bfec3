"""The settings that no single record owns. Those of one family, algorithm and so on are in its record; the defaults
are in conf/.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from mtfl_jax.fields import (
    ConfigError,
    Field,
    Type,
    View,
    choice,
    flag,
    integer,
    list_of,
    number,
    of,
    one_of,
    optional,
    rule,
)
from mtfl_jax.learning.activations import ACTIVATIONS, PREFIX
from mtfl_jax.learning.algorithms import ALGORITHMS
from mtfl_jax.learning.algorithms.record import TRAINED, Algorithm, loss_names
from mtfl_jax.learning.arithmetic import KERNELS, PRECISIONS
from mtfl_jax.learning.data import LAWS
from mtfl_jax.learning.drawing import DOWN_SAMPLES, SAMPLES
from mtfl_jax.learning.initial import INIT_SCALE
from mtfl_jax.learning.losses import LOSSES, MIXTURE
from mtfl_jax.learning.measures import MEASURES, sets, stoppable
from mtfl_jax.learning.network import BIASES
from mtfl_jax.learning.probe import NONE, PROBES
from mtfl_jax.learning.removal import DOWN_REMOVE_DEGREE
from mtfl_jax.learning.stopping import NEVER
from mtfl_jax.learning.tasks import FAMILIES

MOST_SEED = 2**31 - 1


def _networks() -> Type:
    return choice(
        lambda: [PREFIX + name for name in ACTIVATIONS],
        lambda value: ACTIVATIONS.source(value.removeprefix(PREFIX)),
    )


def _sets() -> Type:
    def source(value: str) -> str:
        found = {MEASURES.source(name) for name, measure in MEASURES.items() if value in measure.sets}
        return " ".join(sorted(found - {""}))

    return choice(sets, source)


def _measure_at() -> Type:
    words, steps = ("log", "last"), list_of(integer(1), distinct=True, examples=())
    allowed = "log, last, or a list of distinct step numbers from 1"

    def parse(key: str, value: Any) -> str | tuple[int, ...]:
        if isinstance(value, str) and value in words:
            return value
        try:
            return tuple(sorted(steps.parse(key, value)))
        except ConfigError:
            raise ConfigError(key, value, f"allowed: {allowed}") from None

    return Type(parse, None, lambda: ("log", "last", (1,), (1, 2)), listed=True, allowed=lambda: allowed)


def _stops() -> Type:
    return choice(lambda: (NEVER, *stoppable()), MEASURES.source)


@rule("tasks", "probe", "probe_tasks")
def _real(c: View) -> bool:
    """Whether some labels are real, of the trained tasks or of the downstream one."""
    return FAMILIES[c.tasks].real or (c.probe != NONE and FAMILIES[c.probe_tasks].real)


def _size(name: str, doc: str, examples: tuple[int, ...]) -> Field:
    return Field(name, "shape", integer(1, examples=examples), doc, padded=True)


_SAMPLES = (3, 5, 8, 12)

D = _size("d", "ambient dimension", (2, 4, 5, 8))
R = _size("r", "ground-truth directions, r <= d", (1, 2, 3))
WIDTH = _size("width", "hidden neurons", (1, 3, 4, 7))
NUM_TASKS = _size("num_tasks", "tasks trained together (T)", (1, 2, 5))

ALWAYS = (
    D,
    R,
    WIDTH,
    NUM_TASKS,
    Field("seed", "knob", integer(0, MOST_SEED, examples=(0, 1, 7, MOST_SEED)), "seed of every draw"),
    Field("data", "choice", of(LAWS), "input law"),
    Field("nuisance_scale", "knob", number(0), "scale of the inputs orthogonal to the directions"),
    Field(
        "label_noise",
        "knob",
        number(0, 0.5, examples=(0.0, 0.1, 0.5)),
        "probability that a training label is flipped",
    ),
    Field("tasks", "choice", of(FAMILIES), "task family"),
    Field("target_scale", "knob", number(1e-6), "what real labels are multiplied by", when=_real),
    Field(
        "target_noise",
        "knob",
        number(0),
        "standard deviation of the normal noise of real labels that are trained or fitted on",
        when=_real,
    ),
    Field("network", "choice", _networks(), "two layers and the activation between them"),
    Field("bias", "choice", one_of(*BIASES), "biases of the hidden layer"),
    INIT_SCALE,
    Field(
        "bias_scale",
        "knob",
        number(0),
        "random biases are uniform on [-bias_scale, bias_scale]",
        when=rule("bias")(lambda c: c.bias == "random"),
    ),
    Field("algorithm", "choice", of(ALGORITHMS), "how the representation is made"),
    Field("loss", "choice", of(LOSSES, MIXTURE), "loss of the outputs and the labels"),
    Field(
        "losses",
        "choice",
        list_of(
            of(LOSSES),
            distinct=False,
            examples=(("hinge",), ("logistic", "squared"), ("squared", "logistic"), ("hinge", "hinge", "logistic")),
        ),
        "losses of a mixture; task t takes the (t mod k)-th",
        when=rule("loss")(lambda c: c.loss == MIXTURE),
    ),
    Field(
        "measure",
        "choice",
        _sets(),
        "recovery: of the first layer only, and the probe; contrastive: all, and the kernel of the tasks",
    ),
    Field("probe", "choice", of(PROBES, NONE), "downstream classifier"),
)
"""Settings that bear on every row, but where `when` says otherwise."""

USED = (
    _size("n1", "samples of a head step, or of their set where samples=fixed or batches", _SAMPLES),
    _size("n2", "samples of a representation step, or of the set where samples=fixed or batches", _SAMPLES),
    Field(
        "n_down",
        "shape",
        list_of(integer(1), distinct=True, examples=((3,), (8,), (3, 8)), listed=False, column=int),
        "samples of the downstream probe",
    ),
    _size("n_test", "samples of every test measurement", (4, 5, 7)),
    Field("steps", "shape", integer(1, examples=(1, 2, 5)), "rounds of alternating, updates of joint"),
    Field("basis", "choice", one_of("haar", "axis"), "basis in which coordinate-wise optimisers work"),
    Field("shared_inputs", "choice", flag(), "whether the tasks share their inputs"),
    Field("lr_a", "knob", number(0, examples=(0.0, 0.3, 1.0)), "learning rate of the heads"),
    Field("lr_w", "knob", number(0, examples=(0.0, 0.3, 1.0)), "learning rate of the representation"),
    Field(
        "weight_decay",
        "knob",
        optional(number(0, examples=(0.0, 0.3, 1.0))),
        "λ_w; null in one_step means 1/lr_w",
    ),
    Field(
        "samples",
        "choice",
        one_of(*SAMPLES),
        "new samples every step, one training set, or batches of one in a new random order every epoch",
    ),
    Field("batch", "shape", integer(1, examples=(1, 2, 3)), "samples of a step where samples=batches"),
    Field("stop_when", "choice", _stops(), "measurement whose threshold stops a training", neutral=NEVER),
    Field(
        "stop_at",
        "knob",
        number(-math.inf, examples=(0.3, 0.72)),
        "threshold of stop_when: a training stops there or beyond, where its loss or error is lower or its R² higher",
    ),
    Field("stop_every", "choice", integer(1, examples=(1, 2)), "updates from one look at stop_when to the next"),
    Field("precision", "choice", one_of(*PRECISIONS), "precision of the factors of the training's matrix products"),
    Field(
        "kernel",
        "choice",
        one_of(*KERNELS),
        "pallas: no hidden layer of a training in a GPU's memory; auto: as calibrated",
    ),
    Field(
        "momentum",
        "knob",
        number(0, 1, examples=(0.0, 0.5)),
        "momentum of the optimisers momentum and nesterov",
    ),
    Field("measure_at", "choice", _measure_at(), "steps at which to measure", identified=False),
    Field("probe_tasks", "choice", of(FAMILIES), "family of the downstream task"),
    DOWN_SAMPLES,
    DOWN_REMOVE_DEGREE,
)
"""Settings that bear where something that the cell chooses uses them by name."""


def _names(registry: Mapping[str, Any], meant: Callable[[Any], bool]) -> str:
    return ", ".join(name for name, record in registry.items() if meant(record))


@rule("tasks", "loss", "losses")
def losses_of_real_labels(c: View) -> None:
    """Losses of the margin are of labels ±1."""
    margins = [name for name in loss_names(c) if LOSSES[name].margin]
    if FAMILIES[c.tasks].real and margins:
        key, value = ("losses", list(c.losses)) if c.loss == MIXTURE else ("loss", c.loss)
        allowed = _names(LOSSES, lambda loss: not loss.margin)
        raise ConfigError(key, value, f"{margins[0]} is of labels ±1; allowed with tasks={c.tasks}: {allowed}")


@rule("tasks", "label_noise")
def no_flips_of_real_labels(c: View) -> None:
    """Real labels have no sign to flip."""
    if FAMILIES[c.tasks].real and c.label_noise:
        raise ConfigError("label_noise", c.label_noise, f"allowed with tasks={c.tasks}: 0, or target_noise")


@rule("probe", "probe_tasks")
def probe_of_real_labels(c: View) -> None:
    """Classifiers are of labels ±1."""
    if c.probe != NONE and FAMILIES[c.probe_tasks].real and not PROBES[c.probe].real:
        allowed = _names(PROBES, lambda probe: probe.real)
        raise ConfigError(
            "probe", c.probe, f"a classifier; allowed with probe_tasks={c.probe_tasks}: {allowed}, {NONE}"
        )


@rule("probe", DOWN_REMOVE_DEGREE.name)
def regressions_of_what_is_left(c: View) -> None:
    """Labels that lack a component are real."""
    if c.probe != NONE and c.down_remove_degree != DOWN_REMOVE_DEGREE.neutral and not PROBES[c.probe].real:
        allowed = f"allowed with probe={c.probe}, a classifier: {DOWN_REMOVE_DEGREE.neutral}"
        raise ConfigError("down_remove_degree", c.down_remove_degree, allowed)


@rule("probe", "algorithm")
def probe_on_training_samples(c: View) -> None:
    """A probe that takes the samples of the training needs one that sees any."""

    def sees(algorithm: Algorithm) -> bool:
        return set(TRAINED) <= set(algorithm.uses)

    if c.probe != NONE and PROBES[c.probe].trains and not sees(ALGORITHMS[c.algorithm]):
        raise ConfigError("algorithm", c.algorithm, f"allowed with probe={c.probe}: {_names(ALGORITHMS, sees)}")


@rule("r", "d")
def r_at_most_d(c: View) -> None:
    """There are no more directions than dimensions."""
    if c.r > c.d:
        raise ConfigError("r", c.r, f"allowed: at most d={c.d}")


CHECKS = (
    r_at_most_d,
    losses_of_real_labels,
    no_flips_of_real_labels,
    probe_of_real_labels,
    regressions_of_what_is_left,
    probe_on_training_samples,
)
"""What every cell must meet."""
