"""Folders by name: of a file system of this host, or of an object store by its URL, through fsspec's file systems.

An object appears whole or not at all, and a listing shows what is there when it is asked for. Imports no jax.
"""

import contextlib
import os
import re
import shlex
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from mtfl_jax.fields import ConfigError

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""What installs the file system of a scheme, of those whose folders are in buckets."""
_ALLOWED = "allowed: s3://BUCKET/…, gs://BUCKET/…, file:///…, or a folder"


class UnreachableError(OSError):
    """An object store that refuses or does not answer, said in one line."""


def place(name: str | os.PathLike[str], key: str = "folder") -> Path:
    """A folder, or what stands for one and has a Path's methods. Raises ConfigError for a name that cannot be one."""
    if not isinstance(name, str):
        return cast(Path, name) if is_remote(name) else Path(name)
    known = name.partition(":")[0].lower() in {*_EXTRAS, "file"} and ":" in name
    if not name.strip() or (known and not _URL.match(name)):
        raise ConfigError(key, name, _ALLOWED)
    if not _URL.match(name):
        return Path(name)
    scheme, rest = name.split("://", 1)
    scheme, of = scheme.lower(), urllib.parse.urlsplit(name)
    if scheme == "file":
        if of.netloc not in ("", "localhost") or not of.path:
            raise ConfigError(key, name, "allowed: file:///PATH")
        return Path(urllib.parse.unquote(of.path))
    if not of.netloc:
        raise ConfigError(key, name, _ALLOWED)
    if set(name) & set("*?[]"):
        raise ConfigError(key, name, "allowed: a URL without * ? [ ]")
    try:
        from upath import UPath

        # A listing that is kept would lack what other processes write.
        found = UPath(f"{scheme}://{rest}", use_listings_cache=False)
        _ = found.fs
    except ImportError:
        raise ConfigError(key, name, f"allowed after pip install 'mtfl_jax[{_EXTRAS.get(scheme, 's3')}]'") from None
    except ValueError as error:
        raise ConfigError(key, name, f"{error}; {_ALLOWED}") from None
    return cast(Path, found)


def require(path: Path) -> None:
    """Raise OSError where a store says that it has no such bucket, which to a listing is a folder that is not there.

    It is asked for the folder alone: who may use that may not be allowed to ask for the bucket.
    """
    if is_remote(path):
        with reached(path):
            try:
                cast(Any, path).fs.ls(cast(Any, path).path)
            except FileNotFoundError as error:
                # S3's and Google's words.
                if "bucket does not exist" in str(error):
                    raise UnreachableError(f"there is no bucket {urllib.parse.urlsplit(str(path)).netloc}") from None


def hint(path: Any) -> str:
    """What can be written to, in words."""
    remote = "a bucket that is there, with its endpoint and credentials"
    return remote if is_remote(path) else "a folder that can be written"


def quoted(path: Any) -> str:
    """A path as a shell takes it, for a line to paste."""
    return shlex.quote(str(path))


def is_remote(path: Any) -> bool:
    """Whether something is a place in an object store."""
    return hasattr(path, "fs")


@contextlib.contextmanager
def reached(path: Path) -> Iterator[None]:
    """Raise UnreachableError where an object store refuses or does not answer, whatever its library raises."""
    if not is_remote(path):
        yield
        return
    try:
        yield
    except UnreachableError:
        raise
    except Exception as error:
        said = " ".join(str(error).split()) or "no reason given"
        raise UnreachableError(f"{type(error).__name__}: {said}") from error


def make(folder: Path) -> None:
    """Make a folder where it is not there; an object store has none, and a bucket is the user's to make."""
    if not is_remote(folder):
        folder.mkdir(parents=True, exist_ok=True)


def listed(folder: Path, suffix: str) -> list[Path]:
    """The files of a folder whose names end so, sorted; none where there is no such folder."""
    with reached(folder), contextlib.suppress(FileNotFoundError):
        return sorted(folder.glob(f"*{suffix}"))
    return []


def there(path: Path) -> bool:
    """Whether something is there."""
    with reached(path):
        return path.exists()


def contents(paths: Sequence[Path]) -> Mapping[Path, bytes]:
    """What objects hold, many asked for at once; those that are there no more are left out. Raises OSError."""
    if not paths:
        return {}
    with reached(paths[0]):
        store = cast(Any, paths[0]).fs
        found = store.cat([cast(Any, path).path for path in paths], on_error="return")
        out = {}
        for path in paths:
            value = found[cast(Any, path).path]
            if isinstance(value, Exception) and not isinstance(value, FileNotFoundError):
                raise value
            if isinstance(value, bytes):
                out[path] = value
    return out


def put(file: Path, path: Path) -> None:
    """Make a file of this host an object, in one step. Raises OSError."""
    with reached(path):
        cast(Any, path).fs.put_file(str(file), cast(Any, path).path)


def remove(path: Path) -> None:
    """Take a file away, if it is there."""
    with reached(path), contextlib.suppress(FileNotFoundError):
        path.unlink()


def settle(folder: Path) -> None:
    """Wait until the names that a folder has now are on its disk; an object store answers no sooner."""
    if not is_remote(folder):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def changed(path: Path) -> float:
    """When a file was last written, in seconds; 0 where it is there no more."""
    with reached(path), contextlib.suppress(FileNotFoundError):
        return (
            cast(Any, path).fs.modified(cast(Any, path).path).timestamp() if is_remote(path) else path.stat().st_mtime
        )
    return 0.0


def below(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, less those whose names are hidden; none where there is no such folder."""
    with reached(folder), contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        if is_remote(folder):
            entries = cast(Any, folder).fs.ls(cast(Any, folder).path, detail=True)
            found = [str(entry["name"]).rstrip("/") for entry in entries if entry["type"] == "directory"]
            names = [name.rpartition("/")[2] for name in found]
        else:
            names = [entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
        return [folder / name for name in sorted(names) if not name.startswith(".")]
    return []
