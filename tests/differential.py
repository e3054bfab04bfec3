"""Random grids over every setting, cells run alone, and a stand-in for the science that tells every mix-up.

Settings, and values of each, come from `config.FIELDS` alone, so that one added later is in every grid from then on.
"""

import dataclasses
import hashlib
import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mtfl_jax import compose
from mtfl_jax.config import FIELDS, Config
from mtfl_jax.fields import ConfigError, Field, View
from mtfl_jax.kinds import PROBED
from mtfl_jax.learning.algorithms import ALGORITHMS
from mtfl_jax.learning.algorithms.record import Algorithm
from mtfl_jax.learning.arithmetic import AUTO, EXACT, Arithmetic
from mtfl_jax.learning.data import LAWS
from mtfl_jax.learning.measures import MEASURES, Measure, of_probe, of_program
from mtfl_jax.learning.probe import PROBES
from mtfl_jax.learning.program import Cell, Program
from mtfl_jax.learning.tasks import FAMILIES
from mtfl_jax.names import GROUPS
from mtfl_jax.sweeps import compiling, engine
from mtfl_jax.sweeps.compiling import Chunk, job_of, wider
from mtfl_jax.sweeps.engine import Progress, execute
from mtfl_jax.sweeps.grid import Grid
from mtfl_jax.sweeps.store import Memory

Values = dict[str, Any]
RowKey = tuple[int, int]
"""Identity and step of a row."""

KINDS = ("shape", "knob", "choice")
"""The kinds of settings that there are."""


def examples(field: Field) -> list[Any]:
    """Some values of a setting. Raises ValueError for a kind that is not known here."""
    if field.kind not in KINDS:
        raise ValueError(f"{field.name} is a {field.kind}: say in this module what rows may share of such a setting")
    return list(field.type.examples())


def pairs() -> list[tuple[str, str]]:
    """Every unordered pair of settings."""
    return list(itertools.combinations(FIELDS, 2))


def composed(choices: Mapping[str, str]) -> Values:
    """The values of a cell for choices of config groups.

    Of the groups only the algorithm sets other settings, and Hydra is too slow to be asked of every combination.
    """
    algorithm = {key: name for key, name in choices.items() if key == "algorithm"}
    return {**compose.composed(algorithm), **choices}


@dataclasses.dataclass(frozen=True)
class Condition:
    """A condition as `sweep.where` has it, and whether a cell meets it."""

    text: str
    holds: Callable[[Config], bool]


@dataclasses.dataclass(frozen=True)
class Spec:
    """A grid before it is made: values that do not move, axes, grids that are joined, zips and conditions.

    written: axes that are given as text in Hydra's grammar.
    """

    fixed: Values
    axes: Mapping[str, Sequence[Any]]
    grids: Sequence[Mapping[str, Sequence[Any]]] = ()
    zipped: Sequence[Sequence[str]] = ()
    where: Sequence[Condition] = ()
    written: frozenset[str] = frozenset()

    def assignments(self) -> Iterator[Values]:
        """What every cell of the product is given, n_down still a list."""
        for own in self.grids or [{}]:
            axes = {**own, **self.axes}
            together = [tuple(group) for group in self.zipped if set(group) <= set(axes)]
            alone = [(key,) for key in axes if not any(key in group for group in together)]
            units = [*together, *alone]
            for chosen in itertools.product(*(zip(*(axes[key] for key in unit), strict=True) for unit in units)):
                moved = {
                    key: value
                    for unit, values in zip(units, chosen, strict=True)
                    for key, value in zip(unit, values, strict=True)
                }
                yield {**self.fixed, **moved}

    def given(self, axes: Mapping[str, Sequence[Any]]) -> Values:
        """Axes as `sweep` takes them."""
        return {key: _written(values) if key in self.written else list(values) for key, values in axes.items()}

    def grid(self) -> Grid:
        """The grid. Raises ConfigError."""
        return Grid(
            {**{key: [value] for key, value in self.fixed.items()}, **self.given(self.axes)},
            composed,
            grids=[self.given(own) for own in self.grids],
            zipped=self.zipped,
            where=[condition.text for condition in self.where],
        )


