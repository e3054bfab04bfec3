"""Memory mappings of this process, of which Linux allows so many (`vm.max_map_count`, by default 65,530).

XLA takes three for each kernel of a program for the CPU, some 450 to 2300 a program, for as long as anything holds the
executable. Where they run out XLA prints "LLVM compilation error: Cannot allocate memory" and, instead of raising,
ends the process by a segmentation fault: in the compile, or in what first reads the executable, as the persistent cache
does when it writes it (JAX 0.10 to 0.12). So a process that compiles dozens of programs must let go of some.
"""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import jax

SHARE = 0.5
"""Share of the allowed mappings above which programs are let go: what is left is ten programs or more."""


def held() -> int:
    """Mappings of this process; 0 on a system that does not say."""
    with contextlib.suppress(OSError), open("/proc/self/maps", "rb") as lines:
        return sum(1 for _ in lines)
    return 0


def allowed() -> float:
    """Mappings a process may have; infinite on a system that does not say."""
    with contextlib.suppress(OSError, ValueError):
        return int(Path("/proc/sys/vm/max_map_count").read_text())
    return float("inf")


Compile = TypeVar("Compile", bound=Callable[..., object])

_FORGET: list[Callable[[], None]] = []


def kept(compile_: Compile) -> Compile:
    """A function that gives executables, each made once and kept until `make_room`."""
    cached = functools.cache(compile_)
    _FORGET.append(cached.cache_clear)
    return cast(Compile, cached)


def room(share: float = SHARE) -> bool:
    """Whether at most `share` of the allowed mappings are held."""
    return held() <= share * allowed()


def make_room(share: float = SHARE) -> bool:
    """Let go of compiled programs if more than `share` of the allowed mappings are held; say whether any were.

    Programs that somebody holds, such as those that run in turn, stay.
    """
    if room(share):
        return False
    for forget in (*_FORGET, jax.clear_caches):
        forget()
    return True
