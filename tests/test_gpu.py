"""Kernels for GPUs, interpreted on a CPU, against NumPy in float64."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import agree
from test_native import exact

from nanollm_jax.ops import gpu
from nanollm_jax.ops.attention import mix, scores, visible, weights
from nanollm_jax.ops.gpu import flash


def some(B, T, N, K, S, H, own, held=None):
    """A piece behind what rows hold, in bfloat16: of the S slots the last `own` are its own, or it stands among the others."""
    rng = np.random.default_rng(0)  # the same numbers, in whatever order tests are run
    random = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.bfloat16)  # noqa: E731
    most, before = (S - own if own else S - T), S - own
    first = rng.integers(0, (most if held is None else held) + 1, (B, 1))
    at = first + np.arange(T)[None]
    slots = np.arange(before)[None]
    positions = np.where(slots < (first if own else first + T), slots, -1)
    positions = np.concatenate([positions, at], axis=1) if own else positions
    numbers = (np.asarray(x, np.int32) for x in (at, positions, first[:, 0] + T))
    return random(B, T, N, H), random(B, K, S, H), random(B, K, S, H), *numbers


def fused(*arrays, own=0, window=None, scale=None, cap=None):
    return flash.in_spans(*arrays, own=own, window=window, scale=scale, cap=cap, interpret=True)


@pytest.mark.parametrize(
    ("shape", "own", "window", "scale", "cap"),
    [
        ((2, 1, 6, 2, 300, 16), 0, None, None, None),  # several spans, of which a row fills some
        ((1, 3, 4, 1, 90, 32), 0, 20, 0.3, 30.0),  # tokens that were guessed
        ((2, 40, 4, 2, 170, 16), 40, None, None, None),  # a piece behind others, more queries than a tile has
        ((1, 70, 2, 2, 70, 16), 70, 33, None, 5.0),  # a first piece
    ],
)
def test_attention(shape, own, window, scale, cap):
    given = some(*shape, own)
    found = fused(*given, own=own, window=window, scale=scale, cap=cap)
    agree(found, exact(*given, window, scale, cap), 2**-8)  # weights have the eight bits of bfloat16


def test_attention_over_a_ring():
    """Slots hold positions in another order; the oldest is overwritten."""
    q, keys, values, *_ = some(2, 1, 4, 2, 6, 16, 0)
    at, positions = np.array([[8], [2]]), np.array([[6, 7, 8, 3, 4, 5], [0, 1, 2, -1, -1, -1]])
    given = q, keys, values, at.astype(np.int32), positions.astype(np.int32), np.array([6, 3], np.int32)
    agree(fused(*given, window=4), exact(*given, 4, None, None), 2**-8)


@pytest.mark.parametrize(("T", "own"), [(1, 0), (24, 24)])
def test_attention_has_the_same_bits_in_any_company(T, own):
    """Of a row alone, and in a longer cache whose other slots hold anything."""
    q, keys, values, at, positions, filled = some(3, T, 4, 2, 160 + own, 16, own, held=150)
    together = np.asarray(fused(q, keys, values, at, positions, filled, own=own))

    def wide(x, fill):
        return np.concatenate([x[..., :160, :], np.full((1, 2, 200, 16), fill, x.dtype), x[..., 160:, :]], axis=2)

    for b in range(3):
        one = slice(b, b + 1)
        alone = fused(*(x[one] for x in (q, keys, values, at, positions, filled)), own=own)
        np.testing.assert_array_equal(together[one], alone)
        longer = np.concatenate([positions[one, :160], np.full((1, 200), -1, np.int32), positions[one, 160:]], axis=1)
        others = (wide(np.asarray(x[one]), np.nan) for x in (keys, values))
        np.testing.assert_array_equal(
            together[one], fused(q[one], *others, at[one], longer.astype(np.int32), filled[one], own=own)
        )


def test_attention_of_a_row_that_rests():
    """It gives zeros."""
    q, keys, values, at, positions, filled = some(1, 1, 2, 2, 8, 16, 0)
    assert not np.asarray(fused(q, keys, values, at, 0 * positions - 1, 0 * filled)).any()


def test_its_derivative_is_that_of_the_readable_text(monkeypatch):
    monkeypatch.setattr(flash, "in_spans", partial(flash.in_spans, interpret=True))
    q, keys, values, at, positions, filled = some(1, 2, 4, 2, 20, 16, 0)

    def plain(q, keys, values, at, positions, filled):
        return mix(weights(scores(q, keys, visible(at, positions))), values)

    def loss(how, q):
        return jnp.sum(jnp.sin(how(q, keys, values, at, positions, filled)))

    def kernel(*arrays):
        return gpu.attention(*arrays, own=0, window=None, scale=None, cap=None, plain=plain)

    agree(*(how(q, keys, values, at, positions, filled) for how in (kernel, plain)), 2**-8)
    agree(*(jax.grad(loss, argnums=1)(how, q).astype(jnp.float32) for how in (kernel, plain)), 2**-6)


def test_who_takes_it(monkeypatch):
    """16 bits, and head widths that are powers of two, where there is such a GPU."""
    q, keys, *_ = some(1, 1, 2, 2, 8, 16, 0)
    assert not gpu.takes(q, keys)
    monkeypatch.setattr(flash, "wanted", lambda: True)
    assert gpu.takes(q, keys) and not gpu.takes(q, keys.astype(jnp.float32)) and not gpu.takes(q[..., :12], keys)


@pytest.mark.parametrize(("capability", "expected"), [("9.0", True), ("12.0", True), ("7.5", False), ("gfx942", False)])
def test_the_kernels_are_for_gpus_of_one_maker(capability, expected, monkeypatch):
    """The others are called GPUs by JAX too, and have names in place of numbers."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [SimpleNamespace(compute_capability=capability)])
    monkeypatch.delenv("NANOLLM_NATIVE", raising=False)
    assert flash.there.__wrapped__() is expected
