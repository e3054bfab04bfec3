"""What the compilers for TPUs and GPUs make of the hot programs (benchmarks/topology.py), with neither present."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _module():
    spec = importlib.util.spec_from_file_location("topology", ROOT / "benchmarks" / "topology.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


topology = _module()

# What is read from HLO

CUDA = """\
HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[4,48,40]{2,1,0})->f32[4,48,40]{2,1,0}}

FileNames
1 "program.py"

StackFrames
1 {file_location_id=1 parent_frame_id=1}

%fallback (a.0: (f32[4,48,48])) -> (f32[4,48,48]) {
  %a.0 = (f32[4,48,48]{2,1,0}) parameter(0)
  %bitcast.1 = f32[4,48,48]{1,2,0} get-tuple-element(%a.0), index=0
  %eigh.0 = (f32[4,48,48]{1,2,0}, f32[4,48]{1,0}, s32[4]{0}) custom-call(%bitcast.1), \
custom_call_target="cusolver_syevd_ffi", operand_layout_constraints={f32[4,48,48]{1,2,0}}
  %inside = (f32[4,48,48]{1,2,0}) call(%eigh.0), to_apply=%deeper
  ROOT %tuple.1 = (f32[4,48,48]{1,2,0}) tuple(%inside)
}

%deeper (a.1: f32[4,48,48]) -> f32[4,48,48] {
  ROOT %svd.1 = (f32[4,40,40]{1,2,0}, f32[4,40]{1,0}) custom-call(%a.1), custom_call_target="cusolver_gesvdj_ffi", \
operand_layout_constraints={f32[4,40,40]{1,2,0}}
}

%usual (a.2: (f32[4,48,48])) -> (f32[4,48,48]) {
  ROOT %a.2 = (f32[4,48,48]{2,1,0}) parameter(0)
}

%less (p: f32[], q: f32[]) -> pred[] {
  ROOT %compare = pred[] compare(%p, %q), direction=LT
}

%body (s: (f32[4,48,40])) -> (f32[4,48,40]) {
  %qr.1 = (f32[4,256,12]{1,2,0}, f32[4,12]{1,0}) custom-call(%s), custom_call_target="cusolver_geqrf_ffi", \
operand_layout_constraints={f32[4,256,12]{1,2,0}}, metadata={op_name="jit(f)/while/body/jit(qr)/geqrf"}
  %q.1 = f32[512,40,12]{1,2,0} custom-call(%qr.1, %qr.1), custom_call_target="cusolver_orgqr_ffi", \
operand_layout_constraints={f32[512,40,12]{1,2,0}, f32[512,12]{1,0}}
  ROOT %sort.1 = (f32[48,4,33]{2,1,0}, s32[48,4,33]{2,1,0}) sort(%qr.1, %qr.1), dimensions={0}, to_apply=%less
}

%condition (s.1: (f32[4,48,40])) -> pred[] {
  ROOT %true = pred[] constant(true)
}

ENTRY %main.9 (a.5: f32[4,48,40]) -> f32[4,48,40] {
  %a.5 = f32[4,48,40]{2,1,0} parameter(0)
  %while.1 = (f32[4,48,40]{2,1,0}) while(%a.5), condition=%condition, body=%body
  %cholesky.0 = (f32[4,48,48]{1,2,0}, s32[4]{0}) custom-call(%while.1), custom_call_target="cusolver_potrf_ffi", \
operand_layout_constraints={f32[4,48,48]{1,2,0}}
  %cond.1 = (f32[4,48,48]{1,2,0}) conditional(%ok, %tuple.4, %tuple.4), true_computation=%usual, \
false_computation=%fallback
  %solve = (f32[4,48,48]{1,2,0}, s8[64]{0}) custom-call(%cond.1, %cholesky.0), \
custom_call_target="__cublas$triangularSolve"
  %gemm = (f32[4,300,300]{2,1,0}, s8[4194304]{0}) custom-call(%solve, %solve), custom_call_target="__cublas$gemm"
  ROOT %triton.1 = f32[4,64,16]{2,1,0} custom-call(%gemm), custom_call_target="__gpu$xla.gpu.triton", \
operand_layout_constraints={f32[4,256,16]{2,1,0}}
}
"""

TPU = """\
HloModule jit_f, is_scheduled=true, num_partitions=4

