"""From a grid to buckets: the trainings that share one compiled program, padded to sizes of a fixed ladder.

Pads are chosen to minimise, under a stated cost model, the time to compile plus the time spent on padding. The model
is a set of constants, not a measurement, so the same grid gives the same plan on every machine.
"""

import bisect
import collections
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtfl_jax.config import Config, ConfigError
from mtfl_jax.learning.experiment import Program
from mtfl_jax.learning.moments import MAX_R
from mtfl_jax.sweeps.grid import Grid

COMPILE_SECONDS = 5.0
"""The model's price of one more program."""
GROUP_SECONDS = 1.5
"""The model's price of one more width on the moment path."""
FLOPS = 1.5e11
"""The model's matrix-product rate, per second."""
DRAW_SECONDS = {"gaussian": 3e-9, "rademacher": 1e-9}
"""The model's price of one input coordinate."""
FACTOR_SECONDS = 1.5e-10
"""The model's price per n³ of a symmetric eigenproblem."""
ROW_SECONDS = 5e-4
"""The model's price of a row beside its matrix products and eigenproblems."""

SIZES = ("d", "r", "width", "num_tasks", "n1", "n2", "n_test")

# Axes that never change a program or a row's place in it.
_FREE = frozenset(
    ["seed", "nuisance_scale", "bias_scale", "lr_a", "lr_w", "weight_decay", "lr", "momentum", "parity_size"]
)


def sizes_of(program: Program) -> list[int]:
    """The program's sizes in the order of SIZES."""
    return [getattr(program, name) for name in SIZES]


def ladder(size: int) -> int:
    """The least 2^k or 3·2^k not below `size`."""
    power = 1 << (size - 1).bit_length()
    return power * 3 // 4 if power >= 4 and power * 3 // 4 >= size else power


@dataclasses.dataclass(frozen=True)
class Bucket:
    """A padded program, the trainings (lanes) that it runs, and the cells whose rows they give.

    Per lane: members (lanes, rows), cells whose settings its rows take (one row, but on the moment path); n_down
    (lanes, k) and parity_size (lanes, probes), the true values behind the program's. Per cell, ordered by lane: cells,
    its position in the grid; lane; row, probe and slot, its place among the lane's rows, probes and n_down (probe −1:
    without one); record, which of `records` are its steps. `seconds`: the model's time of one lane.
    """

    program: Program
    seconds: float
    members: np.ndarray
    n_down: np.ndarray
    parity_size: np.ndarray
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
        per_lane = {name: getattr(self, name)[keep] for name in ("members", "n_down", "parity_size")}
        return dataclasses.replace(self, **per_lane, **per_cell, lane=number[self.lane[kept]])


class _Kind:
    """What the trainings of one set of configs have in common: the unpadded program that gives all their rows.

    rows: on the moment path the distinct (padded width, family, r, width, num_tasks), else empty.
    """

    def __init__(self, configs: Mapping[int, Config], moments: bool) -> None:
        self.configs = configs
        probing = [config for config in configs.values() if config.probe != "none"]
        self.probes = sorted({config.probe_key for config in probing})
        self.n_down = sorted({n for config in probing for n in config.n_down})
        record = tuple(sorted({step for config in configs.values() for step in config.record}))
        longest = max(configs.values(), key=lambda config: config.steps)
        self.rows: list[tuple[int, str, int, int, int]] = []
        self.program = longest.program()._replace(
            record=record,
            steps=record[-1] if longest.prefixes else longest.steps,
            probes=tuple((name, family) for name, family, _ in self.probes),
            n_down=(),
        )
        if moments and longest.by_moments:
            self.rows = sorted({_row(config) for config in configs.values()})
            largest = {key: max(getattr(config, key) for config in configs.values()) for key in _SIZED}
            self.program = self.program._replace(**largest, tasks="")
        self.shape = [*sizes_of(self.program), *self.n_down]

    def place(self, code: int, groups: Sequence[tuple[int, int]]) -> tuple[int, int, int]:
        """Where a config's results stand in a program of these groups: its row, its probe, and its n_down."""
        config, row = self.configs[code], 0
        if self.rows:
            # Rows lie narrow first; a group that another kind needs more of has rows to spare at its end.
            widths = [width for width, _ in groups]
            group = bisect.bisect_left(widths, ladder(config.width))
            before = bisect.bisect_right(self.rows, widths[group - 1], key=lambda own: own[0]) if group else 0
            row = sum(count for _, count in groups[:group]) + self.rows.index(_row(config)) - before
        if config.probe == "none":
            return row, -1, -1
        return row, self.probes.index(config.probe_key), self.n_down.index(config.n_down[0])


def _row(config: Config) -> tuple[int, str, int, int, int]:
    return ladder(config.width), config.tasks, config.r, config.width, config.num_tasks


