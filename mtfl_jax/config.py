"""Typed configuration of one cell: every field, its kind, what it allows, and what it does.

Defaults live in conf/ (Hydra composes them); this module checks what was composed and turns it into the
`Program` and `Cell` that `learning.experiment` runs.
"""

import dataclasses
import difflib
import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import numpy as np

from mtfl_jax.learning import data, experiment, limits, losses, moments, network, probe, tasks, updates

GROUPS = ("data", "tasks", "network", "algorithm", "loss", "probe")
"""Config groups of a cell: keys whose choice is a file of conf/."""


OTHERS = ("study", "size", "sweep", "plan", "moments", "memory_fraction")
"""Keys of conf/config.yaml that are not a cell's."""


class ConfigError(ValueError):
    """A bad input, said in one line: the key, the value and what is allowed."""

    def __init__(self, key: str, value: object, allowed: str) -> None:
        super().__init__(f"{key}={value}: {allowed}")
        self.key, self.value, self.allowed = key, value, allowed


HYDRA_BASE = {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}
"""What Hydra 1.3 must be told and later versions must not."""


def conf_dir() -> Path:
    """The folder of the Hydra configs: inside an installed package, beside it in a checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "conf"


Parse = Callable[[str, Any], Any]


def _field(kind: str, parse: Parse, doc: str) -> Any:
    return dataclasses.field(metadata={"kind": kind, "parse": parse, "doc": doc})


def _integer(low: int, high: float = math.inf) -> Parse:
    allowed = f"allowed: an integer from {low}" + (f" to {high}" if high < math.inf else "")

    def parse(key: str, value: Any) -> int:
        try:
            number = operator.index(value)
        except TypeError:
            number = None
        if number is None or isinstance(value, bool) or not low <= number <= high:
            raise ConfigError(key, value, allowed)
        return number

    return parse


def _number(low: float, high: float = math.inf) -> Parse:
    allowed = f"allowed: a finite number from {low:g}" + (f" to {high:g}" if high < math.inf else "")

    def parse(key: str, value: Any) -> float:
        good = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not good or not math.isfinite(value) or not low <= value <= high:
            raise ConfigError(key, value, allowed)
        return float(value)

    return parse


def _flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise ConfigError(key, value, "allowed: true, false")
    return bool(value)


def _choice(names: Sequence[str]) -> Parse:
    def parse(key: str, value: Any) -> str:
        if value not in names:
            raise ConfigError(key, value, f"allowed: {', '.join(names)}{_guess(value, names)}")
        return str(value)

    return parse


def _optional(inner: Parse) -> Parse:
    return lambda key, value: None if value is None else inner(key, value)


def _integer_or(low: int, *words: str) -> Parse:
    def parse(key: str, value: Any) -> int | str:
        if isinstance(value, str) and value in words:
            return value
        try:
            return _integer(low)(key, value)
        except ConfigError:
            raise ConfigError(key, value, f"allowed: {', '.join(words)}, or an integer from {low}") from None

    return parse


def _list_of(inner: Parse, *, distinct: bool) -> Parse:
    """A list, or a single value for a list of one."""

    def parse(key: str, value: Any) -> tuple:
        scalar = isinstance(value, str) or not isinstance(value, Sequence | np.ndarray | range)
        items = tuple(inner(key, item) for item in ([value] if scalar else value))
        if not items or (distinct and len(set(items)) < len(items)):
            raise ConfigError(key, value, "allowed: a non-empty list" + (" of distinct values" if distinct else ""))
        return items

    return parse


def _measure_at(key: str, value: Any) -> str | tuple[int, ...]:
    if isinstance(value, str) and value in ("log", "last"):
        return value
    try:
        return tuple(sorted(_list_of(_integer(1), distinct=True)(key, value)))
    except ConfigError:
        raise ConfigError(key, value, "allowed: log, last, or a list of distinct step numbers from 1") from None


def _guess(value: Any, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(value), names, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


_SIZE = _integer(1)
# Named here because inside the class `data`, `tasks`, `network` and `probe` are its fields.
_LAW, _FAMILY, _BIAS = _choice(tuple(data.LAWS)), _choice(tasks.FAMILIES), _choice(network.BIASES)
_PRECISION, _KERNEL = _choice(network.PRECISIONS), _choice(network.KERNELS)
_LOSS, _PROBE = _choice((*losses.LOSSES, "mixture")), _choice((*probe.PROBES, "none"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One cell. A `shape` field changes array shapes, a `choice` names code; both are compiled in. A `knob` is a
    traced number: changing it compiles nothing.
    """

    d: int = _field("shape", _SIZE, "ambient dimension")
    r: int = _field("shape", _SIZE, "ground-truth directions, r <= d")
    width: int = _field("shape", _SIZE, "hidden neurons")
    num_tasks: int = _field("shape", _SIZE, "tasks trained together (T)")
    n1: int = _field("shape", _SIZE, "samples of a head step")
    n2: int = _field("shape", _SIZE, "samples of a representation step")
    n_down: tuple[int, ...] = _field("shape", _list_of(_SIZE, distinct=True), "samples of the downstream probe")
    n_test: int = _field("shape", _SIZE, "samples of every test measurement")
    steps: int = _field("shape", _SIZE, "rounds of alternating, updates of joint")
    seed: int = _field("knob", _integer(0, 2**31 - 1), "seed of every draw")

    data: str = _field("choice", _LAW, "input law")
    nuisance_scale: float = _field("knob", _number(0), "scale of the inputs orthogonal to the directions")
    label_noise: float = _field("knob", _number(0, 0.5), "probability that a training label is flipped")
    basis: str = _field("choice", _choice(("haar", "axis")), "basis in which coordinate-wise optimisers work")
    shared_inputs: bool = _field("choice", _flag, "whether the tasks share their inputs")

    tasks: str = _field("choice", _FAMILY, "task family")
    parity_size: int | str = _field("knob", _integer_or(1, "any", "all"), "coordinates of each parity task")

    network: str = _field("choice", _choice(("two_layer_relu",)), "network")
    bias: str = _field("choice", _BIAS, "biases of the hidden layer")
    bias_scale: float = _field("knob", _number(0), "random biases are uniform on [-bias_scale, bias_scale]")

    algorithm: str = _field("choice", _choice(experiment.ALGORITHMS), "how the representation is made")
    lr_a: float = _field("knob", _number(0), "learning rate of the heads")
    lr_w: float = _field("knob", _number(0), "learning rate of the representation")
    weight_decay: float | None = _field("knob", _optional(_number(0)), "λ_w; null in one_step means 1/lr_w")
    head_steps: int = _field("choice", _SIZE, "head steps a round")
    split_batch: bool = _field("choice", _flag, "whether the heads get n1 samples of their own")
    samples: str = _field("choice", _choice(("fresh", "fixed")), "new samples every step, or one training set")
    precision: str = _field("choice", _PRECISION, "precision of the factors of the training's matrix products")
    kernel: str = _field("choice", _KERNEL, "pallas: the training's hidden layer is never in a GPU's memory")
    optimizer: str = _field("choice", _choice(tuple(updates.OPTIMIZERS)), "optimiser of joint")
    lr: float = _field("knob", _number(0), "peak learning rate of joint")
    momentum: float = _field("knob", _number(0, 1), "momentum of the optimisers momentum and nesterov")
    schedule: str = _field("choice", _choice(tuple(updates.SCHEDULES)), "learning-rate schedule of joint")
    measure_at: str | tuple[int, ...] = _field("choice", _measure_at, "steps at which to measure")

    loss: str = _field("choice", _LOSS, "loss of the margin")
    losses: tuple[str, ...] = _field(
        "choice",
        _list_of(_choice(tuple(losses.LOSSES)), distinct=False),
        "losses of a mixture; task t takes the (t mod k)-th",
    )

    measure: str = _field("choice", _choice(experiment.MEASURES), "recovery: of the first layer only; and the probe")
    probe: str = _field("choice", _PROBE, "downstream classifier")
    probe_tasks: str = _field("choice", _FAMILY, "family of the downstream task")
    probe_parity_size: int | str = _field(
        "knob", _integer_or(1, "any", "all"), "coordinates of a parity downstream task"
    )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "Config":
        """Check every value and every rule between them. Raises ConfigError."""
        config = cls.parsed(values)
        config.check()
        return config

    @classmethod
    def parsed(cls, values: Mapping[str, Any]) -> "Config":
        """Check every value by itself. Raises ConfigError, also for an unknown or missing key."""
        for key, value in values.items():
            require_field(key, value)
        parsed = {}
        for name, spec in FIELDS.items():
            if name not in values:
                raise ConfigError(name, "(missing)", "required")
            parsed[name] = spec.metadata["parse"](name, values[name])
        return cls(**parsed)

    def check(self) -> None:
        """Check the rules between values. Raises ConfigError."""
        if self.r > self.d:
            raise ConfigError("r", self.r, f"allowed: at most d={self.d}")
        used = self.used()
        for key, family in (("tasks", self.tasks), ("probe_tasks", self.probe_tasks)):
            if key in used and tasks.needs_table(family) and self.r > tasks.MAX_TABLE_R:
                free = ", ".join(name for name in tasks.FAMILIES if not tasks.needs_table(name))
                raise ConfigError(
                    "r",
                    self.r,
                    f"{key}={family} holds tables of 2^r values; allowed: r <= {tasks.MAX_TABLE_R}, or {free}",
                )
        if self.measure == "contrastive" and self.r > experiment.MAX_KERNEL_R:
            raise ConfigError("r", self.r, f"allowed with measure=contrastive: r <= {experiment.MAX_KERNEL_R}")
        for key in ("parity_size", "probe_parity_size"):
            size = getattr(self, key)
            if key in used and isinstance(size, int) and size > self.r:
                raise ConfigError(key, size, f"allowed: any, all, or an integer from 1 to r={self.r}")
        if self.algorithm in experiment.TRAINED_IN_STEPS:
            if self.weight_decay is None:
                raise ConfigError("weight_decay", None, f"allowed in {self.algorithm}: a finite number from 0")
            if "linear" in self.loss_names and self.weight_decay == 0:
                raise ConfigError(
                    "loss",
                    self.loss,
                    f"the linear loss is unbounded in {self.algorithm}; allowed: weight_decay > 0, or another loss",
                )
            if isinstance(self.measure_at, tuple) and self.measure_at[-1] > self.steps:
                raise ConfigError("measure_at", list(self.measure_at), f"allowed: steps from 1 to steps={self.steps}")
        if "shared_inputs" in used and not self.shared_inputs:
            for key, only in (("precision", "float32"), ("kernel", "plain")):
                if getattr(self, key) != only:
                    raise ConfigError(key, getattr(self, key), f"allowed with shared_inputs=false: {only}")
        if self.algorithm == "population":
            for key, allowed in (("data", "gaussian"), ("loss", "linear"), ("shared_inputs", True)):
                if getattr(self, key) != allowed:
                    raise ConfigError(key, getattr(self, key), f"allowed with algorithm=population: {allowed}")
            if self.bias == "trained":
                raise ConfigError("bias", self.bias, "allowed with algorithm=population: zero, random")
            if self.r > limits.MAX_POPULATION_R:
                raise ConfigError("r", self.r, f"allowed with algorithm=population: r <= {limits.MAX_POPULATION_R}")

    @property
    def loss_names(self) -> tuple[str, ...]:
        """The losses of the tasks, in turn."""
        return self.losses if self.loss == "mixture" else (self.loss,)

    @property
    def record(self) -> tuple[int, ...]:
        """Numbers of updates after which the cell is measured; 0 where nothing is trained."""
        if self.algorithm not in experiment.TRAINED_IN_STEPS:
            return (0,) if self.algorithm in ("random_features", "oracle") else (1,)
        if isinstance(self.measure_at, tuple):
            return self.measure_at
        if self.measure_at == "last":
            return (self.steps,)
        return (*(2**k for k in range(self.steps.bit_length()) if 2**k < self.steps), self.steps)

    def used(self) -> frozenset[str]:
        """The fields that bear on this cell's row; the others are left empty in it."""
        used = set(_ALWAYS | _BY_ALGORITHM[self.algorithm])
        used |= {"parity_size"} if self.tasks == "parity" else set()
        used |= {"bias_scale"} if self.bias == "random" else set()
        used |= {"losses"} if self.loss == "mixture" else set()
        used |= {"n_test"} if self.measure != "recovery" or self.probe != "none" else set()
        if self.algorithm == "alternating" and self.split_batch:
            used |= {"n1"}
        if self.algorithm == "joint":
            used |= {"momentum"} if self.optimizer in ("momentum", "nesterov") else set()
            used |= set() if updates.OPTIMIZERS[self.optimizer].equivariant else {"basis"}
        if self.probe != "none":
            used |= {"n_down", "probe_tasks"}
            used |= {"probe_parity_size"} if self.probe_tasks == "parity" else set()
        return frozenset(used)

    @property
    def prefixes(self) -> bool:
        """Whether a training of fewer steps is the beginning of this one: where no rate depends on their number."""
        return self.algorithm == "alternating" or (self.algorithm == "joint" and self.schedule == "constant")

    @property
    def probe_key(self) -> tuple[str, str, int]:
        """What tells downstream probes apart: the classifier, its task family, its parity's size (0: any, −1: all)."""
        size = self.probe_parity_size
        return self.probe, self.probe_tasks, size if isinstance(size, int) else {"any": 0, "all": -1}[size]

    @property
    def by_moments(self) -> bool:
        """Whether the moment path gives this cell's row: `learning.moments` says where it holds."""
        forgotten = self.weight_decay is None and self.label_noise == 0 and self.bias != "trained"
        linear = self.shared_inputs and set(self.loss_names) == {"linear"}
        plainly = (self.precision, self.kernel) == network.EXACT and self.r <= moments.MAX_R
        return self.algorithm == "one_step" and linear and forgotten and plainly

    def program(self) -> experiment.Program:
        """What this cell compiles to, unpadded."""
        return experiment.Program(
            data=self.data,
            tasks=self.tasks,
            algorithm=self.algorithm,
            losses=self.loss_names,
            probes=() if self.probe == "none" else (self.probe_key[:2],),
            d=self.d,
            r=self.r,
            width=self.width,
            num_tasks=self.num_tasks,
            n1=self.n1,
            n2=self.n2,
            n_down=() if self.probe == "none" else self.n_down,
            n_test=self.n_test,
            bias=self.bias,
            shared_inputs=self.shared_inputs,
            noisy=self.label_noise > 0,
            rotated=self.basis == "haar",
            head_steps=self.head_steps,
            split_batch=self.split_batch,
            fixed_samples=self.samples == "fixed",
            optimizer=self.optimizer,
            schedule=self.schedule,
            steps=self.steps,
            record=self.record,
            measure=self.measure,
            arithmetic=network.Arithmetic(self.precision, self.kernel),
        )