%region_1.4 (a.6: (f32[4,48,48])) -> (f32[4,48,48]) {
  %eigh.1 = (f32[4,24]{1,0:T(4,128)S(1)}, f32[4,24]{1,0:T(4,128)S(1)}, f32[4,24,24]{2,1,0:T(8,128)S(1)}, \
/*index=3*/f32[4,24,24]{2,1,0:T(8,128)}) custom-call(%x, %x, %x, %x), custom_call_target="EighTpu", \
operand_layout_constraints={f32[4,24,24]{2,1,0}, f32[4,24,24]{2,1,0}, f32[4,24,24]{2,1,0}, f32[4,24,24]{2,1,0}}, \
metadata={op_name="jit(f)/cond/branch_0_fun/jit(eigh)/eigh"}, backend_config={"aliasing_operands":{"lists":[]}}
  ROOT %sort.2 = f32[4,48,48]{1,2,0:T(8,128)S(1)} sort(%eigh.1), dimensions={2}, to_apply=%less.2
}

%less.2 (p.0: f32[], p.1: f32[]) -> pred[] {
  ROOT %compare.1 = pred[]{:T(512)} compare(%p.0, %p.1), direction=LT
}

%region_2.5 (a.7: (f32[4,48,48])) -> (f32[4,48,48]) {
  ROOT %qr.2 = (f32[4,8,4]{0,1,2:T(8,128)S(1)}, f32[4,4]{0,1:T(4,128)S(1)}) custom-call(%a.7), \
custom_call_target="QrDecompositionBlock", operand_layout_constraints={f32[4,8,4]{0,1,2}}
}

%shared (a.8: f32[4,48,48]) -> f32[4,48,48] {
  ROOT %small = f32[4,30]{1,0:T(8,128)} sort(%a.8), dimensions={1}, to_apply=%less.2
}

ENTRY %main.9 (a.5: f32[4,48,48]) -> (f32[4,48,48], f32[4,3], s32[4,3]) {
  %custom-call.7 = f32[4,48,48]{2,1,0:T(8,128)S(1)} custom-call(%a.5), custom_call_target="Cholesky", \
operand_layout_constraints={f32[4,48,48]{2,1,0}}
  %custom-call.8 = f32[4,1,48,48]{2,3,1,0:T(8,128)S(1)} custom-call(%custom-call.7), \
custom_call_target="InvertDiagBlocksLowerTriangular", operand_layout_constraints={f32[4,1,48,48]{3,2,1,0}}
  %concat = f32[4,300,300]{2,1,0:T(8,128)} custom-call(%custom-call.8), custom_call_target="ConcatBitcast"
  %call.1 = f32[4,48,48]{2,1,0} call(%concat), to_apply=%shared
  %start = (f32[4,48,48]{2,1,0}, f32[4,48,48]{2,1,0}) all-reduce-start(%call.1), to_apply=%less.2
  %done = f32[4,48,48]{2,1,0} all-reduce-done(%start)
  %kernel = f32[64,16]{1,0:T(8,128)} custom-call(%done), custom_call_target="tpu_custom_call", \
operand_layout_constraints={f32[256,64]{1,0}}, backend_config={"custom_call_config": {"body": "TUzv"}}
  ROOT %cond.1 = (f32[4,48,48]{1,2,0:T(8,128)S(1)}) conditional(%which, %tuple.21, %tuple.22, %tuple.22), \
branch_computations={%region_1.4, %region_2.5, %shared}, metadata={op_name="jit(f)/cond" stack_frame_id=3}
}
"""


def test_library_calls_of_a_gpu():
    """In the branches of a conditional, and what those call, apart from what is always run, loops among it."""
    assert topology.calls_of(CUDA) == [
        ("Cholesky", "cusolver_potrf_ffi", 48, True, 1),
        ("Pallas", "__gpu$xla.gpu.triton", 256, True, 1),
        ("QR", "cusolver_geqrf_ffi", 256, True, 1),
        ("QR", "cusolver_orgqr_ffi", 40, True, 1),
        ("SVD", "cusolver_gesvdj_ffi", 40, False, 1),
        ("eigen", "cusolver_syevd_ffi", 48, False, 1),
        ("sort", "sort", 48, True, 1),
        ("triangular", "__cublas$triangularSolve", 48, True, 1),
    ]


def test_library_calls_of_a_tpu():
    """The eigensolver takes blocks of half the side; a computation that is called elsewhere too is always run."""
    assert topology.calls_of(TPU) == [
        ("Cholesky", "Cholesky", 48, True, 1),
        ("Pallas", "tpu_custom_call", 256, True, 1),
        ("QR", "QrDecompositionBlock", 8, False, 1),
        ("eigen", "EighTpu", 48, False, 1),
        ("sort", "sort", 30, True, 1),
        ("sort", "sort", 48, False, 1),
        ("triangular", "InvertDiagBlocksLowerTriangular", 48, True, 1),
    ]


def test_counts():
    facts = topology.facts_of(CUDA)
    assert (facts["whiles"], facts["conditionals"], facts["sorts"], facts["collectives"]) == (1, 1, 1, {})
    facts = topology.facts_of(TPU)
    assert (facts["whiles"], facts["conditionals"], facts["sorts"]) == (0, 1, 2)
    assert facts["collectives"] == {"all-reduce-start": 1}


@pytest.mark.parametrize("op", ["all-gather", "all-to-all", "reduce-scatter", "collective-permute-start", "send"])
def test_collectives(op):
    text = f"ENTRY %main (a: f32[4]) -> f32[4] {{\n  ROOT %b = f32[4]{{0}} {op}(%a)\n}}\n"
    assert topology.facts_of(text)["collectives"] == {op: 1}


def test_the_bound_is_of_what_takes_longer():
    """197 TFLOP/s of bfloat16, six to a float32 product, and 819 GB/s; a GPU's 67 TFLOP/s are float32's."""
    of = {"operations_a_training": 197e12, "bytes_a_training": 819e9 * 2}
    assert topology.bound("v5e", of) == pytest.approx(6)
    assert topology.bound("v5e", {**of, "bytes_a_training": 819e9 * 7}) == pytest.approx(7)
    assert topology.bound("h100", {"operations_a_training": 67e12, "bytes_a_training": 1e15}) == pytest.approx(1)
    assert topology.bound("h100", {"operations_a_training": None, "bytes_a_training": 1e15}) == 0


MOVING = """\
%slice_of (p: f32[8,100], i: s32[]) -> f32[1,100] {
  %p = f32[8,100]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %ds = f32[1,100]{1,0} dynamic-slice(%p, %i, %i), dynamic_slice_sizes={1,100}
}

