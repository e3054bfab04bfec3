"""Write what benchmarks/results/ says: `python scripts/benchmark_table.py [--check]`.

All tables go into benchmarks/README.md, the ratios to others into README.md; what stands between the markers there is
replaced. With --check nothing is written, and the exit status is 1 where it would be.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TOPOLOGY = RESULTS / "topology.json"
PODS = (1, 4, 16, 64, 256)
"""Chips of a pod, for the prediction."""
POD_TRAININGS, POD_CALL = 10**6, 1024
START, END = "<!-- benchmarks: python scripts/benchmark_table.py -->", "<!-- benchmarks end -->"

Row = Sequence[str]


def table(columns: Row, rows: Sequence[Row]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(of: dict[str, Any]) -> str:
    """A rate with the least and the greatest of its repeats."""
    return f"{of['rate']:.3g} ({of['least']:.3g}–{of['greatest']:.3g})"


def size(number: float) -> str:
    """A number of seconds to three digits."""
    return f"{number:.3g}" if number < 100 else f"{number:,.0f}"


def rows_of(found: dict[str, Any]) -> Iterator[Row]:
    """The rows of what was measured: work, ours, best other, ratio, aim, peak memory of our process."""

    def memory(of: dict[str, Any]) -> str:
        return f"{of['peak_mib'] / 1024:.2g} GiB"

    if of := found.get("alternating"):
        aside = ("jit", "jit_vmap", "bfloat16")
        torch = {name: peer for name, peer in of["peers"].items() if name not in aside}
        best = max(torch, key=lambda name: torch[name]["rate"])
        for data, aim in (("gaussian", "1.9 and 75%"), ("rademacher", "1.9 and 75%")):
            own = of[data]
            yield (
                f"`alternating`, 200 rounds, {own['runs']:,} trainings, {data}",
                f"{spread(own)} a second, {own['share_of_peak']:.0%} of sgemm peak; cold {size(own['cold_seconds'])} s",
                f"PyTorch ({best}) {spread(torch[best])}",
                f"{of['ratio_to_best_torch'][data]:.2f}",
                aim,
                memory(own),
            )
        for name in ("jit", "jit_vmap"):
            peer = of["peers"][name]
            called = "one jit a run" if name == "jit" else "jit and vmap over seeds"
            ratio = of["gaussian"]["rate"] / peer["rate"]
            yield "the same, gaussian", "", f"plain JAX ({called}) {spread(peer)}", f"{ratio:.2f}", "", ""
    if of := found.get("one_step"):
        torch = {name: peer for name, peer in of["peers"].items() if name != "moments"}
        best = min(torch, key=lambda name: torch[name]["grid_seconds"])
        for data, aim in (("gaussian", "20"), ("rademacher", "30")):
            own = of[data]
            yield (
                f"`one_step`, {own['cells']:,} cells, recovery only, {data}, cold",
                f"{size(own['wall_seconds'])} s, of which compiles {size(own['compile_seconds'])} s (beside the runs)",
                f"PyTorch ({best}) {size(torch[best]['grid_seconds'])} s",
                f"{of['ratio_to_best_torch'][data]:.1f}",
                aim,
                memory(own),
            )
        seconds = of["peers"]["moments"]["grid_seconds"]
        ratio = f"{of['ratio_to_torch_by_moments']:.2f}"
        yield "the same, gaussian", "", f"PyTorch, given the moment algorithm, {size(seconds)} s", ratio, "3.5", ""
    if of := found.get("measuring"):
        text = f"{of['measuring_share']:.0%} of a row's {1e3 * of['row_seconds']:.3g} ms a core"
        yield "all measurements and a probe at five n_down, `one_step`", text, "", "", "42%", memory(of)
    if of := found.get("recovery"):
        text = "; ".join(f"{of[tasks]['alone']:.2g} and {of[tasks]['batched']:.2g} ms" for tasks in ("1", "256"))
        yield "recovery of a row, 512 × 256, one core, alone and batched: T = 1; 256", text, "", "", "3; 0.8; 3 ms", ""
    if of := found.get("host"):
        for name, words, aim in (("small", "small cells", "2 µs"), ("large", "larger ones", "idle 10%")):
            own = of[name]
            text = f"{own['microseconds_a_row']:.2g} µs a row, {own['idle']:.0%} of the time"
            text = text if own["idle"] > 0 else "nothing that could be measured"
            yield (
                f"not hidden of the host's work, {own['cells']:,} {words}, calls of {own['call_milliseconds']:.2g} ms",
                *(text, "", "", aim, memory(of)),
            )
    if of := found.get("cold"):
        text = f"{size(sum(of['quickstart']['compile_seconds']))} s"
        yield "compiles of quickstart, cold", text, "", "", "6 s", ""
        text = "; ".join(f"{size(of[name]['wall_seconds'])} s" for name in ("four", "one"))
        yield "a small sweep of one program, cold: four processes at once; one", text, "", "", "", ""
    if of := found.get("hydra"):
        ours, other = of["seconds"]["fused"], of["seconds"]["basic"]
        text = f"stock sweeper {size(other)} s"
        yield f"a {of['cells']}-cell grid, cold", f"{size(ours)} s", text, f"{of['ratio']:.1f}", "20", ""
    if of := found.get("grid"):
        text = f"{size(of['wall_seconds'])} s, compiles {size(of['compile_seconds'])} s, "
        text += f"{of['cells_per_second']:.0f} cells a second, {of['share_of_peak']:.0%} of sgemm peak"
        yield (
            f"the README's {of['cells']}-cell grid on Gaussian inputs, everything measured, cold",
            text,
            "",
            "",
            "",
            memory(of),
        )
    if of := found.get("scaling"):
        cells = ", ".join(f"{each:.0f}" for each in of["microseconds_per_cell"].values())
        yield "µs a cell of a small cell, 10³, 10⁴, 10⁵ cells", cells, "", "", "flat", memory(of)
        exponents = ", ".join(f"{name} {value:.2f}" for name, value in of["exponents"].items())
        yield "exponents of a training's time", exponents, "", "", "1", ""
    if of := found.get("bookkeeping"):
        plans = [of["plan"][name] for name in ("100k", "1m")]
        text = "; ".join(f"{size(each['seconds'])} s" for each in plans)
        yield "plan 100,000 cells; 1,000,000", text, "", "", "5 s; 60 s", memory(plans[1])
        text = f"{size(of['store']['write_seconds'])} s; {size(of['store']['load_seconds'])} s"
        yield "write 1,000,000 rows; load them", text, "", "", "20 s", memory(of["store"])
        if "gather_seconds" in of["store"]:
            text = f"{size(of['store']['gather_seconds'])} s"
            yield "gather them, of 1000 parts, and make the page", text, "", "", "10 s", ""
    if of := found.get("shares"):
        aims = {"basic": "0.8 s", "joblib": "0.8 s", "slurm": "2 s", "ray": "0.1 s"}
        for name, each in of["seconds_a_share"].items():
            text = f"{size(each['finished'])} s; {size(each['small'])} s"
            yield f"a share by {name} beside its cells: all there; a small one", text, "", "", aims.get(name, ""), ""
        text = "; ".join(f"{size(of['first_row_seconds'][name])} s" for name in ("cold", "warm"))
        yield "from the command to a first row, cold; warm", text, "", "", "", ""
    if of := found.get("cores"):
        text = f"{of['speed_up']:.2f} times as fast"
        yield "`alternating` on two cores against one", text, f"matrix products {of['of_sgemm']:.2f} times", "", "", ""
    if of := found.get("normals"):
        worst = np.abs(of["moments_in_standard_errors"]).max()
        text = f"{of['nanoseconds']['ours']:.1f} ns each; first six moments within {worst:.1f} standard errors,"
        text += f" Kolmogorov–Smirnov p = {of['kolmogorov_smirnov_p']:.2f}"
        stock = of["nanoseconds"]["jax.random.normal"]
        ratio = f"{stock / of['nanoseconds']['ours']:.1f}"
        yield f"{of['draws']:.1e} normals", text, f"`jax.random.normal` {stock:.1f} ns", ratio, "", memory(of)


def precisions(of: dict[str, Any]) -> str:
    """What reduced precision does to every measurement."""
    rows = []
    for algorithm in ("one_step", "alternating"):
        exact = of[algorithm]["float32"]
        for name, mean in exact["mean"].items():
            cells = [f"`{algorithm}` {name}", f"{mean:.4g}"]
            for precision in ("tensorfloat32", "bfloat16"):
                found = of[algorithm][precision]
                cells.append(f"{found['difference'][name]:+.1e} ± {found['standard_error'][name]:.0e}")
            rows.append(cells)
        rates = [f"{of[algorithm][name]['rate']:.3g}" for name in ("float32", "tensorfloat32", "bfloat16")]
        rows.append([f"`{algorithm}` trainings a second", *rates])
    return table([f"mean of {of['runs']} seeds", "float32", "tensorfloat32 less it", "bfloat16 less it"], rows)


def results() -> Iterator[tuple[str, dict[str, Any]]]:
    """The files of what was measured, by name."""
    for path in sorted(RESULTS.glob("*.json")):
        if path != TOPOLOGY:
            yield path.name, json.loads(path.read_text())


def machine_of(found: dict[str, Any]) -> str:
    """What was measured on."""
    machine = next(iter(found.values()))["machine"]
    return f"{len(machine['devices'])} × {machine['devices'][0]}, JAX {machine['versions']['jax']}, float32"


def text() -> str:
    """All tables, a section a device."""
    parts = []
    for name, found in results():
        machine = next(iter(found.values()))["machine"]
        parts.append(
            f"`{name}`: {machine_of(found)}; when the run began, matrix products"
            f" {machine['sgemm_peak'] / 1e9:,.0f} GFLOP/s and copies {machine['copy_bandwidth'] / 1e9:.3g} GB/s."
            " Rates are medians (least–greatest)."
        )
        parts.append(table(["work", "ours", "best other", "ratio", "aim", "peak memory"], list(rows_of(found))))
        if "precision" in found:
            parts.append("<details><summary>What the precision of a training does to every measurement</summary>")
            parts.append(precisions(found["precision"]))
            parts.append("The same seeds in every column; ± is one standard error.\n\n</details>")
    if TOPOLOGY.exists():
        parts += ["Compiled by `python -m benchmarks.topology` for chips that were not there:"]
        parts += [
            table(
                ["work", "lanes", "chip", "compile", "held", "moved", "always", "in branches", "bound"],
                list(compiles()),
            )
        ]
        parts.append(
            "Lanes are the trainings of a call on a device, and how many of them are a batch; held are temporaries a"
            " training of a batch, moved the bytes a training that HLO reads from and writes to main memory (a GPU's"
            " cache may spare some, a TPU's memory on the chip is left out). A bound is the time of a training by"
            " arithmetic, or on a TPU by bytes, at the chip's published rates, and no measurement. Library calls are"
            " those of every call and those that stand in the branches of a `conditional`, each with the largest side"
            " of its matrices. Chips with a number share every training: they add up what sums over neurons."
        )
        parts.append("A *prediction* from these bounds, which nobody has measured, of trainings a second on a pod:")
        parts.append(table(["work", "chip", *(f"{count}" for count in PODS)], list(predicted())))
        parts.append(
            f"Of a sweep of {POD_TRAININGS:,} trainings, in whole calls of {POD_CALL:,} a chip: chips share nothing, so"
            " they are as many times as fast but for the last call. Compiling, and what a host does, are left out."
        )
    return "\n\n".join(parts)


def compiles() -> Iterator[Row]:
    """The rows of what was compiled without a device."""
    for of in json.loads(TOPOLOGY.read_text()):
        lanes = f"{of['lanes']:,}"
        if of.get("batch", of["lanes"]) != of["lanes"]:
            lanes += f" by {of['batch']}"
        head = f"`{of['program']}`", lanes, of["target"]
        if "error" in of:
            why = "does not fit" if "RESOURCE_EXHAUSTED" in of["error"] else "does not compile"
            yield *head, why, "", "", "", "", ""
            continue
        sides: dict[bool, dict[str, int]] = {True: {}, False: {}}
        for call in (call for call in of["calls"] if call["kind"] != "Pallas"):
            own = sides[call["always"]]
            own[call["kind"]] = max(call["side"], own.get(call["kind"], 0))
        always, rare = (", ".join(f"{kind} {side}" for kind, side in own.items()) for own in sides.values())
        seconds, least = of["lower_seconds"] + of["compile_seconds"], of["bound_seconds"]
        bound = f"{1e6 * least:,.0f} µs" if least else ""
        mib, mb = of["temporary_mib_a_training"], of["bytes_a_training"] / 1e6
        held, moved = (f"{size:,.0f}" if size >= 100 else f"{size:.3g}" for size in (mib, mb))
        yield *head, f"{seconds:.0f} s", f"{held} MiB", f"{moved} MB", always, rare, bound


def predicted() -> Iterator[Row]:
    """Rows of trainings a second by the bounds alone, for more and more chips."""
    for of in json.loads(TOPOLOGY.read_text()):
        if of.get("bound_seconds") and of["lanes"] == POD_CALL:
            calls = (-(-POD_TRAININGS // (n * POD_CALL)) for n in PODS)
            rates = (POD_TRAININGS / (count * POD_CALL * of["bound_seconds"]) for count in calls)
            yield f"`{of['program']}`", of["target"], *(f"{float(f'{rate:.2g}'):,.0f}" for rate in rates)


def ratios_of(found: dict[str, Any]) -> Iterator[Row]:
    """The ratios to others of one device: work, how many times faster."""
    inputs = ("gaussian", "rademacher")
    if of := found.get("alternating"):
        ratios = " and ".join(f"{of['ratio_to_best_torch'][data]:.2f}" for data in inputs)
        shares = " and ".join(f"{of[data]['share_of_peak']:.0%}" for data in inputs)
        yield (
            "`alternating`, 200 rounds, Gaussian and Rademacher inputs",
            f"{ratios} times the best PyTorch, at {shares} of the machine's matrix-product peak",
        )
    if of := found.get("one_step"):
        ratios = " and ".join(f"{of['ratio_to_best_torch'][data]:.1f}" for data in inputs)
        yield (
            f"`one_step`, {of['gaussian']['cells']:,} cells, recovery only, cold",
            f"{ratios} times the best PyTorch; {of['ratio_to_torch_by_moments']:.1f} times PyTorch given our algorithm",
        )
    if of := found.get("hydra"):
        yield f"a {of['cells']}-cell grid, cold", f"{of['ratio']:.1f} times Hydra's stock sweeper"
    if of := found.get("normals"):
        ratio = of["nanoseconds"]["jax.random.normal"] / of["nanoseconds"]["ours"]
        yield f"{of['draws']:.1e} normal draws", f"{ratio:.1f} times `jax.random.normal`"


def claims() -> str:
    """The ratios, a section a device."""
    parts = []
    for _, found in results():
        parts += [f"{machine_of(found)}:", table(["work", "speed"], list(ratios_of(found)))]
    return "\n\n".join(parts)


FILES = {ROOT / "README.md": claims, ROOT / "benchmarks" / "README.md": text}
"""Files with markers, and what goes between them."""


def main() -> None:
    """Replace what stands between the markers, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file is not up to date")
    given = parser.parse_args()
    for path, made in FILES.items():
        before = path.read_text(encoding="utf-8")
        head, _, rest = before.partition(START)
        _, end, tail = rest.partition(END)
        if not end:
            sys.exit(f"{path}: the markers are missing; allowed: {START} … {END}")
        after = f"{head}{START}\n\n{made()}\n\n{END}{tail}"
        if not given.check:
            path.write_text(after, encoding="utf-8")
        elif after != before:
            sys.exit(f"{path}: not up to date; run scripts/benchmark_table.py")


if __name__ == "__main__":
    main()
