"""What an executable depends on, spelled out: values, the functions that were compiled as they stand in memory, the machine.

Two processes spell the same only where one may run what the other has compiled. Functions are followed by the names in their
code, so that an edited file, a patched function and a changed constant each spell something else. What cannot be told apart
from its like, above all a function from outside of this package, is Unknown, and nothing is kept of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import os
import platform
import re
import sys
import types
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np
from jax.sharding import Mesh

PACKAGE = __name__.partition(".")[0]
# whose versions are spelled, or that are a part of Python: code of theirs is told by its name
VERSIONED = {"jax", "jaxlib", "numpy", "ml_dtypes", *sys.stdlib_module_names}
Once = type(cache(lambda: None))  # what a function finds out once in a process is spelled with it
PLAIN = (bool, int, float, complex, str, bytes, range, np.generic, np.dtype, type(None), type(...))
# settings of jax that say where it writes things, and not what it makes
UNHEARD = re.compile("cache|log|dump|profil|traceback|coordinat")


portable = jax.make_user_context(False)  # inside `with portable(True)` nothing is traced that only this machine has


class Unknown(Exception):
    """Something of which two that differ might be spelled alike."""


class Spelling:
    """A hash of values that are spelled one after the other; `digest` is 64 hexadecimal digits."""

    def __init__(self) -> None:
        """Nothing spelled yet."""
        self.hash = hashlib.sha256()
        self.seen: dict[int, int] = {}

    @property
    def digest(self) -> str:
        """Of all that was spelled."""
        return self.hash.hexdigest()

    def words(self, *words: Any) -> None:
        """Take what has a text of its own."""
        self.hash.update(f"{words!r}".encode(errors="backslashreplace"))

    def value(self, value: Any) -> None:
        """Take a value, and all that it is made of. Raises Unknown."""
        kind = type(value)
        if isinstance(value, PLAIN):
            self.words(kind.__qualname__, value)
        elif isinstance(value, np.ndarray):
            self.words(value.dtype, value.shape, value.tobytes())
        elif isinstance(value, tuple | list):
            self.words(kind.__qualname__, len(value))
            for entry in value:
                self.value(entry)
        elif isinstance(value, set | frozenset):
            self.words(kind.__qualname__, sorted(map(repr, value)))
        elif isinstance(value, Mapping):
            self.words(kind.__qualname__, len(value))
            for entry in value.items():
                self.value(entry)
        elif id(value) in self.seen:
            self.words("again", self.seen[id(value)])
        else:
            self.seen[id(value)] = len(self.seen)
            self.thing(value)

    def thing(self, value: Any) -> None:
        """Take a function, a class, an object. Raises Unknown."""
        if isinstance(value, types.ModuleType):
            self.words("module", value.__name__)
        elif isinstance(value, types.FunctionType):
            self.function(value)
        elif isinstance(value, type):
            self.kind(value)
        elif isinstance(value, partial):
            self.value((value.func, value.args, value.keywords))
        elif isinstance(value, Once) and not value.__wrapped__.__code__.co_argcount:
            self.value([value.__qualname__, value()])
        elif isinstance(value, property):
            self.value((value.fget, value.fset))
        elif isinstance(value, types.MethodType | staticmethod | classmethod):
            self.value(value.__func__)
        elif isinstance(value, types.CodeType):
            self.words(value.co_code, value.co_names, value.co_varnames, value.co_freevars, value.co_flags)
            self.value(value.co_consts)
        elif isinstance(value, Mesh):
            self.words(value.axis_names, value.devices.shape, [device.id for device in value.devices.flat])
        elif dataclasses.is_dataclass(value):
            self.value([type(value), *(getattr(value, field.name) for field in dataclasses.fields(value))])
        elif hasattr(value, "__wrapped__"):  # as jit and functools.wraps make it
            self.value(value.__wrapped__)
        elif type(value).__module__.partition(".")[0] in VERSIONED:
            held = getattr(value, "value", None)  # of a setting that functions read while they are traced
            self.words(type(value).__qualname__, re.sub("0x[0-9a-f]+", "", repr(value)))
            self.words(held if isinstance(held, PLAIN) else None)
        else:
            raise Unknown(f"{type(value).__module__}.{type(value).__qualname__}")

    def function(self, function: types.FunctionType) -> None:
        """Take a function; one of this package with all that its code names. Raises Unknown."""
        home = function.__globals__.get("__name__", "")
        if self.versioned(home, function):
            return
        names = set(names_of(function.__code__))
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        self.value([function.__code__, function.__defaults__, function.__kwdefaults__, *cells])
        for name in sorted(names):
            found = function.__globals__.get(name)
            if name.startswith(f"{PACKAGE}."):  # imported in there
                found = importlib.import_module(name)
            if found is None:
                continue
            self.words(name)
            self.value(found)
            if isinstance(found, types.ModuleType) and found.__name__.startswith(f"{PACKAGE}."):
                for inner in sorted(names & vars(found).keys()):
                    self.words(inner)
                    self.value(vars(found)[inner])

    def kind(self, kind: type) -> None:
        """Take a class; one of this package with its methods. Raises Unknown."""
        if self.versioned(kind.__module__, kind):
            return
        self.value(kind.__bases__)
        for name, value in sorted(vars(kind).items()):
            if not name.startswith("__") or name in ("__init__", "__post_init__", "__call__"):
                self.words(name)
                self.value(value)

    def versioned(self, home: str, value: Any) -> bool:
        """Take the name of a function or class, and what it wraps; that is all where a version tells the rest."""
        self.words(home, value.__qualname__)
        room = home.partition(".")[0]
        if room != PACKAGE and room not in VERSIONED:
            raise Unknown(f"{home}.{value.__qualname__}")
        if room != PACKAGE:
            self.value(getattr(value, "__wrapped__", None))
        return room != PACKAGE


def names_of(code: types.CodeType) -> list[str]:
    """The names that code uses, and those of the functions that stand inside."""
    inner = [name for const in code.co_consts if isinstance(const, types.CodeType) for name in names_of(const)]
    return [*code.co_names, *inner]


def argument(leaf: Any) -> str:
    """An array as a program takes it: its type, where it lies and how; of numbers and arrays of the host the type alone."""
    kind = jax.typeof(leaf)
    words = f"{kind.str_short(short_dtypes=False)} {getattr(kind, 'weak_type', False)}"
    if not isinstance(leaf, jax.Array):
        return words
    return f"{words} {getattr(leaf, 'format', leaf.sharding)} {leaf.committed}"  # a key has no format


def machine() -> list[Any]:
    """What runs a program: versions, devices with their driver, XLA's flags, jax's settings, and the processor."""
    devices = jax.devices()
    settings = {name: repr(value) for name, value in sorted(jax.config.values.items()) if not UNHEARD.search(name)}
    return [
        sys.version, jax.__version__, jaxlib.__version__, np.__version__, devices[0].client.platform_version,
        [(device.id, device.device_kind, device.process_index) for device in devices],
        (jax.process_index(), jax.process_count()), settings, processor(), cores(),
        {name: os.environ.get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")},
    ]  # fmt: skip


def cores() -> int | None:
    """On how many cores this process may run; XLA divides work among them when it compiles."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@cache
def processor() -> str:
    """The processor and its instructions, in words."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    found = {line.partition(":")[0].strip(): line for line in reversed(lines)}
    kinds = [found[name] for name in ("flags", "Features", "model name", "CPU part") if name in found]
    return " ".join([sys.platform, platform.machine(), platform.processor(), *kinds])
