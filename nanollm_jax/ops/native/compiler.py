"""The C compiler of this machine, and how the files beside this one are compiled."""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jax

from nanollm_jax.identity import processor

SOURCES = sorted(path for path in Path(__file__).parent.iterdir() if path.suffix in (".c", ".h"))
# no -ffast-math: it forgets what is not a number
FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=fast", "-fPIC", "-shared", "-fvisibility=default")
SECONDS = 600.0  # a compiler that needs longer is stuck; gcc takes seven, and many times that on a machine that is busy


def words(instructions: str) -> tuple[str, ...]:
    """What calls a compiler that uses what the processor has, or of x86 no more than "avx2". Raises RuntimeError."""
    if instructions == "avx2" and "avx2" in processor().split():
        return *at_hand(), *FLAGS, "-march=haswell"  # which old compilers know, and zig's
    arm = platform.machine().lower() in ("aarch64", "arm64")  # where not every compiler has the other word
    return *at_hand(), *FLAGS, "-mcpu=native" if arm else "-march=native"


def at_hand() -> tuple[str, ...]:
    """The words that call one: those of $CC; cc, gcc or clang; or that of the ziglang package. Raises RuntimeError."""
    asked = shlex.split(os.environ.get("CC", ""))
    for name, *more in [asked] if asked else [["cc"], ["gcc"], ["clang"]]:
        if found := shutil.which(name):
            return found, *more
    if asked:
        raise RuntimeError(f"there is no {asked[0]}, the C compiler that CC names")
    if importlib.util.find_spec("ziglang"):
        return sys.executable, "-m", "ziglang", "cc"
    raise RuntimeError("there is no C compiler (cc); install one, or pip install 'nanollm-jax[native]'")


def compiled(folder: Path, command: tuple[str, ...]) -> Path:
    """The shared library, in a folder that is empty. Raises OSError, RuntimeError, SubprocessError."""
    made = folder / "made.so"
    inputs = [str(path) for path in SOURCES if path.suffix == ".c"]
    found = subprocess.run(
        [*command, f"-I{jax.ffi.include_dir()}", *inputs, "-o", str(made), "-lm"],
        env=os.environ | {"ZIG_GLOBAL_CACHE_DIR": str(folder)},  # zig makes parts of the system's library, and keeps them
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False,
    )  # fmt: skip
    if found.returncode:
        raise RuntimeError(f"{' '.join(at_hand())} failed: {found.stderr.strip()}")
    return made
