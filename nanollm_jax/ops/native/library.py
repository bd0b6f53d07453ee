"""The C files beside this one, compiled on first use for the processor at hand, and kept in a folder of the user's own.

What XLA calls instead, where they cannot be compiled, is the text in ops/ that computes the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import jaxlib

from nanollm_jax.errors import RequestError
from nanollm_jax.identity import portable, processor
from nanollm_jax.startup import own_folder

SWITCH = "NANOLLM_NATIVE"  # 0: nothing is compiled; or one of
INSTRUCTIONS = ("vnni", "avx512", "avx2", "neon", "plain")  # for products
FUNCTIONS = tuple(f"nanollm_{name}" for name in ("attention", "attention_s8", "bf16", "f16", "s8", "g8", "g4"))
SOURCES = sorted(path for path in Path(__file__).parent.iterdir() if path.suffix in (".c", ".h"))
# no -ffast-math: it forgets what is not a number
FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=fast", "-fPIC", "-shared", "-fvisibility=default")
FOLDER = ("nanollm_jax", "native")  # below the folder of the user's caches
SECONDS = 600.0  # a compiler that needs longer is stuck; gcc takes seven, and many times that on a machine that is busy

log = logging.getLogger("nanollm")


class Library(NamedTuple):
    """The digest of what was compiled and loaded, and the instruction set that products take; or none, and the reason."""

    digest: str
    reason: str = ""
    instructions: str = ""


def wanted() -> bool:
    """May a program that is traced now ask for them? Where programs run on something else, nothing is compiled."""
    return not portable.value and jax.default_backend() == "cpu" and bool(library().digest)


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
        march = "x86-64-v3" if switch == "avx2" and "avx2" in processor().split() else "native"
        compiler = (*compiler_at_hand(), *FLAGS, f"-march={march}")
        text = [path.read_bytes() for path in SOURCES]
        made_from = [*text, *(part.encode() for part in (*compiler, jaxlib.__version__, processor()))]
        digest = hashlib.sha256(b"\0".join(made_from)).hexdigest()[:24]
        with contextlib.ExitStack() as stack:
            try:
                folder = own_folder(*FOLDER)
                path = folder / f"{digest}.so"
                if not path.exists():
                    compile_into(path, compiler)
            except (OSError, RequestError):  # nothing can be kept there: it serves this process alone
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                path = folder / f"{digest}.so"
                compile_into(path, compiler)
            loaded = ctypes.CDLL(str(path))
        choose = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_char_p)(("nanollm_choose", loaded))
        instructions = choose(None if switch == "1" else switch.encode())
        for name in FUNCTIONS:
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(loaded, name)), platform="cpu")
    except (OSError, AttributeError, RuntimeError, subprocess.SubprocessError) as error:
        reason = " ".join(str(error).split())[:300]
        log.warning("decoding on a CPU goes without native operations and is slower: %s", reason)
        return Library("", reason)
    if instructions is None:
        raise RequestError(f"{SWITCH} is {switch!r}, which this processor does not have; leave it out.")
    return Library(digest, instructions=instructions.decode())


def compile_into(path: Path, compiler: tuple[str, ...]) -> None:
    """Make the shared library: whole or not at all, whoever else makes it at the same time. Raises OSError, RuntimeError."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made = Path(scratch) / "made.so"
        inputs = [str(path) for path in SOURCES if path.suffix == ".c"]
        command = [*compiler, f"-I{jax.ffi.include_dir()}", *inputs, "-o", str(made), "-lm"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        if found.returncode:
            raise RuntimeError(f"{compiler[0]} failed: {found.stderr.strip()}")
        made.replace(path)


def compiler_at_hand() -> tuple[str, ...]:
    """The words that call a C compiler: $CC, cc, or that of the ziglang package. Raises RuntimeError."""
    if found := shutil.which(os.environ.get("CC") or "cc"):
        return (found,)
    if importlib.util.find_spec("ziglang"):
        return sys.executable, "-m", "ziglang", "cc"
    raise RuntimeError("there is no C compiler (cc); install one, or pip install 'nanollm-jax[native]'")