def _written(values: Sequence[Any]) -> str:
    return ",".join(_text(value) for value in values)


def _text(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{','.join(map(_text, value))}]"
    return (
        {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)
    )


@dataclasses.dataclass(frozen=True)
class Planned:
    """A cell of a spec: what it is given, with a single n_down; its config; and why it is refused, if it is."""

    given: Values
    config: Config
    refused: ConfigError | None


def resolve(given: Values) -> Config:
    """The config of a cell, of which nothing but each value by itself is checked."""
    choices = {key: given[key] for key in GROUPS if key in given}
    return Config.parsed({**composed(choices), **given})


def planned(spec: Spec) -> list[Planned]:
    """The cells that meet the conditions, each as it would be alone."""
    found = []
    for given in spec.assignments():
        whole = resolve(given)
        for n in whole.n_down:
            own = whole.replace(n_down=(n,))
            if all(condition.holds(own) for condition in spec.where):
                found.append(Planned({**given, "n_down": (n,)}, own, _refusal(own)))
    return found


def _refusal(own: Config) -> ConfigError | None:
    try:
        own.check()
    except ConfigError as error:
        return error
    return None


class Generator:
    """Makes specs; what it makes depends on `seed` alone. limits: what some settings may be, by name; the others have
    their examples, or now and then their default.
    """

    def __init__(self, seed: int, limits: Mapping[str, Sequence[Any]] | None = None) -> None:
        self.random = random.Random(seed)
        self.limits = limits or {}

    def values(self, name: str) -> list[Any]:
        """What a setting may be."""
        return list(self.limits.get(name) or examples(FIELDS[name]))

    def cell(self, bearing: Sequence[str] = (), tries: int = 40) -> Values:
        """An accepted cell, of some tries that in which most of some settings bear."""
        best: tuple[int, Values] | None = None
        for _ in range(10 * tries):
            # Where most settings have their defaults, trainings share moments.
            share = self.random.choice((0.85, 0.85, 0.3))
            given = {
                name: self.random.choice(self.values(name))
                for name, field in FIELDS.items()
                if field.kind == "shape" or name in self.limits or self.random.random() < share
            }
            own = resolve(given)
            if _refusal(own) is not None:
                continue
            count = sum(name in own.used for name in bearing)
            if best is None or count > best[0]:
                best = count, given
            tries -= 1
            if best[0] == len(bearing) or tries <= 0:
                break
        assert best is not None, "no accepted cell was found"
        return best[1]

    def spec(self, names: Sequence[str], given: Values) -> Spec:
        """A grid in which some settings of a cell move; sometimes zipped, joined of two, or with a condition."""
        names = self.random.sample(list(names), len(names))
        axes = {}
        for name in names:
            values = self.values(name)
            axes[name] = self.random.sample(values, min(2, len(values)))
            if name in given and given[name] in values and given[name] not in axes[name]:
                axes[name][0] = given[name]
        fixed = {name: value for name, value in given.items() if name not in axes}
        spec = Spec(fixed, axes, written=frozenset(name for name in names if self.random.random() < 0.2))
        draw = self.random.random()
        if draw < 0.15:
            return self._zipped(spec)
        if draw < 0.35:
            return self._joined(spec)
        if draw < 0.5:
            return dataclasses.replace(spec, where=[self._condition(self.random.choice(names), spec)])
        return spec

    def _zipped(self, spec: Spec) -> Spec:
        names = [name for name, values in spec.axes.items() if len(values) == 2]
        return dataclasses.replace(spec, zipped=[names[:2]]) if len(names) > 1 else spec

    def _joined(self, spec: Spec) -> Spec:
        """Two grids: of two axes one each, or of one axis a value each."""
        names = list(spec.axes)
        rest = {name: spec.axes[name] for name in names[2:]}
        if self.random.random() < 0.5:
            grids = [{names[0]: spec.axes[names[0]]}, {names[1]: spec.axes[names[1]]}]
        else:
            grids = [{names[0]: [value], names[1]: spec.axes[names[1]]} for value in spec.axes[names[0]]]
        return dataclasses.replace(spec, axes=rest, grids=grids)

    def _condition(self, name: str, spec: Spec) -> Condition:
        sizes = [key for key, field in FIELDS.items() if field.padded]
        if name in sizes and self.random.random() < 0.5:
            other = self.random.choice(sizes)
            return Condition(f"{name} <= 2*{other}", lambda c: getattr(c, name) <= 2 * getattr(c, other))
        value = self.random.choice(spec.axes[name])
        if not isinstance(value, str | int | float):
            return Condition("d >= r", lambda c: c.d >= c.r)
        return Condition(f"{name} != {value!r}", lambda c: getattr(c, name) != value)


