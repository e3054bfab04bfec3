"""What a TPU's and a GPU's compiler make of the hot programs, with neither present: `python -m benchmarks.topology`.

Compiles each program ahead of time for chips that are only described, by the way that a sweep takes (plan, job,
executable), each in a process of its own, as a TPU's compiler may abort. Per program, lanes (trainings a device at
once) and target it says: seconds, memory, library calls with the largest side of their matrices, loops, sorts,
collectives, and a *bound*, which is not a measurement: the least time a training at the chip's published rates.

`pip install 'mtfl_jax[tpu]'` brings the compiler for TPUs, `'mtfl_jax[cuda13]'` the one for GPUs.
"""

import argparse
import collections
import functools
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "topology.json"
COMPILE_LIMIT = 1200
"""Seconds after which a compile is given up."""


# Chips


class Chip(NamedTuple):
    """A chip to compile for. `operations` (of a float32 product's passes) and `bytes` are its published rates, per
    second; a float32 product takes `passes` of them. together: every training is spread over all of them.
    """

    kind: str
    topology: str
    operations: float
    bytes: float
    passes: int
    together: bool = False


# A TPU multiplies bfloat16; XLA makes a float32 product (`highest`) of six such. A GPU's float32 rate is the one
# without tensor cores. Two and four devices, so that what is sent between devices shows.
CHIPS = {
    "v5e": Chip("tpu", "v5e:2x2", 197e12, 819e9, 6),  # cloud.google.com/tpu/docs/v5e
    "v6e": Chip("tpu", "v6e:2x2", 918e12, 1640e9, 6),  # cloud.google.com/tpu/docs/v6e
    "v5p": Chip("tpu", "v5p:2x2x1", 459e12, 2765e9, 6),  # cloud.google.com/tpu/docs/v5p
    "h100": Chip("cuda13", "1x1x2", 67e12, 3350e9, 1),  # NVIDIA H100 data sheet, SXM
    "h200": Chip("cuda13", "1x1x2", 67e12, 4800e9, 1),  # NVIDIA H200 data sheet, SXM
}
CHIPS["v5e-16"] = CHIPS["v5e"]._replace(topology="v5e:4x4", together=True)
CHIPS["h100-8"] = CHIPS["h100"]._replace(topology="1x1x8", together=True)
MODULES = {"tpu": "libtpu", "cuda13": "jax_plugins.xla_cuda13"}
"""By kind, which is the extra that installs it: what the compiler is in."""

HOPPER = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {bandwidth} l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: {memory} shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 }} registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 12 }} runtime_version {{ major: 13 }}
device_description_str: "{name}"
"""
"""XLA's own description of these GPUs: xla/backends/gpu/target_config/specs/{h100_sxm,h200}.txtpb."""
GPUS = {
    "h100": HOPPER.format(bandwidth=3_352_320_000_000, memory=84_942_979_072, name="NVIDIA H100 80GB HBM3"),
    "h200": HOPPER.format(bandwidth=4_800_000_000_000, memory=151_397_597_184, name="NVIDIA H200 141GB HBM3e"),
}


def devices_of(target: str) -> tuple[Any, ...]:
    """Devices to compile for, which are not there."""
    import jax
    from jax.experimental import topologies

    chip = CHIPS[target]
    if chip.kind == "tpu":
        return tuple(topologies.get_topology_desc(chip.topology, "tpu").devices)
    jax.devices()  # Plugins are found when JAX looks for devices.
    described = topologies.get_topology_desc(
        platform="cuda", target_config=GPUS[target.partition("-")[0]], topology=chip.topology
    )
    return tuple(described.devices)


# Programs


class Work(NamedTuple):
    """A grid of one program, the lanes to compile it for, and the kinds of chips that `--quick` compiles it for.
    together: for chips that share each training.
    """

    axes: dict[str, Any]
    lanes: tuple[int, ...]
    quick: tuple[str, ...] = ()
    moments: str = "auto"
    together: bool = False


