"""Programs kept on disk between processes."""

from __future__ import annotations

import os
import stat
import time
import zlib
from pathlib import Path

import jax

from nanollm_jax.errors import RequestError

DEFAULT = ("nanollm_jax", "compiled")  # below the folder of the user's caches
ZSTD = b"\x28\xb5\x2f\xfd"  # how a zstd frame begins


def keep_compiled(folder: str | os.PathLike[str] | None = None) -> Path:
    """Keep every program that is compiled from now on in a folder, and take it from there next time. Returns the folder.

    None is the folder that the command line uses, nanollm_jax/compiled in $XDG_CACHE_HOME or else in ~/.cache. A folder is
    made if need be, for its owner only (mode 700). What lies in it is executed, so one that belongs to another user or that
    others may write to is a RequestError, as is one that cannot be made. Entries are specific to the versions of jax and to
    the processor; damaged ones are removed.
    """
    path = own_folder(*DEFAULT) if folder is None else private(Path(os.fspath(folder)))
    try:
        remove_damaged(path)
    except OSError as error:
        raise RequestError(f"compiled programs cannot be kept in {str(path)!r}: {error}.") from None
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return path


def own_folder(*names: str) -> Path:
    """A folder below that of the user's caches, $XDG_CACHE_HOME or else ~/.cache, made if need be. Raises RequestError."""
    return private(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", *names))


def private(path: Path) -> Path:
    """A folder, made if need be, for its owner only: what lies in it is executed.

    Raises RequestError where it cannot be made, belongs to another user, or others may write to it.
    """
    try:
        path = path.expanduser()
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = path.stat()
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: nobody's home; ValueError: no name for a file
        raise RequestError(f"compiled programs cannot be kept in {str(path)!r}: {error}.") from None
    owner = os.getuid() if hasattr(os, "getuid") else status.st_uid
    if status.st_uid != owner or (os.name == "posix" and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        raise RequestError(
            f"{path} belongs to another user, or others may write to it (mode {stat.S_IMODE(status.st_mode):o}); programs "
            "from it would be executed: take another folder, or chmod 700."
        )
    return path


def remove_damaged(folder: Path) -> None:
    """Remove the entries that a full disk or the end of a process left incomplete. Raises OSError.

    JAX would warn of them and compile anew in every process, for it writes no entry where there is one. Each is looked at
    once: the time of the last look is that of a file beside them.
    """
    mark, now = folder / "checked", time.time_ns()
    last = mark.stat().st_mtime_ns if mark.exists() else 0
    for entry in folder.glob("*-cache"):
        if entry.stat().st_mtime_ns >= last - 10**9 and not is_whole(entry.read_bytes()):  # clocks of files are coarse
            entry.unlink(missing_ok=True)
    mark.touch()
    os.utime(mark, ns=(now, now))


def is_whole(entry: bytes) -> bool:
    """Whether an entry can be decompressed, which a part of one cannot. JAX compresses with zstd where there is one."""
    try:
        if entry.startswith(ZSTD):
            import zstandard

            zstandard.ZstdDecompressor().decompress(entry)
        else:
            zlib.decompress(entry)
    except ImportError:
        return True  # another environment's, and no one here will read it
    except Exception:  # zlib.error, zstandard.ZstdError
        return False
    return True