def planned_grid(i: int) -> tuple[Spec, "Variant"]:
    """The i-th grid for the stand-in: a pair of settings in turn, and sometimes a third, in a cell where they bear."""
    generator, every = Generator(i), pairs()
    names = list(every[i % len(every)])
    if generator.random.random() < 0.4:
        names.append(generator.random.choice([name for name in FIELDS if name not in names]))
    return generator.spec(names, generator.cell(names)), generator.random.choice(VARIANTS)


def mentioning(names: Sequence[str], count: int) -> Iterator[tuple[Spec, "Variant"]]:
    """Grids for the stand-in in which some settings move."""
    for i in range(count):
        generator = Generator(i)
        own = generator.random.sample(list(names), min(2, len(names)))
        others = [name for name in FIELDS if name not in own]
        own += generator.random.sample(others, 2 - len(own) + (generator.random.random() < 0.5))
        yield generator.spec(own, generator.cell(own)), generator.random.choice(VARIANTS)


GRIDS_OF_A_CELL = 40
"""How many grids of a campaign of real trainings are about one cell, whose programs they share."""
SAMPLES = {"n1": 4, "n2": 4, "n_down": 4, "n_test": 16}
"""Sizes of which such a campaign has more than the examples say: so many that measurements are settled."""


def _times(value: Any, factor: int) -> Any:
    return tuple(n * factor for n in value) if isinstance(value, tuple) else value * factor


def real_grids(first: int, count: int) -> Iterator[tuple[Spec, "Variant"]]:
    """Grids of real trainings, from number `first` on: around one cell after the other, two values a setting, so that
    programs are shared. Every pair of settings comes in turn, in cells where both bear.
    """
    limits = {name: [_times(value, k) for value in examples(FIELDS[name])] for name, k in SAMPLES.items()}
    done, number = dict.fromkeys(pairs(), 0), 0
    for i in itertools.count():
        if number >= first + count:
            return
        generator = Generator(i, limits)
        narrow = {name: [generator.values(name)[-2]] for name, field in FIELDS.items() if field.padded}
        if i % 8 < 7:
            # Mostly without what takes long to compile.
            narrow |= {"n_down": limits["n_down"][:1], "probe": ["none"], "measure": ["recovery"]}
        given = Generator(i, {**limits, **narrow}).cell()
        two = {}
        for name in FIELDS:
            values = generator.values(name)
            own = given.get(name, values[0])
            others = [value for value in values if value != own]
            two[name] = [own, *generator.random.sample(others, min(1, len(others)))]
        used = resolve(given).used
        bearing = [pair for pair in done if used.issuperset(pair)]
        for pair in sorted(bearing, key=lambda pair: (done[pair], generator.random.random()))[:GRIDS_OF_A_CELL]:
            done[pair] += 1
            if first <= number < first + count:
                own = Generator(number, two)
                yield own.spec(pair, given), own.random.choice(REAL_VARIANTS)
            number += 1


def is_expressible(value: Any) -> bool:
    """Whether a condition can name a value."""
    return isinstance(value, str | int | float)


