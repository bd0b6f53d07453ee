"""Ready before the first request: programs kept on disk between processes, and programs compiled ahead."""

from __future__ import annotations

import dataclasses
import os
import stat
import time
import zlib
from pathlib import Path

import jax
import numpy as np

from nanollm_jax import buckets
from nanollm_jax.cache import init_cache
from nanollm_jax.checks import check_counts
from nanollm_jax.decode import draw_next, init_state, read_prompts, write_tokens
from nanollm_jax.errors import RequestError
from nanollm_jax.generate import CHUNK, STREAM_CHUNK, roomy
from nanollm_jax.loading import Model
from nanollm_jax.profiling import CompileWatch

DEFAULT = ("nanollm_jax", "compiled")  # below the folder of the user's caches
ZSTD = b"\x28\xb5\x2f\xfd"  # how a zstd frame begins


def keep_compiled(folder: str | os.PathLike[str] | None = None) -> Path:
    """Keep every program that is compiled from now on in a folder, and take it from there next time. Returns the folder.

    None is the folder that the command line uses, nanollm_jax/compiled in $XDG_CACHE_HOME or else in ~/.cache. A folder is
    made if need be, for its owner only (mode 700). What lies in it is executed, so one that belongs to another user or that
    others may write to is a RequestError, as is one that cannot be made. Entries are specific to the versions of jax and to
    the processor; damaged ones are removed.
    """
    name = (
        os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", *DEFAULT) if folder is None else os.fspath(folder)
    )
    try:
        path = Path(name).expanduser()
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = path.stat()
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: nobody's home; ValueError: no name for a file
        raise RequestError(f"compiled programs cannot be kept in {name!r}: {error}.") from None
    owner = os.getuid() if hasattr(os, "getuid") else status.st_uid
    if status.st_uid != owner or (os.name == "posix" and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        raise RequestError(
            f"{path} belongs to another user, or others may write to it (mode {stat.S_IMODE(status.st_mode):o}); programs "
            "from it would be executed: take another folder, or chmod 700."
        )
    try:
        remove_damaged(path)
    except OSError as error:
        raise RequestError(f"compiled programs cannot be kept in {str(path)!r}: {error}.") from None
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
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


def warmup(
    model: Model, *, batch: int = 1, prompt_tokens: int = 128, max_new_tokens: int = 128, chunk: int | None = None
) -> int:
    """Compile ahead every program that requests up to this size need. Returns how many were compiled.

    batch            prompts at a time: any number up to `batch` that rounds up to the same power of two
    prompt_tokens    tokens of the longest prompt, max_new_tokens of the longest answer
    chunk            as in generate; None compiles for generate's own and for stream's
    Afterwards such requests compile nothing, whatever their lengths, sampling settings, seeds and stops. With longrope, two
    things are still compiled when they come up: a prompt longer than a piece, which is read at once all the same, and the
    reading of a text anew where an answer outgrows the original length.
    Raises RequestError for what the model has no positions for.
    """
    config = model.config
    batch, prompt_tokens, max_new_tokens = check_counts(
        batch=batch, prompt_tokens=prompt_tokens, max_new_tokens=max_new_tokens
    )
    chunk = None if chunk is None else check_counts(chunk=chunk)[0]
    if prompt_tokens + max_new_tokens > config.max_positions:
        raise RequestError(
            f"{prompt_tokens} prompt tokens + {max_new_tokens} new tokens are more than the model's "
            f"{config.max_positions} positions; ask for fewer."
        )
    B = buckets.rows(batch, model.dp)
    sampling = model.defaults.sampling.rows(B, config.vocab_size)
    chunks = (CHUNK, STREAM_CHUNK) if chunk is None else (chunk,)
    lengths, capacities = buckets.listed(config.max_positions, B)
    last = min(prompt_tokens + max_new_tokens + max(chunks), config.max_positions)
    longest = max(buckets.pieces(prompt_tokens, B))
    dtype = model.params["embedding"]["tokens"].dtype
    empty = lambda capacity: init_state(init_cache(config, B, capacity, dtype, model.mesh), config)  # noqa: E731
    with CompileWatch() as watch:
        for T in (T for T in lengths if longest >= T):
            tokens, count = np.zeros((B, T), np.int32), np.ones(B, np.int32)
            state = empty(buckets.capacity(T, config.max_positions))
            fresh = dataclasses.replace(state, cache=dataclasses.replace(state.cache, fresh=True))
            read_prompts(model.params, tokens, count, fresh, config=config)
            for S in capacities:  # a later piece stands behind a whole one
                if buckets.longest_piece(B) < S <= buckets.capacity(prompt_tokens, config.max_positions):
                    read_prompts(model.params, tokens, count, empty(S), config=config)
        state, seeds = empty(capacities[0]), np.zeros(B, np.uint32)
        for S in (S for S in capacities if buckets.capacity(last, config.max_positions) >= S):
            state = roomy(state, config, S)
            draw_next(state, sampling, seeds, config=config)
            for steps in chunks:
                *_, state = write_tokens(model.params, state, sampling, seeds, config=config, steps=steps)
        jax.block_until_ready(state)
    return watch.programs
