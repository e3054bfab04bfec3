"""The same work by other means: PyTorch and plain JAX, written as their users write it.

`python benchmarks/peers.py WORK VARIANT COUNT` does COUNT runs or cells of WORK and prints one line of JSON with the
seconds of three repeats after a warm-up. PyTorch's gradients are written out by hand, in place and without autograd,
which is the fastest it does this. All draw fresh Gaussian inputs with their own generator and end with the subspace
distance.
"""

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Callable

import numpy as np

ALTERNATING = {"steps": 200, "n": 512, "d": 64, "r": 4, "width": 256, "num_tasks": 32, "lr_a": 0.01, "lr_w": 10.0}
D, R, WIDTH, TASKS = (32, 64, 128, 256), (2, 3, 4), (64, 128, 256, 512), (1, 4, 16, 64, 256)
N = 8192


def cells(count: int) -> list[tuple[int, int, int, int]]:
    """A random sample of the (d, r, width, num_tasks) of the one_step grid."""
    every = list(itertools.product(D, R, WIDTH, TASKS))
    return [every[i] for i in np.random.default_rng(0).choice(len(every), count)]


# PyTorch


def on_gpu() -> bool:
    """Whether PyTorch runs on a GPU here."""
    import torch

    return torch.cuda.is_available()


BATCH = {"cpu": 8, "cuda": 512}
"""Trainings of `alternating` at once where they are batched, the fastest found on a CPU; on a GPU what fills it."""


def tables(num_tasks: int, r: int, batch: tuple[int, ...] = ()):
    """Balanced truth tables (…, T, 2^r)."""
    import torch

    rank = torch.rand(*batch, num_tasks, 2**r).argsort(-1).argsort(-1)
    return (rank < 2 ** (r - 1)).float() * 2 - 1


def labels(x, table):
    """y (…, n, T) of inputs (…, n, d)."""
    import torch

    r = int(np.log2(table.shape[-1]))
    index = ((x[..., :r] >= 0) * 2 ** torch.arange(r, device=x.device)).sum(-1)
    at = index.unsqueeze(-2).expand(*table.shape[:-1], x.shape[-2])
    return table.gather(-1, at).transpose(-1, -2)


def distance(W, r: int):
    """Subspace distance of W (…, width, d)."""
    import torch

    V = torch.linalg.svd(W, full_matrices=False)[2][..., :r, :]
    return torch.linalg.svdvals(V[..., r:])[..., 0] if V.shape[-1] > r else torch.zeros(W.shape[:-2])


def round_of(W, b, A, table) -> None:
    """A round of `alternating` on the networks W (runs, width, d), b (runs, 1, width), A (runs, T, width), in place."""
    import torch

    c = ALTERNATING
    n, T = c["n"], A.shape[1]
    x = torch.randn(len(W), n, W.shape[-1], device=W.device)
    y = labels(x, table)
    h = torch.baddbmm(b, x, W.mT).relu_()
    g = torch.sigmoid(-y * torch.bmm(h, A.mT)).mul_(y).div_(-n)
    A.baddbmm_(g.mT, h, alpha=-c["lr_a"])
    g = torch.sigmoid(-y * torch.bmm(h, A.mT)).mul_(y).div_(-n * T)
    W.baddbmm_(torch.bmm(g, A).mul_(h > 0).mT, x, alpha=-c["lr_w"])


def bfloat16_round(W, b, A, table) -> None:
    """`round_of` with products of bfloat16 numbers; weights and what is added to them stay float32."""
    import torch

    c, half = ALTERNATING, torch.bfloat16
    n, T = c["n"], A.shape[1]
    x = torch.randn(len(W), n, W.shape[-1], device=W.device)
    y = labels(x, table)
    x = x.to(half)
    h = torch.baddbmm(b.to(half), x, W.to(half).mT).relu_()
    g = torch.sigmoid(-y * torch.bmm(h, A.to(half).mT).float()).mul_(y).div_(-n)
    A.add_(torch.bmm(g.to(half).mT, h).float(), alpha=-c["lr_a"])
    g = torch.sigmoid(-y * torch.bmm(h, A.to(half).mT).float()).mul_(y).div_(-n * T)
    W.add_(torch.bmm(torch.bmm(g.to(half), A.to(half)).mul_(h > 0).mT, x).float(), alpha=-c["lr_w"])


@functools.cache
def compiled_round(mode: str):
    """`round_of` by torch.compile; the mode "reduce-overhead" is CUDA graphs."""
    import torch

    return torch.compile(round_of, mode=mode)


def alternating(runs: int, do: Callable[..., None] = round_of) -> None:
    """Trainings of `alternating` at once, by bmm."""
    import torch

    c = ALTERNATING
    d, r, width, T = (c[name] for name in ("d", "r", "width", "num_tasks"))
    W = torch.randn(runs, width, d) / d**0.5
    b = torch.rand(runs, 1, width) * 2 - 1
    A = torch.zeros(runs, T, width)
    table = tables(T, r, (runs,))
    for _ in range(int(c["steps"])):
        do(W, b, A, table)
    distance(W, r)


def one_step(d: int, r: int, width: int, T: int, batch: int = 1) -> None:
    """Cells of one_step that differ in their seed, at once."""
    import torch

    W = torch.randn(batch, width, d) / d**0.5
    table = tables(T, r, (batch,))
    x = torch.randn(batch, N, d)
    A = labels(x, table).mT @ (x @ W.mT).relu_() / N
    x = torch.randn(batch, N, d)
    active = (x @ W.mT) > 0
    distance(((labels(x, table) @ A) * active).mT @ x, r)


