"""Operations in C against those that XLA computes, and the folder that they are kept in."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import agree

from nanollm_jax.errors import RequestError
from nanollm_jax.ops import native
from nanollm_jax.ops.dot_product import Seen, dot_product
from nanollm_jax.startup import own_folder

rng = np.random.default_rng(0)
here = pytest.mark.skipif(not native.library().digest, reason="no C compiler")


def some(B, T, N, K, S, H, longest=None):
    """Rows that hold different numbers of tokens, the last T of each new."""
    random = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    filled = rng.integers(T, (longest or S) + 1, B).astype(np.int32)
    positions = np.where(np.arange(S)[None] < filled[:, None], np.arange(S)[None], -1).astype(np.int32)
    at = (filled[:, None] - T + np.arange(T)[None]).astype(np.int32)
    return random(B, T, N, H), random(B, K, S, H), random(B, K, S, H), at, positions, filled


def exact(q, keys, values, at, positions, filled, window, scale, cap):
    """In float64, a query at a time."""
    q, keys, values = (np.asarray(x, float) for x in (q, keys, values))
    made, group = np.zeros(q.shape), q.shape[2] // keys.shape[1]
    for b, t, n in np.ndindex(q.shape[:3]):
        seen = (positions[b] >= 0) & (positions[b] <= at[b, t]) & (at[b, t] - positions[b] < (window or 10**9))
        found = keys[b, n // group, seen] @ q[b, t, n] * (q.shape[-1] ** -0.5 if scale is None else scale)
        found = np.exp(found if cap is None else cap * np.tanh(found / cap))
        made[b, t, n] = found / found.sum() @ values[b, n // group, seen]
    return made


def fast(q, keys, values, at, positions, filled, window=None, scale=None, cap=None):
    """The operation as a model asks for it."""
    arrays = map(jnp.asarray, (keys, values, positions, filled))
    return jax.jit(lambda q, *seen: dot_product(q, Seen(*seen, 0), jnp.asarray(at), window, scale, cap, "x"))(
        q, *arrays
    )


@here
@pytest.mark.parametrize(
    ("shape", "window", "scale", "cap"),
    [
        ((1, 1, 4, 4, 1, 8), None, None, None),
        ((3, 1, 6, 2, 300, 64), None, None, None),
        ((2, 5, 8, 2, 700, 80), 100, None, 30.0),
        ((2, 3, 4, 1, 257, 37), 7, 0.3, None),
        ((1, 2, 2, 1, 1024, 130), None, None, 5.0),
    ],
)
def test_attention(shape, window, scale, cap):
    """Head sizes that no register divides, blocks that are not full, windows, caps, several queries a head and a row."""
    given = some(*shape)
    assert "nanollm_attention" in jax.jit(fast).lower(*given).as_text()
    agree(fast(*given, window, scale, cap), exact(*given, window, scale, cap), 1e-5)


@here
def test_attention_over_a_ring():
    """Slots hold positions in another order; the oldest is overwritten."""
    q, keys, values, *_ = some(2, 1, 4, 2, 6, 16)
    at, positions = np.array([[8], [2]]), np.array([[6, 7, 8, 3, 4, 5], [0, 1, 2, -1, -1, -1]])
    given = q, keys, values, at.astype(np.int32), positions.astype(np.int32), np.array([6, 3], np.int32)
    agree(fast(*given, window=4), exact(*given, 4, None, None), 1e-5)


@here
@pytest.mark.parametrize("H", [12, 24, 64, 100])
def test_attention_has_the_same_bits_in_any_company(H):
    """Of a row alone, beside others, in a longer cache whose other slots hold anything, and with others of its tokens."""
    q, keys, values, at, positions, filled = some(5, 3, 4, 2, 300, H, longest=290)
    together = np.asarray(fast(q, keys, values, at, positions, filled))
    for b in range(5):
        one = slice(b, b + 1)
        alone = fast(q[one], keys[one], values[one], at[one], positions[one], filled[one])
        np.testing.assert_array_equal(together[one], alone)
        wide = lambda x, one=one: jnp.concatenate([x[one], jnp.full((1, 2, 500, H), jnp.nan)], axis=2)  # noqa: E731
        longer = np.concatenate([positions[one], np.full((1, 500), -1, np.int32)], axis=1)
        np.testing.assert_array_equal(
            together[one], fast(q[one], wide(keys), wide(values), at[one], longer, filled[one])
        )
        # who looks at the last of these slots was not there yet when the first was drawn
        for more in range(1, 8):
            behind = np.where(np.arange(300)[None] < filled[one] + more, np.arange(300)[None], -1).astype(np.int32)
            np.testing.assert_array_equal(
                together[one], fast(q[one], keys[one], values[one], at[one], behind, filled[one] + np.int32(more))
            )
        last = fast(q[one, 2:], keys[one], values[one], at[one, 2:], positions[one], filled[one])
        np.testing.assert_array_equal(together[one, 2:], last)


@here
def test_attention_of_a_row_that_rests():
    """It costs nothing, gives zeros, and what is no number shows where somebody looks at it."""
    q, keys, values, at, positions, filled = some(2, 1, 2, 2, 8, 8)
    mixed = fast(q, keys.at[0].set(jnp.nan), values, at, positions, np.array([filled[0], 0], np.int32))
    assert np.isnan(mixed[0]).all() and not np.asarray(mixed[1]).any()


@here
def test_attention_in_a_function_that_is_differentiated_or_mapped():
    q, keys, values, *rest = some(2, 2, 4, 2, 40, 16)
    seen = tuple(map(jnp.asarray, rest))

    def loss(q, keys, values):
        made = dot_product(q, Seen(keys, values, *seen[1:], 0), seen[0], None, None, None, "x")
        return jnp.sum(made * jnp.cos(jnp.arange(16.0))[None, None, None])

    arrays = tuple(np.asarray(x, np.float64).astype(np.float32) for x in (q, keys, values))
    slopes = jax.grad(loss, argnums=(0, 1, 2))(*arrays)
    for n, (array, slope) in enumerate(zip(arrays, slopes, strict=True)):
        step = 1e-2 * rng.standard_normal(array.shape).astype(np.float32)
        moved = [loss(*(x + sign * step if k == n else x for k, x in enumerate(arrays))) for sign in (1, -1)]
        agree((moved[0] - moved[1]) / 2, np.sum(np.asarray(slope) * step), 1e-2)
    both = jax.vmap(loss, in_axes=(0, None, None))(jnp.stack([q, 2 * q]), keys, values)
    agree(both, [loss(q, keys, values), loss(2 * q, keys, values)], 1e-5)


@here
def test_a_program_that_others_run_has_none():
    """Also where the same function was traced before."""
    given = some(1, 1, 2, 2, 8, 8)
    mine = jax.jit(fast)
    assert "nanollm_attention" in mine.lower(*given).as_text()
    with native.portable(True):
        assert "nanollm_attention" not in mine.lower(*given).as_text()
    assert "nanollm_attention" in mine.lower(*given).as_text()


SAYS = """
import logging, sys
logging.basicConfig(format="%(message)s")
from nanollm_jax.ops import native
found = native.library()
print(not found.digest, found.reason)
"""


def test_where_it_cannot_be_compiled_a_line_says_so(tmp_path):
    """A compiler that fails; switched off, nothing is said; a folder that others may write to is left alone."""
    bad = tmp_path / "cc"
    bad.write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    bad.chmod(0o755)
    shared = tmp_path / "cache" / "nanollm_jax" / "native"
    shared.mkdir(parents=True)
    shared.chmod(0o777)
    cases = [
        ({"CC": str(bad), "XDG_CACHE_HOME": str(tmp_path / "a")}, f"True {bad} failed: broken", True),
        ({"NANOLLM_NATIVE": "0"}, "True NANOLLM_NATIVE=0", False),
        *([({"XDG_CACHE_HOME": str(tmp_path / "cache")}, "False", False)] if native.library().digest else []),
    ]
    for more, reason, said in cases:
        run = subprocess.run(
            [sys.executable, "-c", SAYS], env={**os.environ, **more}, capture_output=True, text=True, check=True
        )
        assert run.stdout.strip() == reason
        assert (run.stderr.count("decoding on a CPU goes without native operations") == 1) is said
    assert not list(shared.iterdir())


def test_own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert own_folder("a", "b") == tmp_path / "a" / "b" and (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="cannot be kept in"):
        own_folder("file", "b")