def accepted_only(spec: Spec, cells: Sequence[Planned]) -> Spec:
    """A spec of the accepted cells: by conditions where their values can be named, else of one grid a cell."""
    moving = {key for key, values in spec.axes.items() if len(values) > 1}
    moving |= {key for own in spec.grids for key in own}
    refused = [cell for cell in cells if cell.refused is not None]
    if "n_down" not in moving and all(is_expressible(getattr(cell.config, key)) for cell in refused for key in moving):
        where = []
        for cell in refused:
            own = {key: getattr(cell.config, key) for key in moving}
            text = " and ".join(f"{key} == {value!r}" for key, value in own.items())
            if text:
                where.append(
                    Condition(
                        f"not ({text})",
                        lambda c, own=own: any(getattr(c, key) != value for key, value in own.items()),
                    )
                )
        return dataclasses.replace(spec, where=[*spec.where, *where])
    grids = [{key: [value] for key, value in cell.given.items()} for cell in cells if cell.refused is None]
    return Spec({}, {}, grids)


# Rows.


class Kept(Memory):
    """Rows in memory that a later sweep finds there."""

    def finished(self) -> np.ndarray:
        ids = [part.column("id").to_numpy() for part in self.parts]
        return np.unique(np.concatenate(ids)) if ids else np.empty(0, np.uint64)


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as plain values."""
    return list(table.to_pylist())


def row_key(row: Mapping[str, Any]) -> RowKey:
    """What tells a row apart in a table."""
    return row["id"], row["step"]


def run(grid: Grid, **options: Any) -> tuple[Progress, list[dict[str, Any]]]:
    """Run a grid in memory."""
    sink = Memory()
    progress = execute(grid, sink, **options)
    return progress, rows_of(sink.table())


Same = Callable[[Mapping[str, Any], Mapping[str, Any], Config], list[str]]
"""What differs between a row and the row of the cell alone, in words."""


def exactly(row: Mapping[str, Any], alone: Mapping[str, Any], own: Config) -> list[str]:
    """Every column as it is."""
    return [f"{name}: {row[name]!r} for {alone[name]!r}" for name in alone if row[name] != alone[name]]


FLIPPED = 3
"""Samples whose sign may turn with rounding."""


def closely(row: Mapping[str, Any], alone: Mapping[str, Any], own: Config) -> list[str]:
    """Every number to 1e-4 of its value, or to 1e-5, where sines of angles end; an error, which counts samples, and
    what is of the tangent kernel, which takes ReLU's slope at samples that may lie on its kink, to a few of them;
    everything else as it is.
    """
    wrong = []
    for name, value in alone.items():
        if isinstance(value, float | list) and row[name] is not None:
            flips = FLIPPED / own.n_test if name.endswith("_error") or name.startswith("ntk_") else 0
            if np.allclose(row[name], value, rtol=1e-4, atol=max(1e-5, flips)):
                continue
        if row[name] != value:
            wrong.append(f"{name}: {row[name]!r} for {value!r}")
    return wrong


class Alone:
    """Cells run alone, each once. told: rows of different cells are different, as those of the stand-in are."""

    def __init__(self, *, told: bool = False) -> None:
        self._rows: dict[Any, list[dict[str, Any]]] = {}
        self._told: dict[tuple[Any, ...], tuple[RowKey, Config]] | None = {} if told else None

    def __call__(self, cell: Planned) -> list[dict[str, Any]]:
        """The rows of a cell run alone."""
        key = cell.config
        if key not in self._rows:
            grid = Grid({name: [value] for name, value in cell.given.items()}, composed)
            progress, rows = run(grid)
            assert progress.failures == [], (cell.given, progress.failures)
            self._rows[key] = rows
            if self._told is not None:
                self._tell(rows, cell.config, self._told)
        return self._rows[key]

    def _tell(self, rows: Sequence[Mapping[str, Any]], own: Config, told: dict[Any, tuple[RowKey, Config]]) -> None:
        for row in rows:
            if row["status"] != "ok":
                continue
            measured = (row["step"], *(repr(row[name]) for name, record in MEASURES.items() if record.of != "cost"))
            before, other = told.setdefault(measured, (row_key(row), own))
            if before != row_key(row) and _science(own) != _science(other):
                raise AssertionError(f"the same row of cells that differ: {_said(own.bearing)}; {_said(other.bearing)}")


def _science(own: Config) -> dict[str, Any]:
    """What tells a cell's rows at a step apart: a mixture of one loss is that loss, a prefix has no length, and a
    kernel that is left open is the one it is settled to where nothing was measured.
    """
    dropped = {"loss", "losses", "measure_at"} | ({"steps"} if own.prefixes else set())
    told = {name: value for name, value in own.bearing.items() if name not in dropped} | {"of": own.program().losses}
    return told | ({"kernel": EXACT.kernel} if told["kernel"] == AUTO else {})


def differences(
    rows: Sequence[Mapping[str, Any]], cells: Sequence[Planned], alone: Alone, same: Same, *, again: bool = False
) -> list[str]:
    """What is wrong with the rows of a grid of accepted cells, in words. again: a row may be there several times, the
    first counts.
    """
    wrong: list[str] = []
    expected: dict[RowKey, tuple[Mapping[str, Any], Config]] = {}
    for cell in cells:
        for row in alone(cell):
            before, of = expected.setdefault(row_key(row), (row, cell.config))
            if before is not row:
                wrong += [f"cells of one identity differ: {text} in {cell.given}" for text in same(row, before, of)]
    found: dict[RowKey, Mapping[str, Any]] = {}
    for row in rows:
        if found.setdefault(row_key(row), row) is not row and not again:
            wrong.append(f"a row twice: {_said(row)}")
    wrong += [f"missing: {_said(expected[key][0])}" for key in expected.keys() - found.keys()]
    wrong += [f"extra: {_said(found[key])}" for key in found.keys() - expected.keys()]
    for key in expected.keys() & found.keys():
        wrong += [f"{text} in {_said(expected[key][0])}" for text in same(found[key], *expected[key])]
    return wrong


def _said(row: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={row[name]}" for name in [*FIELDS, "step"] if row.get(name) is not None)


def check_grid(
    spec: Spec,
    alone: Alone,
    same: Same,
    variants: Sequence["Variant"],
    options: Mapping[str, Any] | None = None,
) -> list[Planned]:
    """Every property of one grid; the accepted cells. Raises AssertionError."""
    cells = planned(spec)
    if not cells:
        return []
    refused = [cell for cell in cells if cell.refused is not None]
    if refused:
        error = _refused(spec)
        assert error is not None, f"accepted in a grid, refused alone ({refused[0].refused}): {spec}"
        reasons = [(own.refused.key, own.refused.value) for own in refused if own.refused is not None]
        assert (error.key, error.value) in reasons, f"{error} is said of no cell alone: {reasons}\n{spec}"
        if len(refused) == len(cells):
            return []
        spec = accepted_only(spec, cells)
        cells = planned(spec)
        assert all(cell.refused is None for cell in cells), spec
    grid = _accepted(spec)
    progress, rows = run(grid, **(options or {}))
    assert progress.failures == [], f"{progress.failures}\n{spec}"
    wrong = differences(rows, cells, alone, same)
    assert not wrong, _report(wrong, spec)
    for variant in variants:
        variant(spec, cells, alone, same)
    return cells


def _refused(spec: Spec) -> ConfigError | None:
    try:
        spec.grid()
    except ConfigError as error:
        return error
    return None


def _accepted(spec: Spec) -> Grid:
    try:
        return spec.grid()
    except ConfigError as error:
        raise AssertionError(f"refused in a grid, accepted alone: {error}\n{spec}") from error


def _report(wrong: Sequence[str], spec: Spec) -> str:
    return "\n".join([f"{len(wrong)} differences", *wrong[:6], str(spec)])


# Other ways to run the same cells.

Variant = Callable[[Spec, Sequence[Planned], Alone, Same], None]


def _run_same(spec: Spec, cells: Sequence[Planned], alone: Alone, same: Same, **options: Any) -> None:
    progress, rows = run(_accepted(spec), **options)
    assert progress.failures == [], f"{options}: {progress.failures}\n{spec}"
    wrong = differences(rows, cells, alone, same)
    assert not wrong, f"{options}: {_report(wrong, spec)}"


def never(spec: Spec, cells: Sequence[Planned], alone: Alone, same: Same) -> None:
    """Without shared passes."""
    _run_same(spec, cells, alone, same, moments="never")


def one_by_one(spec: Spec, cells: Sequence[Planned], alone: Alone, same: Same) -> None:
    """One training a call."""
    _run_same(spec, cells, alone, same, chunk=1)


def spread(spec: Spec, cells: Sequence[Planned], alone: Alone, same: Same) -> None:
    """Every training over several devices, where they divide its neurons."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "chunk_of", lambda bucket: wider(job_of(bucket), Chunk(3, 1)) or Chunk(3, 1))
        _run_same(spec, cells, alone, same)


