"""Operations in C against those that XLA computes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import agree
from jax.sharding import PartitionSpec as P

from nanollm_jax.ops import native
from nanollm_jax.ops.dot_product import Seen, dot_product
from nanollm_jax.ops.groupwise_making import groupwise
from nanollm_jax.ops.linear import product
from nanollm_jax.ops.native.compiler import at_hand
from nanollm_jax.ops.native.product import MANY, ROWS

rng = np.random.default_rng(0)
here = pytest.mark.usefixtures("compiled_in_c")
multiplied = pytest.mark.usefixtures("multiplied_in_c")


@pytest.fixture
def multiplied_in_c(compiled_in_c):
    """For tests of products in C, which are XLA's where a processor has no instruction set for them."""
    if not native.library().instructions:
        pytest.skip("XLA is quicker")


def some(B, T, N, K, S, H, longest=None):
    """Rows that hold different numbers of tokens, the last T of each new."""
    random = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    filled = rng.integers(T, (longest or S) + 1, B).astype(np.int32)
    positions = np.where(np.arange(S)[None] < filled[:, None], np.arange(S)[None], -1).astype(np.int32)
    at = (filled[:, None] - T + np.arange(T)[None]).astype(np.int32)
    return random(B, T, N, H), random(B, K, S, H), random(B, K, S, H), at, positions, filled