%set_in (p.1: f32[8,100], u: f32[1,100], i.1: s32[]) -> f32[8,100] {
  %p.1 = f32[8,100]{1,0} parameter(0)
  %u = f32[1,100]{1,0} parameter(1)
  %i.1 = s32[] parameter(2)
  ROOT %dus = f32[8,100]{1,0} dynamic-update-slice(%p.1, %u, %i.1, %i.1)
}

%cond (c: (s32[], f32[8,100])) -> pred[] {
  %c = (s32[], f32[8,100]{1,0}) parameter(0)
  %n = s32[]{:T(128)} constant(8)
  %at.1 = s32[]{:T(128)S(1)} get-tuple-element(%c), index=0
  ROOT %lt = pred[]{:T(128)S(1)} compare(%at.1, %n), direction=LT
}

%body (b: (s32[], f32[8,100])) -> (s32[], f32[8,100]) {
  %b = (s32[], f32[8,100]{1,0}) parameter(0)
  %at = s32[]{:T(128)S(1)} get-tuple-element(%b), index=0
  %all = f32[8,100]{1,0} get-tuple-element(%b), index=1
  %row = f32[1,100]{1,0} fusion(%all, %at), kind=kLoop, calls=%slice_of
  %near = f32[1,100]{1,0:T(8,128)S(1)} negate(%row)
  %set = f32[8,100]{1,0} fusion(%all, %near, %at), kind=kLoop, calls=%set_in
  ROOT %out = (s32[], f32[8,100]{1,0}) tuple(%at, %set)
}

ENTRY %main (x: f32[8,100], k: s32[]) -> f32[8,100] {
  %x = f32[8,100]{1,0} parameter(0)
  %k = s32[]{:T(128)S(1)} parameter(1)
  %double = bf16[8,100]{1,0} convert(%x)
  %start = (s32[], f32[8,100]{1,0}) tuple(%k, %x)
  %loop = (s32[], f32[8,100]{1,0}) while(%start), condition=%cond, body=%body
  ROOT %found = f32[8,100]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_bytes_moved():
    """Slices and not the arrays they are of, nothing that is on the chip, a loop's as often as it turns."""
    convert, row = 800 * (4 + 2), 100 * 4
    # A row is read, written, read, and written where it is set.
    assert topology.bytes_moved(MOVING) == convert + 8 * (2 * row + row + row)
    assert topology.bytes_moved(MOVING.replace("constant(8)", "parameter(1)")) == convert + 4 * row
    known = MOVING.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}')
    assert topology.bytes_moved(known) == convert + 3 * 4 * row