FIELDS: dict[str, dataclasses.Field] = {spec.name: spec for spec in dataclasses.fields(Config)}

LISTS = ("losses", "measure_at")
"""Fields whose value may be a list, so that a flat list of them is one value and not an axis."""

_ALWAYS = frozenset(
    "d r width num_tasks measure seed data nuisance_scale label_noise tasks network bias algorithm loss probe".split()
)
_TRAINED = frozenset("shared_inputs precision kernel".split())
_IN_STEPS = _TRAINED | frozenset("n2 steps measure_at samples weight_decay".split())
_BY_ALGORITHM: dict[str, frozenset[str]] = {
    "one_step": _TRAINED | frozenset("n1 n2 lr_a lr_w weight_decay".split()),
    "alternating": _IN_STEPS | {"lr_a", "lr_w", "head_steps", "split_batch"},
    "joint": _IN_STEPS | {"optimizer", "lr", "schedule"},
    "random_features": _TRAINED | {"n1", "lr_a"},
    "oracle": _TRAINED | {"n1", "lr_a"},
    "population": frozenset("lr_a lr_w".split()),
}


def memory_share(value: Any) -> float:
    """`memory_fraction` checked. Raises ConfigError."""
    share = float(_number(0, 1)("memory_fraction", value))
    if share == 0:
        raise ConfigError("memory_fraction", value, "allowed: a number above 0, up to 1")
    return share


