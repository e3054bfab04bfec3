"""The values of an axis: lists, ranges, arrays, or text in Hydra's sweep grammar, or an interval of numbers."""

import decimal
import random
from collections.abc import Callable, Iterator, KeysView, Sequence, Set, ValuesView
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mtfl_jax.config import FIELDS
from mtfl_jax.fields import ConfigError

ALLOWED = "allowed: a list, or a sweep such as 1,2,4 or range(0,8) or tag(log,range(1e-3,10,5)) or interval(0,1)"


class Interval(NamedTuple):
    """All numbers between two, evenly or in their logarithm: as it was written, and its ends."""

    text: str
    low: float
    high: float
    log: bool


def axis_values(key: str, spec: Any) -> list[Any] | Interval:
    """The values of an axis: of a list, a range, an array or a pandas column its items, of text in Hydra's grammar what
    it sweeps over, else the one value. For a field that is itself a list (losses, measure_at), a flat list is one
    value. Raises ConfigError.
    """
    if isinstance(spec, str):
        return _swept(key, spec)
    if isinstance(spec, pd.Series | pd.Index):
        # In a column of numbers null is NaN or NA.
        spec = [None if missing else value for value, missing in zip(spec.tolist(), spec.isna(), strict=True)]
    if isinstance(spec, np.ndarray):
        # As Python's own numbers, which parse and hash as those of any other way to say them.
        spec = spec.reshape(-1).tolist()
    if isinstance(spec, Iterator | Set | KeysView | ValuesView):
        raise ConfigError(key, type(spec).__name__, ALLOWED)
    if not isinstance(spec, Sequence | range):
        return [spec]
    items = list(spec)
    if FIELDS[key].type.listed and not any(isinstance(item, Sequence) and not isinstance(item, str) for item in items):
        # A list of nothing but words that each are a value by themselves is several values.
        return [items] if items and not all(_alone(key, item) for item in items) else items
    return items


def _alone(key: str, item: Any) -> bool:
    """Whether text is a value that is no list."""
    if not isinstance(item, str):
        return False
    try:
        return isinstance(FIELDS[key].type.parse(key, item), str)
    except ConfigError:
        return False


def _swept(key: str, text: str) -> list[Any] | Interval:
    from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
    from hydra.core.override_parser.types import IntervalSweep, RangeSweep
    from hydra.errors import HydraException

    functions = create_functions()
    functions.functions["sort"] = _sorting(functions.functions["sort"])
    try:
        override = OverridesParser(functions).parse_override(f"{key}={text}")
        sweep = override._value
        if isinstance(sweep, IntervalSweep):
            return _interval(key, text, sweep)
        if isinstance(sweep, RangeSweep):
            return _log_spaced(key, text, sweep) if "log" in sweep.tags else _points(key, text, sweep)
        return list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
    except HydraException as error:
        raise ConfigError(key, text, ALLOWED) from error


def _interval(key: str, text: str, sweep: Any) -> Interval:
    """interval(LOW,HIGH), or tag(log,interval(LOW,HIGH)), of a field of numbers."""
    kind, found = FIELDS[key].type, Interval(text, float(sweep.start), float(sweep.end), "log" in sweep.tags)
    if kind.column not in (int, float):
        raise ConfigError(key, text, f"an interval is of numbers; allowed: {kind.allowed()}")
    try:
        for end in (found.low, found.high):
            kind.parse(key, end)
    except ConfigError as error:
        raise ConfigError(key, text, f"{error.allowed}, at both ends") from None
    if found.low >= found.high or (found.log and found.low == 0):
        allowed = (
            "tag(log,interval(LOW,HIGH)) with 0 < LOW < HIGH" if found.log else "interval(LOW,HIGH) with LOW < HIGH"
        )
        raise ConfigError(key, text, f"allowed: {allowed}")
    return found


def _sorting(stock: Callable[..., Any]) -> Callable[..., Any]:
    """`sort`, which Hydra applies to the ends of a range and so to other points than the range has."""
    from hydra.core.override_parser.types import ChoiceSweep, RangeSweep

    def sort(*args: Any, **options: Any) -> Any:
        given = options.get("sweep") or (args[0] if len(args) == 1 else None)
        if not isinstance(given, RangeSweep):
            return stock(*args, **options)
        points = sorted(_range(given), reverse=options.get("reverse", False))
        return ChoiceSweep(list=points, tags=given.tags)

    return sort


def _range(sweep: Any) -> Sequence[Any]:
    """The points of range(start,stop,step) as they would be written: 0.7 is 0.7."""
    ends = (sweep.start or 0, sweep.stop, sweep.step)
    if all(isinstance(end, int) for end in ends):
        return range(*ends)
    start, stop, step = (decimal.Decimal(repr(end)) for end in ends)
    count = max(0, int(((stop - start) / step).to_integral_value(decimal.ROUND_CEILING))) if step else 0
    return [float(start + i * step) for i in range(count)]


def _points(key: str, text: str, sweep: Any) -> list[Any]:
    try:
        points = list(_range(sweep))
    except (ValueError, decimal.DecimalException):
        raise ConfigError(key, text, ALLOWED) from None
    if sweep.shuffle:
        random.shuffle(points)
    return points


def _log_spaced(key: str, text: str, sweep: Any) -> list[Any]:
    """The points of tag(log,range(low,high,count)), both ends included; of integers, the distinct nearest ones."""
    low, high, count = float(sweep.start or 0), float(sweep.stop), sweep.step
    if not (0 < low < high and isinstance(count, int) and count >= 2):
        raise ConfigError(key, text, "allowed: tag(log,range(LOW,HIGH,COUNT)) with 0 < LOW < HIGH and COUNT from 2")
    # To as many digits as rounding leaves: a point that would be written 8 is 8.
    points = [float(f"{point:.13g}") for point in np.geomspace(low, high, count)]
    return list(dict.fromkeys(round(point) for point in points)) if FIELDS[key].type.column is int else points