def test_reports_replace_those_of_the_same_compile(tmp_path):
    path = tmp_path / "results" / "topology.json"
    first, second = ({"program": "joint", "lanes": 64, "target": "v5e", "whiles": n} for n in (1, 2))
    other = {"program": "one_step", "lanes": 64, "target": "h100"}
    topology.kept(path, [first])
    topology.kept(path, [other, second])
    assert json.loads(path.read_text()) == [other, second]


def test_without_a_compiler_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(topology, "MODULES", {"tpu": "no_such_module", "cuda13": "no_such_package.module"})
    assert list(topology.reports([("one_step", 64, "v5e"), ("one_step", 64, "v6e"), ("one_step", 64, "h100")])) == []
    assert capsys.readouterr().err.splitlines() == [
        "no compiler for tpu: pip install 'mtfl_jax[tpu]'",
        "no compiler for cuda13: pip install 'mtfl_jax[cuda13]'",
    ]
    monkeypatch.setattr(sys, "argv", ["topology", "--quick"])
    with pytest.raises(SystemExit, match="nothing could be compiled"):
        topology.main()


def test_unknown_names():
    command = [sys.executable, "-m", "benchmarks.topology", "--target", "v9"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("error: v9: allowed: v5e, v6e, v5p, h100, h200, v5e-16, h100-8")


# What the compilers make of the programs

SIDE = 32
"""The largest side of what a library, or a loop in its stead, may take apart in every training."""
FORBIDDEN = {"tpu": ("SVD", "QR", "eigen", "sort"), "cuda13": ("SVD", "QR", "sort")}
"""One after the other in a batch (a GPU's) or loops that take long to compile (a TPU's); not so Cholesky factors, nor
eigenproblems on a GPU, of which cuSOLVER solved 2048 of side 64 in 5 ms on an H200.
"""
TEMPORARY = {
    "one_step": 5.5,
    "one_step recovery": 1.9,
    "moments recovery": 48,
    "alternating pallas": 1.25,
    "random_features": 6,
    "kernels": 0.2,
    "alternating large": 5600,
}
"""MiB of temporaries a training at most: a quarter more than was found, on the target that takes more."""


def faults(of):
    """What is wrong with a compiled program, a line each."""
    # Devices that share a training add up what sums over neurons.
    allowed = ("all-reduce", "all-reduce-start", "all-reduce-done") if topology.WORK[of["program"]].together else ()
    lines = [f"{op}: {count}" for op, count in of["collectives"].items() if op not in allowed]
    for call in of["calls"]:
        forbidden = FORBIDDEN[topology.CHIPS[of["target"]].kind]
        if call["always"] and call["kind"] in forbidden and call["side"] > SIDE:
            lines.append(f"{call['count']} × {call['name']} of side {call['side']} in every training")
    if of["temporary_mib_a_training"] > TEMPORARY[of["program"]]:
        lines.append(f"{of['temporary_mib_a_training']:.1f} MiB of temporaries a training")
    # alternating has a head step and a representation step, and measures nothing of the outputs here.
    kernels = {"kernels": 3, "alternating pallas": 2}.get(of["program"], 0)
    if sum(call["count"] for call in of["calls"] if call["kind"] == "Pallas" and call["always"]) < kernels:
        lines.append(f"fewer than {kernels} Pallas kernels")
    return lines


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "lanes", "target"),
    [
        pytest.param(*job, id=f"{job[0]}-{job[2]}")
        for job in topology.jobs([*topology.QUICK], [*topology.WORK], None, True)
    ],
)
def test_hot_programs(program, lanes, target):
    if line := topology.missing(topology.CHIPS[target].kind):
        assert os.environ.get("MTFL_REQUIRE_TOPOLOGY") != "1", line
        pytest.skip(line)
    of = topology.report(program, lanes, target)
    assert "error" not in of, of["error"]
    lines = faults(of)
    assert not lines, "\n".join(lines)
