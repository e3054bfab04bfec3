"""From a grid to buckets: the trainings that share one compiled program, padded to sizes of a fixed ladder.

Pads are chosen to minimise, under a stated cost model, the time to compile plus the time spent on padding. The model
is a set of constants, not a measurement, so the same grid gives the same plan on every machine.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtfl_jax.config import Config
from mtfl_jax.learning.experiment import Program
from mtfl_jax.sweeps.grid import Grid

COMPILE_SECONDS = 15.0
"""The model's price of one more program."""
FLOPS = 1.5e11
"""The model's matrix-product rate, per second."""
DRAW_SECONDS = {"gaussian": 14e-9, "rademacher": 1e-9}
"""The model's price of one input coordinate."""
FACTOR_SECONDS = 2e-10
"""The model's price per n³ of a symmetric eigenproblem."""

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

    Per lane: first, a cell whose settings the training takes; n_down (lanes, k) and parity_size (lanes, probes), the
    true values behind the program's. Per cell, ordered by lane: cells, its position in the grid; lane; probe and slot,
    its place among the lane's probes and n_down (−1 without a probe); record, which of `records` are its steps.
    `seconds`: the model's time of one lane.
    """

    program: Program
    seconds: float
    first: np.ndarray
    n_down: np.ndarray
    parity_size: np.ndarray
    cells: np.ndarray
    lane: np.ndarray
    probe: np.ndarray
    slot: np.ndarray
    record: np.ndarray
    records: list[tuple[int, ...]]

    def of_lanes(self, keep: np.ndarray) -> "Bucket":
        """The same program with some of the lanes, positions in increasing order."""
        number = np.full(len(self.first), -1)
        number[keep] = np.arange(len(keep))
        kept = number[self.lane] >= 0
        per_cell = {name: getattr(self, name)[kept] for name in ("cells", "probe", "slot", "record")}
        per_lane = {name: getattr(self, name)[keep] for name in ("first", "n_down", "parity_size")}
        return dataclasses.replace(self, **per_lane, **per_cell, lane=number[self.lane[kept]])


class _Kind:
    """What the trainings of one set of configs have in common: the unpadded program that gives all their rows."""

    def __init__(self, configs: Mapping[int, Config]) -> None:
        self.configs = configs
        probing = [config for config in configs.values() if config.probe != "none"]
        self.probes = sorted({config.probe_key for config in probing})
        self.n_down = sorted({n for config in probing for n in config.n_down})
        record = tuple(sorted({step for config in configs.values() for step in config.record}))
        longest = max(configs.values(), key=lambda config: config.steps)
        self.program = longest.program()._replace(
            record=record,
            steps=record[-1] if longest.prefixes else longest.steps,
            probes=tuple((name, family) for name, family, _ in self.probes),
            n_down=(),
        )
        self.shape = [*sizes_of(self.program), *self.n_down]

    def place(self, code: int) -> tuple[int, int]:
        """Where a config's downstream error stands: its probe, and its n_down."""
        config = self.configs[code]
        if config.probe == "none":
            return -1, -1
        return self.probes.index(config.probe_key), self.n_down.index(config.n_down[0])