BOTH = ("tpu", "cuda13")
QUICK = ("v5e", "h100", "v5e-16", "h100-8")
QUICK_LANES = 64
RECOVERY = {"measure": "recovery", "probe": "none"}
ROUNDS = {"steps": 200, "num_tasks": 32, "n1": 512, "n2": 512}
ALTERNATING = {"algorithm": "alternating", **ROUNDS, **RECOVERY, "measure_at": "last"}
LARGE = {"width": 2**20, "num_tasks": 4096, "n2": 4096}
"""Weights of 16 GiB, and as much again of their gradients and of what is kept."""
MANY = {"width": [64, 256, 1024], "num_tasks": [1, 4, 16, 64, 256], "r": [2, 3, 4]}

WORK = {
    "one_step": Work({}, (1024,), ("cuda13",), "never"),
    "one_step recovery": Work(RECOVERY, (1024,), BOTH, "never"),
    "moments recovery": Work({**MANY, **RECOVERY}, (1024,), ("cuda13",)),
    "alternating recovery": Work(ALTERNATING, (1024,)),
    "alternating pallas": Work({**ALTERNATING, "kernel": "pallas"}, (1024,), BOTH),
    "joint": Work({"algorithm": "joint", **ROUNDS}, (1024,)),
    "random_features": Work({"algorithm": "random_features"}, (1024,), BOTH),
    "kernels": Work({}, (64,), BOTH),
    "alternating large": Work({**ALTERNATING, **LARGE}, (1,), BOTH, together=True),
}
"""The hot programs; d = 64, width = 256, r = 4 and the rest as `mtfl` has it. `kernels` is the Pallas kernels alone."""


def jobs(targets: list[str], programs: list[str], lanes: int | None, quick: bool) -> list[tuple[str, int, str]]:
    """What to compile: program, lanes, target."""
    found = []
    for name in programs:
        for target in targets:
            if CHIPS[target].together != WORK[name].together:
                continue
            if not quick or CHIPS[target].kind in WORK[name].quick:
                own = (lanes,) if lanes else (min(QUICK_LANES, *WORK[name].lanes),) if quick else WORK[name].lanes
                found += [(name, count, target) for count in own]
    return found


def missing(kind: str) -> str:
    """What to install for a kind of chip, in a line; nothing where it is there."""
    try:
        there = importlib.util.find_spec(MODULES[kind])
    except ModuleNotFoundError:
        there = None
    return "" if there else f"no compiler for {kind}: pip install 'mtfl_jax[{kind}]'"


# What a compiled program says


class Instruction(NamedTuple):
    """A line of HLO: its name, its result's type, what it does, and what follows."""

    name: str
    shape: str
    op: str
    rest: str


class Call(NamedTuple):
    """Calls of a library routine: what it is, by which name, the largest side of its matrices, whether it is run
    always or stands in a branch, and how many of them the text has.
    """

    kind: str
    name: str
    side: int
    always: bool
    count: int


KINDS = {
    "SVD": r"gesvd|svd",
    "QR": r"geqrf|orgqr|ormqr|householder|^qr",
    "eigen": r"syev|heev|geev|eigh",
    "Cholesky": r"potrf|cholesky",
    "triangular": r"trsm|triangular",
    "sort": r"sort|topk",
    "Pallas": r"triton|tpu_custom_call",
}
"""Kinds of library routines, by the names of cuSOLVER, cuBLAS and CUB, of libtpu, and of HLO itself.

A TPU has no SVD: there it is polar decompositions (QR, Cholesky) and an eigenproblem.
"""
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-$]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-$]+) = (.+?) ([a-z][a-z0-9\-]*)\((.*)$")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|branch_computations|true_computation|false_computation|called_computations)"
    r"=(\{[^}]*\}|%?[\w.\-$]+)"
)
_ARRAY = re.compile(r"\b[a-z]\w*\[([\d,]*)\]")
_OPERANDS = re.compile(r"operand_layout_constraints=\{((?:[^{}]|\{[^{}]*\})*)\}")
_COLLECTIVE = re.compile(r"(all-|reduce-scatter|collective-|ragged-all|send|recv)(?!.*-done)")


def computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The computations of HLO text by name, and the name of the entry."""
    found: dict[str, list[Instruction]] = {}
    entry, inside = "", ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            inside = head[2]
            found[inside] = []
            entry = inside if head[1] else entry
        elif inside and (of := _INSTRUCTION.match(line)):
            found[inside].append(Instruction(*of.groups()))
    return found, entry


def always_run(found: dict[str, list[Instruction]], entry: str) -> set[str]:
    """The computations that are reached from the entry without the branches of a `conditional`."""
    reached, left = set[str](), [entry]
    while left:
        if (name := left.pop()) in reached or name not in found:
            continue
        reached.add(name)
        for instruction in found[name]:
            if instruction.op != "conditional":
                left += [
                    of.lstrip("%") for of in re.findall(r"[%\w.\-$]+", " ".join(_CALLED.findall(instruction.rest)))
                ]
    return reached


def kind_of(name: str) -> str | None:
    """The kind of a library routine."""
    return next((kind for kind, names in KINDS.items() if re.search(names, name, re.IGNORECASE)), None)


def side_of(name: str, instruction: Instruction) -> int:
    """The largest side of the matrices that a routine takes; of a sort, how many numbers it sorts at a time."""
    operands = _OPERANDS.search(instruction.rest)
    shapes = _ARRAY.findall(operands[1] if operands else instruction.shape)
    sides = [[int(side) for side in shape.split(",") if side] for shape in shapes]
    if kind_of(name) == "sort":
        along = re.search(r"dimensions=\{(\d+)\}", instruction.rest)
        return max((shape[int(along[1]) if along else -1] for shape in sides if shape), default=1)
    # A batch's vectors, of reflectors or of eigenvalues, have an axis less than its matrices.
    rank = max(map(len, sides), default=0)
    largest = max((side for shape in sides if len(shape) == rank > 1 for side in shape[-2:]), default=1)
    # libtpu's eigensolver takes a matrix in four blocks.
    return 2 * largest if name == "EighTpu" else largest


def calls_of(text: str) -> list[Call]:
    """The library calls of HLO text."""
    found, entry = computations(text)
    always, counts = always_run(found, entry), collections.Counter[tuple[str, str, int, bool]]()
    for computation, instructions in found.items():
        for of in instructions:
            target = re.search(r'custom_call_target="([^"]+)"', of.rest)
            name = target[1] if of.op == "custom-call" and target else of.op
            library = of.op in ("custom-call", "sort", "topk", "cholesky", "triangular-solve")
            if library and (kind := kind_of(name)):
                counts[kind, name, side_of(name, of), computation in always] += 1
    return [Call(*key, count) for key, count in sorted(counts.items())]


_PLACED = re.compile(r"\b(pred|[a-z]+(\d+))[a-z0-9]*\[([\d,]*)\](\{[^}]*\})?")
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "iota")


def bytes_moved(text: str) -> float:
    """Bytes that a program reads from and writes to the device's main memory, by its HLO: of every instruction that is
    run always, its operands and results that are not on the chip, a loop's times its turns where HLO says how many.

    Of an operand of which a fusion takes slices, and of an array in which it sets some, the slices.
    """
    found, entry = computations(text)
    total, left = 0.0, [(entry, 1)]
    while left:
        computation, times = left.pop()
        own = found[computation]
        sizes = {of.name: _bytes_of(of.shape) for of in own}
        for of in own:
            if of.op == "while":
                body, condition = (re.search(rf"{name}=%?([\w.\-$]+)", of.rest) for name in ("body", "condition"))
                assert body
                assert condition
                known = re.search(r'"known_trip_count":\{"n":"(\d+)"', of.rest)
                left.append((body[1], times * (int(known[1]) if known else _turns(found[condition[1]]))))
            elif of.op == "call" and (called := re.search(r"to_apply=%?([\w.\-$]+)", of.rest)):
                left.append((called[1], times))
            elif of.op not in _FREE:
                operands = [sizes.get(name, 0) for name in _operands(of)]
                inside = re.search(r"calls=%?([\w.\-$]+)", of.rest)
                total += times * _own_bytes(of, sizes[of.name], operands, found[inside[1]] if inside else [of])
    return total


def _own_bytes(of: Instruction, result: float, operands: list[float], inside: list[Instruction]) -> float:
    """Bytes that one instruction moves: `inside` is what it fuses, itself alone if it is no fusion."""
    if of.op == "dynamic-slice":
        return 2 * result
    if of.op == "dynamic-update-slice":
        return 2 * operands[1]
    sizes = {one.name: _bytes_of(one.shape) for one in inside}
    parameters = [one for one in inside if one.op == "parameter"]
    for one in parameters if of.op == "fusion" else ():
        users = [user for user in inside if one.name in _operands(user)]
        place = int(one.rest.split(")")[0])
        if users and all(user.op in ("dynamic-slice", "gather") and _operands(user)[0] == one.name for user in users):
            operands[place] = min(operands[place], sum(sizes[user.name] for user in users))
        elif users and all(user.op == "dynamic-update-slice" and _operands(user)[0] == one.name for user in users):
            operands[place] = 0
            result = min(result, sum(sizes[_operands(user)[1]] for user in users))
    return result + sum(operands)


def _operands(of: Instruction) -> list[str]:
    return re.findall(r"%([\w.\-$]+)", of.rest.split(")")[0])


def _bytes_of(shape: str) -> float:
    """Bytes of what a type says is in the device's main memory: S(1) is a TPU's memory on the chip."""
    total = 0.0
    for kind, bits, sides, layout in _PLACED.findall(shape):
        if "S(1)" not in layout:
            total += math.prod(int(side) for side in sides.split(",") if side) * (
                1 if kind == "pred" else int(bits) / 8
            )
    return total


def _turns(condition: list[Instruction]) -> int:
    """How often a loop turns that counts up to a constant; 1 of another."""
    constants = {of.name: of.rest.split(")")[0] for of in condition if of.op == "constant"}
    compares = [of for of in condition if of.op == "compare" and "direction=LT" in of.rest]
    bounds = [constants[name] for of in compares for name in _operands(of) if name in constants]
    return int(bounds[0]) if len(compares) == len(bounds) == 1 and bounds[0].isdigit() else 1


def facts_of(text: str) -> dict[str, Any]:
    """What HLO text says."""
    ops = collections.Counter(of.op for instructions in computations(text)[0].values() for of in instructions)
    calls = calls_of(text)
    return {
        "calls": [call._asdict() for call in calls],
        "whiles": ops["while"],
        "conditionals": ops["conditional"],
        "sorts": sum(call.count for call in calls if call.kind == "sort"),
        "collectives": {op: count for op, count in sorted(ops.items()) if _COLLECTIVE.match(op)},
        "hlo_lines": text.count("\n"),
    }


# One compile, in a process of its own

# libtpu would look for its chip and its host, and lets one process in; nothing is read from a cache, so that seconds
# are those of compiling; a GPU's kernels cannot be timed where none is.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
XLA_FLAGS = {"tpu": "", "cuda13": "--xla_gpu_autotune_level=0"}


def report(program: str, lanes: int, target: str) -> dict[str, Any]:
    """What the compiler makes of a program, from a new process; `error` where it failed."""
    command = [sys.executable, "-m", "benchmarks.topology", "--one", program, str(lanes), target]
    environment = {**os.environ, **ENVIRONMENT, "XLA_FLAGS": XLA_FLAGS[CHIPS[target].kind]}
    of: dict[str, Any] = {"program": program, "lanes": lanes, "target": target}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=COMPILE_LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return {**of, "error": f"not compiled after {COMPILE_LIMIT} s"}
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return {**of, "error": (lines[-1] if lines else f"status {done.returncode}")[:300]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**of, **found}


def compiled_here(program: str, lanes: int, target: str) -> dict[str, Any]:
    """Compile a program in this process."""
    import jax

    devices, compiling = devices_of(target), 0.0

    def heard(event: str, seconds: float, **_: Any) -> None:
        nonlocal compiling
        compiling += seconds * (event == "/jax/core/compile/backend_compile_duration")

    jax.monitoring.register_event_duration_secs_listener(heard)
    start = time.perf_counter()
    make = kernels if program == "kernels" else functools.partial(executable_of, program)
    executable, batch, operations = make(devices, lanes)
    total = time.perf_counter() - start
    memory, text = executable.memory_analysis(), executable.as_text()
    out = {
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "libtpu") if _installed(name)},
        "lower_seconds": total - compiling,
        "compile_seconds": compiling,
        "code_mib": memory.generated_code_size_in_bytes / 2**20 or None,
        "temporary_mib": memory.temp_size_in_bytes / 2**20,
        "batch": batch,
        "temporary_mib_a_training": memory.temp_size_in_bytes / 2**20 / batch,
        "operations_a_training": operations,
        "bytes_a_training": bytes_moved(text) / batch,
        **facts_of(text),
    }
    return out | {"bound_seconds": bound(target, out)}


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def bound(target: str, of: dict[str, Any]) -> float:
    """Seconds that a training takes at least at the published rates: of its matrix products, by the planner's model, or
    on a TPU of the bytes that it moves (`bytes_moved`), whichever are more. HLO does not say what a GPU's cache holds.
    """
    chip = CHIPS[target]
    moving = of["bytes_a_training"] / chip.bytes if chip.kind == "tpu" else 0.0
    return max((of["operations_a_training"] or 0) * chip.passes / chip.operations, moving)


def executable_of(program: str, devices: tuple[Any, ...], lanes: int) -> tuple[Any, int, float]:
    """A program as a sweep compiles it for devices, how many trainings a batch of it has, and the operations of a
    training's matrix products on one device.
    """
    from mtfl_jax import compose
    from mtfl_jax.sweeps import compiling, cost, plan
    from mtfl_jax.sweeps.grid import Grid

    of = WORK[program]
    # All that asks for this process's devices on the way: which they are, and how many.
    compiling.devices = lambda: devices
    seeds = f"range(0,{lanes * len(devices)})"
    (bucket,) = plan.plan(Grid({**of.axes, "seed": seeds}, compose.composed), of.moments, compiling.speed())
    chunk = compiling.Chunk(1, 1, spread=len(devices)) if of.together else compiling.modelled(bucket)
    executable = compiling.compiled(compiling.job_of(bucket), chunk).executable
    return executable, chunk.batch, cost.lane_flops(bucket.program) / chunk.spread


def kernels(devices: tuple[Any, ...], lanes: int) -> tuple[Any, int, None]:
    """The network's outputs and all gradients by the Pallas kernels, of a batch of trainings, for one device."""
    import jax
    import jax.numpy as jnp

    from mtfl_jax.learning.kernels import outputs
    from mtfl_jax.sweeps.machine import MATMUL_PRECISION

    def loss(W: jax.Array, b: jax.Array, A: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum(outputs(W, b, A, x) ** 2)

    width, d, num_tasks, n = 256, 64, 32, 512
    on = jax.sharding.SingleDeviceSharding(devices[0])
    shapes = [(width, d), (width,), (num_tasks, width), (n, d)]
    arrays = [jax.ShapeDtypeStruct((lanes, *shape), jnp.float32, sharding=on) for shape in shapes]
    # Pallas looks for its chip in the mesh.
    mesh = jax.sharding.Mesh(devices[:1], ("lanes",)).abstract_mesh
    with jax.default_matmul_precision(MATMUL_PRECISION), jax.sharding.use_abstract_mesh(mesh):
        gradients = jax.jit(jax.vmap(jax.value_and_grad(loss, argnums=(0, 1, 2))))
        return gradients.lower(*arrays).compile(), lanes, None


# The command


def line_of(of: dict[str, Any]) -> str:
    """A report in a line."""
    head = f"{of['program']:22} {of['lanes']:5} {of['target']:6}"
    if error := of.get("error"):
        return f"{head} {error}"
    rare = largest(of["calls"], False)
    calls = said(largest(of["calls"], True)) + (f"; in branches {said(rare)}" if rare else "")
    calls += "".join(f"; {count} {op}" for op, count in of["collectives"].items())
    return (
        f"{head} {of['lower_seconds']:4.1f} + {of['compile_seconds']:5.1f} s,"
        f" {of['temporary_mib_a_training']:6.2f} MiB held and {of['bytes_a_training'] / 1e6:6.1f} MB moved a training,"
        f" {of['whiles']:2} loops, {of['hlo_lines']:5} lines, bound {1e6 * of['bound_seconds']:.3g} µs; {calls}"
    )


def largest(calls: list[dict[str, Any]], always: bool) -> dict[str, int]:
    """The largest side of each kind of library call, of those that are always run or of those in branches."""
    sides: dict[str, int] = {}
    for call in calls:
        if call["always"] == always:
            sides[call["kind"]] = max(call["side"], sides.get(call["kind"], 0))
    return sides


def said(sides: dict[str, int]) -> str:
    """Kinds of calls with their sides, in words."""
    return ", ".join(kind if kind == "Pallas" else f"{kind} {side}" for kind, side in sides.items()) or "none"


def reports(wanted: list[tuple[str, int, str]]) -> Iterator[dict[str, Any]]:
    """Reports of what can be compiled here, one after the other."""
    for kind in dict.fromkeys(CHIPS[target].kind for _, _, target in wanted):
        if line := missing(kind):
            print(line, file=sys.stderr)
    for job in wanted:
        if not missing(CHIPS[job[2]].kind):
            yield report(*job)


def kept(path: Path, new: list[dict[str, Any]]) -> None:
    """Write reports, over those of the same programs, lanes and targets in the file."""

    def key(of: dict[str, Any]) -> tuple[str, int, str]:
        return of["program"], of["lanes"], of["target"]

    old = json.loads(path.read_text()) if path.exists() else []
    rows = {key(of): of for of in [*old, *new]}
    order = [*WORK], [*CHIPS]
    ranked = sorted(
        rows.values(), key=lambda of: (order[0].index(of["program"]), of["lanes"], order[1].index(of["target"]))
    )
    path.parent.mkdir(exist_ok=True)
    path.write_text("[\n" + ",\n".join(json.dumps(of) for of in ranked) + "\n]\n")  # A line a report.


def main() -> None:
    """Compile what is asked for, say and keep what came out; exit 1 where nothing could be compiled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--target", metavar="NAME,…", help=f"of {','.join(CHIPS)} (default: all; {','.join(QUICK)} if --quick)"
    )
    parser.add_argument("--program", metavar="NAME,…", help=f"of {','.join(WORK)} (default: all)")
    parser.add_argument("--lanes", type=int, metavar="N", help="trainings a device at once (default: by program)")
    parser.add_argument("--quick", action="store_true", help="the smaller set that tests/test_topology.py checks")
    parser.add_argument("--out", type=Path, help=f"default: {RESULTS.relative_to(ROOT)}; nowhere if --quick")
    parser.add_argument("--one", nargs=3, metavar=("PROGRAM", "LANES", "TARGET"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        program, lanes, target = given.one
        print(json.dumps(compiled_here(program, int(lanes), target)))
        return
    targets = given.target.split(",") if given.target else [*QUICK] if given.quick else [*CHIPS]
    programs = given.program.split(",") if given.program else [*WORK]
    for chosen, allowed in ((targets, CHIPS), (programs, WORK)):
        if unknown := [name for name in chosen if name not in allowed]:
            parser.error(f"{unknown[0]}: allowed: {', '.join(allowed)}")
    out = given.out or (None if given.quick else RESULTS)
    done = []
    for of in reports(jobs(targets, programs, given.lanes, given.quick)):
        print(line_of(of), flush=True)
        done.append(of)
        if out:
            kept(out, [of])
    if not any("error" not in of for of in done):
        sys.exit("nothing could be compiled")


if __name__ == "__main__":
    main()
