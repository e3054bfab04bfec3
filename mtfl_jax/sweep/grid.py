"""A grid: the cells of the product of axes, each an ordinary `Config`."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mtfl_jax.config import GROUPS, Config, ConfigError, require_field


def axis_values(key: str, spec: Any) -> list[Any]:
    """The values of an axis given as a list or in Hydra's sweep grammar ("1,2,4", "range(0,8)")."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if not isinstance(spec, str):
        return list(spec) if isinstance(spec, Sequence) else [spec]
    try:
        override = OverridesParser.create().parse_override(f"{key}={spec}")
        return list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
    except HydraException as error:
        raise ConfigError(
            f"sweep.axes.{key}", spec, "allowed: a list, or a sweep such as 1,2,4 or range(0,8)"
        ) from error


def cells(axes: Mapping[str, Any], compose: Callable[[list[str]], Mapping[str, Any]]) -> list[Config]:
    """The cells of the product of `axes`, the last one fastest; no axes give one cell.

    `compose(overrides)` composes the values of a cell for choices of config groups, once for each combination.
    Raises ConfigError for a bad axis or cell.
    """
    values = {key: axis_values(key, spec) for key, spec in axes.items()}
    for key, choices in values.items():
        require_field(key, choices)
        if not choices:
            raise ConfigError(f"sweep.axes.{key}", "[]", "allowed: at least one value")
    groups = [key for key in values if key in GROUPS]
    composed = {
        choice: compose([f"{key}={name}" for key, name in zip(groups, choice, strict=True)])
        for choice in itertools.product(*(values[key] for key in groups))
    }
    grid = []
    for point in itertools.product(*values.values()):
        cell = dict(zip(values, point, strict=True))
        base = composed[tuple(cell[key] for key in groups)]
        grid.append(Config.from_mapping({**base, **cell}))
    return grid