def moments_of(value: Any) -> str:
    """`moments` checked. Raises ConfigError."""
    return str(_choice(("auto", "always", "never"))("moments", value))


def part_of(value: Any) -> tuple[int, int]:
    """`sweep.part` "k/K" as (k, K), null as (1, 1). Raises ConfigError."""
    if value is None:
        return 1, 1
    k, _, of = str(value).partition("/")
    if not (k.isdigit() and of.isdigit() and 1 <= int(k) <= int(of)):
        raise ConfigError("sweep.part", value, "allowed: k/K with 1 <= k <= K")
    return int(k), int(of)


def require_field(key: str, value: object) -> None:
    """Raise ConfigError unless `key` names a field."""
    if key not in FIELDS:
        guess = _guess(key, list(FIELDS))
        raise ConfigError(key, value, f"unknown key{guess}; allowed: {', '.join(FIELDS)}")


def composed(choices: Mapping[str, str]) -> Mapping[str, Any]:
    """The values of a cell for choices of config groups, as `mtfl GROUP=CHOICE …` composes them."""
    return _composed(tuple(choices.items()))


@functools.cache
def _composed(choices: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.singleton import Singleton

    # A caller may be inside a Hydra app of its own: its state is put back as it was.
    state = Singleton.get_state()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), **HYDRA_BASE):
            return cell_values(compose("config", [f"{key}={name}" for key, name in choices]))
    finally:
        Singleton.set_state(state)


def plain(node: Any) -> dict[str, Any]:
    """A Hydra config node as plain values, resolved."""
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def cell_values(composed: Any) -> dict[str, Any]:
    """The plain values of a composed Hydra config, without the keys that are not a cell's."""
    return {key: value for key, value in plain(composed).items() if key not in OTHERS}


def from_keywords(**values: Any) -> Config:
    """The Config of keyword arguments, as `mtfl KEY=VALUE …` composes it. Raises ConfigError."""
    for key, value in values.items():
        require_field(key, value)
    choices = {}
    for key in GROUPS:
        if key in values:
            choices[key] = FIELDS[key].metadata["parse"](key, values[key])
    return Config.from_mapping({**composed(choices), **values})
