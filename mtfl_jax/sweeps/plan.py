"""From a grid to buckets: the trainings that share one compiled program, padded to sizes of a fixed ladder.

Pads are chosen to minimise, under the model of `cost`, the time to compile plus the time spent on padding.
"""

import bisect
import collections
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtfl_jax import config
from mtfl_jax.config import FIELDS, Config
from mtfl_jax.fields import ConfigError
from mtfl_jax.kinds import PROBED
from mtfl_jax.learning.algorithms import ALGORITHMS
from mtfl_jax.learning.program import Program
from mtfl_jax.sweeps.cost import COMPILE_SECONDS, GROUP_SECONDS, lane_seconds, shape_of, size_names
from mtfl_jax.sweeps.grid import Grid


def ladder(size: int) -> int:
    """The least 2^k or 3·2^k not below `size`."""
    power = 1 << (size - 1).bit_length()
    return power * 3 // 4 if power >= 4 and power * 3 // 4 >= size else power


@dataclasses.dataclass(frozen=True)
class Bucket:
    """A padded program, the trainings (lanes) that it runs, and the cells whose rows they give.

    Per lane: members (lanes, rows), cells whose settings its rows take (one row, but in a shared pass); n_down
    (lanes, k) and probe_settings, by name (lanes, probes), the true values behind the program's. Per cell, ordered by
    lane: cells, its position in the grid; lane; row, probe and slot, its place among the lane's rows, probes and n_down
    (probe −1: without one); record, which of `records` are its steps. `seconds`: the model's time of one lane. traced:
    the settings that its trainings have as numbers.
    """

    program: Program
    seconds: float
    members: np.ndarray
    n_down: np.ndarray
    probe_settings: Mapping[str, np.ndarray]
    traced: tuple[str, ...]
    cells: np.ndarray
    lane: np.ndarray
    row: np.ndarray
    probe: np.ndarray
    slot: np.ndarray
    record: np.ndarray
    records: list[tuple[int, ...]]

    def __len__(self) -> int:
        """How many trainings it has."""
        return len(self.members)

    def of_lanes(self, keep: np.ndarray) -> "Bucket":
        """The same program with some of the lanes, positions in increasing order."""
        number = np.full(len(self), -1)
        number[keep] = np.arange(len(keep))
        kept = number[self.lane] >= 0
        per_cell = {name: getattr(self, name)[kept] for name in ("cells", "row", "probe", "slot", "record")}
        per_lane: dict[str, Any] = {name: getattr(self, name)[keep] for name in ("members", "n_down")}
        per_lane["probe_settings"] = {name: values[keep] for name, values in self.probe_settings.items()}
        return dataclasses.replace(self, **per_lane, **per_cell, lane=number[self.lane[kept]])


class _Kind:
    """What the trainings of one set of configs have in common: the unpadded program that gives all their rows.

    configs: by code, with the steps each is measured at. rows: in a shared pass the distinct rows (`_row`), else empty.
    """

    def __init__(self, configs: Mapping[int, tuple[Config, tuple[int, ...]]], moments: bool) -> None:
        self.configs = {code: own for code, (own, _) in configs.items()}
        every = list(self.configs.values())
        probing = [own for own in every if own.program().probes]
        self.probes = sorted({own.probe_key for own in probing}, key=repr)
        self.n_down = sorted({n for own in probing for n in own.n_down})
        record = tuple(sorted({step for _, steps in configs.values() for step in steps}))
        longest = max(every, key=lambda own: own.steps)
        self.rows: list[tuple[Any, ...]] = []
        program = longest.program()
        if longest.prefixes and "steps" in program:
            program = program.replace(steps=record[-1])
        self.program = program.replace(record=record, probes=tuple(entry for entry, _, _ in self.probes), n_down=())
        self.exact = tuple(sorted((name, getattr(longest, name)) for name in longest.exact))
        if moments and longest.shared:
            self.rows = sorted({_row(own) for own in every}, key=lambda row: (row[0], repr(row)))
            largest = {key: max(getattr(own, key) for own in every) for key in _SIZED}
            self.program = self.program.replace(**largest, tasks="")
        self.traced = tuple(dict.fromkeys(name for own in every for name in own.traced))
        self.shape = [*(getattr(self.program, name) for name in size_names(self.program)), *self.n_down]

    def place(self, code: int, groups: Sequence[tuple[int, int]]) -> tuple[int, int, int]:
        """Where a config's results stand in a program of these groups: its row, its probe, and its n_down."""
        own, row = self.configs[code], 0
        if self.rows:
            # Rows lie narrow first; a group that another kind needs more of has rows to spare at its end.
            widths = [width for width, _ in groups]
            group = bisect.bisect_left(widths, ladder(own.width))
            before = bisect.bisect_right(self.rows, widths[group - 1], key=lambda row: row[0]) if group else 0
            row = sum(count for _, count in groups[:group]) + self.rows.index(_row(own)) - before
        if not own.program().probes:
            return row, -1, -1
        return row, self.probes.index(own.probe_key), self.n_down.index(own.n_down[0])

    def probe_settings(self) -> dict[str, list[float]]:
        """The settings of the probes and of their families as traced numbers, one a probe; 0 where one has no such."""
        each = [
            {PROBED + name: value for name, value in of_family}
            | {name: value for name, value in own if FIELDS[name].kind == "knob"}
            for _, of_family, own in self.probes
        ]
        found: dict[str, list[float]] = {}
        for name in sorted({name for own in each for name in own}):
            number = FIELDS[name].type.number
            found[name] = [number(own[name]) if name in own else 0 for own in each]
        return found


