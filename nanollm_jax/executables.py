"""Compiled functions whose executables outlive the process: what was compiled once is neither traced nor compiled again.

An executable is a file in the folder that startup.py knows, under the name of all that it depends on (identity.py). It is
written by the process that has compiled it: on CPU, one that was itself read from JAX's own cache cannot be written again. What
is read there is executed, so a file that another user could have written is not read; one that is not whole is made anew.
XLA reads without Python's lock, so threads read what is probably needed while a model is loaded (ahead.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import stat
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextvars import ContextVar
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import monitoring
from jax.experimental import serialize_executable
from jax.extend.core import get_opaque_trace_state
from jax.sharding import Mesh, NamedSharding

from nanollm_jax import startup
from nanollm_jax.ahead import Ahead
from nanollm_jax.errors import NanoLLMWarning
from nanollm_jax.identity import Spelling, Unknown, argument, cores, machine, portable

ENDING = ".executable"  # of a file, and with an s of a list of them
FORM = 2  # of a file; other ones have other names
FETCHED = "/nanollm_jax/fetched"  # what jax.monitoring is told of each that was read, with the seconds that it took
MOST = 2**30  # bytes of a folder; what was used longest ago makes room
ABANDONED = 3600  # seconds: who began a file before then has ended without finishing it
# settings of jax with which the same arguments are another program
CONTEXT = attrgetter(
    "jax_enable_x64", "jax_default_device", "jax_default_matmul_precision", "jax_numpy_rank_promotion",
    "jax_numpy_dtype_promotion",
)  # fmt: skip
# those that say whether JAX keeps programs, and those with which jit does more than run one
CACHED = attrgetter("jax_compilation_cache_dir", "jax_enable_compilation_cache")
WATCHED = attrgetter("jax_disable_jit", "jax_debug_nans", "jax_debug_infs", "jax_check_tracer_leaks")

with jax.core.eval_context():
    EAGER = get_opaque_trace_state()
# arrays that stand for results, by shape and place, where programs are not run
BLANK: ContextVar[dict[Hashable, jax.Array] | None] = ContextVar("blank", default=None)


@contextlib.contextmanager
def only_made_ready() -> Iterator[None]:
    """Inside, programs are fetched or compiled and not run: results have the right shapes and places, and all are zeros that
    they share, so that none of them may be handed to a program that runs. Where nothing is kept from the beginning, they run.
    """
    token = BLANK.set(None if startup.folder() is None else {})
    try:
        yield
    finally:
        BLANK.reset(token)


class Persistent:
    """A function under jit, called as that is: arrays by position, keywords are static; `mesh` says on which devices."""

    def __init__(self, jitted: Any) -> None:
        """jitted: what jax.jit has made of a function."""
        self.__wrapped__ = jitted.__wrapped__
        self.jitted = jitted
        self.held: dict[Hashable, Callable[..., Any]] = {}

    def __call__(self, *args: Any, **static: Any) -> Any:
        """Run the executable for arguments like these, which is fetched or compiled where this process has not run it yet."""
        leaves, tree = jax.tree.flatten(args)
        folder, blank = startup.folder(), BLANK.get()
        # what this process holds, or is making ready, it uses even where the folder was lost meanwhile
        if (folder is None and blank is None and not self.held) or not are_values(leaves):
            return self.jitted(*args, **static)
        mesh = static.get("mesh")
        place = placement(leaves, mesh)
        like = (tree, *static.items(), CONTEXT(jax.config), place, *map(kind, leaves))
        found = self.held.get(like)
        if found is None:
            found = self.held[like] = self.executable(folder, args, static)
        if blank is None:
            return found(*args)
        if not isinstance(found, jax.stages.Compiled):  # nothing may be kept of it, and it may not run here either
            found = self.jitted.lower(*args, **static).compile()
        return jax.tree.map(lambda leaf: stand_in(blank, leaf, place is not None), found.out_info)

    def lower(self, *args: Any, **static: Any) -> jax.stages.Lowered:
        """As a function under jit has it."""
        return self.jitted.lower(*args, **static)

    def clear_cache(self) -> None:
        """As a function under jit has it."""
        self.held.clear()
        self.jitted.clear_cache()

    def executable(self, folder: Path | None, args: tuple[Any, ...], static: dict[str, Any]) -> Callable[..., Any]:
        """From the folder, or compiled and put there; the function under jit itself where nothing may be kept of it."""
        begun = time.perf_counter()
        try:
            name = f"{self.__wrapped__.__name__}-{identity(self.__wrapped__, args, static)}{ENDING}"
        except Unknown:
            return lambda *args: self.jitted(*args, **static)
        file = None if folder is None else folder / name
        found = None if file is None else AHEAD.take(file) or read(file)
        if found is not None:
            monitoring.record_event_duration_secs(FETCHED, time.perf_counter() - begun)
            return found
        compiled = self.jitted.lower(*args, **static).compile()
        if file is not None and not jax_keeps():
            write(file, compiled)
        return compiled


def are_values(leaves: Sequence[Any]) -> bool:
    """Are these arrays and numbers that something is computed of now, and nothing more than that?"""
    some = {type(leaf): leaf for leaf in leaves}.values()
    return (
        get_opaque_trace_state() == EAGER
        and not any(WATCHED(jax.config))
        and jax.sharding.get_abstract_mesh().empty
        and not portable.value
        and all(isinstance(leaf, jax.Array | np.ndarray | np.generic | int | float) for leaf in some)
        and not any(isinstance(leaf, jax.core.Tracer) for leaf in some)
    )


def kind(leaf: Any) -> Hashable:
    """What an executable asks of an array: its type, the same on a device and on the host; of a number of Python its own."""
    found: Any = getattr(leaf, "aval", None)
    if found is None:
        found = array_type(leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else type(leaf)
    return found


@lru_cache
def array_type(shape: tuple[int, ...], dtype: np.dtype) -> Hashable:
    """The type of an array of the host, as those on a device have it."""
    return jax.core.ShapedArray(shape, dtype)


def placement(leaves: Sequence[Any], mesh: Mesh | None) -> Hashable:
    """Where they lie: on one device all that are bound to one are on the same."""
    if mesh is None:
        return next((leaf.sharding for leaf in leaves if getattr(leaf, "committed", False)), None)
    return tuple(getattr(leaf, "sharding", None) for leaf in leaves)


def stand_in(blank: dict[Hashable, jax.Array], leaf: jax.ShapeDtypeStruct, committed: bool) -> jax.Array:
    """Zeros in place of a result."""
    sharding = leaf.sharding if committed else None
    like = leaf.shape, leaf.dtype, sharding
    if like not in blank:
        blank[like] = jax.device_put(np.zeros(leaf.shape, leaf.dtype), sharding)
    return blank[like]


def identity(function: Callable[..., Any], args: tuple[Any, ...], static: dict[str, Any]) -> str:
    """All that an executable depends on, as a part of a file's name. Raises Unknown."""
    if jax.process_count() > 1 and jax.default_backend() != "cpu":
        raise Unknown("processes with GPUs look for the fastest kernels together, and wait for each other there")
    devices = {device for leaf in jax.tree.leaves(args) if isinstance(leaf, jax.Array) for device in leaf.devices()}
    if static.get("mesh") is None and len(devices) > 1:
        raise Unknown("spread over devices in a way that is not ours")
    spelling = Spelling()
    spelling.value([function, static, jax.tree.map(argument, args), machine(), FORM])
    return spelling.digest[:40]


