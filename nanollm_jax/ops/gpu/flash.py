"""Attention over keys and values in 16 bits in two kernels: one goes through the slots block by block, so that no score is
ever in memory, the other brings together what it found.  Dao et al. 2022, arXiv:2205.14135; the slots of a long text in parts:
Dao et al. 2023, "Flash-Decoding for long-context inference".

In which order a query's sums are taken depends on the slots alone: not on other rows, on the capacity, or on what is unseen.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from nanollm_jax.identity import portable
from nanollm_jax.ops import native
from nanollm_jax.ops.gpu.kernels import Span, bring_together, go_through

TILE = 16, 64  # queries that are multiplied together, at least and at most
LENGTHS = 128, 512, 2048  # of a span: where there are few heads, where there are many, and in a piece of a prompt
MANY = 128  # heads of all rows: about as many as a GPU has processors
HEADS = 16, 32, 64, 128, 256  # H


@cache
def there() -> bool:
    """Is there such a GPU, and may it be used so? Matrix units that multiply bfloat16 came with compute capability 8."""
    if native.switched_off() or jax.default_backend() != "gpu":
        return False
    capability = str(getattr(jax.local_devices()[0], "compute_capability", ""))  # of another maker a name: "gfx942"
    return capability[:1].isdigit() and float(capability) >= 8


def wanted() -> bool:
    """May a program that is traced now ask for it?"""
    return not portable.value and there()


def takes(q: jax.Array, keys: jax.Array) -> bool:
    """Is there a kernel for them?  q [B T N H], keys [B K S H]"""
    return keys.dtype in (jnp.bfloat16, jnp.float16) and q.shape[3] in HEADS and wanted()


def attention(
    q: jax.Array, keys: jax.Array, values: jax.Array, at: jax.Array, positions: jax.Array, filled: jax.Array,
    *, own: int, window: int | None, scale: float | None, cap: float | None, plain: Callable[..., jax.Array],
) -> jax.Array:  # fmt: skip
    """What dot_product gives, but that weights are rounded before they are divided by their sum.

    q [B T N H], keys and values [B K S H], at [B T], positions [B S], filled [B] -> [B T N H] float32. plain is a function of
    the same arrays, which is differentiated in place of this.
    """

    @jax.custom_jvp
    def fused(*arrays: jax.Array) -> jax.Array:
        return in_spans(*arrays, own=own, window=window, scale=scale, cap=cap)

    @fused.defjvp
    def derivative(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        return jax.jvp(plain, primals, tangents)

    return fused(q, keys, values, at, positions, filled)


@partial(jax.jit, static_argnames=("own", "window", "scale", "cap", "interpret"))
def in_spans(
    q: jax.Array, keys: jax.Array, values: jax.Array, at: jax.Array, positions: jax.Array, filled: jax.Array,
    *, own: int, window: int | None, scale: float | None, cap: float | None, interpret: bool = False,
) -> jax.Array:  # fmt: skip
    """attention, kernel by kernel."""
    (B, T, N, H), (K, S) = q.shape, keys.shape[1:3]
    G, before = N // K, S - own
    R = T * G
    tile = min(max(TILE[0], 1 << (R - 1).bit_length()), TILE[1])
    length = LENGTHS[2] if own else LENGTHS[B * K >= MANY]
    span = Span(R, tile, G, before, own, length, window, H**-0.5 if scale is None else scale, cap)
    C = span.spans
    q = q.reshape(B, T, K, G, H).swapaxes(1, 2).reshape(B * K, R, H).astype(keys.dtype)
    keys, values = (x.reshape(B * K, S, H) for x in (keys, values))
    held = jnp.minimum(at[:, 0], before) if own else filled
    call = partial(pl.pallas_call, interpret=interpret)
    made = lambda *shape: jax.ShapeDtypeStruct(  # noqa: E731
        (B * K, *shape), jnp.float32, manual_axis_type=jax.typeof(keys).manual_axis_type
    )
    of_row = lambda *block: pl.BlockSpec((None, *block), lambda h, t, c: (h // K, *(0,) * len(block)))  # noqa: E731
    of_head = pl.BlockSpec((None, S, H), lambda h, t, c: (h, 0, 0))
    of_span = pl.BlockSpec((None, None, tile), lambda h, t, c: (h, c, t))
    found = call(
        partial(go_through, span),
        [made(C, R), made(C, R), made(C, R, H)],
        grid=(B * K, pl.cdiv(R, tile), C),
        in_specs=[
            pl.BlockSpec((None, tile, H), lambda h, t, c: (h, t, 0)), of_head, of_head,
            pl.BlockSpec((None, tile), lambda h, t, c: (h // K, t)), of_row(S), of_row(),
        ],
        out_specs=[of_span, of_span, pl.BlockSpec((None, None, tile, H), lambda h, t, c: (h, c, t, 0))],
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        name="attention_over_spans",
    )(q, keys, values, jnp.repeat(at, G, axis=1), positions, held)  # fmt: skip
    of_query = pl.BlockSpec((None, C, None), lambda h, r: (h, 0, r))
    mixed = call(
        partial(bring_together, C),
        made(R, H),
        grid=(B * K, R),
        in_specs=[of_query, of_query, pl.BlockSpec((None, C, None, H), lambda h, r: (h, 0, r, 0))],
        out_specs=pl.BlockSpec((None, None, H), lambda h, r: (h, r, 0)),
        compiler_params=triton.CompilerParams(num_warps=1, num_stages=1),
        name="attention_together",
    )(*found)
    return mixed.reshape(B, K, T, G, H).swapaxes(1, 2).reshape(B, T, N, H)