def exact(q, keys, values, at, positions, filled, window, scale, cap, sinks=None):
    """In float64, a query at a time."""
    q, keys, values = (np.asarray(x, float) for x in (q, keys, values))
    made, group = np.zeros(q.shape), q.shape[2] // keys.shape[1]
    for b, t, n in np.ndindex(q.shape[:3]):
        seen = (positions[b] >= 0) & (positions[b] <= at[b, t]) & (at[b, t] - positions[b] < (window or 10**9))
        found = keys[b, n // group, seen] @ q[b, t, n] * (q.shape[-1] ** -0.5 if scale is None else scale)
        found = np.exp(found if cap is None else cap * np.tanh(found / cap))
        sink = 0 if sinks is None else np.exp(sinks[n])
        made[b, t, n] = found / (found.sum() + sink) @ values[b, n // group, seen]
    return made


def fast(q, keys, values, at, positions, filled, window=None, scale=None, cap=None, sinks=None, scales=None):
    """The operation as a model asks for it."""
    arrays = map(jnp.asarray, (keys, values, positions, filled))
    return jax.jit(
        lambda q, scales, *seen: dot_product(q, Seen(*seen, 0, scales), jnp.asarray(at), window, scale, cap, "x", sinks)
    )(q, scales, *arrays)


def in_8_bits(keys, values):
    """Whole numbers and a scale of each vector; beside them what they stand for."""
    whole = [jnp.asarray(rng.integers(-127, 128, x.shape), jnp.int8) for x in (keys, values)]
    scales = tuple(jnp.asarray(rng.uniform(0.001, 0.02, x.shape[:-1]), jnp.float32) for x in whole)
    return whole, scales, [np.asarray(x, float) * np.asarray(s)[..., None] for x, s in zip(whole, scales, strict=True)]


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
    q, keys, values, *rest = given = some(*shape)
    assert "nanollm_attention" in jax.jit(fast).lower(*given).as_text()
    agree(fast(*given, window, scale, cap), exact(*given, window, scale, cap), 1e-5)
    whole, scales, decoded = in_8_bits(keys, values)
    agree(fast(q, *whole, *rest, window, scale, cap, None, scales), exact(q, *decoded, *rest, window, scale, cap), 1e-5)


@here
def test_attention_where_jax_takes_64_bits():
    """Positions are whole numbers of 64 bits then, and what is made without a dtype is a float of as many."""
    q, keys, values, *where = some(2, 1, 4, 2, 40, 16)
    whole, scales, _ = in_8_bits(keys, values)
    expected = fast(q, keys, values, *where), fast(q, *whole, *where, scales=scales)
    with jax.enable_x64(True):
        wide = [jnp.asarray(x, jnp.int64) for x in where]
        found = fast(q, keys, values, *wide), fast(q, *whole, *wide, scales=scales)
    np.testing.assert_array_equal(found, expected)


@here
def test_attention_with_sinks():
    """Large ones, which nearly all goes to, and small ones; over several blocks, and where a query sees one slot."""
    given = some(2, 3, 8, 2, 600, 24)
    sinks = jnp.linspace(-6, 12, 8)
    for window in (None, 1):
        agree(fast(*given, window, None, None, sinks), exact(*given, window, None, None, np.asarray(sinks)), 1e-5)


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
def test_attention_in_8_bits_has_the_same_bits_in_any_company():
    """Of a row alone, and in a longer cache whose other slots hold anything."""
    q, keys, values, at, positions, filled = some(3, 2, 4, 2, 300, 24, longest=290)
    whole, scales, _ = in_8_bits(keys, values)
    together = fast(q, *whole, at, positions, filled, scales=scales)
    rest = q[1:2], at[1:2], positions[1:2], filled[1:2]
    more = lambda x, by: jnp.pad(x[1:2], ((0, 0), (0, 0), (0, 500), (0, 0))[: x.ndim], constant_values=by)  # noqa: E731
    longer = np.pad(positions[1:2], ((0, 0), (0, 500)), constant_values=-1)
    alone = fast(rest[0], *(x[1:2] for x in whole), *rest[1:], scales=tuple(x[1:2] for x in scales))
    beyond = fast(rest[0], *(more(x, 99) for x in whole), at[1:2], longer, filled[1:2],
                  scales=tuple(more(x, jnp.nan) for x in scales))  # fmt: skip
    np.testing.assert_array_equal(together[1:2], alone)
    np.testing.assert_array_equal(together[1:2], beyond)


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


@here
@pytest.mark.parametrize(("check", "more"), [("native", ()), ("native_attention", ("-march=native",))])
def test_what_is_in_c_against_plain_c(check, more, tmp_path):
    """At the edges of sizes and values: products of every instruction set that this processor has, shared by threads that come
    late; attention over floats and whole numbers."""
    made = tmp_path / "check"
    source = Path(__file__).with_name(f"{check}_check.c")
    inputs = [source, "-I", Path(native.__file__).parent, "-I", jax.ffi.include_dir()]
    command = [*at_hand(), "-std=gnu11", "-O1", *more, *inputs, "-o", made, "-lm", "-lpthread"]
    subprocess.run([str(word) for word in command], check=True)
    run = subprocess.run([str(made)], capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.endswith(", 0 failed\n"), run.stdout


def weights_of(dtype, O, I):  # noqa: E741
    """Random ones, zeros, and the largest and smallest of all."""
    weight = rng.standard_normal((O, I)).astype(np.float32)
    if dtype == "int8":
        return jnp.asarray(rng.integers(-128, 128, (O, I)), jnp.int8).at[0].set(-128).at[1].set(0)
    least = jnp.finfo(dtype).smallest_subnormal
    return jnp.asarray(weight, dtype).at[0, 0].set(least).at[1].set(0).at[2, -1].set(jnp.finfo(dtype).max / 16)


@here
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_product(dtype):
    """Of odd sizes; a row has the same bits alone, and in programs of several rows and threads."""
    for R, O, I in ((1, 3, 1), (5, 7, 31), (16, 301, 1023), (3, 1500, 256)):  # noqa: E741
        x, weight = rng.standard_normal((R, I)).astype(np.float32), weights_of(dtype, O, I)
        found = np.asarray(native.product(jnp.asarray(x), weight))
        exact = x.astype(np.float64) @ np.asarray(weight, np.float64).T
        size = np.abs(x.astype(np.float64)) @ np.abs(np.asarray(weight, np.float64)).T
        # whole numbers: each of x is off by at most half a step of 1/32639 of its row's largest
        steps = np.abs(x).max(1)[:, None] / 65278 * np.abs(np.asarray(weight, np.float64)).sum(1)[None]
        smallest = I * 2.0**-149  # by which each sum may be off where numbers are denormal
        assert (np.abs(found - exact) <= 1e-6 * size + (1.02 * steps if dtype == "int8" else 0) + smallest).all()
        for row in range(R):
            np.testing.assert_array_equal(native.product(jnp.asarray(x[row : row + 1]), weight)[0], found[row])


@multiplied
@pytest.mark.parametrize("bits", [4, 8])
def test_product_in_groups(bits):
    """As test_product, of whole numbers with scales, and offsets, for groups; other sizes of a group are XLA's."""
    for R, O, groups, group, kind, offsets in (  # noqa: E741
        (1, 3, 1, 32, "float32", None), (5, 7, 3, 64, "float16", "float32"), (16, 301, 1, 1024, "bfloat16", "bfloat16"),
        (3, 1500, 8, 32, "float16", None), (2, 9, 5, 96, "float32", "float16"),
    ):  # fmt: skip
        x, numbers = (
            rng.standard_normal((R, groups * group)).astype(np.float32),
            rng.integers(0, 16, (O, groups * group)) - 8,
        )
        scale = jnp.asarray(rng.standard_normal((O, groups)), kind)
        offset = None if offsets is None else jnp.asarray(rng.standard_normal((O, groups)), offsets)
        weight = groupwise(numbers, scale, offset, bits=bits, dtype="float32")
        found = np.asarray(jax.jit(product)(jnp.asarray(x), weight))
        exact, whole = x.astype(np.float64), np.asarray(weight.decoded(), np.float64)
        size = np.abs(exact) @ np.abs(whole).T + (0 if offset is None else np.abs(exact).sum(1, keepdims=True))
        # sums over a group are exact in whole numbers of 1/65278; an offset and a number that is -8 times it may cancel
        steps = (
            np.abs(x).max(1)[:, None] / 65278 * (np.abs(whole).sum(1)[None] + (0 if offset is None else groups * group))
        )
        assert (np.abs(found - exact @ whole.T) <= 2e-6 * size + 1.02 * steps).all()
        for row in range(R):
            np.testing.assert_array_equal(product(jnp.asarray(x[row : row + 1]), weight)[0], found[row])
        like = lambda R, weight=weight, x=x: jax.jit(product).lower(jnp.ones((R, x.shape[1])), weight).as_text()  # noqa: E731
        assert all((f"nanollm_g{bits}" in like(R)) is (R <= MANY) for R in (1, MANY, MANY + 1))
    odd = groupwise(numbers[:, :48], scale[:, :3], bits=bits, dtype="float32")
    assert "nanollm_g" not in jax.jit(product).lower(jnp.ones((1, 48)), odd).as_text()
    small = groupwise(
        numbers, scale.astype(jnp.float8_e4m3fn), bits=bits, dtype="float32"
    )  # scales that C does not know
    agree(jax.jit(product)(jnp.asarray(x), small), exact @ np.asarray(small.decoded(), float).T, 1e-5)


@multiplied
def test_product_in_a_function_that_is_differentiated_mapped_or_split():
    x, weight = jnp.asarray(rng.standard_normal((2, 33)), jnp.float32), weights_of("bfloat16", 8, 33).at[2, -1].set(1)
    slopes = jax.grad(lambda x, w: jnp.sum(jnp.sin(native.product(x, w))), argnums=(0, 1))(x, weight)
    plain = lambda x, w: jnp.sum(jnp.sin(x @ w.astype(jnp.float32).T))  # noqa: E731
    agree(slopes[0], jax.grad(plain)(x, weight), 1e-5)
    agree(slopes[1].astype(jnp.float32), jax.grad(plain, argnums=1)(x, weight).astype(jnp.float32), 1e-2)
    many = jnp.stack([x, 2 * x])
    np.testing.assert_array_equal(jax.vmap(native.product, (0, None))(many, weight)[1], native.product(2 * x, weight))
    mesh = jax.make_mesh((2,), ("tp",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.shard_map(
        lambda x, w: jax.lax.scan(lambda x, _: (x, product(x, w)), x, length=2)[1],
        mesh=mesh, in_specs=(P(), P("tp")), out_specs=P(None, None, "tp"),
    )  # fmt: skip
    np.testing.assert_array_equal(jax.jit(split)(x, weight)[1], native.product(x, weight))


@here
def test_products_within_threads_that_wait_for_each_other():
    """More at a time than the pool has threads, each large enough to be shared: none waits for one that cannot begin."""
    x, weight = jnp.ones((64, 1, 512)), jnp.ones((1024, 512), jnp.bfloat16)
    many = jax.jit(lambda x, w: sum(product(row, w) for row in x))
    made = [many(x + n, weight) for n in range(8)]
    for n, found in enumerate(made):
        np.testing.assert_array_equal(found, np.full((1, 1024), 64 * 512 * (1 + n), np.float32))


@multiplied
def test_each_dtype_has_its_product_in_c():
    """Up to so many rows; beyond, and without C, it is XLA's."""
    weight = jnp.ones((8, 4), jnp.bfloat16)
    for R, portable, expected in ((1, False, True), (ROWS, False, True), (ROWS + 1, False, False), (1, True, False)):
        with native.portable(portable):
            text = jax.jit(product).lower(jnp.ones((R, 4), jnp.bfloat16), weight).as_text()
        assert ("nanollm_bf16" in text) is expected
    for dtype, most in ((jnp.bfloat16, ROWS), (jnp.float16, ROWS), (jnp.int8, MANY)):
        x = [jax.ShapeDtypeStruct((R, 4), jnp.float32) for R in (most, most + 1)]
        assert [native.takes(one, weight.astype(dtype)) for one in x] == [True, False]


@pytest.mark.parametrize(("rows", "inputs"), [(1, 256), (4, 256), (300, 4096)])
def test_without_a_compiler_float16_is_converted_a_block_after_the_other(rows, inputs):
    """Never the whole weight, of which the last block is none that is full; however many rows there are."""
    x, weight = (jnp.asarray(rng.standard_normal((n, inputs)), jnp.float16) for n in (rows, 1100))
    with native.portable(True):
        program = jax.jit(product).lower(x, weight).compile()
    assert "nanollm_f16" not in program.as_text()
    agree(program(x, weight), np.asarray(x, float) @ np.asarray(weight, float).T, 1e-5)
    assert program.memory_analysis().temp_size_in_bytes < 4 * (weight.size / 2 + x.size)


@here
@pytest.mark.skipif(
    not Path("/proc/cpuinfo").exists() or "NANOLLM_NATIVE" in os.environ, reason="another system, or told"
)
def test_products_take_the_best_that_the_processor_has():
    """Whatever compiled them."""
    has = set(Path("/proc/cpuinfo").read_text().split())
    known = {
        "vnni": {"avx512_vnni", "avx512vl", "avx512bw"}, "avx512": {"avx512vl", "avx512bw"},
        "avx2": {"avx2", "fma", "f16c"}, "neon": {"asimd"}, "plain": set(),
    }  # fmt: skip
    best = next(name for name, needed in known.items() if needed <= has)
    assert native.library().instructions == ("" if best == "plain" else best)


@here
def test_without_an_instruction_set_products_are_xlas(monkeypatch):
    """Attention in C is quick without one."""
    x, weight = jnp.ones((1, 64)), jnp.ones((8, 64), jnp.bfloat16)
    assert native.takes(x, weight) is bool(native.library().instructions)
    monkeypatch.setitem(native.wanted.__globals__, "library", lambda: native.Library("made"))
    assert native.wanted() and not native.takes(x, weight)