# files


class Writer(pickle.Pickler):
    """Of devices, their ids."""

    def persistent_id(self, value: Any) -> int | None:
        """The id of a device, None of anything else."""
        return value.id if isinstance(value, jax.Device) else None


class Reader(pickle.Unpickler):
    """Of ids, the devices."""

    def persistent_load(self, number: int) -> jax.Device:
        """The device of this id."""
        return next(device for device in jax.devices() if device.id == number)


def read(file: Path) -> Callable[..., Any] | None:
    """The executable of a file; None where there is none, or one that is not ours or not whole."""
    try:
        with open(
            os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)), "rb"
        ) as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode) or not startup.only_ours(status):
                return None
            digest, data = opened.read(32), opened.read()
        if hashlib.sha256(file.name.encode() + data).digest() != digest:
            return None
        text, in_tree, out_tree, devices = Reader(io.BytesIO(data)).load()
        found = serialize_executable.deserialize_and_load(text, in_tree, out_tree, devices[0].client, devices)
        with contextlib.suppress(OSError):  # a file system that is only read from
            os.utime(file)
        return found
    except Exception:  # whatever it is that cannot be read, it is compiled
        return None


def write(file: Path, compiled: jax.stages.Compiled) -> None:
    """Put an executable into a file, whole or not at all. Where it cannot be, there will be none."""
    data = io.BytesIO()
    try:
        Writer(data).dump((*serialize_executable.serialize(compiled), devices_of(compiled)))
    except Exception:  # a backend that has no text for it, or a constant
        return
    try:
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=ENDING + "~", delete=False) as opened:
            opened.write(hashlib.sha256(file.name.encode() + data.getvalue()).digest() + data.getvalue())
        os.replace(opened.name, file)
        make_room(file.parent)
    except OSError as error:
        with contextlib.suppress(OSError, UnboundLocalError):
            os.unlink(opened.name)
        startup.keep_compiled(False)
        warnings.warn(f"compiled programs are not kept: {error}.", NanoLLMWarning, stacklevel=2)


AHEAD = Ahead(read, cores() or 1)


def read_ahead(*words: Any) -> None:
    """Begin to read, in threads, what the last process asked for that was called by the same command with these words.

    What executables call has to be known to XLA by then.
    """
    if (folder := startup.folder()) is not None:
        spelling = Spelling()
        try:
            spelling.value([sys.argv[:2], words, machine()])
        except Unknown:  # a notebook that has changed what a config is
            return
        AHEAD.begin(folder / f"{spelling.digest[:40]}{ENDING}s")


def devices_of(compiled: jax.stages.Compiled) -> list[jax.Device]:
    """The devices that an executable runs on, in its order."""
    sharding = jax.tree.leaves(compiled.output_shardings)[0]
    return list(sharding.mesh.devices.flat) if isinstance(sharding, NamedSharding) else list(sharding.device_set)


def make_room(folder: Path) -> None:
    """Remove the executables that were used longest ago until the others are MOST bytes, and what nobody will finish."""
    total, now, found = 0, time.time(), []
    for path in folder.glob(f"*{ENDING}*"):
        with contextlib.suppress(FileNotFoundError):  # another process makes room too, or has just finished a file
            found.append((path.stat(), path))
    for status, path in sorted(found, key=lambda entry: -entry[0].st_mtime):
        total += status.st_size
        if total > MOST or (path.name.endswith("~") and status.st_mtime < now - ABANDONED):
            path.unlink(missing_ok=True)


def jax_keeps() -> bool:
    """Is JAX's own cache on? What it has read once this process may be given again, in silence; so nothing is kept twice."""
    return all(map(bool, CACHED(jax.config)))