def reversed_axes(spec: Spec, cells: Sequence[Planned], alone: Alone, same: Same) -> None:
    """The axes, and the values of each, the other way round."""

    def turned(axes: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        return {key: list(values)[::-1] for key, values in reversed(axes.items())}

    again = dataclasses.replace(spec, axes=turned(spec.axes), grids=[turned(own) for own in reversed(spec.grids)])
    _run_same(again, cells, alone, same)


def joined(spec: Spec, cells: Sequence[Planned], alone: Alone, same: Same) -> None:
    """Every cell a grid of its own, all joined in one."""
    _run_same(_of_cells(cells), cells, alone, same)


def _of_cells(cells: Sequence[Planned]) -> Spec:
    return Spec({}, {}, [{key: [value] for key, value in cell.given.items()} for cell in cells])


def shares(spec: Spec, cells: Sequence[Planned], alone: Alone, same: Same) -> None:
    """In three shares."""
    rows = []
    for k in (1, 2, 3):
        progress, own = run(_accepted(spec), part=(k, 3))
        assert progress.failures == [], f"{progress.failures}\n{spec}"
        rows += own
    wrong = differences(rows, cells, alone, same)
    assert not wrong, f"shares: {_report(wrong, spec)}"


def resumed(spec: Spec, cells: Sequence[Planned], alone: Alone, same: Same) -> None:
    """Half of the cells, then all of them into the same results, then all again, which runs nothing."""
    resume(Kept(), spec, cells, alone, same)


def resume(sink: Any, spec: Spec, cells: Sequence[Planned], alone: Alone, same: Same) -> None:
    """`resumed` with any sink."""
    half = list(cells[: (len(cells) + 1) // 2])
    grid, first = _accepted(spec), _accepted(_of_cells(half))
    for own in (first, grid):
        progress = execute(own, sink)
        assert progress.failures == [], f"{progress.failures}\n{spec}"
    finished = set(first.ids.tolist())
    if _records(first) == {key: steps for key, steps in _records(grid).items() if key in finished}:
        # Trainings of which some cell is new run whole; no training runs whose cells are all there.
        assert progress.skipped >= _whole_lanes(grid, finished), f"finished cells ran again: {spec}"
    wrong = differences(rows_of(sink.table()), cells, alone, same, again=True)
    assert not wrong, f"resumed: {_report(wrong, spec)}"
    progress = execute(grid, sink)
    assert progress.done == 0, f"run again: {spec}"
    assert progress.skipped == len(grid), f"run again: {spec}"


def _records(grid: Grid) -> dict[int, tuple[int, ...]]:
    records, which = grid.records()
    return {int(own): records[k] for own, k in zip(grid.ids, which, strict=True)}


def _whole_lanes(grid: Grid, finished: set[int]) -> int:
    """Cells of trainings whose every cell is finished."""
    lanes = grid.lanes(True)
    there = np.asarray([int(own) in finished for own in grid.ids])
    open_lanes = np.unique(lanes[~there])
    return int((~np.isin(lanes, open_lanes)).sum())


VARIANTS: tuple[Variant, ...] = (never, one_by_one, reversed_axes, joined, shares, resumed)
REAL_VARIANTS: tuple[Variant, ...] = (never, reversed_axes, joined, shares, resumed, spread)
"""Those that compile little: without `one_by_one`."""


# The stand-in for the science.


CAPACITY = 3
"""Trainings of a call of the stand-in on each device: few, so that most buckets take several calls."""


class Truth:
    """What bears on the science as it is written, whatever the records say later: a copy made once."""

    def __init__(self) -> None:
        self.fields = dict(FIELDS)
        self.algorithms: dict[str, Algorithm] = dict(ALGORITHMS)
        self.families = {name: tuple(field.name for field in family.settings) for name, family in FAMILIES.items()}
        self.probes = {name: tuple(field.name for field in probe.settings) for name, probe in PROBES.items()}
        self.probing = {name for own in self.probes.values() for name in own}
        self.laws = {name: law.sizes for name, law in LAWS.items()}
        self.sizes = [name for name, field in self.fields.items() if field.padded]

    def traced(self, name: str) -> bool:
        """Whether the science takes a setting as a traced number."""
        return self.fields[name].padded or self.fields[name].kind == "knob"


class StandIn:
    """Executables whose measurements are hashes of everything that the science would see at true sizes.

    So a row that is given another cell's setting, size, family or probe is another row, and compiling costs nothing.
    Whatever is padded reads as nonsense.
    """

    def __init__(self, truth: Truth) -> None:
        self.truth = truth

    def fitting(self, job: Any, chunk: Any, memory_fraction: float) -> tuple[Any, Any]:
        """In the place of `compiling.fitting`."""
        small = Chunk(min(chunk.capacity, CAPACITY), 1)
        # As the engine's programs settle a kernel that is left open.
        p = job.program.replace(arithmetic=compiling.settled(job.program, chunk))
        return lambda cells, counts: self.call(p, cells, counts, small.capacity), small

    def call(self, p: Program, cells: Cell, counts: np.ndarray, capacity: int) -> dict[str, np.ndarray]:
        """Measurements of capacity lanes of each device, leading axis lanes; zeros where a lane is not counted."""
        leaves, names = cells.tree_flatten_with_keys()
        columns = {name: np.asarray(leaf) for name, (_, leaf) in zip(names, leaves, strict=True)}
        real = [device * capacity + i for device, count in enumerate(counts) for i in range(count)]
        lanes = {i: self.lane(p, {name: values[i] for name, values in columns.items()}) for i in real}
        blank = {name: np.zeros_like(value) for name, value in lanes[real[0]].items()}
        every = [lanes.get(i, blank) for i in range(capacity * len(counts))]
        return {name: np.stack([lane[name] for lane in every]) for name in blank}

    def lane(self, p: Program, cell: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Measurements of one training, leading axis its rows."""
        if p.groups:
            return self._stacked([self._shared_row(p, cell, i, width) for i, width in enumerate(self._widths(p))])
        algorithm = self.truth.algorithms[p.algorithm]
        whole = algorithm.prefix is not None and not algorithm.prefix.of(View(_values(p), frozenset(p), "prefix"))
        if algorithm.stepped:
            assert min(p.record) >= 1, p
            assert max(p.record) <= p.steps, p
        own = self._settings(p, cell)
        if whole:
            own["steps"] = p.steps
        return self._stacked([self._row(p, cell, own, step) for step in p.record])

    def _widths(self, p: Program) -> list[int]:
        return [width for width, count in p.groups for _ in range(count)]

    def _settings(self, p: Program, cell: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that bears on a training, at its true size."""
        own: dict[str, Any] = {}
        unset = [name for name in p if getattr(p, name) is None]
        assert not unset, f"a program with {unset} that do not bear"
        for name in p:
            if name in ("groups", "families", "record", "probes", "n_down", "steps"):
                continue
            if name in self.truth.fields and self.truth.traced(name):
                # A size of the program is only a bound; a knob has no place in it.
                assert self.truth.fields[name].padded, f"{name} is compiled in"
                assert cell[name] <= getattr(p, name), f"{name}={cell[name]} in a program of {getattr(p, name)}"
                own[name] = int(cell[name])
            else:
                own[name] = getattr(p, name)
        for name, value in cell.items():
            if name in ("n_down", "family") or name.startswith(PROBED) or name in self.truth.probing:
                continue
            assert self.truth.traced(name), f"{name} is traced"
            own[name] = np.asarray(value).item()
        missing = [name for name in ("d", "r", "width", "num_tasks", "nuisance_scale", "seed") if name not in own]
        assert not missing, f"a program without {missing}"
        own["inputs"] = own["r"] if self._told_r(own) else 0
        return own

    def _told_r(self, own: Mapping[str, Any]) -> bool:
        """Whether inputs depend on r."""
        return own["nuisance_scale"] != 1 or "r" in self.truth.laws[own["data"]]

    def _row(self, p: Program, cell: Mapping[str, Any], own: Mapping[str, Any], step: int) -> dict[str, np.ndarray]:
        text = _told(own) + f";step={step}"
        out: dict[str, np.ndarray] = {}
        for record in of_program(p):
            out[record.name] = _measurement(f"{text};{record.name}", record, own["r"], p.r)
        if p.probes:
            blank = np.full((len(p.probes), len(p.n_down)), np.nan)
            errors = {of_probe(entry.family).name: blank.copy() for entry in p.probes}
            for i, (probe, family, compiled) in enumerate(p.probes):
                names = [*(PROBED + name for name in self.truth.families[family]), *self.truth.probes[probe]]
                named = {name: np.asarray(cell[name][i]).item() for name in names if name not in dict(compiled)}
                assert not any(self.truth.traced(name) for name, _ in compiled), f"{compiled} are compiled in"
                named |= dict(compiled)
                for k, n in enumerate(cell["n_down"].tolist()):
                    assert n <= p.n_down[k], f"n_down={n} in a program of {p.n_down}"
                    errors[of_probe(family).name][i, k] = _unit(f"{text};{probe};{family};{_told(named)};n_down={n}")
            out |= errors
        # Some trainings diverge at some step, whatever they are recorded at.
        at = int(_unit(_told(own) + ";diverged") * 40) + 1
        out["diverged_step"] = np.asarray(at if at <= step else 0)
        return out

    def _shared_row(self, p: Program, cell: Mapping[str, Any], i: int, width: int) -> dict[str, np.ndarray]:
        """As the formula by moments has it, which knows no noise, no loss but the linear one, and no decay."""
        family = p.families[int(cell["family"][i])]
        rowed = {name for names in self.truth.families.values() for name in names} | {"r", "width", "num_tasks"}
        row = {name: value[i] if name in rowed and np.ndim(value) else value for name, value in cell.items()}
        dropped = rowed - {"r", "width", "num_tasks"} - set(self.truth.families[family])
        row = {name: value for name, value in row.items() if name not in dropped and name != "family"}
        assert row["width"] <= width, f"width={row['width']} in a group of {width}"
        own = self._settings(p, row)
        own |= {
            "tasks": family,
            "losses": ("linear",),
            "noisy": False,
            "label_noise": 0.0,
            "shared_inputs": True,
            "arithmetic": Arithmetic(activation=p.arithmetic.activation),
            "bias": "zero" if p.bias == "trained" else p.bias,
            "weight_decay": math.nan,
            "inputs": int(cell["r"][0]) if self._told_r(own) else 0,
        }
        return self._row(p, row, own, 1)

    def _stacked(self, rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _values(p: Program) -> dict[str, Any]:
    return {name: getattr(p, name) for name in p}


def _told(own: Mapping[str, Any]) -> str:
    return ";".join(f"{name}={own[name]!r}" for name in sorted(own))


def _unit(text: str) -> float:
    """A number in (0, 1) that tells texts apart."""
    return (int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "little") + 0.5) / 2.0**48


def _measurement(text: str, record: Measure, r: int, max_r: int) -> np.ndarray:
    value = _unit(text)
    if record.type is int:
        value = int(value * 2**40)
    if record.shape is None:
        return np.asarray(value)
    out = np.full(record.shape(max_r), 1e9)
    inside = tuple(slice(0, size) for size in record.shape(r))
    out[inside] = value + np.arange(out[inside].size).reshape(out[inside].shape)
    return out
