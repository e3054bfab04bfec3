"""Cells and options from Hydra: where the configs are, what they compose to, and the keys that are not a cell's."""

import functools
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import hydra

from mtfl_jax import extend
from mtfl_jax.config import FIELDS, Config, require_field
from mtfl_jax.fields import ConfigError, number, one_of
from mtfl_jax.names import GROUPS, OTHER_KEYS, SWEEP_KEYS, WEIGHTS
from mtfl_jax.records import guess

HYDRA_BASE = {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}
"""What Hydra 1.3 must be told and later versions must not."""


def conf_dir() -> Path:
    """The folder of the Hydra configs: inside an installed package, beside it in a checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "conf"


def composed(choices: Mapping[str, str]) -> Mapping[str, Any]:
    """The values of a cell for choices of config groups, as `mtfl GROUP=CHOICE …` composes them."""
    return own_keys(whole(choices))


def whole(choices: Mapping[str, str]) -> Mapping[str, Any]:
    """Every key, those that are not a cell's too, for choices of config groups."""
    return _whole(tuple(choices.items()), extend.loaded())


@functools.cache
def _whole(choices: tuple[tuple[str, str], ...], extensions: tuple[str, ...]) -> dict[str, Any]:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.singleton import Singleton

    # A caller may be inside a Hydra app of its own, or another thread may compose: one at a time, and its state is put
    # back as it was.
    with extend.LOCK:
        state = Singleton.get_state()
        GlobalHydra.instance().clear()
        try:
            extend.store_nodes(conf_dir())
            with initialize_config_dir(str(conf_dir()), **HYDRA_BASE):
                return plain(compose("config", [f"{key}={name}" for key, name in choices]))
        finally:
            Singleton.set_state(state)


def sweep_of(sweep: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """The `sweep` of a composed config, as `Grid.of_sweep` takes it, less the axes whose keys are `given` otherwise.
    Raises ConfigError for a key that it does not have.
    """
    for key in sweep:
        if key not in SWEEP_KEYS:
            allowed = f"unknown key{guess(key, SWEEP_KEYS)}; allowed: {', '.join(SWEEP_KEYS)}"
            raise ConfigError(f"sweep.{key}", sweep[key], allowed)

    def free(axes: Mapping[str, Any] | None) -> dict[str, Any]:
        return {key: spec for key, spec in (axes or {}).items() if key not in given}

    lists = {key: sweep[key] or () for key in ("zip", "where")}
    return {**sweep, **lists, "axes": free(sweep["axes"]), "grids": [free(own) for own in sweep["grids"] or ()]}


def require_study(chosen: str, said: Any) -> None:
    """Raise ConfigError unless the YAML of the study `chosen` sets `study` to its name, at the top of the config."""
    if not isinstance(said, str):
        raise ConfigError("study", chosen, "its YAML must begin with the line '# @package _global_'")
    if said != chosen:
        raise ConfigError("study", chosen, f"its YAML says study: {said}; allowed: study: {chosen}")


def plain(node: Any) -> dict[str, Any]:
    """A Hydra config node as plain values, resolved."""
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def cell_values(node: Any) -> dict[str, Any]:
    """The plain values of a composed Hydra config, without the keys that are not a cell's."""
    return own_keys(plain(node))


def own_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a composed config that are a cell's."""
    return {key: value for key, value in values.items() if key not in OTHER_KEYS}


def from_keywords(**values: Any) -> Config:
    """The Config of keyword arguments, as `mtfl KEY=VALUE …` composes it. Raises ConfigError."""
    for key, value in values.items():
        require_field(key, value)
    choices = {key: FIELDS[key].type.parse(key, values[key]) for key in GROUPS if key in values}
    return Config.from_mapping({**composed(choices), **values})


def memory_share(value: Any) -> float:
    """`memory_fraction` checked. Raises ConfigError."""
    share = float(number(0, 1).parse("memory_fraction", value))
    if share == 0:
        raise ConfigError("memory_fraction", value, "allowed: a number above 0, up to 1")
    return share


def moments_of(value: Any) -> str:
    """`moments` checked. Raises ConfigError."""
    return str(one_of("auto", "always", "never").parse("moments", value))


def keep_of(value: Any) -> tuple[str, ...]:
    """`keep` checked: names of weights, each once. Raises ConfigError."""
    names = [value] if isinstance(value, str) else list(value or ())
    for name in names:
        if name not in WEIGHTS or names.count(name) > 1:
            raise ConfigError("keep", f"[{','.join(map(str, names))}]", f"allowed: a list of {', '.join(WEIGHTS)}")
    return tuple(name for name in WEIGHTS if name in names)


def part_of(value: Any) -> tuple[int, int]:
    """`sweep.part` "k/K" as (k, K), null as (1, 1). Raises ConfigError."""
    if value is None:
        return 1, 1
    k, _, of = str(value).partition("/")
    if not (k.isdigit() and of.isdigit() and 1 <= int(k) <= int(of)):
        raise ConfigError("sweep.part", value, "allowed: k/K with 1 <= k <= K, or auto")
    return int(k), int(of)
