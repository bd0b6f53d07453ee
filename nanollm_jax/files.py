"""Reading files that may come from anywhere: regular files of bounded size, JSON of bounded depth. And a folder made whole."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanollm_jax.errors import NanoLLMError

LARGE = 1 << 24  # bytes; a config has thousands, one with the names of 150,000 classes 6 million
DEEPEST = 64  # objects and lists inside each other; a tokenizer has ten
MOST_INSIDE = 4_000_000  # objects and lists in one file; the largest tokenizer has 520,000
HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # may begin half a character, spelled as an escape


def present(path: Path) -> bool:
    """Whether there is anything of this name, even a link that leads nowhere: a file that is there and cannot be read is
    an error, and never taken for one that is missing. A name that no file can have is not there.
    """
    return os.path.lexists(path)


def read(path: Path, error: type[NanoLLMError], most: int = LARGE) -> bytes:
    """The bytes of a regular file. Raises `error` where it cannot be read, is empty, or has more than `most` bytes."""
    check_regular(path, error)
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as found:
        raise error(f"{path}: cannot be read ({found.strerror}); copy it from the checkpoint.") from None
    if len(data) > most:
        raise error(f"{path}: has more than {most:,} bytes, which no file of this name needs; do not trust it.")
    if not data.strip():
        raise error(f"{path}: the file is empty; copy it again from the checkpoint.")
    if data.startswith(b"version https://git-lfs"):
        raise error(f"{path}: is a git-lfs pointer, not the file; run `git lfs pull` where it came from.")
    return data


def check_regular(path: Path, error: type[NanoLLMError]) -> None:
    """Raise `error` unless there is a regular file: a pipe would be waited for, and a device may never end."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as found:  # ValueError: a name that no file can have
        reason = getattr(found, "strerror", None) or found
        raise error(f"{path}: cannot be read ({reason}); copy it from the checkpoint.") from None
    if stat.S_ISDIR(mode):
        raise error(f"{path}: cannot be read (Is a directory); copy it from the checkpoint.")
    if not stat.S_ISREG(mode):
        raise error(f"{path}: is a pipe, a socket or a device, expected a file; copy it from the checkpoint.")


def read_json(path: Path, error: type[NanoLLMError], most: int = LARGE) -> dict[str, Any]:
    """The object in a JSON file. Raises `error` for anything else."""
    data = read(path, error, most)
    try:
        value = parse(data)
    except ValueError as found:
        raise error(f"{path}: is not valid JSON ({found}); copy it again from the checkpoint.") from None
    if not isinstance(value, dict):
        raise error(f"{path}: found a JSON {type(value).__name__}, expected an object.")
    return value


def parse(data: bytes) -> Any:
    """JSON in UTF-8 -> its value. Raises ValueError, also for what two readers may understand in two ways or not survive:

    one key with two values, half a character (a lone surrogate), nesting without end.
    """
    if data.count(b"[") + data.count(b"{") > MOST_INSIDE:
        raise ValueError(f"it has more than {MOST_INSIDE:,} objects and lists")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=once)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if HALF.search(data):
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ] if isinstance(value, dict | list) else []  # fmt: skip
        if not level:
            return value
    raise ValueError(f"it is nested more than {DEEPEST} deep")


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError for a key with two values."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if found[key] != value:
                raise ValueError(f"{key!r} is there twice, with different values")
    return found


@contextlib.contextmanager
def new_folder(folder: str | os.PathLike[str], error: type[NanoLLMError], needed: int = 0) -> Iterator[Path]:
    """A folder that is there when all of it is written: yields another beside it, which takes its name at the end.

    Raises `error` where something of this name is there, where nothing can be made, and where fewer than `needed` bytes are
    free. Whatever goes wrong, nothing half-written remains.
    """
    if not isinstance(folder, str | os.PathLike):
        raise error(f"folder is {type(folder).__name__}; expected the name of a folder that is not there yet.")
    path = Path(os.path.expanduser(folder))
    if present(path):
        raise error(f"{path}: is there already; give a folder that is not there yet.")
    try:
        part = path.absolute().parent / f".{path.name}.{secrets.token_hex(4)}"
        free = shutil.disk_usage(part.parent).free
        part.mkdir()
    except (OSError, ValueError) as found:  # ValueError: a name that no file can have
        reason = getattr(found, "strerror", None) or found
        raise error(
            f"{path}: cannot be made ({reason}); its parent has to be a folder that you may write to."
        ) from None
    try:
        if free < needed:
            raise error(
                f"{path}: needs {needed:,} bytes, and {free:,} are free there; make room, or take another disk."
            )
        yield part
        part.rename(path)
    except OSError as found:
        raise error(f"{path}: cannot be written ({found.strerror or found}); nothing of it remains.") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def copy(path: Path, folder: Path, error: type[NanoLLMError]) -> None:
    """Copy a regular file into a folder, whatever it holds. Raises `error` where it is none, OSError where that fails."""
    check_regular(path, error)
    shutil.copyfile(path, folder / path.name)


def host_memory() -> int | None:
    """Bytes of this machine's memory, or None where the system does not say, as Windows."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def free_memory() -> int | None:
    """Bytes of this machine's memory that a program can have, caches of files included; None where the system does not say."""
    try:
        with open("/proc/meminfo") as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
