"""The folder where compiled programs are kept between processes."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal

from nanollm_jax.errors import RequestError

DEFAULT = ("nanollm_jax", "compiled")  # below the folder of the user's caches


class Choice:
    """Where this process keeps them: a folder, or False for nowhere; None until somebody says or the first is compiled."""

    folder: Path | Literal[False] | None = None


CHOICE = Choice()


def keep_compiled(folder: str | os.PathLike[str] | Literal[False] | None = None) -> Path | None:
    """Keep this package's compiled programs in a folder, and take them from there next time. Returns the folder.

    They are kept anyhow, in the folder that None stands for: nanollm_jax/compiled in $XDG_CACHE_HOME or else in ~/.cache.
    False keeps nothing. A folder is made if need be, for its owner only (mode 700). What lies in it is executed, so one that
    belongs to another user or that others may write to is a RequestError, as is one that cannot be made. A program is specific
    to the code, the versions of jax and the processor; a damaged one is replaced. What is compiled by others, jits of your own
    among them, is left to JAX and its settings.
    """
    if folder is False:
        CHOICE.folder = False
        return None
    CHOICE.folder = own_folder(*DEFAULT) if folder is None else private(Path(os.fspath(folder)))
    return CHOICE.folder


def own_folder(*names: str) -> Path:
    """A folder below that of the user's caches, $XDG_CACHE_HOME or else ~/.cache, made if need be. Raises RequestError."""
    return private(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", *names))


def private(path: Path) -> Path:
    """A folder, made if need be, for its owner only: what lies in it is executed.

    Raises RequestError where it cannot be made, belongs to another user, or others may write to it.
    """
    try:
        path = path.expanduser().absolute()
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = path.stat()
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: nobody's home; ValueError: no name for a file
        raise RequestError(f"compiled programs cannot be kept in {str(path)!r}: {error}.") from None
    if not only_ours(status):
        raise RequestError(
            f"{path} belongs to another user, or others may write to it (mode {stat.S_IMODE(status.st_mode):o}); programs "
            "from it would be executed: take another folder, or chmod 700."
        )
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise RequestError(f"compiled programs cannot be kept in {str(path)!r}: nothing can be written there.")
    return path


def only_ours(status: os.stat_result) -> bool:
    """Does a file or folder belong to this user, and may nobody else write to it?"""
    owner = os.getuid() if hasattr(os, "getuid") else status.st_uid
    return status.st_uid == owner and not (os.name == "posix" and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def folder() -> Path | None:
    """Where programs are kept now: what keep_compiled was told, or else the default; None for nowhere."""
    if CHOICE.folder is None:
        try:
            keep_compiled()
        except RequestError:  # nobody has asked for it
            CHOICE.folder = False
    return CHOICE.folder or None