_SIZED = ("r", "width", "num_tasks")


def plan(grid: Grid, moments: str = "auto") -> list[Bucket]:
    """Buckets of the grid's cells, in order of first appearance.

    moments: whether `one_step` runs by moments where it can ("auto"), must ("always", which raises ConfigError where it
    cannot) or does not ("never").
    """
    # Trainings, numbered by first appearance.
    identities = grid.lanes(moments != "never")
    _, first, lane = np.unique(identities, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    lane, first = rank[lane], first[order]

    stands_for, code = grid.distinct([key for key in grid.at if key not in _FREE])
    configs = [grid.cell(i) for i in stands_for]
    if moments == "always":
        _require_moments(configs)
    kinds, kind_of_lane = _kinds(configs, code, lane, len(first), moments != "never")
    bucket_of_kind, programs = _programs(kinds, np.bincount(kind_of_lane, minlength=len(kinds)))

    by_lane = np.argsort(lane, kind="stable")
    bucket_of_cell = bucket_of_kind[kind_of_lane][lane[by_lane]]
    records, record = grid.records()
    buckets = []
    for b, program in enumerate(programs):
        cells = by_lane[bucket_of_cell == b]
        lanes, number = np.unique(lane[cells], return_inverse=True)
        pairs, pair = np.unique(kind_of_lane[lane[cells]] * len(stands_for) + code[cells], return_inverse=True)
        groups = program.groups
        split = [divmod(p, len(stands_for)) for p in pairs.tolist()]
        places = np.asarray([kinds[kind].place(own, groups) for kind, own in split])[pair]
        members = np.repeat(first[lanes][:, None], max(1, sum(count for _, count in groups)), axis=1)
        members[number, places[:, 0]] = cells
        own_kinds, kind = np.unique(kind_of_lane[lanes], return_inverse=True)
        buckets.append(
            Bucket(
                program=program,
                seconds=lane_seconds(program, _shape(program)).item(),
                members=members,
                n_down=np.asarray([kinds[i].n_down for i in own_kinds])[kind],
                parity_size=np.asarray([[size for *_, size in kinds[i].probes] for i in own_kinds])[kind],
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
    for config in configs:
        if not config.by_moments:
            raise ConfigError(
                "moments",
                "always",
                "allowed for one_step with the linear loss, shared inputs, no label noise, weight_decay null, a bias"
                f" that is not trained, and r <= {MAX_R}; here algorithm={config.algorithm} loss={config.loss}"
                f" shared_inputs={config.shared_inputs} label_noise={config.label_noise:g}"
                f" weight_decay={config.weight_decay} bias={config.bias} r={config.r}",
            )


def _kinds(
    configs: Sequence[Config], code: np.ndarray, lane: np.ndarray, lanes: int, moments: bool
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
    """Which program each kind takes, and the padded programs; lanes (kinds,): how many trainings are of each kind."""
    alike: dict[tuple, list[int]] = {}
    sizeless: dict[str, Any] = dict.fromkeys(SIZES, 0)
    for i, kind in enumerate(kinds):
        # The population limit's quadrature depends on r, which is never padded there.
        exact = kind.program.r if kind.program.algorithm == "population" else 0
        blank = kind.program._replace(**sizeless)
        alike.setdefault((blank, len(kind.n_down), exact), []).append(i)
    bucket_of_kind = np.empty(len(kinds), np.int64)
    programs: list[Program] = []
    for (blank, probed, exact), members in alike.items():
        widths = _group_widths(blank, [kinds[i] for i in members], lanes[members])
        families = sorted({row[1] for i in members for row in kinds[i].rows})
        blank = blank._replace(groups=tuple((width, 0) for width in widths), families=tuple(families))
        places = [np.searchsorted(widths, [row[0] for row in kinds[i].rows]) for i in members]
        counts = [np.bincount(place, minlength=len(widths)).tolist() for place in places]
        pads = [[*map(ladder, kinds[i].shape), *count] for i, count in zip(members, counts, strict=True)]
        if exact:
            pads = [[exact if k == SIZES.index("r") else size for k, size in enumerate(pad)] for pad in pads]
        for group in _merge(blank, np.asarray(pads), lanes[members]):
            pad = np.asarray(pads)[group].max(axis=0).tolist()
            bucket_of_kind[[members[i] for i in group]] = len(programs)
            sizes: dict[str, Any] = dict(zip(SIZES, pad, strict=False))
            first = len(SIZES) + probed
            # A group may be of a width that only other programs have.
            most = sizes["width"]
            groups = [(min(width, most), count) for width, count in zip(widths, pad[first:], strict=True) if count]
            programs.append(blank._replace(**sizes, n_down=tuple(pad[len(SIZES) : first]), groups=tuple(groups)))
    return bucket_of_kind, programs


def _group_widths(program: Program, kinds: Sequence[_Kind], lanes: np.ndarray) -> list[int]:
    """The widths of groups on the moment path: a group of its own only where its rows repay compiling it."""
    rows: dict[int, int] = collections.Counter()
    for kind, count in zip(kinds, lanes.tolist(), strict=True):
        for width, *_ in kind.rows:
            rows[width] += count
    widths = sorted(rows)
    shape = np.max([[*map(ladder, kind.shape)] for kind in kinds], axis=0)

    def row_seconds(width: int) -> float:
        none, one = (np.asarray([[*shape, count]]) for count in (0, 1))
        program_of = program._replace(groups=((width, 0),))
        return float((lane_seconds(program_of, one) - lane_seconds(program_of, none)).item())

    kept = []
    for width, wider in itertools.pairwise(widths):
        if rows[width] * (row_seconds(wider) - row_seconds(width)) > GROUP_SECONDS:
            kept.append(width)
        else:
            rows[wider] += rows[width]
    return [*kept, *widths[-1:]]


def lane_seconds(program: Program, shapes: np.ndarray) -> np.ndarray:
    """The model's time of one lane at shapes (k, …), each the sizes in the order of SIZES, the values of n_down, and
    how many rows each group has: (k,).
    """
    d, r, _, num_tasks, *_, n_test = shapes[:, : len(SIZES)].T.astype(float)
    n_down = _n_down(program, shapes)
    probes, copies = len(program.probes), 1 if program.shared_inputs else num_tasks
    fresh = n_test * (program.measure != "recovery" or probes > 0) + probes * n_down.max(axis=1, initial=0)
    drawn = _samples(program, shapes) * copies * d + (1 if program.groups else len(program.record)) * fresh * d
    rest = 2.0**r * num_tasks * 1e-8
    for rows, w in _rows(program, shapes):
        cubes = np.minimum(d, w) ** 3 + probes * (np.minimum(n_down, w[:, None]) ** 3).sum(axis=1)
        rest += rows * (ROW_SECONDS + cubes * FACTOR_SECONDS)
    return _flops(program, shapes) / FLOPS + drawn * DRAW_SECONDS[program.data] + rest


def lane_flops(program: Program) -> float:
    """Matrix-product operations of one lane of a program, measurements and probes included."""
    return _flops(program, _shape(program)).item()


def _shape(program: Program) -> np.ndarray:
    return np.asarray([[*sizes_of(program), *program.n_down, *(count for _, count in program.groups)]])


def _n_down(program: Program, shapes: np.ndarray) -> np.ndarray:
    return shapes[:, len(SIZES) : shapes.shape[1] - len(program.groups)].astype(float)


def _rows(program: Program, shapes: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """How many rows of which width a lane measures: pairs of arrays (k,)."""
    if not program.groups:
        return [(np.full(len(shapes), float(len(program.record))), shapes[:, SIZES.index("width")].astype(float))]
    counts = shapes[:, shapes.shape[1] - len(program.groups) :].T.astype(float)
    return [
        (count, np.full(len(shapes), float(width))) for count, (width, _) in zip(counts, program.groups, strict=True)
    ]


def _samples(program: Program, shapes: np.ndarray) -> np.ndarray:
    """Samples that pass through the network in training, per task where inputs are not shared."""
    n1, n2 = shapes[:, 4].astype(float), shapes[:, 5].astype(float)
    match program.algorithm:
        case "one_step":
            return n1 + n2
        case "random_features" | "oracle":
            return n1
        case "population":
            return 0 * n1
        case _:
            return program.steps * (n2 + (n1 if program.split_batch else 0))


def _flops(program: Program, shapes: np.ndarray) -> np.ndarray:
    d, r, width, num_tasks, n1, n2, n_test = shapes[:, : len(SIZES)].T.astype(float)
    n_down, probes = _n_down(program, shapes), len(program.probes)
    inputs = d * (1 if program.shared_inputs else num_tasks)
    samples = _samples(program, shapes)
    by_moments = bool(program.groups)
    total = 2 * width * d * (n1 + 2 * n2) if by_moments else samples * 4 * width * (inputs + num_tasks)
    for rows, w in _rows(program, shapes):
        a_row = 2 * d * w * (np.minimum(d, w) + probes * (n_test * n_down.shape[1] + n_down.sum(axis=1)))
        if program.groups:
            a_row += 2 * 2**r * w * (d + 2 * num_tasks)
        if program.measure != "recovery":
            seen = n2 if program.groups else samples / program.steps
            a_row += (n_test + seen) * 2 * w * (inputs + num_tasks)
        total = total + rows * a_row
    return np.asarray(total)


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
