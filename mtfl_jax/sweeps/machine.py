"""The devices of this process, and what may be said of what rows were made with."""

import contextlib
import functools
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import jax
import scipy.linalg.lapack  # noqa: F401 - jaxlib calls this LAPACK, and only libraries loaded already can be limited

from mtfl_jax.learning import keys
from mtfl_jax.sweeps import cache, host
from mtfl_jax.sweeps.grid import SCHEMA, numerics

MATMUL_PRECISION = "highest"
"""Precision of every matrix product: float32 on all backends."""

MEMORY_FRACTION = 0.8
"""Share of a device's memory that a program may take, unless told otherwise."""


def cache_home() -> Path:
    """Where this package keeps what it has compiled and measured."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mtfl_jax"


@functools.cache
def devices() -> tuple[jax.Device, ...]:
    """The local devices; on a CPU one a core this process may keep busy (`host.cores`), unless JAX is already
    initialised.

    Also turns on JAX's persistent compilation cache, where the user has not chosen one, and mends it from then on.
    """
    # Where JAX runs already, or the platform has no affinity, take what is there.
    with contextlib.suppress(RuntimeError, AttributeError):
        jax.config.update("jax_num_cpu_devices", host.cores())
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_home() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    cache.mend()
    return tuple(jax.local_devices())


def memory_limit() -> int:
    """Bytes of memory of one device; of a CPU device its share of what this process may take (`host.memory`)."""
    stats = devices()[0].memory_stats() or {}
    return int(stats["bytes_limit"] if "bytes_limit" in stats else host.memory() // len(devices()))


def environment() -> dict[str, Any]:
    """Versions, device and numerics of this process."""
    return {
        "versions": {**_versions(), "python": platform.python_version()},
        "platform": platform.platform(),
        "devices": [f"{device.platform}: {device.device_kind}" for device in devices()],
        "numerics": numerics(),
        "matmul_precision": MATMUL_PRECISION,
        "draws_schema": keys.SCHEMA,
        "schema": SCHEMA,
    }


@functools.cache
def _versions() -> dict[str, str]:
    """Of the packages that bear on rows; a process may run many shares, and asks once."""
    packages = ("mtfl_jax", "jax", "jaxlib", "flax", "optax", "numpy", "hydra-core", "pandas", "pyarrow")
    return {name: importlib.metadata.version(name) for name in packages}