def _row(own: Config) -> tuple[Any, ...]:
    """What tells the rows of a shared pass apart; its padded width first."""
    return ladder(own.width), *own.row


_SIZED = ("r", "width", "num_tasks")


def plan(grid: Grid, moments: str = "auto", speed: float = 1.0) -> list[Bucket]:
    """Buckets of the grid's cells, in order of first appearance.

    moments: whether cells share passes over samples where they can ("auto"), must ("always", which raises ConfigError
    where they cannot) or do not ("never"). speed: how many times as fast as the model's core a device is; a fast one
    repays fewer programs, as it compiles no faster.
    """
    # Trainings, numbered seed by seed and by first appearance: what is run first is some seeds of everything.
    identities = grid.lanes(moments != "never")
    _, first, lane = np.unique(identities, return_index=True, return_inverse=True)
    order = np.lexsort((first, grid.at["seed"][first] if "seed" in grid.at else first))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    lane, first = rank[lane], first[order]

    shaped = [key for key in grid.at if FIELDS[key].kind != "knob"]
    stands_for, code = grid.alike(shaped, config.derived().planning)
    records, record = grid.records()
    pairs, code = np.unique(code.astype(np.int64) * len(records) + record, return_inverse=True)
    configs = [
        (grid.cell(stands_for[k]), records[steps]) for k, steps in zip(*np.divmod(pairs, len(records)), strict=True)
    ]
    if moments == "always":
        _require_moments([own for own, _ in configs])
    kinds, kind_of_lane = _kinds(configs, code, lane, len(first), moments != "never")
    bucket_of_kind, programs = _programs(kinds, np.bincount(kind_of_lane, minlength=len(kinds)) / speed)

    by_lane = np.argsort(lane, kind="stable")
    bucket_of_cell = bucket_of_kind[kind_of_lane][lane[by_lane]]
    buckets = []
    for b, program in enumerate(programs):
        cells = by_lane[bucket_of_cell == b]
        lanes, number = np.unique(lane[cells], return_inverse=True)
        pairs, pair = np.unique(kind_of_lane[lane[cells]] * len(configs) + code[cells], return_inverse=True)
        groups = program.groups
        split = [divmod(p, len(configs)) for p in pairs.tolist()]
        places = np.asarray([kinds[kind].place(own, groups) for kind, own in split])[pair]
        members = np.repeat(first[lanes][:, None], max(1, sum(count for _, count in groups)), axis=1)
        members[number, places[:, 0]] = cells
        own_kinds, kind = np.unique(kind_of_lane[lanes], return_inverse=True)
        probing = [kinds[i].probe_settings() for i in own_kinds]
        buckets.append(
            Bucket(
                program=program,
                seconds=lane_seconds(program, shape_of(program)).item() / speed,
                members=members,
                n_down=np.asarray([kinds[i].n_down for i in own_kinds])[kind],
                probe_settings={name: np.asarray([own[name] for own in probing])[kind] for name in probing[0]},
                traced=kinds[own_kinds[0]].traced,
                cells=cells,
                lane=number,
                row=places[:, 0],
                probe=places[:, 1],
                slot=places[:, 2],
                record=record[cells],
                records=records,
            )
        )
    return sorted(buckets, key=lambda bucket: bucket.cells.min())


def _require_moments(configs: Sequence[Config]) -> None:
    for own in configs:
        if own.shared is not None:
            continue
        shared = ALGORITHMS[own.algorithm].shared
        if shared is None:
            allowed = ", ".join(name for name, record in ALGORITHMS.items() if record.shared is not None)
            raise ConfigError("moments", "always", f"algorithm={own.algorithm}; allowed: {allowed}")
        first = next(condition for condition in shared.conditions if not condition.holds(own.values))
        here = " ".join(f"{name}={own.values[name]}" for name in sorted(first.holds.reads & own.used))
        raise ConfigError("moments", "always", f"{here}; allowed with algorithm={own.algorithm}: {first.allowed}")


def _kinds(
    configs: Sequence[tuple[Config, tuple[int, ...]]], code: np.ndarray, lane: np.ndarray, lanes: int, moments: bool
) -> tuple[list[_Kind], np.ndarray]:
    """The kinds of trainings, and each lane's: lanes whose cells have the same set of codes are of one kind."""
    of_lane, codes = np.divmod(np.unique(lane * len(configs) + code), len(configs))
    start = np.searchsorted(of_lane, np.arange(lanes + 1)).tolist()
    kinds: dict[bytes, int] = {}
    sets = [codes[i:j].tobytes() for i, j in itertools.pairwise(start)]
    kind_of_lane = np.asarray([kinds.setdefault(key, len(kinds)) for key in sets])
    sets_of = [np.frombuffer(key, codes.dtype).tolist() for key in kinds]
    return [_Kind({c: configs[c] for c in own}, moments) for own in sets_of], kind_of_lane