def plan(grid: Grid) -> list[Bucket]:
    """Buckets of the grid's cells, in order of first appearance."""
    # Trainings, numbered by first appearance.
    _, first, lane = np.unique(grid.lanes, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    lane, first = rank[lane], first[order]

    stands_for, code = grid.distinct([key for key in grid.at if key not in _FREE])
    kinds, kind_of_lane = _kinds([grid.cell(i) for i in stands_for], code, lane, len(first))
    bucket_of_kind, programs = _programs(kinds, np.bincount(kind_of_lane, minlength=len(kinds)))

    by_lane = np.argsort(lane, kind="stable")
    bucket_of_cell = bucket_of_kind[kind_of_lane][lane[by_lane]]
    records, record = grid.records()
    buckets = []
    for b, program in enumerate(programs):
        cells = by_lane[bucket_of_cell == b]
        lanes, number = np.unique(lane[cells], return_inverse=True)
        pairs, pair = np.unique(kind_of_lane[lane[cells]] * len(stands_for) + code[cells], return_inverse=True)
        places = np.asarray([kinds[p // len(stands_for)].place(p % len(stands_for)) for p in pairs.tolist()])[pair]
        own_kinds, kind = np.unique(kind_of_lane[lanes], return_inverse=True)
        buckets.append(
            Bucket(
                program=program,
                seconds=lane_seconds(program, np.asarray([[*sizes_of(program), *program.n_down]])).item(),
                first=first[lanes],
                n_down=np.asarray([kinds[i].n_down for i in own_kinds])[kind],
                parity_size=np.asarray([[size for *_, size in kinds[i].probes] for i in own_kinds])[kind],
                cells=cells,
                lane=number,
                probe=places[:, 0],
                slot=places[:, 1],
                record=record[cells],
                records=records,
            )
        )
    return sorted(buckets, key=lambda bucket: bucket.cells.min())


def _kinds(configs: Sequence[Config], code: np.ndarray, lane: np.ndarray, lanes: int) -> tuple[list[_Kind], np.ndarray]:
    """The kinds of trainings, and each lane's: lanes whose cells have the same set of codes are of one kind."""
    of_lane, codes = np.divmod(np.unique(lane * len(configs) + code), len(configs))
    start = np.searchsorted(of_lane, np.arange(lanes + 1)).tolist()
    kinds: dict[bytes, int] = {}
    sets = [codes[i:j].tobytes() for i, j in itertools.pairwise(start)]
    kind_of_lane = np.asarray([kinds.setdefault(key, len(kinds)) for key in sets])
    return [_Kind({int(c): configs[c] for c in np.frombuffer(key, codes.dtype)}) for key in kinds], kind_of_lane


def _programs(kinds: Sequence[_Kind], lanes: np.ndarray) -> tuple[np.ndarray, list[Program]]:
    """Which program each kind takes, and the padded programs; lanes (kinds,): how many trainings are of each kind."""
    alike: dict[tuple, list[int]] = {}
    sizeless: dict[str, Any] = dict.fromkeys(SIZES, 0)
    for i, kind in enumerate(kinds):
        # The population limit's quadrature depends on r, which is never padded there.
        exact = kind.program.r if kind.program.algorithm == "population" else 0
        alike.setdefault((kind.program._replace(**sizeless), len(kind.n_down), exact), []).append(i)
    bucket_of_kind = np.empty(len(kinds), np.int64)
    programs: list[Program] = []
    for (blank, _, exact), members in alike.items():
        pads = np.asarray([[ladder(size) for size in kinds[i].shape] for i in members])
        if exact:
            pads[:, SIZES.index("r")] = exact
        for group in _merge(blank, pads, lanes[members]):
            pad = pads[group].max(axis=0).tolist()
            bucket_of_kind[[members[i] for i in group]] = len(programs)
            sizes = dict(zip(SIZES, pad, strict=False))
            programs.append(blank._replace(**sizes, n_down=tuple(pad[len(SIZES) :])))
    return bucket_of_kind, programs


def lane_seconds(program: Program, shapes: np.ndarray) -> np.ndarray:
    """The model's time of one lane at sizes (k, 7 + len(n_down)), in the order of SIZES: (k,)."""
    d, r, width, num_tasks, _, _, n_test, *_ = shapes.T.astype(float)
    n_down = shapes[:, len(SIZES) :].astype(float)
    records, probes = len(program.record), len(program.probes)
    samples, copies = _samples(program, shapes), 1 if program.shared_inputs else num_tasks
    drawn = samples * copies * d + records * (n_test + probes * n_down.max(axis=1, initial=0)) * d
    eigen = records * (2 * np.minimum(d, width) ** 3 + probes * (np.minimum(n_down, width[:, None]) ** 3).sum(axis=1))
    tables = 2.0**r * num_tasks * 1e-8
    return _flops(program, shapes) / FLOPS + drawn * DRAW_SECONDS[program.data] + eigen * FACTOR_SECONDS + tables


def lane_flops(program: Program) -> float:
    """Matrix-product operations of one lane of a program, measurements and probes included."""
    return _flops(program, np.asarray([[*sizes_of(program), *program.n_down]])).item()


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
    d, _, width, num_tasks, _, _, n_test, *_ = shapes.T.astype(float)
    n_down = shapes[:, len(SIZES) :].astype(float)
    records = len(program.record)
    forward = 2 * width * (d * (1 if program.shared_inputs else num_tasks) + num_tasks)
    training = _samples(program, shapes) * 2 * forward
    measured = records * (n_test + _samples(program, shapes) / program.steps) * forward
    probed = records * len(program.probes) * 2 * d * width * (n_test * n_down.shape[1] + n_down.sum(axis=1))
    return training + measured + probed


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
