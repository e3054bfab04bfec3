"""Mends JAX's persistent cache of compiled programs, where an entry was not written to its end.

JAX writes an entry in place, so a process that is killed or a disk that is full leaves a part of one. Nor does it
replace an entry that is there: every later process would read the part in vain, warn, and compile again (JAX 0.10 to
0.12). It warns before it compiles. What is removed then, it writes anew.
"""

import contextlib
import glob
import re
import warnings
import zlib
from pathlib import Path
from typing import Any

import jax

try:
    from compression import zstd
except ImportError:  # Before Python 3.14.
    try:
        import zstandard as zstd
    except ImportError:
        zstd = None

UNREADABLE = re.compile("Error reading persistent compilation cache entry for '([^']+)'")
"""How JAX's warning begins, and the name of the program."""
ZSTD = bytes.fromhex("28b52ffd")
"""How an entry begins that is packed by Zstandard: JAX does so where Python has it, and else uses zlib."""


def mend() -> None:
    """Remove torn entries whenever JAX warns that it cannot read one, from now on; such a warning is not shown then."""
    show = warnings.showwarning

    def shown(message: Warning | str, *rest: Any, **named: Any) -> None:
        found = UNREADABLE.match(str(message))
        if not (found and remove_torn(Path(str(getattr(jax.config, "jax_compilation_cache_dir", None))), found[1])):
            show(message, *rest, **named)

    warnings.showwarning = shown
    # Else Python shows the same text once, and where the user wants errors it is one.
    warnings.filterwarnings("always", UNREADABLE.pattern)


def remove_torn(folder: Path, program: str) -> int:
    """Remove the entries of programs of one name that end too early, and say how many. What is whole stays, also where
    JAX cannot load it here: another machine or Python that shares the folder may.
    """
    removed = 0
    for path in list(folder.glob(f"{glob.escape(program)}-*-cache")):
        # Another process may have removed it.
        with contextlib.suppress(OSError):
            if torn(path.read_bytes()):
                path.unlink()
                removed += 1
    return removed


def torn(entry: bytes) -> bool:
    """Whether an entry ends too early or is damaged; not where this Python has nothing to read it with."""
    by_zstd = entry.startswith(ZSTD)
    if by_zstd and zstd is None:
        return False
    try:
        (zstd if by_zstd else zlib).decompress(entry)
    except Exception:  # Each has errors of its own.
        return True
    return False