def _programs(kinds: Sequence[_Kind], lanes: np.ndarray) -> tuple[np.ndarray, list[Program]]:
    """Which program each kind takes, and the padded programs; lanes (kinds,): how many trainings are of each kind, in
    units of what the model's core does in the same time.
    """
    alike: dict[tuple, list[int]] = {}
    for i, kind in enumerate(kinds):
        blank = kind.program.replace(**dict.fromkeys(size_names(kind.program), 0))
        alike.setdefault((blank, len(kind.n_down), kind.exact, kind.traced), []).append(i)
    bucket_of_kind = np.empty(len(kinds), np.int64)
    programs: list[Program] = []
    for (blank, probed, exact, _), members in alike.items():
        names = size_names(blank)
        widths = _group_widths(blank, [kinds[i] for i in members], lanes[members])
        families = sorted({row[1] for i in members for row in kinds[i].rows})
        blank = blank.replace(groups=tuple((width, 0) for width in widths), families=tuple(families))
        places = [np.searchsorted(widths, [row[0] for row in kinds[i].rows]) for i in members]
        counts = [np.bincount(place, minlength=len(widths)).tolist() for place in places]
        pads = [[*map(ladder, kinds[i].shape), *count] for i, count in zip(members, counts, strict=True)]
        for name, size in exact:
            for pad in pads:
                pad[names.index(name)] = size
        for group in _merge(blank, np.asarray(pads), lanes[members]):
            pad = np.asarray(pads)[group].max(axis=0).tolist()
            bucket_of_kind[[members[i] for i in group]] = len(programs)
            sizes: dict[str, Any] = dict(zip(names, pad, strict=False))
            first = len(names) + probed
            # A group may be of a width that only other programs have.
            most = sizes["width"]
            groups = [(min(width, most), count) for width, count in zip(widths, pad[first:], strict=True) if count]
            programs.append(blank.replace(**sizes, n_down=tuple(pad[len(names) : first]), groups=tuple(groups)))
    return bucket_of_kind, programs


def _group_widths(program: Program, kinds: Sequence[_Kind], lanes: np.ndarray) -> list[int]:
    """The widths of groups on the moment path: a group of its own only where its rows repay compiling it."""
    rows: dict[int, float] = collections.defaultdict(float)
    for kind, count in zip(kinds, lanes.tolist(), strict=True):
        for width, *_ in kind.rows:
            rows[width] += count
    widths = sorted(rows)
    shape = np.max([[*map(ladder, kind.shape)] for kind in kinds], axis=0)

    def row_seconds(width: int) -> float:
        none, one = (np.asarray([[*shape, count]]) for count in (0, 1))
        program_of = program.replace(groups=((width, 0),))
        return float((lane_seconds(program_of, one) - lane_seconds(program_of, none)).item())

    kept = []
    for width, wider in itertools.pairwise(widths):
        if rows[width] * (row_seconds(wider) - row_seconds(width)) > GROUP_SECONDS:
            kept.append(width)
        else:
            rows[wider] += rows[width]
    return [*kept, *widths[-1:]]


def _merge(program: Program, pads: np.ndarray, lanes: np.ndarray) -> list[np.ndarray]:
    """Partition shapes (k, …) so that compile time plus padding is small: merge greedily, best pair first."""
    shapes, inverse = np.unique(pads, axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    weight = np.bincount(inverse, weights=lanes, minlength=len(shapes))
    members = [np.asarray([i]) for i in range(len(shapes))]
    cost = weight * lane_seconds(program, shapes)

    def savings(i: int) -> np.ndarray:
        """What joining shape i with each of the shapes saves."""
        joined = lane_seconds(program, np.maximum(shapes[i], shapes))
        gain = COMPILE_SECONDS + cost[i] + cost - (weight[i] + weight) * joined
        gain[i] = -np.inf
        return gain

    table = np.stack([savings(i) for i in range(len(shapes))])
    while len(shapes) > 1 and table.max() > 0:
        i, j = sorted(divmod(int(np.argmax(table)), len(shapes)))
        shapes[i] = np.maximum(shapes[i], shapes[j])
        weight[i] += weight[j]
        members[i] = np.concatenate([members[i], members.pop(j)])
        cost[i] = weight[i] * lane_seconds(program, shapes[i : i + 1])[0]
        shapes, weight, cost = (np.delete(array, j, axis=0) for array in (shapes, weight, cost))
        table = np.delete(np.delete(table, j, axis=0), j, axis=1)
        table[i] = table[:, i] = savings(i)
    return [np.flatnonzero(np.isin(inverse, part)) for part in members]