def one_step_by_moments(d: int, count: int) -> None:
    """The first `count` cells of a seed and d: all r, widths and tasks from one pass, sorted by orthant."""
    import torch

    r, width = max(R), max(WIDTH)
    W = torch.randn(width, d) / d**0.5

    def sorted_inputs():
        x = torch.randn(N, d)
        index = ((x[:, :r] >= 0) * 2 ** torch.arange(r)).sum(-1)
        order = index.argsort()
        return x[order].split(torch.bincount(index, minlength=2**r).tolist())

    h = torch.stack([(x @ W.T).relu_().sum(0) for x in sorted_inputs()]) / N
    S = torch.stack([((x @ W.T) > 0).float().T @ x for x in sorted_inputs()]) / N
    for own, T, w in list(itertools.product(R, TASKS, WIDTH))[:count]:
        F = tables(T, own)[:, torch.arange(2**r) % 2**own]
        B = F.T @ (F @ h[:, :w])
        distance(torch.einsum("zj,zjd->jd", B, S[:, :w]), own)


def moments_of_seeds(count: int) -> None:
    """count cells: whole (seed, d) in turn."""
    of_one = len(R) * len(TASKS) * len(WIDTH)
    for i in range(-(-count // of_one)):
        one_step_by_moments(D[i % len(D)], of_one)


def each_cell(batch: int, chosen: list[tuple[int, int, int, int]]) -> None:
    """Each of the chosen cells, `batch` seeds at once."""
    for cell in chosen:
        one_step(*cell, batch=batch)


# Plain JAX


def jax_alternating(batched: bool, runs: int) -> None:
    """One jit a run, or one jit of vmap over the runs."""
    if batched:
        _jax_batch()(np.arange(runs)).block_until_ready()
    else:
        for seed in range(runs):
            _jax_run()(seed).block_until_ready()


@functools.cache
def _jax_batch():
    import jax

    return jax.jit(jax.vmap(_jax_run()))


@functools.cache
def _jax_run():
    import jax
    import jax.numpy as jnp

    c = ALTERNATING
    n, d, r, width, T = (c[name] for name in ("n", "d", "r", "width", "num_tasks"))

    @jax.jit
    def run(seed):
        key, k1, k2, k3 = jax.random.split(jax.random.key(seed), 4)
        W = jax.random.normal(k1, (width, d)) / d**0.5
        b = jax.random.uniform(k2, (width,), minval=-1)
        rank = jax.random.uniform(k3, (T, 2**r)).argsort(-1).argsort(-1)
        table = jnp.where(rank < 2 ** (r - 1), 1.0, -1.0)

        def objective(A, W, x, y):
            return jax.nn.softplus(-y * (jax.nn.relu(x @ W.T + b) @ A.T)).mean(0)

        def step(carry, key):
            W, A = carry
            x = jax.random.normal(key, (n, d))
            y = table[:, ((x[:, :r] >= 0) * 2 ** jnp.arange(r)).sum(-1)].T
            A = A - c["lr_a"] * jax.grad(lambda A: objective(A, W, x, y).sum())(A)
            W = W - c["lr_w"] * jax.grad(lambda W: objective(A, W, x, y).mean())(W)
            return (W, A), None

        (W, _), _ = jax.lax.scan(step, (W, jnp.zeros((T, width))), jax.random.split(key, c["steps"]))
        V = jnp.linalg.svd(W, full_matrices=False)[2][:r]
        return jnp.linalg.norm(V[:, r:], ord=2)

    return run


# Timing


def of_work(work: str, variant: str) -> tuple[Callable[[int], object], int]:
    """The function of a count that does the work, and its threads."""
    cores = len(os.sched_getaffinity(0))
    threads = 1 if variant == "processes" else cores

    def batches(count: int, do: Callable[..., None] = round_of) -> None:
        batch = min(count, BATCH["cuda" if on_gpu() else "cpu"])
        for _ in range(-(-count // batch)):
            alternating(batch, do)

    if work == "alternating":
        choices: dict[str, Callable[[int], object]] = {
            "loop": lambda count: [alternating(1) for _ in range(count)],
            "batched": batches,
            "bfloat16": lambda count: batches(count, bfloat16_round),
            "compiled": lambda count: batches(count, compiled_round("default")),
            "graphs": lambda count: batches(count, compiled_round("reduce-overhead")),
            "processes": lambda count: [alternating(1) for _ in range(count)],
            "jit": lambda count: jax_alternating(False, count),
            "jit_vmap": lambda count: jax_alternating(True, count),
        }
    else:
        choices = {
            "loop": lambda count: each_cell(1, cells(count)),
            "batched": lambda count: each_cell(4, cells(-(-count // 4))),
            "processes": lambda count: each_cell(1, cells(count)),
            "moments": moments_of_seeds,
        }
    return choices[variant], threads


def timed(work: str, variant: str, count: int, repeats: int = 3) -> list[float]:
    """Seconds of each repeat, after a warm-up."""
    do, threads = of_work(work, variant)
    if not variant.startswith("jit"):
        import torch

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        torch.set_default_device("cuda" if on_gpu() else "cpu")
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        do(count)
        if not variant.startswith("jit") and on_gpu():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def main() -> None:
    """Time one variant; "processes" runs COUNT on every core at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=["alternating", "one_step"])
    parser.add_argument("variant")
    parser.add_argument("count", type=int)
    given = parser.parse_args()
    together = len(os.sched_getaffinity(0)) if given.variant == "processes" else 1
    if together == 1:
        seconds = timed(given.work, given.variant, given.count)
    else:
        with multiprocessing.get_context("spawn").Pool(together) as pool:
            each = pool.starmap(timed, [(given.work, given.variant, given.count)] * together)
        seconds = np.max(each, axis=0).tolist()
    print(json.dumps({"done": given.count * together, "seconds": seconds}))


if __name__ == "__main__":
    main()
