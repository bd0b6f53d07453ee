"""The C files beside this one, compiled on first use for the processor at hand, and kept in a folder of the user's own.

What XLA calls instead, where they cannot be compiled, is the text in ops/ that computes the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import jaxlib

from nanollm_jax.errors import RequestError
from nanollm_jax.identity import portable, processor
from nanollm_jax.ops.native import compiler
from nanollm_jax.startup import only_ours, own_folder

SWITCH = "NANOLLM_NATIVE"  # 0: nothing is compiled; or one of
INSTRUCTIONS = ("vnni", "avx512", "avx2", "neon", "plain")  # for products
FUNCTIONS = tuple(f"nanollm_{name}" for name in ("attention", "attention_s8", "f32", "bf16", "f16", "s8", "g8", "g4"))
FOLDER = ("nanollm_jax", "native")  # below the folder of the user's caches

log = logging.getLogger("nanollm")


class Library(NamedTuple):
    """The digest of what was compiled and loaded, or none and the reason; the instruction set that products take, if any."""

    digest: str
    reason: str = ""
    instructions: str = ""


def wanted() -> bool:
    """May a program that is traced now ask for them? Where programs run on something else, nothing is compiled."""
    return not portable.value and jax.default_backend() == "cpu" and bool(library().digest)


def multiplies() -> bool:
    """wanted, of products: XLA is quicker where the processor has no instruction set for them."""
    return wanted() and bool(library().instructions)


def switched_off() -> bool:
    """Has the user said that XLA is to compute everything?"""
    return os.environ.get(SWITCH) == "0"


@functools.cache
def library() -> Library:
    """What there is on this machine, compiled and handed to XLA if it was not yet; says it in one line where there is none."""
    if (switch := os.environ.get(SWITCH) or "1") == "0":
        return Library("", f"{SWITCH}=0")
    if switch not in ("1", *INSTRUCTIONS):
        raise RequestError(f"{SWITCH} is {switch!r}; expected 0, 1, or one of {', '.join(INSTRUCTIONS)}.")
    try:
        # what is compiled for more than AVX2 would use it in loops of its own, too
        command = compiler.words("avx2" if switch == "avx2" else "native")
        text = [path.read_bytes() for path in compiler.SOURCES]
        made_from = [*text, *(part.encode() for part in (*command, jaxlib.__version__, processor()))]
        digest = hashlib.sha256(b"\0".join(made_from)).hexdigest()[:24]
        loaded = load(f"{digest}.so", command)
        choose = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_char_p)(("nanollm_choose", loaded))
        instructions = choose(None if switch == "1" else switch.encode())
        if instructions is None:
            raise RequestError(f"{SWITCH} is {switch!r}, which this processor does not have; leave it out.")
        for name in FUNCTIONS:
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(loaded, name)), platform="cpu")
    except (OSError, AttributeError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        reason = " ".join(str(error).split())[:300]
        log.warning("decoding on a CPU goes without native operations and is slower: %s", reason)
        return Library("", reason)
    best = "" if switch == "1" and instructions == b"plain" else instructions.decode()
    return Library(digest, instructions=best)


def load(name: str, command: tuple[str, ...]) -> ctypes.CDLL:
    """The library that is kept under this name; compiled where there is none, a damaged one, or one that others may write to.

    Where it cannot be kept, or run from there, it serves this process alone. Raises OSError, RuntimeError, SubprocessError.
    """
    kept = None
    with contextlib.suppress(RequestError):
        kept = own_folder(*FOLDER) / name
    with contextlib.suppress(OSError):
        if kept is not None and only_ours(kept.lstat()):
            return ctypes.CDLL(str(kept))
    with tempfile.TemporaryDirectory() as scratch:
        made = compiler.compiled(Path(scratch), command)
        with contextlib.suppress(OSError):
            if kept is not None:
                keep(made, kept)
                return ctypes.CDLL(str(kept))
        return ctypes.CDLL(str(made))


def keep(made: Path, kept: Path) -> None:
    """Put it there: whole or not at all, whoever else does at the same time. Raises OSError."""
    with tempfile.TemporaryDirectory(dir=kept.parent) as beside:
        copy = Path(beside) / made.name
        copy.write_bytes(made.read_bytes())
        copy.chmod(0o600)
        copy.replace(kept)
